"""What the format of a picture's file makes of the time to the first token at a server.

The pixels' number, the crops and the tokens are the same whatever the file, so that cells of one image differ in the
bytes that travel, in how long the server decodes them, and in nothing that the model does.
"""

from __future__ import annotations

import pandas as pd

from vlmeter.analysis.prefill_cells import vision_cells
from vlmeter.analysis.reading import of_subject
from vlmeter.table.kinds import OTHERWISE, PREFILL
from vlmeter.table.quantities import PLAIN_WALL

#: What makes cells those of one image.
IMAGE = ("width_px", "height_px", "tiling_h", "tiling_w", "prompt_tokens")

_OF_FILE = ("image_format", "image_quality", "image_bytes")


def sent_files(table: pd.DataFrame, subject: str | None = None) -> pd.DataFrame:
    """One row per image and format of those images that were sent in several; empty where none was.

    Columns: those of `vision_cells`; image_format, image_quality, image_bytes; encoding (in words); image (its number).
    In the order of the images' prompt tokens, then of bytes.
    """
    rows = of_subject(table, subject)
    otherwise = vision_cells(rows[rows["kind"] == OTHERWISE].assign(kind=PREFILL))
    cells = pd.concat([vision_cells(rows), otherwise]) if len(otherwise) else otherwise
    cells = cells.dropna(subset=[PLAIN_WALL.column])
    files = rows.drop_duplicates("cell_id")[["cell_id", *_OF_FILE]]
    cells = cells.merge(files, on="cell_id").dropna(subset=["image_bytes"])
    images = cells.groupby(list(IMAGE), dropna=False)
    cells = cells.assign(image=images.ngroup())[images["cell_id"].transform("count") > 1]
    names = [_in_words(name, quality) for name, quality in zip(*(cells[key] for key in _OF_FILE[:2]), strict=True)]
    return cells.assign(encoding=names).sort_values(["prompt_tokens", "image", "image_bytes"]).reset_index(drop=True)


def _in_words(image_format: str, quality: object) -> str:
    name = image_format.upper()
    return name if pd.isna(quality) else f"{name} of quality {quality}"  # type: ignore[call-overload]
