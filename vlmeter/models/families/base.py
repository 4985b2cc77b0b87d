"""What vlmeter has to know about a model family, and nothing more.

A *family* is a group of models that share one architecture and one way of turning an image into tokens. It answers
two kinds of question. Before anything is loaded: how many crops and tokens does an image of this size become, which
sizes are worth trying for a wanted count, how much memory will the weights need? These answers are pure arithmetic and
import neither torch nor transformers, so that a plan is made in milliseconds. Once a model is loaded: what are the
model's inputs for this picture and question, and at which modules does one phase end and the next begin?
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from PIL.Image import Image

#: The components whose parameters are counted apart. `vision_encoder` is the image transformer, `projector` everything
#: between it and the language model (pooling included), `embedding` the token table, `llm_blocks` the decoder blocks,
#: `head` the final norm and the output matrix.
COMPONENTS = ("vision_encoder", "projector", "embedding", "llm_blocks", "head")

#: The phases of one prefill, in the order in which they are shown. `merge` is token embedding plus the placing of
#: vision features among the text embeddings: all that the forward pass does outside the other four.
PREFILL_PHASES = ("vision_encoder", "projector", "merge", "llm_blocks", "head")


@dataclass(frozen=True)
class ImageOptions:
    """How an image is cut up, where a family leaves a choice.

    max_crops: upper limit for high-resolution crops (without the global one); None is the family's default.
    force_tiling: rows and columns of crops, imposed past the preprocessor's own selection.
    """

    max_crops: int | None = None
    force_tiling: tuple[int, int] | None = None


@dataclass(frozen=True)
class ImageTokens:
    """What one image becomes: crops for the vision encoder, tokens for the language model.

    crops are the pictures that the vision encoder takes: tiles, and the whole in small where a family adds it; 1 for a
    family that does not cut. vision_tokens receive vision features; special_tokens are the image's other tokens (start,
    end, rows) and receive none. layout holds the family's own columns, such as tiling_h and tiling_w.
    """

    width_px: int
    height_px: int
    crops: int
    vision_tokens: int
    special_tokens: int
    layout: Mapping[str, int] = field(default_factory=dict)

    @property
    def image_tokens(self) -> int:
        """All tokens that the image takes in the prompt."""
        return self.vision_tokens + self.special_tokens


@dataclass(frozen=True)
class Counts:
    """Tokens and crops counted in the model's real inputs, never computed from a size.

    prompt_tokens = vision_tokens + special_tokens + text_tokens; the beginning-of-sequence token is a text token.
    """

    crops: int
    vision_tokens: int
    special_tokens: int
    text_tokens: int
    prompt_tokens: int


@dataclass(frozen=True)
class ModelInputs:
    """One prompt, ready for the device: named CPU tensors with a batch dimension of 1, and what was counted in them.

    question: the words that were asked, made up ones too.
    """

    tensors: Mapping[str, Any]
    counts: Counts
    question: str = ""


@dataclass(frozen=True)
class Boundary:
    """One mark inside a forward pass.

    The mark is taken `before` or `after` the forward of `module`, and closes the phase `closes`: the span since the
    previous mark belongs to that phase. The first mark of a pass closes nothing and has `closes=None`.
    """

    module: Any
    when: Literal["before", "after"]
    closes: str | None


@dataclass(frozen=True)
class SubjectSpec:
    """What to load: a preset with random weights, or a checkpoint.

    weights is "random", a local folder or a hub id; preset names the architecture when weights are random. dtype is
    one of float32, bfloat16, float16; attention is a transformers attention implementation. device_map ("auto"),
    quantization and trust_remote_code are for checkpoints that transformers loads; see `vlmeter.models.checkpoints`.
    vision_attention_dtype is for families that leave the choice (`ChoosesVisionAttention`); None is their own way.
    """

    preset: str | None
    weights: str
    revision: str | None
    dtype: str
    attention: str
    seed: int
    device_map: str | None = None
    quantization: str | None = None
    trust_remote_code: bool = False
    vision_attention_dtype: str | None = None


class LoadedModel(Protocol):
    """A model on a device, with what is needed to feed it and to see inside it."""

    model: Any
    #: token ids that end a sequence; a forced generation suppresses them
    eos_token_ids: Sequence[int]
    #: parameters per component, counted in the loaded model
    parameters: Mapping[str, int]

    @property
    def placeholders(self) -> Sequence[str]:
        """Texts that mark an image in a prompt, so that no question may hold one (`vlmeter.measure.questions`)."""
        ...

    def prepare(
        self, image: Image, question: str | None, *, text_tokens: int | None, options: ImageOptions
    ) -> ModelInputs:
        """Turn a picture and a question into model inputs on the CPU.

        Exactly one of question and text_tokens is given: with text_tokens the prompt's text part is filled to exactly
        that many tokens.
        """
        ...

    def boundaries(self) -> Sequence[Boundary]:
        """Marks of one prefill in the order in which they fire; the spans between them cover the whole forward."""
        ...

    def vision(self, tensors: Mapping[str, Any]) -> Any:
        """Run vision encoder and projector alone on device tensors; returns the features."""
        ...

    def prefill(self, tensors: Mapping[str, Any], cache: Any = None) -> tuple[Any, Any]:
        """Run the whole prompt (device tensors) into a new cache, or into an empty one that is given.

        Returns the logits [1, vocabulary] of the last position and the cache. Waits for nothing on the device.
        """
        ...

    def decode(self, token_ids: Any, cache: Any) -> Any:
        """Run one token [1, 1] behind what the cache holds, and extend it; returns its logits [1, vocabulary].

        Waits for nothing on the device.
        """
        ...


class ImageGeometry(Hashable, Protocol):
    """How one subject turns an image's size into crops and tokens: pure arithmetic, hashable, no torch.

    Two subjects of a family may differ here: a checkpoint's own configuration sets crop sizes and limits.
    """

    @property
    def layout_columns(self) -> tuple[str, ...]:
        """Names of the columns that ImageTokens.layout carries, such as tiling_h and tiling_w."""
        ...

    def image_tokens(self, width_px: int, height_px: int, *, options: ImageOptions) -> ImageTokens:
        """Predict crops and tokens of an image size.

        Raises UnsupportedSize where the model's own code fails, UserError for options that the family does not have.
        """
        ...

    def candidates(self, *, options: ImageOptions) -> Iterable[tuple[int, int]]:
        """List sizes (width_px, height_px) that between them show every count that can be reached.

        In a fixed order, thousands at most; `vlmeter.models.image_sizes` chooses among them.
        """
        ...

    def tilings(self, *, options: ImageOptions) -> list[tuple[int, int]]:
        """List every tiling (rows, columns) that the preprocessor may choose; empty for a family that does not cut."""
        ...

    def size_for_tiling(self, tiling: tuple[int, int], *, options: ImageOptions) -> ImageTokens:
        """Find the image size that fits a tiling; raises UserError if none does, or the family does not cut."""
        ...

    def limit(self, *, options: ImageOptions) -> str:
        """Say what keeps larger counts out of reach, such as "max_crops 12"."""
        ...


@runtime_checkable
class HasPort(Protocol):
    """A family whose models are run by vlmeter's own port, which can be held against the original."""

    def verify(self, checkpoint: str, cases: Sequence[Path], *, tolerance: float) -> Sequence[Any]:
        """Compare the port with what the original code computed; see `vlmeter.models.molmo1.verify`."""
        ...


@runtime_checkable
class KnowsStrips(Protocol):
    """A geometry that makes further counts of images more elongated than what is proposed for a count."""

    def strip(self, *, vision_tokens: int | None, crops: int | None) -> ImageTokens | None:
        """Find the mildest of the elongated images that make these counts; None if none does."""
        ...


@runtime_checkable
class KnowsRemedy(Protocol):
    """A geometry that can say what would bring an unreachable count within reach."""

    def remedy(self, *, vision_tokens: int | None, crops: int | None) -> str:
        """Say which option reaches the count, or that none does."""
        ...


@runtime_checkable
class ChoosesVisionAttention(Protocol):
    """A family whose vision encoder may attend in another number format than the one that is its own."""

    #: legal values of `SubjectSpec.vision_attention_dtype`
    vision_attention_dtypes: Sequence[str]


class Family(Protocol):
    """One model family; see CONTRIBUTING for how to add one."""

    name: str
    #: whether transformers loads its checkpoints, so that `device_map` and `quantization` mean something
    loads_by_transformers: bool
    #: whether it reads checkpoints of any model_type, and takes one in a preset's stead, for its configuration
    takes_any_checkpoint: bool
    #: what its authors call a piece of an image that the vision encoder sees by itself; vlmeter says "crop"
    piece: str
    #: whether it runs the Python code that a checkpoint brings along, where a study trusts it
    runs_remote_code: bool

    @property
    def model_types(self) -> Sequence[str]:
        """Values of model_type in config.json that belong to this family."""
        ...

    @property
    def presets(self) -> Mapping[str, str]:
        """Preset name -> one line about it; a toy called "nano" first, then real ones."""
        ...

    def reads(self, config: Mapping[str, Any]) -> bool:
        """Whether checkpoints with this config.json are this family's own."""
        ...

    def other_format(self, config: Mapping[str, Any]) -> str | None:
        """Say what to take instead of a checkpoint of this family in a format that it does not read; else None."""
        ...

    def geometry(self, spec: SubjectSpec) -> ImageGeometry:
        """Return how the subject cuts up images: its preset's way, or that of the checkpoint's configuration."""
        ...

    def text_tokens(self, spec: SubjectSpec, question: str) -> int | None:
        """Count the text tokens of a prompt at planning time; None if the tokenizer is not at hand."""
        ...

    def parameters(self, spec: SubjectSpec) -> dict[str, int] | None:
        """Count parameters per component before loading; None if unknown until the checkpoint is read."""
        ...

    def kv_bytes_per_token(self, spec: SubjectSpec) -> int | None:
        """Bytes of key-value cache that one token takes in the subject's dtype; None if unknown."""
        ...

    def load(self, spec: SubjectSpec, *, device: str) -> LoadedModel:
        """Build or read the model on the device; raises UserError for everything that a user can mend.

        On the device "meta" only shapes are wanted: no weight is made or read (`vlmeter.measure.count_work` counts
        with them).
        """
        ...
