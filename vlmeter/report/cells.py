"""Tables of cells: prefill, generations, photographs, what is missing."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from vlmeter.analysis import reading, spread, waits
from vlmeter.numbers.units import duration, percent
from vlmeter.report.grids import Grid, Value, count_value, is_true, measured_value, whole_number, word_value
from vlmeter.table.quantities import (
    BUSY_PREFILL,
    CLOSURE,
    DECODE,
    FIRST_TOKEN,
    LANGUAGE,
    PLAIN_WALL,
    PREFILL_SUM,
    SHARE,
    SUBTRACTION_WALL,
    VISION,
    Quantity,
)


def flags_of(table: pd.DataFrame) -> dict[str, list[str]]:
    """Collect what a reader should know before trusting a cell's numbers, by the cell's name."""
    flags: dict[str, list[str]] = {}
    totals = reading.whole_rows(table)
    for row in totals.to_dict("records"):
        disturbed, rounds = whole_number(row["disturbed_samples"]), whole_number(row["rounds"])
        found = {
            "sentinel drifted": is_true(row["drifted"]),
            "measured a second time because of drift": is_true(row["remeasured"]),
            f"{disturbed} of {rounds} rounds disturbed": disturbed > 0,
            "warm-up not settled": not is_true(row["warmup_settled"]) and not pd.isna(row["warmup_settled"]),
            "ended by the time cap": row["stop_reason"] == "time_cap",
        }
        flags[str(row["cell_id"])] = [name for name, holds in found.items() if holds]
    modes = {one.cell_id: one for one in spread.by_cell(spread.cell_modes(table))}
    for cell, one in modes.items():
        flags.setdefault(cell, []).append(f"two modes of {one.quantity.noun}: {one}")
    for cell, part in spread.wide_cells(table).items():
        wide = [] if cell in modes else [f"rounds scatter widely: the middle half spans {percent(part)} of the median"]
        flags.setdefault(cell, []).extend(wide)
    return flags


#: Heading of who sets the pace of a prefill.
PACE = "who sets the pace"

#: What has two modes in a run, by cell and quantity.
ModesOf = Mapping[tuple[str, Quantity], spread.CellModes]


def modes_of(table: pd.DataFrame) -> ModesOf:
    """Find what has two modes; of several runs the ones that lie farthest apart."""
    found = sorted(spread.cell_modes(table), key=lambda one: one.modes.ratio)
    return {(one.cell_id, one.quantity): one for one in found}


def _measured(row: Any, quantity: Quantity, modes: ModesOf) -> Value:
    """A quantity of a cell with its interval; with two modes both of them, since their median is the time of no run."""
    found = modes.get((str(row["cell_id"]), quantity))
    if found is None or row.get("source") == "derived":  # whose samples are sums of the cell's first steps
        return measured_value(row, quantity)
    return Value(f"{duration(found.modes.low)} or {duration(found.modes.high)}", float(row[quantity.column]))


def _image(row: Any) -> Value:
    """What a dummy image is: its tiling where there is one, and its size."""
    size = "" if pd.isna(row["width_px"]) else f"{row['width_px']} x {row['height_px']} px"
    if pd.isna(row["tiling_h"]):
        return word_value(size)
    forced = ", forced" if is_true(row["forced_tiling"]) else ""
    return Value(
        f"{row['tiling_h']} x {row['tiling_w']} ({size}{forced})",
        float(row["tiling_h"]) * 1000 + float(row["tiling_w"]),
    )


def vision_grid(cells: pd.DataFrame, flags: Mapping[str, list[str]], name: str, *, modes: ModesOf) -> Grid:
    """The table of prefill cells."""
    columns = [
        ("tiling", "rows x columns of crops, and the size of the image")
        if cells["tiling_h"].notna().any()
        else ("image", "width x height in pixels"),
        ("crops", "pieces of the image that the vision encoder sees, the whole image in small among them"),
        ("vision tokens", "prompt tokens that carry the image; counted in the model's input"),
        ("prompt tokens", "all tokens of the prompt; counted in the model's input"),
        (PLAIN_WALL.label, "without marks, as a user waits (wall time)"),
        (BUSY_PREFILL.clock, "device time of the same work with no host in the way"),
        (VISION.label, VISION.words),
        (f"{LANGUAGE.label}, hooks", LANGUAGE.words),
        (f"{LANGUAGE.label}, subtraction", SUBTRACTION_WALL.words),
        (CLOSURE.label, CLOSURE.words),
        (PACE, "launch-bound: the host; device-bound: the device"),
        ("flags", "what a reader should know before trusting the row; empty: nothing"),
    ]
    quantities = (PLAIN_WALL, BUSY_PREFILL, VISION, LANGUAGE, SUBTRACTION_WALL, CLOSURE)
    rows = [
        [
            _image(row),
            *(count_value(row[count]) for count in ("crops", "vision_tokens", "prompt_tokens")),
            *(_measured(row, quantity, modes) for quantity in quantities),
            word_value(row["bound"]),
            word_value("; ".join(flags.get(row["cell_id"], []))),
        ]
        for row in cells.to_dict("records")
    ]
    grid = Grid(f"vision-{name}", "Vision-token cells: median (95 % interval)", columns, rows).where_cut()
    if cells[BUSY_PREFILL.column].isna().all():  # a processor is its own host: neither waits for the other
        grid = grid.without(BUSY_PREFILL.clock).without(PACE)
    return grid


def output_grid(runs: pd.DataFrame, flags: Mapping[str, list[str]], name: str, *, modes: ModesOf) -> Grid:
    """The table of generations."""
    columns = [
        (
            "image",
            "a photograph's place in the dataset, as in the plan, and its id there; else its path, or its size",
        ),
        ("question", "the dataset's id of the question"),
        ("crops", "pieces of the image that the vision encoder sees, the whole image in small among them"),
        ("vision tokens", "prompt tokens that carry the image; counted in the model's input"),
        ("prompt tokens", "all tokens of the prompt; counted in the model's input"),
        ("output tokens", "tokens generated; the first comes out of the prefill"),
        (FIRST_TOKEN.label, "preprocessing, copy to the device and prefill"),
        (PREFILL_SUM.label, "sum of the prefill's phases"),
        (DECODE.label, "all decode steps"),
        (SHARE.label, SHARE.words),
        ("how", "run by itself, or read off the first steps of a longer run of the same image"),
        ("flags", "what a reader should know before trusting the row; empty: nothing"),
    ]
    rows = [
        [
            word_value(photograph(row)),
            word_value(row["question_id"]),
            *(count_value(row[count]) for count in ("crops", "vision_tokens", "prompt_tokens")),
            Value(f"{row['steps'] + 1:,}", float(row["steps"] + 1)),
            *(_measured(row, quantity, modes) for quantity in (FIRST_TOKEN, PREFILL_SUM, DECODE, SHARE)),
            word_value("read off a longer run" if row["source"] == "derived" else "run by itself"),
            word_value("; ".join(flags.get(row["cell_id"], []))),
        ]
        for row in runs.to_dict("records")
    ]
    return Grid(f"output-{name}", "Output-token cells: median (95 % interval)", columns, rows).where_cut()


def photograph(row: Mapping[Hashable, Any], *, of_a_size: bool = True) -> Any:
    """What a plan and a prediction call a photograph, with the dataset's id; another image by its id alone.

    of_a_size: whether an image whose size is in the row is none of the dataset's.
    """
    if pd.isna(row["image_index"]) or (of_a_size and pd.notna(row.get("width_px"))):
        return row["image_id"]
    own = "" if pd.isna(row["image_id"]) else f", id {row['image_id']}"
    return f"photograph {int(row['image_index'])}{own}"


def photograph_grid(table: pd.DataFrame, name: str) -> Grid:
    """The table of photographs, with questions and answers of the dataset."""
    seen = table.dropna(subset=["question"]).drop_duplicates(["image_id", "question_id"]).sort_values("image_index")
    columns = [
        (
            "image",
            "a photograph's place in the dataset, as in the plan, and its id there; else its path, or its size",
        ),
        ("question id", "the dataset's id of the question"),
        ("question", "what the model was asked"),
        ("the dataset's answers", "given by people; none is the model's"),
    ]
    rows = [
        [
            word_value(photograph(row)),
            word_value(row["question_id"]),
            word_value(row["question"]),
            word_value(_answers(row["answers"])),
        ]
        for row in seen.to_dict("records")
    ]
    return Grid(f"photographs-{name}", "Photographs and questions of the dataset", columns, rows)


def _answers(packed: Any) -> str:
    """The dataset's answers, each once, the most frequent first."""
    answers = [] if pd.isna(packed) else [str(answer) for answer in json.loads(packed)]
    counts = {answer: answers.count(answer) for answer in dict.fromkeys(answers)}
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(answer if count == 1 else f"{answer} ({count} times)" for answer, count in ordered)


def left_out_grid(table: pd.DataFrame, name: str) -> Grid:
    """The table of cells that could not be measured, with the reason."""
    words = {"oom": "out of device memory", "unsupported": "not supported"}
    rows = [
        [word_value(row["cell_id"]), word_value(words.get(row["status"], row["status"])), word_value(row["reason"])]
        for row in reading.left_out(table).to_dict("records")
    ]
    columns = [("cell", "its name"), ("what happened", "why it has no samples"), ("reason", "in the words of the run")]
    return Grid(f"left-out-{name}", "Cells without numbers", columns, rows)


def first_token_grid(cells: pd.DataFrame, name: str) -> Grid:
    """The table of times to first token: every image size, and the parts of its wait."""
    sizes, parts = waits.by_size(cells), waits.parts_of(cells)
    shown = [part for part in parts if sizes[part.column].notna().any()]
    columns = [
        ("image", "width x height in pixels"),
        ("vision tokens", "prompt tokens that carry the image; counted in the model's input"),
        (FIRST_TOKEN.label, f"{FIRST_TOKEN.words}; median and its 95 % interval"),
        *((part.label, "median, in ms") for part in shown),
    ]
    rows = [
        [
            Value(f"{int(row['width_px'])} x {int(row['height_px'])}", float(row["pixels"])),
            count_value(row["vision_tokens"]),
            measured_value(row, FIRST_TOKEN),
            *(Value("" if pd.isna(row[p.column]) else duration(row[p.column]), float(row[p.column])) for p in shown),
        ]
        for row in sizes.to_dict("records")
    ]
    return Grid(f"first-token-{name}", "Time to first token by image size", columns, rows)
