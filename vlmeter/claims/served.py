"""Statements about what a server adds to the model that it runs."""

from __future__ import annotations

import math

from vlmeter.analysis import prefill_cells
from vlmeter.analysis.reading import Unknown
from vlmeter.claims.base import Data, Evidence, Finding, cannot_tell, within
from vlmeter.numbers.words import with_interval
from vlmeter.table.quantities import OUTSIDE_SHARE

#: What is outside the model is most of the wait where it is more than this part of it.
MOST_FRACTION = 0.5


def first_token_is_outside(data: Data) -> Finding:
    """More than half of the time to first token is no model: upload, the server's preprocessing, the way back."""
    share = prefill_cells.outside_share(data.cells)
    if isinstance(share, Unknown):
        return cannot_tell(share.reason)
    verdict = within(share, MOST_FRACTION, math.inf)
    start = {
        "holds": "Most of the time to first token is outside the model",
        "does not hold": "Most of the time to first token is inside the model",
        "cannot tell": "Whether more of the time to first token is outside the model or inside cannot be told",
    }
    said = f"{start[verdict]}: outside is {with_interval(share, 'fraction')}."
    return Finding(verdict, said, (Evidence.of(OUTSIDE_SHARE.words, share, "fraction"),))
