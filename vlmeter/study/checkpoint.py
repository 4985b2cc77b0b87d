"""A subject's checkpoint, as far as it is on this machine: what speaks against it, and what it says of the subject."""

from __future__ import annotations

from vlmeter.backends.registry import get_backend
from vlmeter.common.errors import UserError
from vlmeter.models.checkpoints import Checkpoint, checkpoint_at_hand
from vlmeter.models.families.registry import check_family, get_family
from vlmeter.models.packing import Packing, chosen_packing, needs_of, packing_of
from vlmeter.study.subject import Subject, subject_spec


def checkpoint_of(subject: Subject) -> Checkpoint | None:
    """A subject's checkpoint, if it has one and that is on this machine.

    Raises UserError for weights that are neither a folder nor a hub id.
    """
    return None if subject.weights == "random" else checkpoint_at_hand(subject.weights, subject.revision)


def check_checkpoint(name: str, subject: Subject) -> None:
    """Refuse a subject that its checkpoint speaks against, as far as that is at hand: family, way of packing.

    Raises UserError that names the subject, the checkpoint and the key.
    """
    try:
        checkpoint = checkpoint_of(subject)
        if checkpoint is None:
            return
        check_family(checkpoint, get_family(subject.family))
        chosen_packing(packing_of(checkpoint), subject_spec(subject), source=checkpoint.source)
    except UserError as error:
        raise UserError(f"subjects.{name}: {error}") from None


def saved_packing_of(subject: Subject) -> Packing | None:
    """How a subject's checkpoint was packed when it was saved; None if it was not, or is not at hand."""
    checkpoint = checkpoint_of(subject)
    return None if checkpoint is None else packing_of(checkpoint)


def missing_libraries(name: str, subject: Subject) -> list[str]:
    """Say which libraries a subject takes that are not installed here, a sentence each.

    A model that another process serves brings its own.
    """
    if not get_backend(subject.backend).in_process:
        return []
    return [f"subjects.{name}: {said}" for said in needs_of(subject_spec(subject), saved_packing_of(subject))]


def as_run(subject: Subject) -> Subject:
    """The subject with what its checkpoint says of it: how its weights are packed, where its backend knows of that."""
    saved = saved_packing_of(subject) if "quantization" in get_backend(subject.backend).takes else None
    return subject if saved is None else subject.model_copy(update={"quantization": saved.name})
