"""The plan: every cell of a study, worked out before anything runs.

The plan is a pure function of the study (and of the fetched dataset's manifest, where photographs are concerned), so
that the workflow, the command line and the measuring session all see the same cells.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmeter.backends.registry import BACKENDS, get_backend
from vlmeter.cells.cell import Cell
from vlmeter.common.errors import UserError
from vlmeter.experiments.base import Asked, KnownPhotograph
from vlmeter.models.families.registry import get_family
from vlmeter.study.checkpoint import check_checkpoint
from vlmeter.study.study import Study
from vlmeter.study.subject import own_encoding, subject_spec


def build_plan(
    study: Study, *, subject: str | None = None, dataset: Sequence[KnownPhotograph] | None = None
) -> tuple[Cell, ...]:
    """Work out every cell of the study, subject by subject, in a fixed order.

    With `subject` only its own cells, which spares the others' families (one of them may have to import much to count).
    With `dataset` (the fetched manifest's images) the counts of photograph cells are predicted as well. Raises
    UserError when a count cannot be reached, a size cannot be handled or two cells would be the same, and for a subject
    that its checkpoint speaks against, as far as that is at hand.
    """
    _require_files(study)
    cells: list[Cell] = []
    for name, own in study.subjects.items():
        if subject not in (None, name):
            continue
        check_checkpoint(name, own)
        family, spec, encoding = get_family(own.family), subject_spec(own), own_encoding(own)
        for kind, experiment in study.experiments.given.items():
            asked = Asked(name, family, spec, study.sampling_for(kind), study.dataset.images, dataset, encoding)
            cells += experiment.cells(asked)
    return tuple(cells)


def _require_files(study: Study) -> None:
    """Raise UserError where an experiment asks for formats of files, and no subject is sent any."""
    if any(own_encoding(own) for own in study.subjects.values()):
        return
    for name, experiment in study.experiments.given.items():
        if key := experiment.key_of_files:
            served = ", ".join(name for name in BACKENDS if not get_backend(name).in_process)
            raise UserError(
                f"experiments.{name}.{key}: pictures are files only where they are sent to a server, and each subject "
                f"runs in this process; legal with a subject whose backend is one of: {served}"
            )
