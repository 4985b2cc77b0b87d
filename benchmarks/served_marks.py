"""What do the marks inside vLLM cost a first token? Many pairs, on the server that `benchmarks.served` has started.

Each pair asks for one token of the same picture (with other low bits) with marks and without, in random order. A call
to the workers stands before either request, so that both are alike but for the marks. Two times are taken of each:
the first token at the client, and the engine's own time from being scheduled, which leaves out the server's inputs
and their noise.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import count

from vlmeter.backends.endpoint.client import Client, Exchange
from vlmeter.backends.endpoint.engine_vllm import call_workers
from vlmeter.numbers.medians import Estimate, median_estimate

#: Where a pair's two requests differ, and the methods of the extension that make it so.
WAYS = {"with": "vlmeter_install_marks", "without": "vlmeter_remove_marks"}

#: Pairs of each picture that are made and thrown away.
WARM_UP_PAIRS = 3

#: The engine's own time of a first token, in an answer's metrics.
ENGINE_TIME = "time_to_first_token_ms"

#: By size and by way: of every round, [first token at the client in ms, the engine's own in ms].
Pairs = dict[str, dict[str, list[list[float]]]]

#: What marks may cost of a first token.
LIMIT_FRACTION = 0.01


def measure_pairs(
    client: Client,
    ask: Callable[[str, int], Exchange],
    sizes: Sequence[str],
    pairs: int,
    *,
    keep: Callable[[Pairs], None],
) -> None:
    """Ask `pairs` times for each size with and without marks.

    ask: (size, number of the picture) -> the exchange of a request for one token. keep: is handed all pairs so far
    after every round of all sizes, so that a run which is cut short has told what it found.
    """
    order = random.Random(1)
    numbers = count()
    found: Pairs = {size: {way: [] for way in WAYS} for size in sizes}
    for number in range(-WARM_UP_PAIRS, pairs):
        for size in sizes:
            for way in order.sample(list(WAYS), len(WAYS)):
                call_workers(client, WAYS[way])
                exchange = ask(size, next(numbers))
                if number >= 0:
                    found[size][way].append(_times(exchange))
                if way == "with":
                    call_workers(client, "vlmeter_take_marks")
        keep(found)
    call_workers(client, WAYS["without"])


def _times(exchange: Exchange) -> list[float]:
    first_ms = exchange.time_to_first_token_ms
    if first_ms is None:
        raise RuntimeError("a request ended without a token")
    said = (exchange.answer.extras.get("metrics") or {}).get(ENGINE_TIME)
    return [first_ms, float(said)] if said is not None else [first_ms]


def as_text(found: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]) -> str:
    """Lay the pairs out as a table in Markdown, with a verdict on the limit."""
    rows, at_client, in_engine = [], [], []
    for size, ways in found.items():
        if not ways["with"]:
            continue
        client = _ratios(ways, 0)
        engine = _ratios(ways, 1) if len(ways["with"][0]) > 1 else []
        at_client += client
        in_engine += engine
        rows.append((size, str(len(client)), _percent(client), _percent(engine), _in_ms(ways, -1)))
    rows.append(("all", str(len(at_client)), _percent(at_client), _percent(in_engine), ""))
    high = median_estimate(in_engine or at_client).high
    verdict = "holds" if high <= LIMIT_FRACTION else "does not hold"
    head = ("picture", "pairs", "first token at the client", "the engine's own, from being scheduled", "the same, ms")
    lines = ["| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows)]
    return (
        f"Cost of the marks of a first token, with / without, medians of pairs; limit {100 * LIMIT_FRACTION:.0f} %: "
        f"{verdict}.\n\n" + "\n".join(lines)
    )


def _ratios(ways: Mapping[str, Sequence[Sequence[float]]], place: int) -> list[float]:
    return [one[place] / other[place] - 1 for one, other in zip(ways["with"], ways["without"], strict=True)]


def _percent(values: Sequence[float]) -> str:
    return _said(median_estimate(values), factor=100.0) + " %" if values else "-"


def _in_ms(ways: Mapping[str, Sequence[Sequence[float]]], place: int) -> str:
    differences = [one[place] - other[place] for one, other in zip(ways["with"], ways["without"], strict=True)]
    return _said(median_estimate(differences), factor=1.0)


def _said(estimate: Estimate, *, factor: float) -> str:
    value, low, high = (factor * one for one in (estimate.value, estimate.low, estimate.high))
    return f"{value:+.2f} ({low:+.2f} to {high:+.2f})"
