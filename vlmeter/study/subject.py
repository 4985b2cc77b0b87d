"""A subject: a model, its weights, its number format and the way it is run, on a device."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, create_model, field_validator, model_validator

from vlmeter.backends.base import Loading
from vlmeter.backends.registry import BACKENDS, get_backend
from vlmeter.cells.keys import Model
from vlmeter.common.errors import UserError
from vlmeter.models.checkpoints import COMMIT, checkpoint_at_hand
from vlmeter.models.encoding import Encoding
from vlmeter.models.families.base import ChoosesVisionAttention, SubjectSpec
from vlmeter.models.families.registry import FAMILIES, family_of_checkpoint, get_family, unknown_family
from vlmeter.models.packing import QUANTIZED_BYTES, is_way_of_packing

DEVICE_PATTERN = r"^(auto|cpu|cuda|cuda:\d+)$"


def _meant(name: str, legal: Iterable[str]) -> str:
    """Say which of the legal names may be meant, as a hint in brackets; empty if none is near."""
    close = difflib.get_close_matches(name.lower(), list(legal), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


#: Keys that every backend takes.
ALWAYS = ("family", "preset", "weights", "dtype", "device", "backend", "seed")


def _family_is_optional(schema: dict[str, Any]) -> None:
    """A checkpoint says its family by itself."""
    schema["required"] = [name for name in schema.get("required", []) if name != "family"]
    if not schema["required"]:
        del schema["required"]


class CommonKeys(Model):
    """The keys of a subject, whatever its backend; a backend may not know all of them."""

    model_config = ConfigDict(json_schema_extra=_family_is_optional)

    family: str = Field(
        description="model family: " + ", ".join(sorted(FAMILIES)) + "; absent: that of the checkpoint at hand",
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
        description="way of running the model: " + "; ".join(f"{name}: {get_backend(name).about}" for name in BACKENDS),
        json_schema_extra={"enum": [*sorted(BACKENDS)]},
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        "sdpa", description="attention implementation; flash_attention_2 needs the package flash-attn"
    )
    vision_attention_dtype: Literal["float32", "weights"] | None = Field(
        None,
        description="number format of attention in Molmo's vision encoder and pooling: float32, or weights (theirs); "
        "absent: as the original has it, float32",
    )
    device_map: Literal["auto"] | None = Field(
        None, description="auto: spread a checkpoint over all GPUs; absent: on one device, as device says"
    )
    quantization: str | None = Field(
        None,
        description="pack a checkpoint's weights while loading: " + ", ".join(QUANTIZED_BYTES) + "; needs the package "
        "bitsandbytes; absent: as the checkpoint was saved",
        json_schema_extra={"examples": [*QUANTIZED_BYTES]},
    )
    trust_remote_code: bool = Field(
        False,
        description="true: run the Python code that a checkpoint brings along, where the family runs any; from a "
        "folder, or from a hub id with a commit as revision",
    )
    cpu_threads: int | None = Field(
        None, ge=1, description="threads that PyTorch uses on a CPU; absent: one per physical core it may use"
    )
    seed: int = Field(0, ge=0, description="seed of random weights")

    @model_validator(mode="before")
    @classmethod
    def _family_of_the_checkpoint(cls, data: Any) -> Any:
        """Where no family is given, it follows from the checkpoint, if that is at hand."""
        if not isinstance(data, Mapping) or data.get("family") is not None:
            return data
        weights, revision = data.get("weights", "random"), data.get("revision")
        if not isinstance(weights, str) or weights == "random" or not isinstance(revision, str | None):
            return data
        try:
            checkpoint = checkpoint_at_hand(weights, revision)
            if checkpoint is not None:
                return {**data, "family": family_of_checkpoint(checkpoint)}
        except UserError as error:
            raise ValueError(f"family is missing, and does not follow from the weights: {error}") from None
        raise ValueError(
            f"family is missing, and the checkpoint that would tell it, {weights}, is not on this machine yet; legal: "
            f"{', '.join(sorted(FAMILIES))}"
        )

    @field_validator("family")
    @classmethod
    def _known_family(cls, name: str) -> str:
        if name not in FAMILIES:
            raise ValueError(unknown_family(name))
        return name

    @field_validator("backend")
    @classmethod
    def _known_backend(cls, name: str) -> str:
        if name not in BACKENDS:
            raise ValueError(f"{name!r} is not known{_meant(name, BACKENDS)}; legal: {', '.join(sorted(BACKENDS))}")
        return name

    @field_validator("quantization")
    @classmethod
    def _known_packing(cls, name: str | None) -> str | None:
        if name is not None and not is_way_of_packing(name):
            hint = _meant(name, QUANTIZED_BYTES)
            raise ValueError(f"{name!r} is not known{hint}; legal: {', '.join(QUANTIZED_BYTES)}")
        return name

    @model_validator(mode="after")
    def _architecture(self) -> CommonKeys:
        family = get_family(self.family)
        presets = family.presets
        if self.preset is not None and self.preset not in presets and not family.takes_any_checkpoint:
            hint = _meant(self.preset, presets)
            raise ValueError(f"preset {self.preset!r} is not known{hint}; legal: {', '.join(presets)}")
        if self.weights == "random" and self.preset is None:
            raise ValueError(f"preset is missing: random weights need an architecture, one of {', '.join(presets)}")
        if self.weights == "random" and self.revision is not None:
            raise ValueError("revision is given, but weights are random; legal only with a hub id as weights")
        self._check_checkpoint_keys()
        self._check_vision_attention()
        self._check_backend_keys()
        return self

    def _check_vision_attention(self) -> None:
        """Refuse a number format of vision attention for a family that leaves no choice."""
        if self.vision_attention_dtype is not None and not isinstance(get_family(self.family), ChoosesVisionAttention):
            families = [name for name in FAMILIES if isinstance(get_family(name), ChoosesVisionAttention)]
            raise ValueError(
                f"vision_attention_dtype is given, and family {self.family} leaves no choice; legal with "
                f"{', '.join(families)}"
            )

    def _check_backend_keys(self) -> None:
        """Refuse what the subject's backend does not know."""
        backend = get_backend(self.backend)
        if not backend.reads_weights and self.weights != "random":
            raise ValueError(f"weights: {self.weights!r} is not read by backend {self.backend}; legal with it: random")
        own = set(backend.keys.model_fields) if backend.keys else set()
        known = {*ALWAYS, *backend.takes, *own}
        fields = type(self).model_fields
        given = [key for key in fields if key in self.model_fields_set and getattr(self, key) != fields[key].default]
        for key in given:
            if key not in known:
                raise ValueError(
                    f"{key} is given, and backend {self.backend} does not know it; it takes {', '.join(sorted(known))}"
                )
        keys = backend.keys.model_fields if backend.keys else {}
        if said := backend.check({name: getattr(self, name) for name in keys}):
            raise ValueError(said)

    def _check_checkpoint_keys(self) -> None:
        """Check what is for checkpoints alone, and for those that transformers loads."""
        family = get_family(self.family)
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
            if not family.loads_by_transformers:
                raise ValueError(
                    f"{key} is given, but family {self.family} reads checkpoints by itself; legal with the others"
                )
        if self.device_map and self.device not in ("auto", "cuda"):
            raise ValueError(
                f"device_map: {self.device_map} spreads the model over all GPUs, but device is {self.device}; "
                "legal with it: auto, cuda"
            )
        if self.trust_remote_code and not family.runs_remote_code:
            runs = ", ".join(name for name in FAMILIES if get_family(name).runs_remote_code)
            raise ValueError(f"trust_remote_code: family {self.family} runs no code of a checkpoint; legal with {runs}")
        if self.trust_remote_code and not Path(self.weights).is_dir() and not COMMIT.fullmatch(self.revision or ""):
            raise ValueError(
                f"trust_remote_code: revision {self.revision!r} may come to mean other code; legal with it: a commit "
                "of 40 hexadecimal digits, or a folder as weights"
            )


if TYPE_CHECKING:

    class Subject(CommonKeys):
        """A model, its weights, its number format and the way it is run, on a device."""

else:

    def _with_backends() -> type[CommonKeys]:
        """Give a subject the keys that backends bring along."""
        fields = {
            name: (field.annotation, field)
            for backend in map(get_backend, BACKENDS)
            if backend.keys
            for name, field in backend.keys.model_fields.items()
        }
        about = "A model, its weights, its number format and the way it is run, on a device."
        return create_model("Subject", __base__=CommonKeys, __module__=__name__, __doc__=about, **fields)

    Subject = _with_backends()


def subject_spec(subject: Subject) -> SubjectSpec:
    """What a family is asked to load for a subject."""
    return SubjectSpec(
        preset=subject.preset,
        weights=subject.weights,
        revision=subject.revision,
        dtype=subject.dtype,
        attention=subject.attention,
        seed=subject.seed,
        device_map=subject.device_map,
        quantization=subject.quantization,
        trust_remote_code=subject.trust_remote_code,
        vision_attention_dtype=subject.vision_attention_dtype,
    )


def own_keys(subject: Subject) -> dict[str, Any]:
    """The keys of a subject that its backend brings along, by name."""
    keys = get_backend(subject.backend).keys
    return {name: getattr(subject, name) for name in keys.model_fields} if keys else {}


def own_encoding(subject: Subject) -> Encoding | None:
    """How a subject is sent its pictures as files; None where they are no files."""
    return get_backend(subject.backend).encoding(own_keys(subject))


def has_limits(subject: Subject) -> bool:
    """Whether a subject's model runs on a device of this machine, whose limits can be measured."""
    backend = get_backend(subject.backend)
    return backend.runs_model and backend.has_limits(subject.family, subject.preset, own_keys(subject))


def has_counts(subject: Subject) -> bool:
    """Whether a subject has a processor of its own, against which the plan's counts can be checked."""
    return get_backend(subject.backend).runs_model


def loading(
    subject: Subject,
    *,
    device: str,
    beside: tuple[str, ...] = (),
    folder: Path | None = None,
    tell: Callable[[str], None] = lambda message: None,
) -> Loading:
    """What a backend is asked to load for a subject, on a device (its name for torch).

    beside: further cards that the session holds; folder: where it may keep files of its own; tell: hears of what takes
    long.
    """
    spec, own = subject_spec(subject), own_keys(subject)
    return Loading(subject.family, spec, device, subject.cpu_threads, own, beside, folder, tell)
