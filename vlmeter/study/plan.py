"""The plan: every cell of a study, worked out before anything runs.

The plan is a pure function of the study (and of the fetched dataset's manifest, where photographs are concerned), so
that the workflow, the command line and the measuring session all see the same cells.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmeter.cells.cell import Cell
from vlmeter.experiments.base import Asked, KnownPhotograph
from vlmeter.models.families.registry import get_family
from vlmeter.study.checkpoint import check_checkpoint
from vlmeter.study.study import Study
from vlmeter.study.subject import subject_spec


def build_plan(
    study: Study, *, subject: str | None = None, dataset: Sequence[KnownPhotograph] | None = None
) -> tuple[Cell, ...]:
    """Work out every cell of the study, subject by subject, in a fixed order.

    With `subject` only its own cells, which spares the others' families (one of them may have to import much to count).
    With `dataset` (the fetched manifest's images) the counts of photograph cells are predicted as well. Raises
    UserError when a count cannot be reached, a size cannot be handled or two cells would be the same, and for a subject
    that its checkpoint speaks against, as far as that is at hand.
    """
    cells: list[Cell] = []
    for name, own in study.subjects.items():
        if subject not in (None, name):
            continue
        check_checkpoint(name, own)
        family, spec = get_family(own.family), subject_spec(own)
        for kind, experiment in study.experiments.given.items():
            asked = Asked(name, family, spec, study.sampling_for(kind), study.dataset.images, dataset)
            cells += experiment.cells(asked)
    return tuple(cells)
