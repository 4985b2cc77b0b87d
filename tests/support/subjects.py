"""Tables of a study with several subjects: one fake study, told again as if other models had been measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from vlmeter.table.columns import COLUMNS

#: Family -> (how many times as long everything takes, vision tokens over Molmo's).
MODELS = {
    "molmo": (1.0, 1.0),
    "qwen2_5_vl": (1.9, 1.7),
    "internvl": (0.6, 0.8),
    "llava_onevision": (2.6, 3.2),
    "gemma3": (0.45, 0.3),
    "smolvlm": (0.2, 0.5),
    "qwen3_vl": (1.5, 1.4),
    "pixtral": (3.4, 2.6),
    "mistral3": (4.5, 1.1),
    "idefics3": (0.9, 0.6),
    "llava_next": (2.2, 2.2),
    "molmo2": (1.2, 1.3),
}

_TIMES = [column.name for column in COLUMNS if column.name.endswith("_ms") and column.dtype == "float"]


def as_model(table: pd.DataFrame, subject: str, family: str, *, slower: float, tokens: float) -> pd.DataFrame:
    """The same cells as if another model had run them: so many times as slow, with so many times the vision tokens."""
    found = table.copy()
    found["subject"], found["family"] = subject, family
    found[_TIMES] = found[_TIMES] * slower
    found["samples_ms"] = [None if samples is None else np.asarray(samples) * slower for samples in found["samples_ms"]]
    other = (found["vision_tokens"].astype("float64") * tokens).round().astype("Int64")
    found["prompt_tokens"] = found["prompt_tokens"] - found["vision_tokens"] + other
    found["vision_tokens"] = other
    return found


def unsupported(table: pd.DataFrame, subject: str, family: str, reason: str) -> pd.DataFrame:
    """The same cells as if the machine could not run the model."""
    found = table.drop_duplicates("cell_id").copy()
    cells = ("study", "experiment", "cell_id", "output_tokens", "image_index", "image_id", "width_px", "height_px")
    for column in COLUMNS:
        if column.name not in cells:
            found[column.name] = pd.Series([None] * len(found), index=found.index, dtype=found[column.name].dtype)
    return found.assign(subject=subject, family=family, status="unsupported", reason=reason)


def several(table: pd.DataFrame, families: Sequence[str]) -> pd.DataFrame:
    """Subjects of these families, one each, named like them."""
    parts = [
        as_model(table, f"{name.replace('_', '-')}-nano", name, slower=MODELS[name][0], tokens=MODELS[name][1])
        for name in families
    ]
    return pd.concat(parts, ignore_index=True)
