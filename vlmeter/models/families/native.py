"""What the families share whose code is transformers' own.

A family file then says what is its own: where the parts of its models are (`Parts`), what a prompt looks like
(`Template`), how large its models are (`Scale`), and how a size becomes tokens (its geometry). Everything that runs is
the published code: transformers' model class, its processor, its cache. What is added is control and sight:

- a prompt whose text part has an exact length, and counts read from the real `input_ids` and pixel tensors;
- marks at the modules where one phase ends and the next begins, which together cover the whole forward;
- random weights made on the device, from the published configuration;
- a greedy step of one token that waits for nothing on the device, with the positions that `generate` would give.

What transformers' code does not run as a module counts to *merge* (placing the features, packing them, LLaVA's new-line
features, Qwen's sorting back of windows), since it lies between two marks that say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from vlmeter.common.errors import UserError
from vlmeter.models.families.base import LoadedModel, SubjectSpec
from vlmeter.models.families.loaded_native import LoadedNative, Parts, Template
from vlmeter.models.families.made_tokenizer import MadeTokenizer, make_tokenizer, wrapped
from vlmeter.models.families.random_weights import random_model

BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Scale:
    """One preset: an architecture at one scale, from its published configuration files.

    config: content of config.json, with model_type. processor_config: content of preprocessor_config.json, with
    image_processor_type. processor: name of the processor's class, and what it is given beside its parts.
    parameters: per component, checked against the model by the tests.
    """

    about: str
    config: Mapping[str, Any]
    tokenizer: MadeTokenizer
    processor_config: Mapping[str, Any]
    processor: str
    processor_arguments: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, int] = field(default_factory=dict)


class NativeFamily:
    """A family whose models, processors and caches are transformers' own; see `Family`.

    A subclass sets the class variables and has a `geometry`; it overrides `loaded` where a model needs more than
    `LoadedNative` does.
    """

    name: str
    #: values of model_type in config.json that belong to this family
    model_types: ClassVar[tuple[str, ...]]
    #: the smallest first
    scales: ClassVar[Mapping[str, Scale]]
    parts: ClassVar[Parts] = Parts()
    template: ClassVar[Template]

    def __init__(self) -> None:
        self.presets: Mapping[str, str] = {
            name: f"{scale.about} ({sum(scale.parameters.values()):,} parameters)"
            for name, scale in self.scales.items()
        }

    def scale(self, spec: SubjectSpec) -> Scale:
        """Return the preset that a subject with random weights names."""
        if spec.preset is None or spec.preset not in self.scales:
            raise UserError(f"preset: {spec.preset!r} is not known; legal for {self.name}: {', '.join(self.scales)}")
        return self.scales[spec.preset]

    def model_config(self, spec: SubjectSpec) -> Mapping[str, Any]:
        """Content of the subject's config.json."""
        if spec.weights == "random":
            return self.scale(spec).config
        from vlmeter.models.checkpoints import open_checkpoint

        checkpoint = open_checkpoint(spec.weights, revision=spec.revision, weights=False)
        checkpoint.check_family(self.name, self.model_types)
        return checkpoint.config

    def processor_config(self, spec: SubjectSpec) -> Mapping[str, Any]:
        """Content of the subject's preprocessor_config.json, or of what holds it in its stead, for its geometry."""
        if spec.weights == "random":
            scale = self.scale(spec)
            return {**scale.processor_arguments, **scale.processor_config}
        from vlmeter.models.checkpoints import open_checkpoint

        checkpoint = open_checkpoint(spec.weights, revision=spec.revision, weights=False)
        checkpoint.check_family(self.name, self.model_types)
        return checkpoint.processor_config()

    def text_tokens(self, spec: SubjectSpec, question: str) -> int | None:
        """Count the text tokens of a prompt; None for a checkpoint, whose chat template would have to be run."""
        if spec.weights != "random":
            return None
        tokenizer = make_tokenizer(self.scale(spec).tokenizer)
        image_ids = set(tokenizer.encode(self.template.image, add_special_tokens=False).ids)
        return sum(number not in image_ids for number in tokenizer.encode(self.template.filled(question)).ids)

    def parameters(self, spec: SubjectSpec) -> dict[str, int] | None:
        """Return the parameters per component of a preset; None for a checkpoint."""
        return dict(self.scale(spec).parameters) if spec.weights == "random" else None

    def kv_bytes_per_token(self, spec: SubjectSpec) -> int | None:
        """Return the bytes of key-value cache of one token; layers with a sliding window count as if they had none."""
        config = self.model_config(spec) if spec.weights == "random" else None
        return None if config is None else kv_bytes_per_token(config, dtype=spec.dtype)

    def load(self, spec: SubjectSpec, *, device: str) -> LoadedModel:
        """Build or read the model on the device, ready to run; raises UserError for what a user can mend."""
        if spec.weights == "random":
            scale = self.scale(spec)
            processor = made_processor(scale)
            model = random_model(
                scale.config, device=device, dtype=spec.dtype, attention=spec.attention, seed=spec.seed
            )
        else:
            from vlmeter.models.pretrained import load_pretrained, load_processor, open_for_loading

            checkpoint = open_for_loading(
                spec, device=device, check=lambda found: found.check_family(self.name, self.model_types)
            )
            processor = load_processor(checkpoint)
            model = load_pretrained(checkpoint, spec, device=device)
        return self.loaded(model, processor)

    def loaded(self, model: Any, processor: Any) -> LoadedModel:
        """Put a model and its processor together."""
        return LoadedNative(model=model, processor=processor, parts=self.parts, template=self.template)


def kv_bytes_per_token(config: Mapping[str, Any], *, dtype: str) -> int | None:
    """Bytes of key-value cache of one token by the content of config.json; None if it does not say."""
    text = config.get("text_config", config)
    heads = text.get("num_attention_heads")
    layers, width = text.get("num_hidden_layers"), text.get("hidden_size")
    if not (heads and layers and width):
        return None
    head_dim = text.get("head_dim") or width // heads
    return int(2 * layers * (text.get("num_key_value_heads") or heads) * head_dim * BYTES_PER_VALUE[dtype])


def made_processor(scale: Scale) -> Any:
    """Put a family's processor together from its image processor and a made-up tokenizer."""
    from vlmeter.models.pretrained import image_processor_class, without_video
    from vlmeter.models.processors import processor_class

    settings = dict(scale.processor_config)
    image_processor = image_processor_class(settings.pop("image_processor_type"))(**settings)
    processor = without_video(processor_class(scale.processor))
    parts = {"image_processor": image_processor, "tokenizer": wrapped(scale.tokenizer), "video_processor": None}
    wanted = processor.get_attributes()
    return processor(**{name: parts[name] for name in wanted}, **scale.processor_arguments)
