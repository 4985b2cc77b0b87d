"""Every measured quantity, named once: what it is called, where its rows are in the table, its unit, words and colour.

An arm, a phase and a clock together are where a quantity's rows are, in cells of a kind. They stand here and, as names
that a record is written with, in what measures; whoever reads the table, draws, judges or compares asks for a quantity.
What is made of several rows (a sum of phases, a difference of two arms) has a name and no rows: the analysis makes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from vlmeter.table.kinds import GENERATION, PREFILL, REQUESTS, Kind

#: Colours of the figures' palette by name (`vlmeter.figures.style`).
Colour = Literal["ink", "grey", "blue", "sky", "orange", "purple", "green", "vermilion"]

#: Unit -> how it ends the name of a column.
SUFFIXES: Mapping[str, str] = {"ms": "_ms", "fraction": "_fraction", "times": ""}


class RowKey(NamedTuple):
    """Where a quantity's rows are: how the work was run, what span of it was timed, by which clock."""

    arm: str
    phase: str
    clock: str


#: The phase that is the whole of what an arm runs; every cell that was measured has rows of it.
WHOLE_PHASE = "total"

#: What a clock tells, in a legend.
CLOCKS: Mapping[str, str] = {
    "wall": "wall time",
    "device": "device events",
    "launch": "host launching",
    "busy": "device busy",
}


@dataclass(frozen=True, eq=False)
class Quantity:
    """One quantity.

    name: in code; columns of an analysis frame are `column`, `low` and `high`. label: in a legend, words: where there
    is room for what it is, noun: in a sentence. unit: ms, fraction or times. rows: by kind of cell; empty for what is
    made of others. parts: what it is the sum of.
    """

    name: str
    label: str
    words: str
    noun: str
    unit: str = "ms"
    colour: Colour = "ink"
    rows: Mapping[Kind, RowKey] = field(default_factory=dict)
    parts: tuple[Quantity, ...] = ()

    @property
    def column(self) -> str:
        """Column of its value in a frame of the analysis."""
        return f"{self.name}{SUFFIXES[self.unit]}"

    @property
    def low(self) -> str:
        """Column of the lower end of its interval."""
        return f"{self.name}_low{SUFFIXES[self.unit]}"

    @property
    def high(self) -> str:
        """Column of the upper end of its interval."""
        return f"{self.name}_high{SUFFIXES[self.unit]}"

    @property
    def columns(self) -> tuple[str, str, str]:
        """Columns of its value and of the ends of its interval."""
        return self.column, self.low, self.high

    @property
    def clock(self) -> str:
        """What its clock tells, in a legend."""
        return CLOCKS[next(iter(self.rows.values())).clock]

    def __str__(self) -> str:
        return self.name


#: All quantities by name.
QUANTITIES: dict[str, Quantity] = {}


def _named(
    name: str,
    label: str,
    words: str = "",
    *,
    noun: str = "",
    unit: str = "ms",
    colour: Colour = "ink",
    rows: Mapping[Kind, RowKey] | None = None,
    parts: tuple[Quantity, ...] = (),
) -> Quantity:
    if name in QUANTITIES:
        raise ValueError(f"quantity {name!r} is named twice")
    made = Quantity(name, label, words or label, noun or f"the {label}", unit, colour, rows or {}, parts)
    QUANTITIES[name] = made
    return made


def _in_rounds(arm: str, phase: str, clock: str) -> dict[Kind, RowKey]:
    """Rows of a cell that is measured in rounds."""
    key = RowKey(arm, phase, clock)
    return {PREFILL: key, GENERATION: key}


#: The arm whose passes carry marks, by kind of cell.
MARKED_ARM: Mapping[Kind, str] = {PREFILL: "hooks", GENERATION: "hooks", REQUESTS: "request"}


def _marked(phase: str, *kinds: Kind) -> dict[Kind, RowKey]:
    """Rows of a span between marks."""
    return {kind: RowKey(MARKED_ARM[kind], phase, "device") for kind in kinds or MARKED_ARM}


def _component(name: str, label: str, *, noun: str, colour: Colour) -> Quantity:
    return _named(name, label, noun=noun, colour=colour, rows=_marked(name))


# ---------------------------------------------------------------------------------------------------------------------
# The phases of a pass, between marks

VISION_ENCODER = _component("vision_encoder", "vision encoder", noun="the vision encoder", colour="blue")
PROJECTOR = _component("projector", "projector", noun="the projector", colour="sky")
MERGE = _component("merge", "embedding, merge", noun="embedding and merge", colour="grey")
LLM_BLOCKS = _component("llm_blocks", "LLM blocks", noun="prefill in the LLM blocks", colour="orange")
HEAD = _component("head", "head", noun="the head", colour="purple")

#: Phases of a prefill, in their order (`models.families.base.PREFILL_PHASES`); they share no time.
PHASES = (VISION_ENCODER, PROJECTOR, MERGE, LLM_BLOCKS, HEAD)

UPLOAD = _component("upload", "upload", noun="the upload", colour="green")
SERVER_INPUTS = _component(
    "server_inputs", "server's inputs", noun="the server's preprocessing and queue", colour="vermilion"
)
SERVER = _component("server", "server", noun="the server, of which no more is known", colour="vermilion")
RETURN = _component("return", "return", noun="the way back", colour="ink")

#: What lies around the phases of a prefill on a server, in its order (`backends.endpoint.spans`); SERVER stands for all
#: of it but the upload, phases too, where nothing inside tells more.
AROUND = (UPLOAD, SERVER_INPUTS, SERVER, RETURN)

#: What a client waits for from the first byte that it sends to the first token, in its order.
WAITED = (UPLOAD, SERVER_INPUTS, SERVER, *PHASES, RETURN)

OUTSIDE = _named("outside", "outside the model", "upload, the server's preprocessing and queue, and the way back")
OUTSIDE_SHARE = _named(
    "outside_share", "outside the model", "part of the time to first token that is outside the model", unit="fraction",
    colour="vermilion",
)  # fmt: skip

VISION = _named(
    "vision", "vision", "vision encoder and projector, by hooks", colour="blue", parts=(VISION_ENCODER, PROJECTOR)
)
LANGUAGE = _named(
    "language", "LLM prefill", "everything behind the vision side, by hooks", colour="orange",
    parts=(MERGE, LLM_BLOCKS, HEAD),
)  # fmt: skip
PREFILL_SUM = _named("prefill", "prefill", "prefill, the sum of its phases", colour="vermilion", parts=PHASES)

WAIT = _named(
    "wait", "request to first token", "all that a client waits for between its request and the first token",
    noun="the wait for the first token", colour="vermilion",
)  # fmt: skip

DECODE = _named(
    "decode", "decode", "decode, all steps", noun="decode", colour="green",
    rows=_marked("decode", GENERATION, REQUESTS),
)  # fmt: skip
DECODE_STEP = _named(
    "decode_step", "decode step", "one decode step", colour="blue", rows=_marked("decode_step", GENERATION)
)
DEVICE_DECODE = _named(
    "device_decode", "device's steps", "decode, the steps on the server's device", noun="the device's decode steps",
    colour="blue", rows=_marked("device_decode", GENERATION, REQUESTS),
)  # fmt: skip
SERVED_TOKEN = _named(
    "served_token", "output token", "one output token after the first, as the client sees it", noun="an output token",
    colour="green",
)  # fmt: skip
DEVICE_STEP = _named(
    "device_step", "device's step", "the device's decode step for one output token", noun="the device's step",
    colour="blue",
)  # fmt: skip
BETWEEN_STEPS = _named(
    "between_steps", "between steps", "what an output token takes beside the device's step: scheduling, messages",
    noun="what lies between two steps", colour="grey",
)  # fmt: skip
TOKEN_OVER_STEP = _named(
    "token_over_step", "client over device", "an output token at the client over the device's step, minus 1",
    unit="fraction", colour="vermilion",
)  # fmt: skip
INTER_TOKEN = _named(
    "inter_token", "decode step", "every decode step of every round", colour="green",
    rows=_marked("inter_token", GENERATION),
)  # fmt: skip
LONGEST_STEP = _named(
    "longest_step", "longest step", "the longest of the decode steps", colour="green",
    rows=_marked("longest_step", REQUESTS),
)  # fmt: skip

# ---------------------------------------------------------------------------------------------------------------------
# Whole passes

PLAIN_WALL = _named(
    "plain_wall", "whole prefill", "whole prefill, as a user waits", colour="ink",
    rows=_in_rounds("plain", WHOLE_PHASE, "wall"),
)  # fmt: skip
PLAIN_DEVICE = _named(
    "plain_device", "whole prefill", "whole prefill, between device events", colour="blue",
    rows=_in_rounds("plain", WHOLE_PHASE, "device"),
)  # fmt: skip
PLAIN_LAUNCH = _named(
    "plain_launch", "whole prefill", "whole prefill, host hands over", colour="purple",
    rows=_in_rounds("plain", WHOLE_PHASE, "launch"),
)  # fmt: skip
HOOKS_WALL = _named(
    "hooks_wall", "whole pass with marks", "whole pass with marks, as a user waits",
    rows=_in_rounds("hooks", WHOLE_PHASE, "wall"),
)  # fmt: skip
HOOKS_DEVICE = _named(
    "hooks_device", "whole pass with marks", "whole pass with marks, between device events",
    rows=_in_rounds("hooks", WHOLE_PHASE, "device"),
)  # fmt: skip
WHOLE_REQUEST = _named(
    "whole_request", "whole request", "from the opened picture to the last token, as a user waits",
    rows={REQUESTS: RowKey(MARKED_ARM[REQUESTS], WHOLE_PHASE, "wall")},
)  # fmt: skip
WHOLE_REQUEST_DEVICE = _named(
    "whole_request_device", "whole request", "from the opened picture to the last token, between device events",
    rows={REQUESTS: RowKey(MARKED_ARM[REQUESTS], WHOLE_PHASE, "device")},
)  # fmt: skip

#: Whole passes of a cell that is measured in rounds, on clocks that count all of the work.
WHOLE_PASSES = (PLAIN_WALL, PLAIN_DEVICE, HOOKS_WALL, HOOKS_DEVICE)

BUSY_PREFILL = _named(
    "busy_prefill", "whole prefill", "whole prefill, device busy", colour="green",
    rows={PREFILL: RowKey("busy", "prefill", "busy")},
)  # fmt: skip
BUSY_VISION = _named(
    "busy_vision", "vision", "vision encoder and projector, device busy", colour="green",
    rows={PREFILL: RowKey("busy", "vision", "busy")},
)  # fmt: skip
BUSY_STEP = _named(
    "busy_step", "decode step", "one decode step right behind the prompt, device busy", colour="green",
    rows={GENERATION: RowKey("busy", "decode_step", "busy")},
)  # fmt: skip

# ---------------------------------------------------------------------------------------------------------------------
# Before the pass, and up to the first token

PREPROCESS = _named("preprocess", "preprocessing", colour="grey", rows=_marked("preprocess", REQUESTS))
COPY = _named("copy", "copy", "copy to the device", colour="grey", rows=_marked("copy", REQUESTS))
INPUTS = _named(
    "inputs", "preprocessing and copy", "preprocessing and copy to the device", colour="grey", parts=(PREPROCESS, COPY)
)
INPUTS_WALL = _named(
    "inputs_wall", "preprocessing and copy", colour="grey", rows=_in_rounds("inputs", WHOLE_PHASE, "wall")
)
FIRST_TOKEN = _named(
    "first_token", "time to first token", "time to first token: preprocessing, copy and prefill", colour="vermilion"
)

# ---------------------------------------------------------------------------------------------------------------------
# The vision side by itself, and what is left of a whole without it

VISION_ALONE_WALL = _named(
    "vision_alone_wall", "vision alone", "vision run alone, as a user waits", colour="vermilion",
    rows={PREFILL: RowKey("vision", WHOLE_PHASE, "wall")},
)  # fmt: skip
VISION_ALONE_DEVICE = _named(
    "vision_alone_device", "vision alone", "vision run alone, between device events", colour="purple",
    rows={PREFILL: RowKey("vision", WHOLE_PHASE, "device")},
)  # fmt: skip
KNOWN_PICTURE_WALL = _named(
    "known_picture_wall", "picture known", "a server that knows the picture and not the prompt, as a user waits",
    colour="sky", rows={PREFILL: RowKey("known_picture", WHOLE_PHASE, "wall")},
)  # fmt: skip
KNOWN_PROMPT_WALL = _named(
    "known_prompt_wall", "prompt known", "a server that knows picture and prompt, as a user waits", colour="grey",
    rows={PREFILL: RowKey("known_prompt", WHOLE_PHASE, "wall")},
)  # fmt: skip
PICTURE_WALL = _named(
    "picture_wall", "picture", "new request minus one whose picture the server knows (wall time)",
    noun="making the picture ready for the language model", colour="blue",
)  # fmt: skip
SUBTRACTION_WALL = _named(
    "subtraction_wall", "wall time",
    "whole prefill minus vision run alone (wall time); on a server, picture known minus prompt known",
    colour="vermilion",
)  # fmt: skip
SUBTRACTION_DEVICE = _named(
    "subtraction_device", "device events", "whole prefill minus vision run alone (device events)", colour="purple"
)
METHOD_DIFFERENCE_WALL = _named(
    "method_difference_wall", "wall time", "LLM prefill by hooks minus by subtraction (wall time)", colour="vermilion"
)
METHOD_DIFFERENCE_DEVICE = _named(
    "method_difference_device", "device events", "LLM prefill by hooks minus by subtraction (device events)",
    colour="purple",
)  # fmt: skip

# ---------------------------------------------------------------------------------------------------------------------
# Generations

GENERATED = _named("total", "prefill + decode", "prefill and decode", noun="prefill and decode")
SHARE = _named("share", "prefill share", "prefill over prefill and decode", unit="fraction", colour="vermilion")
OF_DECODE = _named("of_decode", "prefill over decode", unit="fraction", colour="vermilion")

RATIO = _named("ratio", "growth", "decode time at one output length over that at the one before", unit="times")
SLOPE_STEPS = _named("slope_steps", "slope", "slope of decode time over decode steps in log-log", unit="times")
SLOPE_TOKENS = _named("slope_tokens", "slope", "slope of decode time over output tokens in log-log", unit="times")
AGREEMENT = _named("difference", "difference", "derived over direct decode time, minus 1", unit="fraction")

# ---------------------------------------------------------------------------------------------------------------------
# How well the ways of measuring agree, and who sets the pace

CLOSURE = _named("closure", "closure", "sum of all phases over the whole, minus 1; 0 is perfect", unit="fraction")
CLOSURE_WALL = _named("closure_wall", "closure", "sum of phases over the whole's wall time, minus 1", unit="fraction")
OVERHEAD = _named("overhead", "overhead", "wall time with marks over without, minus 1", unit="fraction")
WALL_OVER_BUSY = _named("wall_over_busy", "wall / busy", "wall time over device busy time", unit="times")

# ---------------------------------------------------------------------------------------------------------------------
# Work that is repeated without a pause, for the energy counter

REPEATED_PREFILL = _named(
    "repeated_prefill", "prefill", "one prefill, repeated without a pause",
    rows={REQUESTS: RowKey("repeated", "prefill", "wall")},
)  # fmt: skip
REPEATED_VISION = _named(
    "repeated_vision", "vision", "vision encoder and projector alone, repeated without a pause",
    rows={REQUESTS: RowKey("repeated", "vision", "wall")},
)  # fmt: skip


_BY_KEY = {(kind, key): quantity for quantity in QUANTITIES.values() for kind, key in quantity.rows.items()}


def quantity_at(kind: Kind, key: RowKey) -> Quantity | None:
    """The quantity whose rows these are; None for rows that nobody asks for by name."""
    return _BY_KEY.get((kind, key))


# ---------------------------------------------------------------------------------------------------------------------
# What is compared between two studies


@dataclass(frozen=True)
class Choice:
    """One name for the first of several that both sides have."""

    name: str
    keys: tuple[RowKey, ...]


#: What a cell as a whole takes, best first: without marks, else with; and what it takes of the device alone.
WHOLE_CELL = Choice("total", (PLAIN_WALL.rows[PREFILL], HOOKS_WALL.rows[PREFILL]))
DEVICE_ALONE = Choice("busy", (BUSY_PREFILL.rows[PREFILL], BUSY_STEP.rows[GENERATION]))


def is_busy(key: RowKey) -> bool:
    """Whether only the time counts for which the device works."""
    return key.clock == "busy"


def is_repeat(key: RowKey) -> bool:
    """Whether a row's samples are repeats of one duration.

    Steps at growing context, all steps of all rounds and the first use of a shape are not; one step again and again is.
    """
    return not is_step_by_context(key) and key.phase not in ("first_call", "inter_token")


def is_step_by_context(key: RowKey) -> bool:
    """Whether a row's samples are decode steps one behind the other, at growing context."""
    return key.phase == "decode_step" and not is_busy(key)


def is_of_a_server(key: RowKey) -> bool:
    """Whether only a server has such rows."""
    return key in UPLOAD.rows.values()


def is_another_at_a_server(key: RowKey) -> bool:
    """Whether a row is of one thing where the model runs in the session's own process, and of another at a server.

    Its client encodes the picture where the other preprocesses it, and uploads a request where the other launches work.
    """
    return key.arm == INPUTS_WALL.rows[PREFILL].arm or key.clock == PLAIN_LAUNCH.rows[PREFILL].clock
