"""How a session gets on, and how it went."""

from __future__ import annotations

from dataclasses import dataclass, field

from vlmeter.cells.cell import Cell
from vlmeter.measure.measurement import GETTING_READY
from vlmeter.numbers.medians import Estimate


@dataclass(frozen=True)
class Progress:
    """One step of a session, for whoever shows it."""

    done: int
    total: int
    cell: Cell
    estimate: Estimate | None
    note: str
    elapsed_s: float
    left_s: float | None


@dataclass
class Summary:
    """How a session went."""

    fresh: int = 0
    restored: int = 0
    measured: int = 0
    remeasured: int = 0
    drifted: int = 0
    oom: int = 0
    unsupported: int = 0
    failed: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def sentence(self) -> str:
        """Say it in one line."""
        parts = [f"{self.measured} measured", f"{self.fresh} fresh", f"{self.restored} restored"]
        parts += [f"{self.oom} out of memory"] if self.oom else []
        parts += [f"{self.unsupported} unsupported on this machine"] if self.unsupported else []
        parts += [f"{self.remeasured} measured twice because of drift"] if self.remeasured else []
        parts += [f"{self.drifted} flagged as drifted"] if self.drifted else []
        parts += [f"{len(self.failed)} failed"] if self.failed else []
        return ", ".join(parts)

    def spent(self) -> str:
        """Say what the session's time went into, in one line; empty if nothing was measured."""
        whole_s = self.seconds.get("session", 0.0)
        if not whole_s:
            return ""
        names = {
            "load": "loading",
            "compile": "compiling",
            "capture": "capturing",
            "warmup": "warm-up",
            "rounds": "samples",
            "sentinel": "samples of the sentinel",
            "extras": "busy time, memory and energy",
        }
        seldom = {key for key in GETTING_READY if key not in self.seconds}
        parts = [
            f"{100 * self.seconds.get(key, 0.0) / whole_s:.0f} % {name}"
            for key, name in names.items()
            if key not in seldom
        ]
        sampled_s = sum(self.seconds.get(key, 0.0) for key in ("warmup", "rounds", "sentinel"))
        return f"{whole_s:.0f} s: {', '.join(parts)}; {100 * sampled_s / whole_s:.0f} % in warm-up and samples"
