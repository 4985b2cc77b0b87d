"""Any other vision-language model of transformers, looked over at run time.

A family file says where a model's parts are; here they are looked for: the vision encoder and the decoder by the names
under which transformers' models hand them out, the projector as what lies between the two. Then one small prompt is
run, to see that the parts run when they should. What cannot be told apart is said, in the log and in every record; a
model in which not even vision encoder and decoder blocks are found is refused, with a word on how to write a family.

How a size becomes tokens is found out by asking the model's own processor, which takes milliseconds per size rather
than none, and needs transformers at planning time. Counts are looked for over a fixed grid of sizes.

Weights are a checkpoint's; or random, for a preset that is a checkpoint too, of which the configuration alone is read:
so the latency of any published model can be studied without its weights.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from vlmeter.common.errors import UnsupportedSize, UserError
from vlmeter.models.families.base import Family, ImageOptions, ImageTokens, LoadedModel, SubjectSpec
from vlmeter.models.families.loaded_native import (
    LoadedNative,
    Parts,
    ProcessorFails,
    Template,
    first_line,
    image_token_id,
)
from vlmeter.models.families.native import NativeFamily, as_read, kv_bytes_per_token, made_processor
from vlmeter.models.families.random_weights import random_model
from vlmeter.models.families.registry import instead_of

if TYPE_CHECKING:
    from vlmeter.models.checkpoints import Checkpoint

log = logging.getLogger(__name__)

#: Sides of the sizes that are tried, and the shapes: square, and wider or higher by these.
_SIDES_PX = tuple(range(112, 1345, 112))
_SHAPES = ((1, 1), (2, 1), (1, 2), (3, 1), (1, 3))

#: What lies between vision encoder and decoder goes by these names where it is a part of the encoder.
_PROJECTORS_INSIDE = ("merger", "projector", "connector", "aligner", "projection", "abstractor")

#: Names of the decoder's final norm.
_FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "embedding_norm")

WRITE_A_FAMILY = "CONTRIBUTING.md says how to write a family of its own for it"

#: A size that every model takes, for the first pass.
_FIRST_PX = 336


# --------------------------------------------------------------------------------------------------- geometry


@dataclass(frozen=True)
class GenericGeometry:
    """Crops and tokens by asking the subject's own processor; every size is asked for once."""

    spec: SubjectSpec
    layout_columns: ClassVar[tuple[str, ...]] = ()

    def image_tokens(self, width_px: int, height_px: int, *, options: ImageOptions) -> ImageTokens:
        """Count crops and tokens in what the processor makes of a blank image of this size."""
        _check_options(options)
        return _asked(self.spec, width_px, height_px)

    def candidates(self, *, options: ImageOptions) -> list[tuple[int, int]]:
        """List the sizes of a fixed grid, small ones first."""
        _check_options(options)
        sizes = {(side * w // max(w, h), side * h // max(w, h)) for side in _SIDES_PX for w, h in _SHAPES}
        return sorted(sizes, key=lambda size: (size[0] * size[1], size))

    def tilings(self, *, options: ImageOptions) -> list[tuple[int, int]]:
        """List no tiling: how a model cuts is for a family of its own to know."""
        return []

    def size_for_tiling(self, tiling: tuple[int, int], *, options: ImageOptions) -> ImageTokens:
        """Refuse: how a model cuts is for a family of its own to know."""
        raise UserError(
            "tilings: family generic knows no tilings; legal instead: vision_tokens, reachable, image_sizes"
        )

    def limit(self, *, options: ImageOptions) -> str:
        """Name the grid."""
        return f"the sizes that family generic tries, {_SIDES_PX[0]} to {_SIDES_PX[-1]:,} px"


def _check_options(options: ImageOptions) -> None:
    if options.max_crops is not None or options.force_tiling is not None:
        raise UserError("max_crops, force_tiling: family generic cannot set them; legal instead: image_sizes")


@lru_cache(maxsize=4096)
def _asked(spec: SubjectSpec, width_px: int, height_px: int) -> ImageTokens:
    from PIL import Image

    loaded = _inputs_of(spec)
    try:
        made = loaded.prepare(
            Image.new("RGB", (width_px, height_px), (127, 127, 127)), "the", text_tokens=None, options=ImageOptions()
        )
    except ProcessorFails as error:
        raise UnsupportedSize(f"image size {width_px}x{height_px}: {error}") from error
    counts = made.counts
    return ImageTokens(
        width_px=width_px,
        height_px=height_px,
        crops=counts.crops,
        vision_tokens=counts.vision_tokens,
        special_tokens=counts.special_tokens,
    )


@lru_cache(maxsize=8)
def _inputs_of(spec: SubjectSpec) -> LoadedGeneric:
    """The subject's shapes with its processor: all that inputs need."""
    loaded = FAMILY.load(spec, device="meta")
    assert isinstance(loaded, LoadedGeneric)
    return loaded


# ----------------------------------------------------------------------------------------------------- family


class GenericFamily(NativeFamily):
    """Models without a family of their own."""

    name = "generic"
    model_types = ()
    takes_any_checkpoint = True
    runs_remote_code = True
    template = Template(text="USER: {image}\n{question} ASSISTANT:", image="<image>")

    def reads(self, config: Mapping[str, Any]) -> bool:
        """No checkpoint is its own: it may read any."""
        return False

    def other_format(self, config: Mapping[str, Any]) -> str | None:
        """Name a LLaVA 1.5 in transformers' format, for one in that of its makers."""
        if "mm_vision_tower" not in config:
            return None
        return (
            "that is the format of LLaVA's makers, and vlmeter reads transformers' own: take the checkpoint whose name "
            "ends in -hf, such as llava-hf/llava-1.5-7b-hf"
        )

    def geometry(self, spec: SubjectSpec) -> GenericGeometry:
        """Return the way of cutting of the subject's own processor."""
        return GenericGeometry(spec)

    def text_tokens(self, spec: SubjectSpec, question: str) -> int | None:
        """Count the text tokens of a prompt of the toy; None for a published model, whose template has to be run."""
        return super().text_tokens(spec, question) if spec.preset in self.scales else None

    def parameters(self, spec: SubjectSpec) -> dict[str, int] | None:
        """Return the parameters of the toy; None for a published model."""
        return super().parameters(spec) if spec.preset in self.scales else None

    def kv_bytes_per_token(self, spec: SubjectSpec) -> int | None:
        """Return the bytes of key-value cache of one token, as config.json tells; None if it does not."""
        if spec.weights == "random" and spec.preset in self.scales:
            return super().kv_bytes_per_token(spec)
        return kv_bytes_per_token(_configuration(spec).config, dtype=spec.dtype)

    def load(self, spec: SubjectSpec, *, device: str) -> LoadedModel:
        """Load the model, find its parts and run a first prompt; raises UserError where it cannot be taken apart."""
        from vlmeter.models.pretrained import load_pretrained, load_processor, open_for_loading, read_config

        trusted = spec.trust_remote_code
        template = None
        if spec.weights == "random" and spec.preset in self.scales:
            scale, source, template = self.scale(spec), f"preset {spec.preset}", self.template
            processor: Any = made_processor(scale)
            model = random_model(
                scale.config, device=device, dtype=spec.dtype, attention=spec.attention, seed=spec.seed
            )
        elif spec.weights == "random":
            checkpoint = _configuration(spec)
            source = checkpoint.source
            processor = load_processor(checkpoint)
            model = random_model(
                read_config(checkpoint, spec),
                device=device,
                dtype=spec.dtype,
                attention=spec.attention,
                seed=spec.seed,
            )
        else:
            checkpoint = open_for_loading(spec, device=device, check=lambda found: _check(found, spec))
            source = checkpoint.source
            processor = load_processor(checkpoint, trust_remote_code=trusted)
            model = load_pretrained(checkpoint, spec, device=device)
        loaded = LoadedGeneric(source=source, model=model, processor=processor, template=template)
        if spec.weights != "random":
            as_read(loaded, checkpoint)
        for note in loaded.notes:
            log.warning("%s: %s", source, note)
        return loaded


def _check(checkpoint: Checkpoint, spec: SubjectSpec) -> None:
    """Refuse a checkpoint that transformers does not know, with a word on what to take instead."""
    from vlmeter.models.pretrained import read_config

    if instead := instead_of(checkpoint.config):
        raise UserError(f"{checkpoint.source}: {instead}")
    read_config(checkpoint, spec)


def _configuration(spec: SubjectSpec) -> Checkpoint:
    """The checkpoint that tells a subject's architecture."""
    from vlmeter.models.checkpoints import open_checkpoint

    source = spec.preset if spec.weights == "random" else spec.weights
    if source is None:
        raise UserError("preset: missing; random weights of family generic need nano, a folder or a hub id")
    return open_checkpoint(source, revision=spec.revision, weights=False, code=spec.trust_remote_code)


class LoadedGeneric(LoadedNative):
    """A model whose parts were found; `notes` say which phases could not be told apart."""

    def __init__(self, *, source: str, model: Any, processor: Any, template: Template | None = None) -> None:
        self.source = source
        parts = find_parts(model, source=source)
        if getattr(processor, "tokenizer", None) is None or getattr(processor, "image_processor", None) is None:
            raise UserError(f"{source}: its processor has no tokenizer or no image processor; {WRITE_A_FAMILY}")
        template = template or _template(model, processor)
        super().__init__(model=model, processor=processor, parts=parts, template=template)
        if not hasattr(model.base_model, "get_image_features"):
            raise UserError(
                f"{source}: its vision encoder cannot be run alone (no get_image_features); {WRITE_A_FAMILY}"
            )
        self._special = self._special_ids()
        self.notes: Sequence[str] = self._first_pass(source)

    def _image_ids(self) -> set[int]:
        return getattr(self, "_special", set()) or super()._image_ids()

    def _special_ids(self) -> set[int]:
        """Special tokens that a chat template writes because of an image: those that are gone without it."""
        if not getattr(self.processor, "chat_template", None):
            return super()._image_ids()
        without = self.processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "text", "text": "the"}]}], tokenize=False, add_generation_prompt=True
        )
        found, rest = (
            Counter(self.tokenizer(prompt, **self._begins(prompt))["input_ids"])
            for prompt in (self.render("the"), without)
        )
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        return {self._image_token_id} | {number for number in found - rest if number in special and number not in rest}

    def _first_pass(self, source: str) -> list[str]:
        """Run one prompt, see which parts run when, and drop the projectors that do not run between the two others."""
        import torch
        from PIL import Image

        blank = Image.new("RGB", (_FIRST_PX, _FIRST_PX), (127, 127, 127))
        try:
            tensors = dict(self.prepare(blank, "the", text_tokens=None, options=ImageOptions()).tensors)
            if not self._on_meta:
                tensors = {name: tensor.to(self.model.device) for name, tensor in tensors.items()}
            with self._watching() as runs, torch.inference_mode():
                self.prefill(tensors)
        except UserError:
            raise
        except Exception as error:  # whatever its code asks for that nobody here knows of
            raise UserError(f"{source}: a first prompt fails ({first_line(error)}); {WRITE_A_FAMILY}") from error
        if not (runs["vision_encoder"] and runs["first_block"] and runs["last_block"]):
            silent = next(name for name, times in runs.items() if not times and not name.startswith("projector"))
            raise UserError(f"{source}: its {silent.replace('_', ' ')} does not run as a module; {WRITE_A_FAMILY}")
        begin, first_block = runs["vision_encoder"][0], runs["first_block"][0]
        if not begin < first_block:
            raise UserError(f"{source}: its vision encoder runs inside the decoder; {WRITE_A_FAMILY}")
        kept = []
        for number, part in enumerate(self._module["projector"]):
            times = runs[f"projector {number}"]
            if times and all(begin < time < first_block for time in times):
                kept.append(part)
        self._module["projector"] = kept
        if kept:
            return []
        return [
            "projector: no module between vision encoder and decoder was found, so projecting counts to vision_encoder "
            "where it happens inside it and to merge elsewhere"
        ]

    @contextmanager
    def _watching(self) -> Iterator[dict[str, list[int]]]:
        """Note in which order the parts end."""
        watched = {
            "vision_encoder": self._module["vision_encoder"][0],
            **{f"projector {number}": part for number, part in enumerate(self._module["projector"])},
            "first_block": self._module["llm_blocks"][0],
            "last_block": self._module["llm_blocks"][-1],
        }
        runs: dict[str, list[int]] = {name: [] for name in watched}
        count = 0

        def noting(name: str) -> Any:
            def note(*_: object) -> None:
                nonlocal count
                count += 1
                runs[name].append(count)

            return note

        handles = [
            # the vision encoder's beginning, since a projector may lie inside it
            module.register_forward_pre_hook(noting(name))
            if name in ("vision_encoder", "first_block")
            else module.register_forward_hook(noting(name))
            for name, module in watched.items()
        ]
        try:
            yield runs
        finally:
            for handle in handles:
                handle.remove()


def _template(model: Any, processor: Any) -> Template:
    """A plain prompt, for a processor without a chat template: the image's placeholder, then the question."""
    token = getattr(processor, "image_token", None)
    if not isinstance(token, str):
        token = processor.tokenizer.convert_ids_to_tokens(image_token_id(model, processor))
    return Template(text="{image}\n{question}\n", image=token)


# ------------------------------------------------------------------------------------------------------ parts


def find_parts(model: Any, *, source: str) -> Parts:
    """Find a model's parts by what transformers' models have in common; raises UserError where they are not found."""
    paths = {id(module): path for path, module in model.named_modules() if path}
    vision = _vision_encoder(model)
    if vision is None or id(vision) not in paths:
        raise UserError(f"{source}: no vision encoder was found in {type(model).__name__}; {WRITE_A_FAMILY}")
    decoder = model.get_decoder()
    blocks = _blocks(decoder)
    if blocks is None or id(decoder) == id(model):
        raise UserError(f"{source}: no decoder blocks were found in {type(model).__name__}; {WRITE_A_FAMILY}")
    if any(module is vision for module in decoder.modules()):
        raise UserError(
            f"{source}: vision encoder and decoder of {type(model).__name__} lie within each other; {WRITE_A_FAMILY}"
        )
    owner = paths[id(blocks)].rpartition(".")[0]
    norm = next((name for name in _FINAL_NORMS if hasattr(model.get_submodule(owner), name)), None)
    head = model.get_output_embeddings()
    return Parts(
        vision_encoder=paths[id(vision)],
        projector=tuple(_projectors(model, paths, vision, decoder, head)),
        blocks=paths[id(blocks)],
        norm=f"{owner}.{norm}" if norm else "",
        head=paths.get(id(head), ""),
    )


def _vision_encoder(model: Any) -> Any:
    """The vision encoder, under the names that transformers' models give it."""
    try:
        found = model.get_encoder(modality="image")
    except (AttributeError, ValueError, TypeError):
        return None
    return None if found is model or found is model.base_model else found


def _blocks(decoder: Any) -> Any:
    """The longest list of modules in the decoder, the outermost of equals."""
    from torch import nn

    lists = [module for module in decoder.modules() if isinstance(module, nn.ModuleList) and len(module)]
    return max(lists, key=len, default=None)


def _projectors(model: Any, paths: Mapping[int, str], vision: Any, decoder: Any, head: Any) -> Iterator[str]:
    """What is neither vision encoder nor decoder nor head; else what inside the vision encoder is called like one."""
    core = model.base_model
    known = [*vision.modules(), *decoder.modules(), *(head.modules() if head is not None else ())]
    taken = {id(module) for module in known}
    between = [
        child
        for child in core.children()
        if id(child) not in taken
        and any(True for _ in child.parameters())
        and not any(id(inner) in (id(vision), id(decoder)) for inner in child.modules())
    ]
    inside = [child for name, child in vision.named_children() if any(word in name for word in _PROJECTORS_INSIDE)]
    for module in (*inside, *between):
        yield paths[id(module)]


FAMILY: Family = GenericFamily()
