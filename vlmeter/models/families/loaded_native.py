"""A model of transformers on a device: its prompts, its marks, its greedy step."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

from vlmeter.common.errors import Unsupported, UserError
from vlmeter.models.families.base import COMPONENTS, Boundary, Counts, ImageOptions, ModelInputs
from vlmeter.models.made_text import question_of

if TYPE_CHECKING:
    from PIL.Image import Image


#: transformers compares the number of features with that of image tokens in every pass, and waits for the device to do
#: so. This variable of its own turns that off; it is set for shapes that have passed once.
UNCHECKED = "TRANSFORMERS_DISABLE_TORCH_CHECK"


#: Where a checkpoint keeps what its processor and its prompts are made of.
PROCESSOR_FILES = "processor_config.json and preprocessor_config.json"


#: What a processor makes and a pass over one prompt does without: a mask that masks nothing, and what is for training.
_NOT_FED = ("attention_mask", "labels")


#: Attributes of a processor that hold what it looks for in a prompt, to put a picture's tokens in its place.
_PLACEHOLDER_NAMES = ("image_token", "boi_token", "video_token", "audio_token")


class ProcessorFails(UserError):
    """A picture of which the checkpoint's own processor makes no inputs."""


def first_line(error: Exception) -> str:
    """First line of an error's message; its kind if it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@dataclass(frozen=True)
class Parts:
    """Dotted paths of a model's parts.

    projector: every module between vision encoder and language model that runs as a module; a list of modules stands
    for its members. They may lie inside the vision encoder, as Qwen's merger does.
    """

    vision_encoder: str = "model.vision_tower"
    projector: tuple[str, ...] = ("model.multi_modal_projector",)
    blocks: str = "model.language_model.layers"
    norm: str = "model.language_model.norm"
    head: str = "lm_head"


@dataclass(frozen=True)
class Template:
    """A prompt of one image and one question, for models without a chat template of their own.

    text: holds {image} and {question}. image: what the processor's placeholder looks like, with the special tokens that
    stand around it in a prompt; all of its tokens are the image's and none of the text's.
    """

    text: str
    image: str

    def filled(self, question: str) -> str:
        """Return the prompt."""
        return self.text.replace("{image}", self.image).replace("{question}", question)


class LoadedNative:
    """A model of transformers on a device, with its processor; see `LoadedModel`."""

    #: transformers' code looks at inputs to decide on shapes, so on meta they stay on the CPU
    #: (`vlmeter.models.meta_device`)
    reads_values = True

    #: the checkpoint that it was read from, for messages; empty for a preset
    source = ""

    #: the file of the checkpoint that its chat template stands in, for messages
    template_file = "chat_template.jinja"

    #: what has to be known about its phases or its weights
    notes: Sequence[str] = ()

    def __init__(self, *, model: Any, processor: Any, parts: Parts, template: Template | None) -> None:
        self.model, self.processor, self.parts, self.template = model, processor, parts, template
        self.tokenizer = processor.tokenizer
        self._module: dict[str, list[Any]] = {
            "vision_encoder": [model.get_submodule(parts.vision_encoder)] if parts.vision_encoder else [],
            "projector": [part for path in parts.projector for part in _members(model.get_submodule(path))],
            "llm_blocks": list(model.get_submodule(parts.blocks)),
        }
        self.eos_token_ids: Sequence[int] = _eos_token_ids(model, self.tokenizer)
        self.parameters: Mapping[str, int] = count_parameters(model, parts)
        self._image_token_id = image_token_id(model, processor)
        self._cache_name = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
        self._on_meta = model.device.type == "meta"
        self._passed: set[tuple[int, ...]] = set()

    # ---- inputs

    @property
    def placeholders(self) -> Sequence[str]:
        """Texts that mark a picture or a film in a prompt: what the processor replaces, and an image's other tokens."""
        named = {getattr(self.processor, name, None) for name in _PLACEHOLDER_NAMES}
        of_image = {self._image_token_id, *self._image_ids(), *(getattr(self.processor, "image_token_ids", None) or ())}
        tokens = self.tokenizer.convert_ids_to_tokens([number for number in of_image if isinstance(number, int)])
        return sorted({text for text in (*named, *tokens) if isinstance(text, str) and text.strip()})

    def prepare(
        self, image: Image, question: str | None, *, text_tokens: int | None, options: ImageOptions
    ) -> ModelInputs:
        """Turn a picture and a question into model inputs on the CPU, with the family's own processor.

        With `text_tokens` instead of a question, a question is made up that fills the prompt's text part to exactly
        that many tokens.
        """
        if (question is None) == (text_tokens is None):
            raise UserError("a prompt takes exactly one of question and text_tokens")
        if question is None:
            assert text_tokens is not None
            what = f"a prompt of {self.model.config.model_type}"
            question = question_of(text_tokens, lambda text: self._text_tokens(self.render(text)), what=what)
        prompt = self.render(question)
        try:
            made = self.process(image.convert("RGB"), prompt, options)
        except ProcessorFails as error:
            if self._has_place(prompt):
                raise
            raise UserError(self._no_place()) from error
        text = self._text_tokens(prompt)
        ids = made["input_ids"][0]
        vision = int((ids == self._image_token_id).sum())
        if not vision and not self._has_place(prompt):
            raise UserError(self._no_place())
        if not vision:
            raise UserError(
                f"{self._named}: its config.json says that token {self._image_token_id} stands for an image, and its "
                "processor puts none such into a prompt; config.json and the tokenizer's files do not belong together"
            )
        counts = Counts(
            crops=self.crops(made),
            vision_tokens=vision,
            special_tokens=len(ids) - vision - text,
            text_tokens=text,
            prompt_tokens=len(ids),
        )
        return ModelInputs(tensors=self._with_positions(made), counts=counts, question=question)

    def render(self, question: str) -> str:
        """Return the prompt of one image and a question: by the checkpoint's chat template, or the family's own."""
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": question}]
            try:
                rendered: str = self.processor.apply_chat_template(
                    [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
                )
            except Exception as error:  # a template is a program of the checkpoint's makers
                raise UserError(
                    f"{self._named}: its chat template ({self.template_file}) fails on an image and a question "
                    f"({type(error).__name__}: {first_line(error)}); a template for text alone has to be replaced by "
                    "that of the published model"
                ) from error
            return rendered
        if self.template is None:
            raise UserError("the processor has no chat template, so nobody knows how its prompts are written")
        return self.template.filled(question)

    @property
    def _named(self) -> str:
        """What messages call the model."""
        return self.source or f"the preset of {self.model.config.model_type}"

    @property
    def _places(self) -> list[str]:
        """What stands for an image in a prompt, before and after the processor has seen it."""
        token = self.tokenizer.convert_ids_to_tokens(self._image_token_id)
        marks = (getattr(self.processor, "image_token", None), token)
        return list(dict.fromkeys(mark for mark in marks if isinstance(mark, str) and mark))

    def _has_place(self, prompt: str) -> bool:
        return any(mark in prompt for mark in self._places)

    def _twice(self, prompt: str) -> str:
        """What has to be said of a prompt that has places for several images."""
        most = max((prompt.count(mark) for mark in self._places), default=0)
        return f", and at its chat template ({self.template_file}), which has {most} places for it" if most > 1 else ""

    def _no_place(self) -> str:
        return (
            f"{self._named}: its chat template ({self.template_file}) leaves no place for an image, {self._places[0]}; "
            "a template for text alone has to be replaced by that of the published model"
        )

    def process(self, image: Image, prompt: str, options: ImageOptions) -> dict[str, Any]:
        """Run the processor on one image and one prompt; returns named tensors of a batch of one.

        The attention mask of a single prompt masks nothing, and would be looked at on the device in every pass.
        """
        arguments = {**self._begins(prompt), **self.image_arguments(options)}
        try:
            made = self.processor(images=[image], text=[prompt], return_tensors="pt", **arguments)
        except ImportError as error:
            raise Unsupported(
                f"{self._named}: its processor needs what is not installed ({first_line(error)})"
            ) from error
        except (MemoryError, UserError):
            raise
        except Exception as error:  # whatever the published code stumbles over
            raise ProcessorFails(
                f"{self._named}: its {type(self.processor).__name__}, with "
                f"{type(self.processor.image_processor).__name__}, makes no inputs of an image of "
                f"{image.width}x{image.height} px and a question ({type(error).__name__}: {first_line(error)}); look "
                f"at its {PROCESSOR_FILES}{self._twice(prompt)}"
            ) from error
        dtype = self.model.dtype
        return {
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in made.items()
            if name not in _NOT_FED and hasattr(value, "is_floating_point")
        }

    def image_arguments(self, options: ImageOptions) -> dict[str, Any]:
        """What the processor is given for these options; a family that has some overrides this."""
        if options.max_crops is not None or options.force_tiling is not None:
            raise UserError(f"max_crops, force_tiling: {self.model.config.model_type} leaves no choice of crops")
        return {}

    def crops(self, made: Mapping[str, Any]) -> int:
        """Count the pictures that the vision encoder takes, in the pixel tensor."""
        if "image_grid_thw" in made:
            return len(made["image_grid_thw"])
        pixels = made["pixel_values"]
        if pixels.ndim == 5:
            return int(pixels.shape[0] * pixels.shape[1])
        return int(pixels.shape[0]) if pixels.ndim == 4 else 1

    def _begins(self, prompt: str) -> dict[str, bool]:
        """Keep the tokenizer from adding a beginning of sequence to a prompt that has one, as transformers does."""
        bos = self.tokenizer.bos_token
        return {"add_special_tokens": False} if bos and prompt.startswith(bos) else {}

    def _image_ids(self) -> set[int]:
        """Ids of the tokens that stand in a prompt because of its image, before the processor multiplies them."""
        if self.template is None:
            return {self._image_token_id}
        return set(self.tokenizer(self.template.image, add_special_tokens=False)["input_ids"])

    def _text_tokens(self, prompt: str) -> int:
        image_ids = self._image_ids()
        return sum(number not in image_ids for number in self.tokenizer(prompt, **self._begins(prompt))["input_ids"])

    def _with_positions(self, made: dict[str, Any]) -> dict[str, Any]:
        """Add the positions of a model that places images in space, which `generate` computes before the pass too."""
        index = getattr(self.model.base_model, "get_rope_index", None)
        if index is None:
            return made
        positions, deltas = index(**accepted(index, made))
        return {**made, "position_ids": positions, "rope_deltas": deltas}

    # ---- passes

    def boundaries(self) -> Sequence[Boundary]:
        """Return the marks of one prefill, in the order in which they fire."""
        vision, projector = self._module["vision_encoder"], self._module["projector"]
        blocks = self._module["llm_blocks"]
        marks = [Boundary(self.model, "before", None)]
        marks += [Boundary(module, "before", "merge") for module in vision]
        inside = {id(part) for module in vision for part in module.modules()}
        if not any(id(part) in inside for part in projector):
            marks += [Boundary(module, "after", "vision_encoder") for module in vision]
        for part in projector:
            if id(part) in inside:
                marks.append(Boundary(part, "before", "vision_encoder"))
            marks.append(Boundary(part, "after", "projector"))
        marks += [Boundary(blocks[0], "before", "merge"), Boundary(blocks[-1], "after", "llm_blocks")]
        return [*marks, Boundary(self.model, "after", "head")]

    def vision(self, tensors: Mapping[str, Any]) -> Any:
        """Run vision encoder and projector alone on device tensors."""
        features = self.model.base_model.get_image_features
        with self._running(tensors):
            return features(**accepted(features, tensors, but=("input_ids", "position_ids")))

    def prefill(self, tensors: Mapping[str, Any], cache: Any = None) -> tuple[Any, Any]:
        """Run the prompt into a new cache, or an empty one; returns the logits [1, vocabulary] of its end, and it."""
        from transformers.cache_utils import DynamicCache

        cache = DynamicCache(config=self.model.config) if cache is None else cache
        cache.position_delta = tensors.get("rope_deltas")
        with self._running(tensors):
            logits = self._logits(accepted(self.model.forward, tensors, but=("rope_deltas",)), cache)
        self._passed.add(_shapes_of(tensors))
        return logits, cache

    def decode(self, token_ids: Any, cache: Any) -> Any:
        """Run one token [1, 1] behind what the cache holds; returns its logits [1, vocabulary]."""
        import torch

        from vlmeter.models.attention import without_cudnn_attention

        inputs = {"input_ids": token_ids}
        with without_cudnn_attention(), self._shapes():
            if cache.position_delta is not None:
                # of a cache of fixed length, only the device knows how far it is filled
                here = torch.arange(1, device=token_ids.device) + cache.get_seq_length() + cache.position_delta
                inputs["position_ids"] = here.expand(3, 1, 1)
            return self._logits(inputs, cache)

    def _logits(self, inputs: dict[str, Any], cache: Any) -> Any:
        inputs = {**inputs, self._cache_name: cache, "use_cache": True, "logits_to_keep": 1}
        return self.model(**inputs).logits[:, -1]

    @contextmanager
    def _running(self, tensors: Mapping[str, Any]) -> Iterator[None]:
        """Run a pass over the prompt; let transformers check the shapes of its inputs only the first time."""
        before = os.environ.get(UNCHECKED)
        if _shapes_of(tensors) in self._passed:
            os.environ[UNCHECKED] = "1"
        try:
            with self._shapes():
                yield
        finally:
            if before is None:
                os.environ.pop(UNCHECKED, None)
            else:
                os.environ[UNCHECKED] = before

    @contextmanager
    def _shapes(self) -> Iterator[None]:
        if not self._on_meta:
            yield
            return
        from vlmeter.models.meta_device import ShapesOnly

        with ShapesOnly():
            yield


def _shapes_of(tensors: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(side for tensor in tensors.values() for side in tensor.shape)


def _members(module: Any) -> list[Any]:
    """The modules that a path stands for: a list of modules is none that runs."""
    from torch import nn

    return list(module) if isinstance(module, nn.ModuleList) else [module]


def count_parameters(model: Any, parts: Parts) -> dict[str, int]:
    """Count a model's parameters per component; one that two parts share counts once, for the first of them.

    What belongs to no part (LLaVA's new-line feature) is between vision encoder and language model.
    """
    owners: dict[int, str] = {}
    places: list[tuple[str, list[str]]] = [
        ("projector", list(parts.projector)),
        ("vision_encoder", [parts.vision_encoder] if parts.vision_encoder else []),
        ("llm_blocks", [parts.blocks]),
    ]
    for component, paths in places:
        for path in paths:
            for parameter in model.get_submodule(path).parameters():
                owners.setdefault(id(parameter), component)
    for parameter in model.get_input_embeddings().parameters():
        owners.setdefault(id(parameter), "embedding")
    for path in (parts.norm, parts.head):
        for parameter in model.get_submodule(path).parameters() if path else ():
            owners.setdefault(id(parameter), "head")
    found = dict.fromkeys(COMPONENTS, 0)
    for parameter in model.parameters():
        found[owners.get(id(parameter), "projector")] += _values(parameter)
    return found


def _values(parameter: Any) -> int:
    """Number of a parameter's values; bitsandbytes keeps two in a byte and the shape aside."""
    state = getattr(parameter, "quant_state", None)
    return math.prod(state.shape) if state is not None else int(parameter.numel())


def image_token_id(model: Any, processor: Any) -> int:
    """Return the id of the token that receives vision features."""
    for holder in (model.config, processor):
        for name in ("image_token_id", "image_token_index"):
            number = getattr(holder, name, None)
            if isinstance(number, int):
                return number
    raise UserError(f"{type(model).__name__} does not say which token stands for its images")


def _eos_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end a sequence, by the generation settings of a checkpoint, else by its tokenizer."""
    named = getattr(model.generation_config, "eos_token_id", None)
    numbers = named if isinstance(named, list) else [named]
    rows = model.config.get_text_config().vocab_size
    return sorted({n for n in (*numbers, tokenizer.eos_token_id) if isinstance(n, int) and n < rows})


def accepted(function: Callable[..., Any], values: Mapping[str, Any], *, but: Sequence[str] = ()) -> dict[str, Any]:
    """Those of the values that a function names among its arguments."""
    names = signature(function).parameters
    return {name: value for name, value in values.items() if name in names and name not in but}
