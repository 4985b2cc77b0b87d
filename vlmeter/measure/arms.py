"""Arms: ways of running one request, which a round takes in turn.

An arm says which capability of a runner it needs. One that a runner cannot run is left out, and the record says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vlmeter.backends.base import (
    Known,
    MarksPhases,
    OpenedRequest,
    Prompt,
    Runner,
    RunsKnown,
    RunsVisionAlone,
    StampsItself,
)
from vlmeter.backends.clock import Marks, Timing, time_call
from vlmeter.cells.cell import Cell

#: Tokens generated in a warm-up run: enough to run the decode path, whose kernels do not depend on how many steps
#: follow.
WARMUP_OUTPUT_TOKENS = 8


class Bench:
    """One opened request on a runner, ready to be run in any arm; holds the prompt that the arms share."""

    def __init__(self, cell: Cell, opened: OpenedRequest, runner: Runner) -> None:
        self.cell, self.opened, self.runner = cell, opened, runner
        self.output_tokens = cell.request.output_tokens
        self.generated_tokens = 0
        #: what was generated last, until it is taken
        self.tokens: Sequence[object] = ()
        self.prompt: Prompt = runner.prepare(opened)

    def prepare(self, marks: Marks) -> None:
        """Prepare the request anew."""
        self.prompt = self.runner.prepare(self.opened, mark=marks)

    def generate(self, marks: Marks | None) -> object:
        """Run the request to its last token."""
        tokens = self.runner.generate(self.prompt, output_tokens=self.output_tokens, stop=self.cell.stop, mark=marks)
        self.generated_tokens, self.tokens = len(tokens), tokens
        return tokens

    def take_tokens(self) -> Sequence[object]:
        """Let go of what was generated last: at a moment that no clock sees, since it may hold a cache."""
        tokens, self.tokens = self.tokens, ()
        return tokens

    def shortened(self, run: Callable[[], Timing]) -> Timing:
        """Run an arm with few output tokens, for warming up."""
        whole, self.output_tokens = self.output_tokens, min(self.output_tokens, WARMUP_OUTPUT_TOKENS)
        try:
            return run()
        finally:
            self.output_tokens = whole


def _inputs(bench: Bench) -> Timing:
    return time_call(bench.runner.clock, bench.prepare)


def _stamped(bench: Bench, runner: StampsItself, *, marked: bool) -> Timing:
    timing, bench.generated_tokens = runner.run(
        bench.prompt, output_tokens=bench.output_tokens, stop=bench.cell.stop, marked=marked
    )
    return timing


def _plain(bench: Bench) -> Timing:
    if isinstance(bench.runner, StampsItself):
        return _stamped(bench, bench.runner, marked=False)
    return time_call(bench.runner.clock, lambda marks: bench.generate(None))


def _hooks(bench: Bench) -> Timing:
    if isinstance(bench.runner, StampsItself):
        return _stamped(bench, bench.runner, marked=True)
    if not isinstance(bench.runner, MarksPhases):
        return time_call(bench.runner.clock, bench.generate)
    with bench.runner.hooks():
        return time_call(bench.runner.clock, bench.generate)


def _vision(bench: Bench) -> Timing:
    runner = bench.runner
    assert isinstance(runner, RunsVisionAlone)
    return time_call(runner.clock, lambda marks: runner.vision(bench.prompt))


def _known(bench: Bench, known: Known) -> Timing:
    runner = bench.runner
    assert isinstance(runner, RunsKnown)
    return runner.run_known(bench.prompt, output_tokens=bench.output_tokens, stop=bench.cell.stop, known=known)[0]


@dataclass(frozen=True)
class Arm:
    """One way of running a request.

    needs: the capability that a runner must have for it; None: every runner can. whole: whether it runs the request
    from its prompt to its last token, so that its time is what sampling has to know precisely. instead: the arms that
    serve the same method of measuring where a runner cannot run this one.
    """

    name: str
    about: str
    run: Callable[[Bench], Timing]
    needs: type | None = None
    whole: bool = False
    instead: tuple[str, ...] = ()


#: The arms that a round may have, by name. (`request` is no arm of a round: see `vlmeter.measure.requests`.)
ARMS: Mapping[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("inputs", "preprocessing, copy to the device", _inputs),
        Arm("plain", "the whole pass, no mark anywhere", _plain, whole=True),
        Arm("hooks", "the same pass with a mark at every boundary", _hooks, whole=True),
        Arm(
            "vision",
            "vision encoder and projector alone",
            _vision,
            needs=RunsVisionAlone,
            instead=("known_picture", "known_prompt"),
        ),
        Arm(
            "known_picture",
            "the whole pass, with what was made of the picture at hand",
            lambda bench: _known(bench, "picture"),
            needs=RunsKnown,
        ),
        Arm(
            "known_prompt",
            "the whole pass, with what was made of the whole prompt at hand",
            lambda bench: _known(bench, "prompt"),
            needs=RunsKnown,
        ),
    )
}


def arms_for(cell: Cell, runner: Runner) -> tuple[tuple[Arm, ...], dict[str, str]]:
    """The arms of a cell that a runner can run or that stand for one of them, and why the others are left out."""
    able: list[Arm] = []
    left_out = {}
    for name in cell.arms:
        found = [arm for arm in (ARMS[name], *map(ARMS.__getitem__, ARMS[name].instead)) if _can_run(runner, arm)]
        if not found:
            left_out[name] = f"this way of running cannot run it: {ARMS[name].about}"
        able += found[:1] if found[:1] == [ARMS[name]] else found
    return tuple(able), left_out


def _can_run(runner: Runner, arm: Arm) -> bool:
    return arm.needs is None or isinstance(runner, arm.needs)


def whole_arms(arms: Sequence[Arm]) -> tuple[str, ...]:
    """Names of those that run the whole request."""
    return tuple(arm.name for arm in arms if arm.whole)
