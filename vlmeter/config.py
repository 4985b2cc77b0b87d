"""The study: what is measured, on what, and how carefully.

A study is one YAML file. Every key is typed here, so that a misspelt key or an impossible value is refused
with one sentence before anything runs. The JSON Schema that editors use is generated from these classes.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from vlmeter.backends.registry import BACKENDS
from vlmeter.checkpoints import COMMIT
from vlmeter.dataset_source import HUB_NAME_PATTERN, SOURCES, DatasetSource, EmbeddedSource
from vlmeter.errors import UserError
from vlmeter.families.registry import FAMILIES, get_family
from vlmeter.pairs import parse_pair

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
DEVICE_PATTERN = r"^(auto|cpu|cuda|cuda:\d+)$"


class Model(BaseModel):
    """Base of everything in a study: immutable, unknown keys refused, no type taken for another."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _check_pair(text: Any) -> Any:
    parse_pair(str(text))
    return text


# before the type is looked at: YAML reads 0x2 as the number 2, and "text is wanted" would not help
Pair = Annotated[str, BeforeValidator(_check_pair)]
Count = Annotated[int, Field(ge=1)]


def _unique(values: list[Any]) -> list[Any]:
    repeated = sorted({str(value) for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(f"{', '.join(repeated)} stands there more than once; every value may be given once")
    return values


class Sampling(Model):
    """How often a cell is measured. A round runs every way of measuring the cell once, in random order."""

    min_samples: int = Field(10, ge=1, description="rounds that are always taken (unless the time cap ends the cell)")
    max_samples: int = Field(50, ge=1, description="rounds after which a cell ends, precise or not")
    relative_half_width_fraction: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="a cell ends when the 95 % interval of the median latency is within +- this part of it",
    )
    max_seconds_per_cell: float = Field(
        20.0, gt=0, description="time cap for the rounds of one cell, in seconds, warm-up not included"
    )
    energy_seconds_per_cell: float = Field(
        0.0,
        ge=0,
        description="seconds of repeated prefill over which energy is read, on a GPU; 0: not measured",
    )
    min_warmup: int = Field(2, ge=1, description="warm-up runs that are always taken, for every input shape")
    max_warmup: int = Field(8, ge=1, description="warm-up runs after which measuring starts, settled or not")
    warmup_tolerance_fraction: float = Field(
        0.05,
        gt=0,
        description="warm-up is settled when two successive runs differ by less than this fraction",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Sampling:
        if self.max_samples < self.min_samples:
            raise ValueError(f"max_samples {self.max_samples} is below min_samples {self.min_samples}")
        if self.max_warmup < self.min_warmup:
            raise ValueError(f"max_warmup {self.max_warmup} is below min_warmup {self.min_warmup}")
        return self


def _says(key: str) -> str | None:
    """What a sampling key says of itself, for the experiments that set it anew."""
    return Sampling.model_fields[key].description


class SamplingOverride(Model):
    """Sampling keys that one experiment sets for itself; what is absent comes from the study's `sampling`."""

    min_samples: int | None = Field(None, ge=1, description=_says("min_samples"))
    max_samples: int | None = Field(None, ge=1, description=_says("max_samples"))
    relative_half_width_fraction: float | None = Field(
        None, gt=0, lt=1, description=_says("relative_half_width_fraction")
    )
    max_seconds_per_cell: float | None = Field(None, gt=0, description=_says("max_seconds_per_cell"))
    energy_seconds_per_cell: float | None = Field(None, ge=0, description=_says("energy_seconds_per_cell"))
    min_warmup: int | None = Field(None, ge=1, description=_says("min_warmup"))
    max_warmup: int | None = Field(None, ge=1, description=_says("max_warmup"))
    warmup_tolerance_fraction: float | None = Field(None, gt=0, description=_says("warmup_tolerance_fraction"))


class Subject(Model):
    """A model, its weights, its number format and the way it is run, on a device."""

    family: str = Field(
        description="model family: " + ", ".join(sorted(FAMILIES)),
        json_schema_extra={"enum": [*sorted(FAMILIES)]},
    )
    preset: str | None = Field(None, description="architecture to build when weights are random, such as nano or 7b-d")
    weights: str = Field(
        "random",
        min_length=1,
        description="random, a local checkpoint folder, or a hub id such as allenai/Molmo-7B-D-0924",
    )
    revision: str | None = Field(None, description="branch, tag or commit of a hub id")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("bfloat16", description="number format of the weights")
    device: Annotated[str, Field(pattern=DEVICE_PATTERN)] = Field(
        "auto", description="auto (a GPU if there is one), cpu, cuda, or cuda:0"
    )
    backend: str = Field(
        "eager",
        description="way of running the model: eager is plain PyTorch; fake runs nothing and takes declared times",
        json_schema_extra={"enum": [*sorted(BACKENDS)]},
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        "sdpa", description="attention implementation; flash_attention_2 needs the package flash-attn"
    )
    device_map: Literal["auto"] | None = Field(
        None, description="auto: spread a checkpoint over all GPUs; absent: on one device, as device says"
    )
    quantization: Literal["bitsandbytes-8bit", "bitsandbytes-4bit"] | None = Field(
        None,
        description="pack a checkpoint's weights while loading; needs the package bitsandbytes; absent: dtype's own",
    )
    trust_remote_code: bool = Field(
        False,
        description="true: run the Python code that a checkpoint brings along (family generic only), from a folder or "
        "from a hub id with a commit as revision",
    )
    cpu_threads: int | None = Field(
        None, ge=1, description="threads that PyTorch uses on a CPU; absent: one per physical core it may use"
    )
    seed: int = Field(0, ge=0, description="seed of random weights")

    @field_validator("family", "backend")
    @classmethod
    def _known(cls, name: str, info: ValidationInfo) -> str:
        legal = sorted(FAMILIES if info.field_name == "family" else BACKENDS)
        if name not in legal:
            raise ValueError(f"{name!r} is not known; legal: {', '.join(legal)}")
        return name

    @model_validator(mode="after")
    def _architecture(self) -> Subject:
        presets = get_family(self.family).presets
        if self.preset is not None and self.preset not in presets and self.family != "generic":
            raise ValueError(f"preset {self.preset!r} is not known; legal: {', '.join(presets)}")
        if self.weights == "random" and self.preset is None:
            raise ValueError(f"preset is missing: random weights need an architecture, one of {', '.join(presets)}")
        if self.weights == "random" and self.revision is not None:
            raise ValueError("revision is given, but weights are random; legal only with a hub id as weights")
        self._check_checkpoint_keys()
        if self.backend == "fake" and self.weights != "random":
            raise ValueError(f"weights: {self.weights!r} is not read by the fake backend; legal with it: random")
        return self

    def _check_checkpoint_keys(self) -> None:
        """Check what is for checkpoints alone, and for those that transformers loads."""
        given = {
            "device_map": self.device_map,
            "quantization": self.quantization,
            "trust_remote_code": self.trust_remote_code or None,
        }
        for key, value in given.items():
            if value is None:
                continue
            if self.weights == "random":
                raise ValueError(f"{key} is given, but weights are random; legal only with a checkpoint as weights")
            if self.family == "molmo":
                raise ValueError(f"{key} is given, but family molmo reads checkpoints by itself; legal with the others")
        if self.device_map and self.device not in ("auto", "cuda"):
            raise ValueError(
                f"device_map: {self.device_map} spreads the model over all GPUs, but device is {self.device}; "
                "legal with it: auto, cuda"
            )
        if self.trust_remote_code and self.family != "generic":
            raise ValueError(
                f"trust_remote_code: family {self.family} runs no code of a checkpoint; legal with generic"
            )
        if self.trust_remote_code and not Path(self.weights).is_dir() and not COMMIT.fullmatch(self.revision or ""):
            raise ValueError(
                f"trust_remote_code: revision {self.revision!r} may come to mean other code; legal with it: a commit "
                "of 40 hexadecimal digits, or a folder as weights"
            )


class VisionTokens(Model):
    """Experiment: vision tokens against latency, on dummy images that give exact counts."""

    tilings: Literal["all"] | list[Pair] | None = Field(
        None, description="all, or a list such as [1x1, 2x4] (rows x columns of crops)"
    )
    crops: list[Count] | None = Field(None, description="crop counts (the global crop included); every tiling of each")
    vision_tokens: list[Count] | None = Field(None, description="vision-token counts; every tiling that reaches each")
    reachable: int | None = Field(
        None, ge=1, description="so many vision-token counts, spread evenly over all that the model can reach"
    )
    nearest: bool = Field(
        False, description="take the nearest reachable count for one of crops or vision_tokens that no image reaches"
    )
    image_sizes: list[Pair] | None = Field(None, description="image sizes as width x height in px, such as 640x480")
    max_crops: int | None = Field(
        None, ge=1, description="upper limit of high-resolution crops; absent: the model's own (12 for Molmo)"
    )
    force_tiling: bool = Field(
        False, description="impose each tiling, past the preprocessor's own selection and its max_crops"
    )
    text_tokens: int = Field(32, ge=8, description="text tokens of the prompt, the same in every cell")
    image_seed: int = Field(0, ge=0, description="seed of the dummy images' pixels")
    sampling: SamplingOverride = Field(
        SamplingOverride(), description="how often this experiment's cells are measured, over the study's sampling"
    )

    @field_validator("tilings", "crops", "vision_tokens", "image_sizes")
    @classmethod
    def _no_repeats(cls, values: Any) -> Any:
        return _unique(values) if isinstance(values, list) else values

    @model_validator(mode="after")
    def _something_to_do(self) -> VisionTokens:
        by_count = self.crops or self.vision_tokens
        if not any((self.tilings, by_count, self.reachable, self.image_sizes)):
            raise ValueError(
                "nothing to measure; give at least one of tilings, crops, vision_tokens, reachable, image_sizes"
            )
        if self.force_tiling and (not self.tilings or by_count or self.reachable or self.image_sizes):
            raise ValueError("force_tiling goes with tilings alone")
        if self.nearest and not by_count:
            raise ValueError("nearest goes with crops or vision_tokens, and neither is given")
        return self


class OutputTokens(Model):
    """Experiment: output tokens against latency, on photographs with questions."""

    output_tokens: list[Count] = Field(min_length=1, description="numbers of output tokens N")
    direct: Literal["all"] | list[Count] = Field(
        "all",
        description="which N are run by themselves; the largest always is, and its steps give every other N",
    )
    images: int | None = Field(None, ge=1, description="how many of the dataset's images; absent: all of them")
    stop: Literal["length", "eos"] = Field(
        "length",
        description="length: forced to N tokens, no end of sequence before; eos: natural stopping, N a limit",
    )
    max_crops: int | None = Field(None, ge=1, description="upper limit of high-resolution crops")
    uninstrumented_max_output_tokens: int = Field(
        512,
        ge=0,
        description="up to this N each round also runs without any mark, to show what the marks cost",
    )
    sampling: SamplingOverride = Field(
        SamplingOverride(), description="how often this experiment's cells are measured, over the study's sampling"
    )

    @field_validator("output_tokens", "direct")
    @classmethod
    def _no_repeats(cls, values: Any) -> Any:
        return _unique(values) if isinstance(values, list) else values

    @model_validator(mode="after")
    def _direct_is_listed(self) -> OutputTokens:
        if self.direct != "all":
            extra = sorted(set(self.direct) - set(self.output_tokens))
            if extra:
                legal = ", ".join(map(str, self.output_tokens))
                raise ValueError(f"direct names {extra[0]}, which is not among output_tokens; legal: {legal}")
        if self.stop == "eos" and self.direct != "all":
            raise ValueError(
                "direct must be all with stop: eos, since a natural end cannot be derived from a longer run"
            )
        return self


class LatencyDistribution(Model):
    """Experiment: how long many requests take, each measured once, on photographs with questions."""

    samples: int = Field(
        5000, ge=1, description="requests, each measured once; beyond the dataset's images they come round again"
    )
    output_tokens: Count | list[Count] = Field(
        16,
        description="tokens to generate; a list: every request draws one of its numbers, as answers differ in length",
    )
    stop: Literal["length", "eos"] = Field(
        "length",
        description="length: forced to output_tokens; eos: natural stopping, output_tokens a limit",
    )
    block_samples: int = Field(
        50, ge=1, description="requests of one block, which is measured as a whole: what is lost if a run is ended"
    )
    warmup_runs: int = Field(
        1, ge=1, description="runs of every distinct shape before a block, in no sample: a server has seen its shapes"
    )
    max_crops: int | None = Field(None, ge=1, description="upper limit of high-resolution crops")
    seed: int = Field(0, ge=0, description="seed of the drawing of output lengths")

    @field_validator("output_tokens")
    @classmethod
    def _some_lengths(cls, values: Any) -> Any:
        if values == []:
            raise ValueError("an empty list has no length to draw; legal: a whole number, or a list of them")
        return values

    @property
    def lengths(self) -> tuple[int, ...]:
        """Output lengths among which a request draws; one that stands there twice is drawn twice as often."""
        return tuple(self.output_tokens) if isinstance(self.output_tokens, list) else (self.output_tokens,)

    @property
    def sampling(self) -> SamplingOverride:
        """Every request is measured once, so that nothing of the study's sampling but the energy span applies."""
        default = Sampling()
        return SamplingOverride(
            min_samples=1,
            max_samples=1,
            relative_half_width_fraction=default.relative_half_width_fraction,
            max_seconds_per_cell=default.max_seconds_per_cell,
            min_warmup=self.warmup_runs,
            max_warmup=self.warmup_runs,
            warmup_tolerance_fraction=default.warmup_tolerance_fraction,
        )


class Experiments(Model):
    """The experiments of a study; each is optional, one at least must be there."""

    vision_tokens: VisionTokens | None = Field(None, description="vision tokens against latency, on dummy images")
    output_tokens: OutputTokens | None = Field(None, description="output tokens against latency, on photographs")
    latency_distribution: LatencyDistribution | None = Field(
        None, description="latency of many requests, each measured once, on photographs"
    )

    @property
    def on_photographs(self) -> tuple[OutputTokens | LatencyDistribution, ...]:
        """The experiments that look at the dataset's photographs."""
        return tuple(found for found in (self.output_tokens, self.latency_distribution) if found is not None)

    @model_validator(mode="after")
    def _one_at_least(self) -> Experiments:
        if not any(getattr(self, name) for name in type(self).model_fields):
            raise ValueError(f"no experiment given; legal: {', '.join(type(self).model_fields)}")
        return self


class Study(Model):
    """The whole of a study file."""

    study: str = Field(pattern=NAME_PATTERN, description="name of the study; results go to results/<study>/")
    seed: int = Field(0, ge=0, description="seed of the order in which cells are measured")
    subjects: dict[Annotated[str, Field(pattern=NAME_PATTERN)], Subject] = Field(
        min_length=1, description="what is measured, by a name of your own"
    )
    dataset: DatasetSource = Field(EmbeddedSource(source="embedded"), description="where the photographs come from")
    experiments: Experiments = Field(description="what is varied: vision_tokens, output_tokens, latency_distribution")
    sampling: Sampling = Field(Sampling(), description="how often cells are measured")
    sentinel_every_cells: int = Field(
        10, ge=1, description="one cell is measured again after every so many cells, to see drift"
    )
    cell_time_limit_seconds: float = Field(
        3600.0,
        gt=0,
        description="a cell that takes longer, in all, is given up: its process is ended, and the other cells go on",
    )
    drift_tolerance_fraction: float = Field(
        0.02,
        gt=0,
        description="drift of the sentinel that is let pass, if it is also beyond the sentinel's own noise",
    )

    def sampling_for(self, experiment: str) -> Sampling:
        """Sampling of one experiment: its own keys over the study's."""
        own = getattr(self.experiments, experiment).sampling.model_dump(exclude_none=True)
        return Sampling(**{**self.sampling.model_dump(), **own})


def study_schema() -> dict[str, Any]:
    """JSON Schema of a study file, for editors."""
    schema = Study.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "vlmeter study"
    return schema


def load_study(path: Path) -> Study:
    """Read and check a study file; raises UserError: one sentence that names key, value, what is legal."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"study file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"study file {path} cannot be read: {error}") from None
    try:
        data = yaml.load(text, Loader=_StudyLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = getattr(error, "problem", None) or "is not valid YAML"
        raise UserError(f"study file {path}{where}: {what}") from None
    if data is None:
        raise UserError(f"study file {path} is empty; {A_STUDY_IS}")
    return parse_study(data, source=str(path))


A_STUDY_IS = "a study is a mapping of keys such as study, subjects, experiments"


def parse_study(data: object, *, source: str) -> Study:
    """Check the content of a study file; `source` is the name used in messages."""
    if not isinstance(data, Mapping):
        raise UserError(f"{source}: {A_STUDY_IS}, not {_shown(data)}")
    try:
        study = Study.model_validate(data)
        for name in type(study.experiments).model_fields:
            if getattr(study.experiments, name):
                _check_sampling(study, name)
        return study
    except ValidationError as error:
        raise UserError(f"{source}: {sentence_of(error)}") from None


def _check_sampling(study: Study, experiment: str) -> None:
    try:
        study.sampling_for(experiment)
    except ValidationError as error:
        detail = error.errors()[0]
        detail["loc"] = ("experiments", experiment, "sampling", *detail["loc"])
        raise ValidationError.from_exception_data("Study", [cast(Any, detail)]) from None


class _StudyLoader(yaml.SafeLoader):
    """YAML's safe loader with two differences.

    A key given twice is an error rather than silently the last one, and 1e3 is a number as in YAML 1.2.
    """


def _construct_unique(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_StudyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_unique)
_StudyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)

#: What the patterns of the study's keys mean in words.
PATTERNS_IN_WORDS = {
    NAME_PATTERN: "letters, digits, '.', '_' and '-', the first of them a letter or digit",
    DEVICE_PATTERN: "auto, cpu, cuda, or a numbered one such as cuda:0",
    HUB_NAME_PATTERN: "owner/name, such as lmms-lab/VQAv2",
}

#: What pydantic's types of error mean in words; {} is filled from the error's context.
TYPES_IN_WORDS = {
    "bool_type": "true or false",
    "dict_type": "a mapping of keys",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "int_type": "a whole number",
    "invalid_key": "plain text as a key",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "list_type": "a list",
    "literal_error": "{expected}",
    "model_attributes_type": "a mapping of keys",
    "model_type": "a mapping of keys",
    "string_too_short": "text that is not empty",
    "string_type": "text",
    "too_short": "at least {min_length} of them",
    "union_tag_invalid": "{expected_tags}",
}


def sentence_of(error: ValidationError) -> str:
    """Turn pydantic's complaints into one sentence: key, value, what would be legal."""
    detail, alternatives = _most_telling(error.errors())
    location = [part for part in detail["loc"] if not _is_tag(part)]
    kind, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        name = str(context["discriminator"]).strip("'")
        location.append(name)
        value = value.get(name) if isinstance(value, Mapping) else value
    key = ".".join(str(part) for part in location) or "study"
    if kind == "extra_forbidden":
        legal = _legal_keys(detail["loc"][:-1])
        guess = difflib.get_close_matches(str(location[-1]), legal, n=1)
        hint = f" (did you mean {guess[0]}?)" if guess else ""
        return f"key {key} is not known{hint}; legal there: {', '.join(legal)}"
    if kind == "union_tag_not_found":
        return f"key {key} is missing; legal: {', '.join(SOURCES)}"
    if kind == "missing":
        return f"key {key} is missing: {_description(detail['loc'])}"
    if kind == "value_error":
        return f"{key}: {detail['msg'].removeprefix('Value error, ')}"
    if kind == "string_pattern_mismatch" and context["pattern"] in PATTERNS_IN_WORDS:
        wanted = PATTERNS_IN_WORDS[context["pattern"]]
    elif kind in TYPES_IN_WORDS:
        wanted = TYPES_IN_WORDS[kind].format(**context)
    else:
        wanted = detail["msg"]
    return f"{key}: {_shown(value)} is not legal; legal: {' or '.join([wanted, *alternatives])}"


def _shown(value: object) -> str:
    """A value as the file may have it, cut to a length that fits a sentence."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) < 80 else f"{text[:77]}..."


def _most_telling(details: list[ErrorDetails]) -> tuple[ErrorDetails, list[str]]:
    """Choose the complaint to pass on, and say what else would be legal at its place.

    Where a key takes either a word or a list, pydantic complains about both. If a list is given, its own
    complaint is the one that helps; if neither, both are legal.
    """
    first = details[0]
    if first["type"] != "literal_error" or not _is_tag(first["loc"][-1]):
        return first, []
    place = first["loc"][:-1]
    others = [detail for detail in details[1:] if detail["loc"][: len(place)] == place]
    inside = [detail for detail in others if detail["type"] != "list_type"]
    return (inside[0], []) if inside else (first, ["a list" for _ in others[:1]])


def _is_tag(part: int | str) -> bool:
    """Whether a part of an error's place is pydantic's own word for a branch, and no key."""
    return isinstance(part, str) and (part in SOURCES or part == "[key]" or part.startswith(("list[", "literal[")))


def _legal_keys(location: Sequence[int | str]) -> list[str]:
    """Names of the fields at a place of the study."""
    return sorted({name for model in _models_at(location) for name in model.model_fields})


def _description(location: Sequence[int | str]) -> str:
    """What a key says, from the class that has it."""
    name = str(location[-1])
    return next(str(model.model_fields[name].description) for model in _models_at(location[:-1]))


def _models_at(location: Sequence[int | str]) -> list[type[BaseModel]]:
    """Find the classes at a place of the study by walking from its root."""
    models: list[type[BaseModel]] = [Study]
    for part in location:
        if part in SOURCES:
            models = [SOURCES[str(part)]]
            continue
        following = [
            found
            for model in models
            if isinstance(part, str) and part in model.model_fields
            for found in _models_in(model.model_fields[part].annotation)
        ]
        # a mapping's own key (a subject's name) stays at the classes found before
        models = following or models
    return models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


__all__ = ["Study", "Subject", "load_study", "parse_pair", "parse_study", "sentence_of", "study_schema"]
