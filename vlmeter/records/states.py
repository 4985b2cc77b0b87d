"""Which records of a study still hold, and which cells are to be measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vlmeter.cells.cell import Cell
from vlmeter.common.errors import UserError
from vlmeter.common.files import write_atomically
from vlmeter.inputs.looks import pictures_at_hand
from vlmeter.records.fingerprint import RUN, cell_fingerprint, fingerprint
from vlmeter.records.store import INSTALLED, State, some_of, state_of
from vlmeter.study.layout import Layout, session_name
from vlmeter.study.plan import build_plan
from vlmeter.study.study import Study


def subject_digest(study: Study, subject: str, cells: Sequence[Cell], *, run: int = 0) -> str:
    """Digest of everything that can make a subject's cells of a run stale and is known before they are measured."""
    import hashlib
    import json

    own = [cell for cell in cells if cell.subject == subject]
    prints = {cell.cell_id: fingerprint(cell, study.subjects[subject], run=run) for cell in own}
    for parts in prints.values():
        if not run:
            parts.pop(RUN)  # as it was before there were several
        parts.pop("checkpoint", None)  # known only once it has been fetched; the records' own states tell of a change
    return hashlib.sha256(json.dumps(prints, sort_keys=True).encode()).hexdigest()[:16]


def cell_states(study: Study, layout: Layout, cells: Sequence[Cell] | None = None) -> list[tuple[Cell, State]]:
    """Compare every cell's record of every run with what it would be now, run by run.

    Photographs are compared once they have been fetched. `cells` is the study's plan, for those who have it.
    """
    from vlmeter.inputs.dataset import read_manifest

    cells = build_plan(study) if cells is None else cells
    try:
        manifest = read_manifest(layout.manifest) if study.experiments.on_photographs else None
    except UserError:
        manifest = None
    pictures = pictures_at_hand(layout, manifest)
    found = []
    for cell in cells:
        first = cell_fingerprint(cell, study.subjects[cell.subject], pictures)
        for run in range(study.runs):
            current = {**first, RUN: str(run)}
            state = state_of(layout.record(cell, run=run), current, listings=layout.installed)
            found.append((cell, replace(state, run=run)))
    return sorted(found, key=lambda pair: pair[1].run)


def stale_digests(layout: Layout, states: Sequence[tuple[Cell, State]]) -> dict[str, str]:
    """Say which sessions have records that are there and do not hold, each with a digest of just these files.

    A workflow sees what is missing and what its own runs were given, but neither a damaged record nor one that somebody
    put there.
    """
    import hashlib

    found: dict[str, list[str]] = {}
    for cell, state in states:
        if state.state == "stale":
            written = layout.record(cell, run=state.run).stat().st_mtime_ns  # so that no digest ever comes again
            found.setdefault(session_name(cell.subject, state.run), []).append(f"{cell.cell_id} {written}")
    return {session: hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8] for session, lines in found.items()}


def on_other_code(states: Sequence[tuple[Cell, State]]) -> list[tuple[Cell, State]]:
    """Choose the records that were made by other installed code than there is now."""
    return [(cell, state) for cell, state in states if INSTALLED in state.reasons]


#: So many missing cells of a session are asked for by name.
NAMED_MISSING = 20


def some_missing(states: Sequence[tuple[Cell, State]]) -> list[tuple[Cell, int]]:
    """List the first missing cells of each session, with its run: they are enough to start it."""
    missing: dict[tuple[str, int], list[tuple[Cell, int]]] = {}
    for cell, state in states:
        if state.state == "missing":
            missing.setdefault((cell.subject, state.run), []).append((cell, state.run))
    return [cell for cells in missing.values() for cell in cells[:NAMED_MISSING]]


def seal_records(layout: Layout, subject: str, cells: Sequence[Cell], *, run: int = 0) -> None:
    """Write a digest of a run's records of a subject's cells, for what is made of them: it changes if any does."""
    import hashlib

    digest = hashlib.sha256()
    for cell in cells:
        digest.update(layout.record(cell, run=run).read_bytes())
    write_atomically(
        layout.seal(subject, run=run), f"{digest.hexdigest()}  {len(cells)} records of {subject}\n".encode()
    )


def states_in_words(states: Sequence[tuple[Cell, State]], subject: str, *, run: int = 0) -> str:
    """Say how many cells of a subject are to be measured in a run, and why."""
    own = [state for cell, state in states if cell.subject == subject and state.run == run]
    missing = sum(state.state == "missing" for state in own)
    stale = [state for state in own if state.state == "stale"]
    parts = [f"{missing} missing"] if missing else []
    if stale:
        # a reason that is a sentence is about one file, and is for `vlmeter status`
        reasons = {reason if " " not in reason else "unreadable" for state in stale for reason in state.reasons}
        files = sorted({file for state in stale for file in state.files})
        words = [f"{reason} ({some_of(files)})" if reason == INSTALLED else reason for reason in sorted(reasons)]
        parts.append(f"{len(stale)} stale: {', '.join(words)}")
    return f"{missing + len(stale)} of {len(own)} cells" + (f" ({'; '.join(parts)})" if parts else "")
