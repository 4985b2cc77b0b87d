"""What a user waits for until the first token, image size by image size."""

from __future__ import annotations

import numpy as np
import pandas as pd

from vlmeter.analysis.prefill_cells import is_served
from vlmeter.table.quantities import FIRST_TOKEN, INPUTS_WALL, PHASES, WAITED, Quantity

#: Parts of the time to first token, in their order: the picture's way into the request or onto the device comes first.
PARTS = (INPUTS_WALL, *WAITED)

_COUNTS = ("width_px", "height_px", "crops", "vision_tokens", "prompt_tokens")


def parts_of(cells: pd.DataFrame) -> tuple[Quantity, ...]:
    """The parts of PARTS that these `vision_cells` have: of a server also what lies around the phases."""
    return PARTS if is_served(cells) else (INPUTS_WALL, *PHASES)


def by_size(cells: pd.DataFrame) -> pd.DataFrame:
    """One row per image size among `vision_cells`, in the order of its pixels; forced tilings are no size's own.

    Columns: counts, pixels, cell_id; FIRST_TOKEN with its interval, and PARTS. A size that was measured with several
    prompts has the shortest.
    """
    fine = cells["width_px"].notna() & cells["height_px"].notna() & cells[FIRST_TOKEN.column].notna()
    own = cells[fine & ~cells["forced_tiling"].fillna(value=False).astype(bool)]
    columns = ["cell_id", *_COUNTS, *FIRST_TOKEN.columns, *(part.column for part in PARTS)]
    frame = own.sort_values("prompt_tokens", kind="stable").drop_duplicates(["width_px", "height_px"])[columns]
    frame = frame.assign(pixels=frame["width_px"].astype(float) * frame["height_px"].astype(float))
    return frame.sort_values(["pixels", "width_px"], kind="stable").reset_index(drop=True)


def spread(sizes: pd.DataFrame, most: int) -> pd.DataFrame:
    """Choose so many rows of `by_size` at most, from the smallest to the largest."""
    if len(sizes) <= most:
        return sizes
    places = np.unique(np.linspace(0, len(sizes) - 1, most).round().astype(int))
    return sizes.iloc[places].reset_index(drop=True)
