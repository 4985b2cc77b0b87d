"""A backend that runs nothing and takes declared times, to rehearse a workflow or a cluster before the real thing.

Everything around a measurement is real - images, plan, session, records, locks - while each phase lasts as long as a
law says, on the host's clock. So a whole study takes seconds, needs neither torch nor a device, and its numbers mean
nothing: its device is called "fake device", in the records and in the report.

A test may plant a fault through the environment variable VLMETER_FAKE_FAULTS: a JSON list of mappings with

- `what`: `oom` (out of memory), `device-lost`, `crash` (the process ends at once, by signal 9), `hang` or `bug` (an
  error of no known kind);
- `image`: the picture at which it happens, such as "336x336"; or `call`: before which pass of the process, from 1; or
  `after`: a pattern of files below the working folder, such as "results/**/*.json", before the first pass that finds
  one of them;
- `once`: a file that is made when the fault happens, and keeps it from happening again. Without it, it does each time.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vlmeter.backends.base import Backend, DeviceLost, Loading, Mark, OpenedRequest, OutOfDeviceMemory, Prompt
from vlmeter.backends.clock import Clock, HostClock
from vlmeter.backends.device import Device
from vlmeter.common.errors import UserError
from vlmeter.models.families.base import Counts, Family, SubjectSpec
from vlmeter.models.families.registry import get_family

if TYPE_CHECKING:
    pass

#: What a record, the table and the report say of numbers that no device has given.
FAKE_MODEL = "fake device"

#: How many devices the fake backend has, for rehearsing a machine with several.
FAKE_DEVICES_VARIABLE = "VLMETER_FAKE_DEVICES"

FAULTS_VARIABLE = "VLMETER_FAKE_FAULTS"

#: Declared times in ms: a constant, per crop, and per token of the prompt. A pass takes about half a millisecond, so
#: that a cell of ten rounds takes some tens of them; the proportions are those of no device.
LAWS: Mapping[str, tuple[float, float, float]] = {
    "preprocess": (0.02, 0.005, 0.0),
    "copy": (0.01, 0.001, 0.0),
    "vision_encoder": (0.05, 0.02, 0.0),
    "projector": (0.01, 0.002, 0.0),
    "merge": (0.01, 0.0, 0.0),
    "llm_blocks": (0.1, 0.0, 0.0002),
    "head": (0.01, 0.0, 0.0),
    "decode_step": (0.05, 0.0, 0.0),
}

#: The phases of a pass in the order in which their marks fire; the merge is in two pieces, as in a real model.
PASS = ("merge", "vision_encoder", "projector", "merge", "llm_blocks", "head")

#: The kernel lets a sleeper sleep on by about so long; the rest of a duration is spent awake.
SLEEP_SLACK_S = 0.0002


def fake_devices(wish: str, own: Mapping[str, Any]) -> tuple[Device, ...]:
    """Devices of the fake backend, which stand for any."""
    count = int(os.environ.get(FAKE_DEVICES_VARIABLE, "1"))
    names = ["fake:cpu"] if wish == "cpu" else [f"fake:{index}" for index in range(count)]
    if wish.startswith("cuda:"):
        names = [name for name in names if name == f"fake:{wish.partition(':')[2]}"]
    if not names:
        raise UserError(f"device: {wish} is not there; {FAKE_DEVICES_VARIABLE} says that {count} fake devices are")
    return tuple(
        Device(name=name, model=FAKE_MODEL, uuid=None, driver=None, memory_bytes=1 << 40, free_bytes=1 << 40)
        for name in names
    )


def load_runner(asked: Loading) -> FakeRunner:
    """Load nothing."""
    family, spec = get_family(asked.family), asked.spec
    faults = [Fault(**fault) for fault in json.loads(os.environ.get(FAULTS_VARIABLE, "[]"))]
    return FakeRunner(family, spec, parameters=family.parameters(spec) or {}, faults=faults)


def declared_ms(phase: str, *, crops: int, tokens: int) -> float:
    """How long a phase takes."""
    fixed, per_crop, per_token = LAWS[phase]
    return fixed + per_crop * crops + per_token * tokens


@dataclass
class Fault:
    """A planted fault; see the module's text."""

    what: Literal["oom", "device-lost", "crash", "hang", "bug"]
    image: str | None = None
    call: int | None = None
    after: str | None = None
    once: str | None = None

    def is_due(self, *, image: str, call: int) -> bool:
        """Whether it happens here."""
        if self.once is not None and Path(self.once).exists():
            return False
        if self.after is not None:
            return any(Path().glob(self.after))
        return image == self.image if self.image is not None else call == self.call

    def happen(self) -> None:
        """Let it happen."""
        if self.once is not None:
            Path(self.once).touch()
        if self.what == "oom":
            raise OutOfDeviceMemory("a planted lack of memory")
        if self.what == "device-lost":
            raise DeviceLost("a planted loss of the device")
        if self.what == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "hang":
            time.sleep(1e6)
        raise RuntimeError("a planted bug")


@dataclass
class FakeRunner:
    """A subject that takes its declared times; see `Runner`."""

    family: Family
    spec: SubjectSpec
    parameters: Mapping[str, int]
    faults: Sequence[Fault] = ()
    clock: Clock = field(default_factory=HostClock)
    _hooked: bool = False
    _image: str = ""
    _calls: int = 0
    _ends_s: float = 0.0

    def _begin(self) -> None:
        """Begin a pass: what is declared counts from now, whatever Python takes in between."""
        self._calls += 1
        for fault in self.faults:
            if fault.is_due(image=self._image, call=self._calls):
                fault.happen()
        self._ends_s = time.perf_counter()

    def _take(self, phase: str, counts: Counts, *, share: float = 1.0) -> None:
        duration_ms = share * declared_ms(phase, crops=counts.crops, tokens=counts.prompt_tokens)
        self._ends_s += duration_ms / 1000
        if (left_s := self._ends_s - time.perf_counter() - SLEEP_SLACK_S) > 0:
            time.sleep(left_s)
        while time.perf_counter() < self._ends_s:
            pass

    def prepare(self, opened: OpenedRequest, *, mark: Mark | None = None) -> Prompt:
        """Count what the family says that a picture becomes."""
        image = opened.picture
        self._image = f"{image.width}x{image.height}"
        found = self.family.geometry(self.spec).image_tokens(image.width, image.height, options=opened.options)
        text = opened.text_tokens or self.family.text_tokens(self.spec, opened.question or "") or 1
        counts = Counts(
            crops=found.crops,
            vision_tokens=found.vision_tokens,
            special_tokens=found.special_tokens,
            text_tokens=text,
            prompt_tokens=found.vision_tokens + found.special_tokens + text,
        )
        self._ends_s = time.perf_counter()
        if mark:
            mark(None)
        for phase in ("preprocess", "copy"):
            self._take(phase, counts)
            if mark:
                mark(phase)
        return Prompt(tensors={}, counts=counts)

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Let a pass place its marks."""
        self._hooked = True
        try:
            yield
        finally:
            self._hooked = False

    def _pass(self, counts: Counts, mark: Mark | None) -> None:
        self._begin()
        place = mark if self._hooked else None
        if place:
            place(None)
        for phase in PASS:
            self._take(phase, counts, share=1 / PASS.count(phase))
            if place:
                place(phase)

    def vision(self, prompt: Prompt) -> object:
        """Take the time of vision encoder and projector."""
        self._begin()
        for phase in ("vision_encoder", "projector"):
            self._take(phase, prompt.counts)
        return None

    def generate(
        self, prompt: Prompt, *, output_tokens: int, stop: Literal["length", "eos"], mark: Mark | None = None
    ) -> Sequence[Any]:
        """Take the time of a generation; it never ends by itself."""
        self._pass(prompt.counts, mark)
        for _ in range(1, output_tokens):
            self._take("decode_step", prompt.counts)
            if mark:
                mark("decode_step")
        return range(output_tokens)


BACKEND = Backend(
    name="fake",
    about="runs nothing and takes declared times, for rehearsals",
    load=load_runner,
    takes=frozenset({"attention", "cpu_threads"}),
    runs_model=False,
    reads_weights=False,
    devices=fake_devices,
)
