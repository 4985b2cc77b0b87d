"""Count the work of a cell: FLOPs and bytes of every phase of its prefill, and of a decode step.

The counting runs the subject's own modules on torch's *meta* device, where a tensor has a shape and no content: a 72 B
model is made in a tenth of a second and passes a prompt in one. Whatever the modules do is counted, at the very
boundaries at which the clock takes its marks, so a new family needs nothing here.

- FLOPs: two per multiply-accumulate of every matrix product (`torch.utils.flop_counter`); norms, activations and other
  element-wise work are not counted, as usual. Attention is counted here instead: torch's counter sees none of it on
  a CPU (a fused kernel without a formula) and twice what is needed under a causal mask, since it counts the half of
  the scores that a fused kernel skips. An `eager` attention computes that half, so there it counts. Grouped products
  (mixtures of experts), for which torch has no formula, have one here.
- Bytes: of every weight that an operator of the phase reads, once, as packed as it is kept; of an embedding the rows
  that it hands out; of stacked experts as many as there are rows to multiply, at most all (for a prompt of more than a
  few tokens all are hit, and a single token chooses distinct ones). Keys and values: what the pass adds to the cache.

A count takes a second, mostly Python's. Since all of it is polynomial in crops and tokens - linear in the crops,
at most quadratic in the tokens - four counts give the law of a subject exactly, in whole numbers; two more have to
agree with it, and if they do not (an architecture with windows, say) every cell is counted by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vlmeter.cells.cell import Cell, Request
from vlmeter.inputs.pictures import Pictures
from vlmeter.measure.count_pass import count_pass
from vlmeter.measure.extend_work import PassWork, extend
from vlmeter.models.families.base import LoadedModel, ModelInputs
from vlmeter.models.families.registry import get_family
from vlmeter.records.work import ShapeWork, StepWork, SubjectWork, Work
from vlmeter.study.subject import Subject, subject_spec


def shapes_of(subject: Subject) -> LoadedModel:
    """Load a subject's model on the meta device: its modules and shapes, none of its weights."""
    return get_family(subject.family).load(subject_spec(subject), device="meta")


Shape = tuple[int, int, int]  # crops, prompt tokens, vision tokens


def count_work(subject_name: str, loaded: LoadedModel, cells: Iterable[Cell], pictures: Pictures) -> SubjectWork:
    """Count the work of a subject's cells.

    Args:
        subject_name: goes into the result.
        loaded: the subject on meta, from `shapes_of`.
        cells: of that subject.
        pictures: as a session has them; opened only where the plan does not know the counts.

    Of many requests each counts, by its shape. # ASSUME: passes with as many crops, vision tokens and prompt tokens
    do the same work.
    """
    known: dict[object, Shape] = {}
    examples: dict[Shape, tuple[Cell, Request]] = {}

    def prepare(cell: Cell, request: Request) -> ModelInputs:
        opened = pictures.opened(cell, request)
        return loaded.prepare(opened.picture, opened.question, text_tokens=opened.text_tokens, options=opened.options)

    def shape_of(cell: Cell, request: Request) -> Shape:
        expected = request.expected
        crops, vision, tokens = expected.crops, expected.vision_tokens, expected.prompt_tokens
        if crops is not None and vision is not None and tokens is not None:
            shape = crops, tokens, vision
        else:
            look = (request.pictures, cell.options, request.text_tokens, pictures.question(request))
            if look not in known:
                counts = prepare(cell, request).counts
                known[look] = (counts.crops, counts.prompt_tokens, counts.vision_tokens)
            shape = known[look]
        examples.setdefault(shape, (cell, request))
        return shape

    of_cells: dict[str, Shape] = {}
    of_requests: set[Shape] = set()
    for cell in cells:
        shapes = [shape_of(cell, request) for request in cell.requests]
        if cell.kind == "requests":
            of_requests.update(shapes)
        else:
            (of_cells[cell.cell_id],) = shapes
    step: StepWork | None = None

    def count(shape: Shape) -> PassWork:
        nonlocal step
        found = count_pass(loaded, prepare(*examples[shape]).tensors, step=step)
        step = found.step
        return found

    full = {shape[:2]: shape for shape in examples}
    if len(full) == len(examples):
        by_law = extend(list(full), lambda pair: count(full[pair]))
        counted = {shape: by_law[shape[:2]] for shape in examples}
    else:  # prompts of one length that differ in their vision tokens: no law of crops and prompt tokens holds
        counted = {shape: count(shape) for shape in examples}

    def work_of(shape: Shape) -> dict[str, Any]:
        crops, prompt_tokens, vision_tokens = shape
        return {
            "crops": crops,
            "vision_tokens": vision_tokens,
            "prompt_tokens": prompt_tokens,
            "prefill": counted[shape].prefill,
            "step": counted[shape].step,
        }

    return SubjectWork(
        subject=subject_name,
        cells=tuple(Work(cell_id=cell_id, **work_of(shape)) for cell_id, shape in of_cells.items()),
        shapes=tuple(ShapeWork(**work_of(shape)) for shape in sorted(of_requests)),
    )
