"""What the table says of several subjects side by side.

Subjects may be of unlike families: they cut the same image in other ways, so that neither crops nor tokens can be
compared one to one. What can be is what a user has in hand: the same image, and one more token of output. Everything
here takes the table of a whole study; each number is made by `vlmeter.analysis.prefill_cells` from the rows of one
subject, so that no number of two subjects is ever pooled.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from vlmeter.analysis import decode_runs, prefill_cells, reading, step_times
from vlmeter.analysis.reading import Unknown
from vlmeter.analysis.remembered import remembered
from vlmeter.analysis.waits import PARTS
from vlmeter.numbers.intervals import Array
from vlmeter.numbers.medians import Estimate
from vlmeter.table.quantities import FIRST_TOKEN

#: Images that a figure shows, and rows that all of them have together: more, and it is longer than a page.
MOST_IMAGES, MOST_ROWS = 6, 36

_COLUMNS = (
    "subject",
    "cell_id",
    "image",
    "picture",
    "pixels",
    "crops",
    "vision_tokens",
    "prompt_tokens",
    *FIRST_TOKEN.columns,
)


@remembered
def first_tokens(table: pd.DataFrame) -> pd.DataFrame:
    """Time to first token of every image that any subject measured, one row per subject and image.

    Columns: subject; cell_id; image (in words), picture (dummy or photograph), pixels (of a dummy, else absent); crops,
    vision_tokens and prompt_tokens, counted; FIRST_TOKEN with its interval. Of a dummy image it is the wall time
    of preprocessing, copy and prefill, without marks; of a photograph the prefill is the sum of its phases.
    """
    found: list[dict[str, Any]] = []
    for name in reading.subjects_of(table):
        rows = reading.of_subject(table, name)
        cells = prefill_cells.vision_cells(rows)
        for cell in _records(cells.dropna(subset=[FIRST_TOKEN.column])):
            is_forced = not pd.isna(cell["forced_tiling"]) and bool(cell["forced_tiling"])
            forced = f", {cell['tiling_h']} x {cell['tiling_w']} forced" if is_forced else ""
            image = f"{cell['width_px']} x {cell['height_px']} px{forced}"
            pixels = float(cell["width_px"]) * float(cell["height_px"])
            found.append({**cell, "subject": name, "image": image, "picture": "dummy", "pixels": pixels})
        runs = decode_runs.decode(rows).dropna(subset=[FIRST_TOKEN.column])
        # all runs of a photograph have the same prefill, and the shortest has the most rounds
        for run in _records(runs.drop_duplicates("image_index")):
            image = str(run["picture"])
            found.append({**run, "subject": name, "image": image, "picture": "photograph", "pixels": np.nan})
    frame = pd.DataFrame(found, columns=list(_COLUMNS))
    return frame.drop_duplicates(["subject", "image"]).reset_index(drop=True)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def shared_images(table: pd.DataFrame) -> pd.DataFrame:
    """Choose the rows of `first_tokens` whose image two subjects or more measured.

    Dummy images, whose pixels and prompt are the same for all; photographs where no dummy image is shared.
    """
    frame = first_tokens(table)
    subjects = frame.groupby("image")["subject"].transform("nunique")
    shared = frame[subjects >= 2]
    dummies = shared[shared["picture"] == "dummy"]
    chosen = dummies if len(dummies) else shared
    return chosen.sort_values(["pixels", "image", "subject"]).reset_index(drop=True)


def shown_images(shared: pd.DataFrame) -> list[str]:
    """Choose the images that a figure has room for: those that the most subjects measured, of sizes far apart."""
    order = list(dict.fromkeys(shared["image"]))
    subjects = shared.groupby("image")["subject"].nunique()
    most = max(1, min(MOST_IMAGES, MOST_ROWS // max(1, shared["subject"].nunique())))
    chosen: list[str] = []
    for count in sorted(set(subjects), reverse=True):
        level = [image for image in order if subjects[image] == count]
        room = most - len(chosen)
        if room > 0:
            places = np.unique(np.linspace(0, len(level) - 1, min(room, len(level))).round().astype(int))
            chosen += [level[place] for place in places]
    return [image for image in order if image in chosen]


def parts_of_the_wait(table: pd.DataFrame) -> pd.DataFrame:
    """What the time to first token is made of, for the dummy images that a figure shows; empty without a server.

    Columns: those of `shared_images`, and PARTS.
    """
    cells = {name: prefill_cells.vision_cells(table, name) for name in reading.subjects_of(table)}
    shared = shared_images(table)
    dummies = shared[(shared["picture"] == "dummy") & shared["image"].isin(shown_images(shared))]
    if dummies.empty or not any(prefill_cells.is_served(own) for own in cells.values()):
        return pd.DataFrame()
    columns = ["cell_id", *(part.column for part in PARTS)]
    parts = pd.concat([own[columns].assign(subject=name) for name, own in cells.items()])
    return dummies.merge(parts, on=["subject", "cell_id"], how="left")


@remembered
def steps(table: pd.DataFrame) -> dict[str, tuple[Array, Array]]:
    """Duration of a decode step by context length, per subject that decoded: (contexts, ms), each in that order.

    Steps are gathered into bins as in `analysis.step_law`, over all photographs.
    """
    found = {}
    for name in reading.subjects_of(table):
        runs = list(step_times.decode_steps(table, name).values())
        if not runs:
            continue
        contexts, values = (np.concatenate([run[part] for run in runs]) for part in (0, 1))
        order = np.argsort(contexts, kind="stable")
        parts = np.array_split(order, min(step_times.STEP_BINS, len(np.unique(contexts))))
        found[name] = (
            np.array([contexts[part].mean() for part in parts]),
            np.array([np.median(values[part]) for part in parts]),
        )
    return found


def absent(table: pd.DataFrame, shown: Collection[str]) -> dict[str, str]:
    """Subjects of the table that are not among `shown`, and why they have no numbers."""
    found = {}
    for name in reading.subjects_of(table):
        if name not in shown:
            reasons = reading.left_out(table, name)["reason"].dropna()
            found[name] = str(reasons.mode().iloc[0]) if len(reasons) else "nothing of the kind was measured"
    return found


@dataclass(frozen=True)
class Extremes:
    """The least and the most among subjects, and how many times the least the most is."""

    least: str
    most: str
    times: Estimate


def extremes(estimates: Mapping[str, Estimate | Unknown]) -> Extremes | Unknown:
    """Find who is least and who is most; the interval is as wide as the ends of theirs allow."""
    known = {name: found for name, found in estimates.items() if isinstance(found, Estimate) and found.value > 0}
    if len(known) < 2:
        return Unknown("fewer than two subjects have a number")
    ordered = sorted(known, key=lambda name: known[name].value)
    least, most = known[ordered[0]], known[ordered[-1]]
    low = most.low / least.high
    high = most.high / least.low if least.low > 0 else float("nan")
    return Extremes(ordered[0], ordered[-1], Estimate(most.value / least.value, low, high))


def estimates_of(frame: pd.DataFrame) -> dict[str, Estimate]:
    """Times to first token by subject, of rows of one image."""
    return {str(row["subject"]): reading.estimate_of(row, FIRST_TOKEN) for row in frame.to_dict("records")}
