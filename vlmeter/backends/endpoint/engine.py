"""What vlmeter has to know about a serving engine; each has a file of its own and a line in `engines`.

How it is started so that nothing of a request is answered from a cache, and what it says about itself. An engine's own
times are kept under its own names, each with its definition: two engines' "time to first token" begin at different
moments, and neither is the client's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vlmeter.backends.endpoint.client import Client
from vlmeter.backends.endpoint.metrics import Metrics
from vlmeter.backends.endpoint.stream import Answer
from vlmeter.common.errors import UserError


@dataclass(frozen=True)
class Setup:
    """What a server is to run.

    program: the Python that has the engine, or the engine's own program. checkpoint: folder with configuration,
    tokenizer, processor and, unless `made_up_weights`, weights. options: the study's own, last. caches: whether
    anything of one request may be used for the next. marks: whether phases are to be seen inside. device: "cpu" or
    "cuda".
    """

    program: Path
    checkpoint: Path
    model: str = "model"
    options: tuple[str, ...] = ()
    made_up_weights: bool = False
    caches: bool = False
    marks: bool = False
    device: str = "cuda"
    dtype: str = "bfloat16"


@dataclass(frozen=True)
class Launch:
    """A command that starts a server, and what is added to its environment.

    optional: options without values that only some versions know; a server that refuses one is started without it.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    optional: tuple[str, ...] = ()


@dataclass(frozen=True)
class Said:
    """A time that a server states about one request, under the server's own name."""

    name: str
    value_ms: float
    definition: str


class Engine(Protocol):
    """One serving engine."""

    name: str
    #: features that its requests ask for, by name (`capabilities.FEATURES`)
    wanted: Sequence[str]
    #: whether `cache_salt` in a request parts what is kept of prompts
    salts: bool
    #: its counter of pictures of which it had kept what it had made; None if it does not say
    picture_hits: str | None
    #: paths that are found (200) once it is ready; where the first is unknown (404), the next
    ready_paths: Sequence[str]
    #: a path that costs it next to nothing, to time a round trip
    idle_path: str
    #: where its Prometheus metrics are, if it has any
    metrics_path: str | None
    #: options that spread a model over several cards, each with its spellings; their product is the number of cards
    card_options: Sequence[tuple[str, ...]]

    def launch(self, setup: Setup, port: int) -> Launch:
        """Return the command that serves on a port of the loopback address; raises UserError for what it cannot do."""
        ...

    def model_name(self, setup: Setup) -> str:
        """Return the name by which requests have to call the model."""
        ...

    def version(self, client: Client) -> str | None:
        """Ask for the engine's version; None if it does not say."""
        ...

    def said(self, answer: Answer, before: Metrics | None, after: Metrics | None) -> list[Said]:
        """Collect what it says about one request, in its answer and by its metrics around it."""
        ...

    def busy(self, metrics: Metrics) -> int | None:
        """Count the requests that it runs or lets wait; None if it does not say."""
        ...

    def cache_hits(self, before: Metrics, after: Metrics) -> dict[str, float]:
        """Return by how much each of its counters of cache hits grew; empty if it has none."""
        ...


#: Options that decide who reaches a server and what it is called; vlmeter sets them.
OWN_OPTIONS = ("--host", "--port", "--uds", "--api-key", "--served-model-name", "--alias")

#: The variable by which CUDA shows a process some of the machine's cards.
VISIBLE = "CUDA_VISIBLE_DEVICES"

#: No engine that a session starts looks for anything outside the machine, or reports home.
QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def check_options(options: Sequence[str]) -> None:
    """Raise UserError for options that vlmeter sets itself."""
    for option in options:
        if option.partition("=")[0] in OWN_OPTIONS:
            raise UserError(f"options: {option} is set by vlmeter; a started server listens on loopback alone")


def cards_in(options: Sequence[str], names: Sequence[tuple[str, ...]]) -> int:
    """Count the cards that options ask for; raises UserError for a number that is none."""
    cards = 1
    for spellings in names:
        for place, option in enumerate(options):
            name, equals, text = option.partition("=")
            if name not in spellings:
                continue
            text = text if equals else (options[place + 1] if place + 1 < len(options) else "")
            if not text.isdecimal() or int(text) < 1:
                raise UserError(f"options: {name} wants a number of cards, and {text!r} is none")
            cards *= int(text)
    return cards


def visible_cards(cards: Sequence[int] | None, own: Mapping[str, str]) -> dict[str, str]:
    """Write the variable that shows a server the cards of a session and no others.

    cards: numbers as the session counts them, which sees some of the machine's cards itself (`own`, its environment).
    """
    if cards is None:
        return {}
    seen = [name.strip() for name in own.get(VISIBLE, "").split(",") if name.strip()]
    return {VISIBLE: ",".join(seen[card] if card < len(seen) else str(card) for card in cards)}


def said_in(found: object, prefix: str, definitions: Mapping[str, str], *, factor: float = 1.0) -> list[Said]:
    """Collect those times of an object in an answer that have a definition; `factor` makes milliseconds of them."""
    if not isinstance(found, Mapping):
        return []
    return [
        Said(f"{prefix}{name}", factor * float(found[name]), definition)
        for name, definition in definitions.items()
        if isinstance(found.get(name), int | float)
    ]


def said_between(before: Metrics | None, after: Metrics | None, definitions: Mapping[str, str]) -> list[Said]:
    """Collect what histograms in seconds say about the one request between two readings.

    Only the growth of sum and count is used, since their buckets have a floor. A histogram that counted another number
    of requests than one says nothing.
    """
    if before is None or after is None:
        return []
    found = []
    for name, definition in definitions.items():
        if after.growth(f"{name}_count", since=before) == 1:
            found.append(Said(name, 1000 * after.growth(f"{name}_sum", since=before), definition))
    return found


def total(metrics: Metrics, names: Sequence[str]) -> int | None:
    """Sum gauges; None if there is none of them."""
    known = [metrics.values[name] for name in names if name in metrics.values]
    return round(sum(known)) if known else None


def growth(before: Metrics, after: Metrics, names: Sequence[str]) -> dict[str, float]:
    """Growth of those counters that there are."""
    return {name: after.growth(name, since=before) for name in names if name in after.values}


def version_at(client: Client, path: str, read: Callable[[Any], Any]) -> str | None:
    """Read a version at a path; None if there is none."""
    response = client.call("GET", path)
    if response.status != 200:
        return None
    try:
        return str(read(response.json()))
    except (LookupError, TypeError):
        return None
