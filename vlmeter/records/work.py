"""What each cell asks of a device, as a file: FLOPs and bytes, phase by phase."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from vlmeter.common.errors import UserError
from vlmeter.common.files import write_atomically

WORK_VERSION = 1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PhaseWork(_Part):
    """What one phase of a pass has to do.

    weight_bytes: weights read, each once; cache_bytes: keys and values written (and, when decoding, read).
    """

    phase: str
    flops: int
    weight_bytes: int
    cache_bytes: int = 0

    @property
    def traffic_bytes(self) -> int:
        """Bytes that cross the memory bus at least once; activations are not among them."""
        return self.weight_bytes + self.cache_bytes


class StepWork(_Part):
    """What one decode step has to do, as a function of its context: the tokens attended to, its own included."""

    flops: int
    flops_per_context_token: int
    weight_bytes: int
    cache_bytes_per_token: int

    def at(self, context_tokens: int) -> PhaseWork:
        """Return the work of a step that attends to so many tokens: it reads their keys and values, writes its own."""
        return PhaseWork(
            phase="decode_step",
            flops=self.flops + self.flops_per_context_token * context_tokens,
            weight_bytes=self.weight_bytes,
            cache_bytes=self.cache_bytes_per_token * (context_tokens + 1),
        )


class ShapeWork(_Part):
    """What a pass of one shape has to do: the phases of its prefill in their order, and each of its decode steps."""

    crops: int
    vision_tokens: int
    prompt_tokens: int
    prefill: tuple[PhaseWork, ...]
    step: StepWork

    def decode(self, steps: int) -> list[PhaseWork]:
        """Return the work of the first decode steps; the first of them attends to the prompt and to its own token."""
        return [self.step.at(self.prompt_tokens + number) for number in range(1, steps + 1)]


class Work(ShapeWork):
    """What one cell has to do."""

    cell_id: str


class SubjectWork(_Part):
    """The work of every cell of a subject: the content of a `work.json`.

    The requests of blocks are not listed one by one: `shapes` has the work of every shape among them.
    """

    work_version: int = WORK_VERSION
    subject: str
    cells: tuple[Work, ...]
    shapes: tuple[ShapeWork, ...] = ()


def write_work(path: Path, work: SubjectWork) -> None:
    """Write a subject's work atomically."""
    write_atomically(path, (work.model_dump_json(indent=1) + "\n").encode())


def read_work(path: Path) -> SubjectWork:
    """Read a subject's work; raises UserError on a file that is not one, or is one of another version."""
    try:
        data = json.loads(path.read_bytes())
        if data["work_version"] != WORK_VERSION:
            raise UserError(
                f"{path}: work_version is {data['work_version']!r}, and this vlmeter reads {WORK_VERSION}; delete it"
            )
        return SubjectWork.model_validate(data)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; the workflow makes it") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ValidationError) as error:
        raise UserError(f"{path} is not the work of a subject ({type(error).__name__}); delete it") from None
