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
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from vlmeter.common.errors import UserError
from vlmeter.models.families.base import ImageGeometry, LoadedModel, SubjectSpec
from vlmeter.models.families.loaded_native import LoadedNative, Parts, Template
from vlmeter.models.families.made_tokenizer import MadeTokenizer, make_tokenizer, wrapped
from vlmeter.models.families.preset_data import read_presets
from vlmeter.models.families.random_weights import random_model
from vlmeter.models.families.registry import check_family

if TYPE_CHECKING:
    from vlmeter.models.checkpoints import Checkpoint

BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Scale:
    """One preset: an architecture at one scale, from its published configuration files.

    config: content of config.json, with model_type. processor_config: content of preprocessor_config.json, with
    image_processor_type. processor: name of the processor's class, and what it is given beside its parts.
    parameters: per component, checked against the model by the tests. source: where the numbers were published.
    """

    about: str
    config: Mapping[str, Any]
    tokenizer: MadeTokenizer
    processor_config: Mapping[str, Any]
    processor: str
    processor_arguments: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, int] = field(default_factory=dict)
    source: str = ""

    @classmethod
    def from_data(cls, entry: Mapping[str, Any]) -> Scale:
        """Make one of an entry of the presets' file."""
        return cls(**{**entry, "tokenizer": MadeTokenizer(**entry["tokenizer"])})


class NativeFamily:
    """A family whose models, processors and caches are transformers' own; see `Family`.

    A subclass sets the class variables and says how its images are cut (`geometry_of`); its presets lie beside it as
    data. It overrides `loaded` where a model needs more than `LoadedNative` does.
    """

    name: str
    model_types: ClassVar[tuple[str, ...]]
    #: model_type of the vision encoders that belong to it, where model_type alone does not tell
    encoders: ClassVar[tuple[str, ...]] = ()
    #: model_type of checkpoints in a format of their makers -> a checkpoint in the format that is read
    other_formats: ClassVar[Mapping[str, str]] = {}
    piece = "crop"
    loads_by_transformers = True
    takes_any_checkpoint = False
    runs_remote_code = False
    parts: ClassVar[Parts] = Parts()
    template: ClassVar[Template]

    @cached_property
    def scales(self) -> Mapping[str, Scale]:
        """The presets, the smallest first."""
        return {name: Scale.from_data(entry) for name, entry in read_presets(self.name).items()}

    @cached_property
    def presets(self) -> Mapping[str, str]:
        """A line about every preset."""
        return {
            name: f"{scale.about} ({sum(scale.parameters.values()):,} parameters)"
            for name, scale in self.scales.items()
        }

    def reads(self, config: Mapping[str, Any]) -> bool:
        """Whether model_type is one of the family's, and that of the vision encoder where that tells."""
        vision = config.get("vision_config")
        encoder = vision.get("model_type") if isinstance(vision, Mapping) else None
        return config.get("model_type") in self.model_types and (not self.encoders or encoder in self.encoders)

    def other_format(self, config: Mapping[str, Any]) -> str | None:
        """Name a checkpoint in transformers' format, for one in the format of the model's makers."""
        instead = self.other_formats.get(str(config.get("model_type")))
        if instead is None:
            return None
        return (
            f"that is the format of the model's makers, and family {self.name} reads transformers' own: take the "
            f"checkpoint whose name ends in -hf, such as {instead}"
        )

    def scale(self, spec: SubjectSpec) -> Scale:
        """Return the preset that a subject with random weights names."""
        if spec.preset is None or spec.preset not in self.scales:
            raise UserError(f"preset: {spec.preset!r} is not known; legal for {self.name}: {', '.join(self.scales)}")
        return self.scales[spec.preset]

    def model_config(self, spec: SubjectSpec) -> Mapping[str, Any]:
        """Content of the subject's config.json."""
        return self.scale(spec).config if spec.weights == "random" else self.checkpoint(spec).config

    def checkpoint(self, spec: SubjectSpec) -> Checkpoint:
        """Find the subject's checkpoint, its weights left out; raises UserError for one of another architecture."""
        from vlmeter.models.checkpoints import open_checkpoint

        found = open_checkpoint(spec.weights, revision=spec.revision, weights=False)
        check_family(found, self)
        return found

    def processor_config(self, spec: SubjectSpec) -> Mapping[str, Any]:
        """What the subject's processor is made with, and under image_processor what its image processor is."""
        if spec.weights == "random":
            scale = self.scale(spec)
            return {**scale.processor_arguments, "image_processor": scale.processor_config}
        return self.checkpoint(spec).processor_config()

    def geometry(self, spec: SubjectSpec) -> ImageGeometry:
        """Return how the subject's processor cuts images; raises UserError that names checkpoint, file and key."""
        settings = self.processor_config(spec)
        try:
            return self.geometry_of(settings)
        except UserError as error:
            if spec.weights == "random":
                raise
            raise UserError(f"{spec.weights}: {error}") from error

    def geometry_of(self, settings: Mapping[str, Any]) -> ImageGeometry:
        """Return the way of cutting that a processor's settings say; see `processor_config`."""
        raise NotImplementedError(f"family {self.name} says neither geometry_of nor geometry")

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
            from vlmeter.models.pretrained import load_pretrained, load_processor, open_for_loading, read_config

            checkpoint = open_for_loading(spec, device=device, check=lambda found: check_family(found, self))
            read_config(checkpoint, spec)  # the processor is made with it too, and would be blamed for its faults
            processor = load_processor(checkpoint)
            model = load_pretrained(checkpoint, spec, device=device)
            return as_read(self.loaded(model, processor), checkpoint)
        return self.loaded(model, processor)

    def loaded(self, model: Any, processor: Any) -> LoadedModel:
        """Put a model and its processor together."""
        return LoadedNative(model=model, processor=processor, parts=self.parts, template=self.template)


def as_read(loaded: LoadedModel, checkpoint: Checkpoint) -> LoadedModel:
    """Tell a loaded model whose it is, for its messages, and what has to be known about its weights."""
    from vlmeter.models.packing import packing_of

    if isinstance(loaded, LoadedNative):
        loaded.source, loaded.template_file = checkpoint.source, checkpoint.template_file
        packing = packing_of(checkpoint)
        if packing is not None and packing.uncounted:
            loaded.notes = (*loaded.notes, packing.uncounted)
    return loaded


def kv_bytes_per_token(config: Mapping[str, Any], *, dtype: str) -> int | None:
    """Bytes of key-value cache of one token by the content of config.json; None if it does not say."""
    text = config.get("text_config", config)
    if not isinstance(text, Mapping):
        return None
    names = ("num_hidden_layers", "num_attention_heads", "hidden_size", "num_key_value_heads", "head_dim")
    layers, heads, width, kv_heads, head_dim = (
        value if isinstance(value := text.get(name), int) and value > 0 else None for name in names
    )
    if not (heads and layers and width):
        return None
    return int(2 * layers * (kv_heads or heads) * (head_dim or width // heads) * BYTES_PER_VALUE[dtype])


def made_processor(scale: Scale) -> Any:
    """Put a family's processor together from its image processor and a made-up tokenizer."""
    from vlmeter.models.families.processors import processor_class
    from vlmeter.models.pretrained import image_processor_class, without_video

    settings = dict(scale.processor_config)
    image_processor = image_processor_class(settings.pop("image_processor_type"))(**settings)
    processor = without_video(processor_class(scale.processor))
    parts = {"image_processor": image_processor, "tokenizer": wrapped(scale.tokenizer), "video_processor": None}
    wanted = processor.get_attributes()
    return processor(**{name: parts[name] for name in wanted}, **scale.processor_arguments)
