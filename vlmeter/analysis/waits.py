"""What a client of a server waits for until the first token, part by part; and the same of plain PyTorch beside it."""

from __future__ import annotations

import pandas as pd

from vlmeter.analysis import prefill_cells, reading
from vlmeter.analysis.subjects import MOST_IMAGES
from vlmeter.numbers.medians import Estimate
from vlmeter.table.quantities import AROUND, INPUTS_WALL, OUTSIDE_SHARE, WAITED

#: Parts of the time to first token, in their order: the picture's way into the request or onto the device comes first.
PARTS = (INPUTS_WALL, *WAITED)


def is_served(cells: pd.DataFrame) -> bool:
    """Whether `vision_cells` are of a server: something lies around the phases."""
    return bool(cells[[quantity.column for quantity in AROUND]].notna().any(axis=None))


def same_images(table: pd.DataFrame) -> pd.DataFrame:
    """Cells of the same made picture in several subjects, one of them served at least.

    Columns: subject, image (in words), and those of `vision_cells`; in the order of the images' sizes, of which no more
    are kept than a figure has room for. Empty where no server was measured beside another subject.
    """
    frames = []
    for name in reading.subjects_of(table):
        cells = prefill_cells.vision_cells(table, name)
        cells = cells[cells["forced_tiling"].isna() | ~cells["forced_tiling"].astype("boolean").fillna(False)]
        sizes = [f"{width} x {height} px" for width, height in zip(cells["width_px"], cells["height_px"], strict=True)]
        frames.append(cells.assign(subject=name, image=sizes, pixels=cells["width_px"] * cells["height_px"]))
    if len(frames) < 2 or not any(is_served(frame) for frame in frames):
        return pd.DataFrame()
    cells = pd.concat([frame.astype(object) for frame in frames], ignore_index=True)
    cells = cells.drop_duplicates(["subject", "image"]).sort_values(["pixels", "image", "subject"])
    shared = cells[cells.groupby("image")["subject"].transform("nunique") >= 2]
    images = list(dict.fromkeys(shared["image"]))
    step = max(1, -(-len(images) // MOST_IMAGES))
    return shared[shared["image"].isin(images[::-1][::step])].reset_index(drop=True)


def outside_share(cells: pd.DataFrame) -> Estimate | reading.Unknown:
    """Part of the time to first token that is outside the model, over `vision_cells` of a server."""
    known = cells.dropna(subset=[OUTSIDE_SHARE.column])
    if known.empty:
        why = "nothing inside the server tells its phases" if is_served(cells) else "no server was measured"
        return reading.Unknown(why)
    return prefill_cells.pooled(known, OUTSIDE_SHARE)
