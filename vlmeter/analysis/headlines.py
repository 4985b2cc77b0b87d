"""The answers that lead a report."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from vlmeter.analysis.by_run import with_runs
from vlmeter.analysis.decode_runs import decode, decode_law, pictures_in_words
from vlmeter.analysis.prefill_cells import outside_share, part_costs, vision_cells
from vlmeter.analysis.reading import Unknown, is_served, median_in, of_subject, scaled
from vlmeter.analysis.step_times import served_token
from vlmeter.numbers.medians import Estimate
from vlmeter.numbers.words import plural, with_interval
from vlmeter.table.quantities import DEVICE_STEP, FIRST_TOKEN, OUTSIDE, OUTSIDE_SHARE


@dataclass(frozen=True)
class Headline:
    """One answer of the first screen."""

    name: str
    question: str
    answer: Estimate | Unknown
    unit: str
    note: str = ""


#: What is in a time to first token, of a model alone and at a server.
_UP_TO_IT = {
    False: "preprocessing, copy and prefill",
    True: "encoding the picture at the client, and the wait from the request to the token",
}


def headlines(table: pd.DataFrame, subject: str | None = None) -> list[Headline]:
    """What one more crop, 1,000 more tokens, one more output token cost; the first token, and how much is no model."""
    rows = of_subject(table, subject)
    cells, runs = vision_cells(rows), decode(rows)
    costs, law = part_costs(cells), decode_law(runs)
    why = f"; {costs.clock.why}" if costs.clock.why else ""
    thousand = costs.token if isinstance(costs.token, Unknown) else scaled(costs.token, 1000)
    answers = [
        Headline("per_crop", "one more crop", costs.crop, "ms", f"{costs.clock.name} of the vision side{why}"),
        Headline(
            "per_1000_tokens",
            "1,000 more vision tokens",
            thousand,
            "ms",
            f"{costs.clock.name} of {costs.token_is_of}{why}",
        ),
        Headline(
            "per_output_token",
            "one more output token",
            law if isinstance(law, Unknown) else law.line["per_token"],
            "ms",
            "" if isinstance(law, Unknown) else f"from {law.shortest_tokens} to {law.longest_tokens} output tokens",
        ),
    ]
    first = runs.drop_duplicates("image_index") if len(runs) else runs
    values = first[FIRST_TOKEN.column].dropna().to_numpy(dtype=np.float64)
    answers.append(
        Headline(
            FIRST_TOKEN.name,
            FIRST_TOKEN.label,
            with_runs(first, lambda own: median_in(own, FIRST_TOKEN))
            if len(values)
            else Unknown("no generation was measured"),
            "ms",
            f"median over {pictures_in_words(first)}; {_UP_TO_IT[is_served(rows)]}" if len(values) else "",
        )
    )
    if not isinstance(token := served_token(rows), Unknown):
        note = (
            f"of {with_interval(token.token, 'ms')} at the client, median over {plural(token.cells, 'generation')}; "
            f"{with_interval(token.between, 'ms')} lie between two steps: scheduling, messages, the way back"
        )
        answers.append(Headline(DEVICE_STEP.name, "of an output token, the device's step", token.step, "ms", note))
    if not isinstance(share := outside_share(cells), Unknown):
        sizes = plural(int(cells[OUTSIDE_SHARE.column].notna().sum()), "image size")
        note = f"of the time to first token, median over {sizes}; {OUTSIDE.words}"
        answers.append(Headline(OUTSIDE.name, OUTSIDE.label, share, "fraction", note))
    return answers
