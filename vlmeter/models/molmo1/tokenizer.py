"""From text to token ids, for real and for made-up Molmo models.

A checkpoint brings its tokenizer along. A model with random weights has none, and its words would mean
nothing anyway; what a latency study needs of it is a *length*. So one is made on the spot: every byte is a
token, and the words that questions are made of are tokens too, so that a question takes about as many tokens
as with a real one. It is the same on every machine, every id is within the vocabulary, and Molmo's special
tokens have the ids that the original gives them, right behind the embedding rows of the vocabulary
(allenai/molmo, `olmo/tokenizer.py`).

The prompt follows `preprocessing_molmo.py`: the beginning-of-sequence token (for the published models that is
the end-of-sequence token), the image's tokens, then " User: {question} Assistant:". Imports neither torch nor
transformers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from vlmeter.common.errors import UserError
from vlmeter.models.made_text import byte_symbols, grow_words
from vlmeter.models.molmo1.architecture import Architecture

IMAGE_START, IMAGE_END, IMAGE_PATCH, IMAGE_COLUMN, IMAGE_PROMPT = SPECIAL_TOKENS = (
    "<im_start>",
    "<im_end>",
    "<im_patch>",
    "<im_col>",
    "<|image|>",
)
END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the tokens that stand for an image in the prompt."""

    im_start: int
    im_end: int
    im_patch: int
    im_col: int

    @classmethod
    def of(cls, architecture: Architecture) -> SpecialIds:
        """Return the ids that the original gives them: in this order, behind the embedding rows."""
        first = architecture.first_special_id
        return cls(im_start=first, im_end=first + 1, im_patch=first + 2, im_col=first + 3)


@dataclass(frozen=True)
class MolmoTokenizer:
    """A tokenizer with what Molmo's prompt needs to know about it."""

    tokenizer: Tokenizer
    bos_token_id: int
    eos_token_id: int
    special_ids: SpecialIds

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without a beginning-of-sequence token."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, skipping ids that it does not know (random weights say any)."""
        text: str = self.tokenizer.decode(list(ids))
        return text

    def prompt_ids(self, question: str) -> list[int]:
        """Return the ids of the prompt's text behind the image: " User: {question} Assistant:"."""
        return self.encode(f" User: {question} Assistant:")


def make_tokenizer(architecture: Architecture) -> MolmoTokenizer:
    """Make a byte-level tokenizer for a model with random weights; the same architecture gives the same ids."""
    eos = architecture.vocab_size - 1 if architecture.eos_token_id is None else architecture.eos_token_id
    vocabulary = {symbol: i for i, symbol in enumerate(byte_symbols())}
    room = min(architecture.vocab_size - 1, eos)
    if room < len(vocabulary):
        raise UserError(f"vocab_size: {architecture.vocab_size} is too small; a tokenizer needs at least 257 tokens")
    merges = grow_words(vocabulary, iter(range(len(vocabulary), room)))
    # Special tokens get the ids after the highest one, so the unused ids up to the first of them are filled.
    for i in range(len(vocabulary), architecture.first_special_id):
        if i != eos:
            vocabulary[f"<|unused_{i}|>"] = i
    vocabulary[END_OF_TEXT] = eos
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (END_OF_TEXT, *SPECIAL_TOKENS)])
    return _checked(tokenizer, architecture, bos=eos, eos=eos, source="the made-up tokenizer")


def load_tokenizer(folder: Path, architecture: Architecture) -> MolmoTokenizer:
    """Read the tokenizer of a checkpoint folder (`tokenizer.json`, `tokenizer_config.json`).

    As in the original, the beginning-of-sequence token is `bos_token`, or `eos_token` where there is none.
    Raises `UserError` for a file that is missing or broken and for special tokens that are not where the
    model expects them.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; a Molmo checkpoint brings its tokenizer along")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
        raise UserError(f"{path}: not a readable tokenizer ({error})") from error
    eos = _named_token(folder, "eos_token", tokenizer)
    if eos is None:
        eos = architecture.eos_token_id if architecture.eos_token_id is not None else tokenizer.token_to_id(END_OF_TEXT)
    if eos is None:
        raise UserError(f"{folder / 'tokenizer_config.json'}: names no eos_token, and {path.name} has no {END_OF_TEXT}")
    bos = _named_token(folder, "bos_token", tokenizer) or eos
    return _checked(tokenizer, architecture, bos=bos, eos=eos, source=str(path))


def _named_token(folder: Path, key: str, tokenizer: Tokenizer) -> int | None:
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return None
    try:
        named = json.loads(path.read_text(encoding="utf-8")).get(key)
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a JSON object ({error})") from error
    content = named.get("content") if isinstance(named, dict) else named
    token_id: int | None = tokenizer.token_to_id(content) if isinstance(content, str) else None
    return token_id


def _checked(tokenizer: Tokenizer, architecture: Architecture, *, bos: int, eos: int, source: str) -> MolmoTokenizer:
    """Make sure that the special tokens have the ids under which the model knows them."""
    for offset, token in enumerate(SPECIAL_TOKENS):
        expected, found = architecture.first_special_id + offset, tokenizer.token_to_id(token)
        if found != expected:
            raise UserError(f"{source}: {token} has id {found}, but the model's embedding expects it at {expected}")
    return MolmoTokenizer(
        tokenizer=tokenizer, bos_token_id=bos, eos_token_id=eos, special_ids=SpecialIds.of(architecture)
    )
