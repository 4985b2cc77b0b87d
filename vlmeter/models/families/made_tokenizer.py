"""A tokenizer for a model with random weights, which has none of its own.

Its words would mean nothing anyway; what a latency study needs of it is a *length*. So one is made on the spot: every
byte is a token, and the words that questions are made of are tokens too, so that a question takes about as many
tokens as with a real one. It is the same on every machine, and the special tokens have the ids that the published
configuration gives them. `make_tokenizer` needs the `tokenizers` package alone, for planning; `wrapped` makes of it
what a processor of transformers wants.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from vlmeter.common.errors import UserError
from vlmeter.models.made_text import byte_symbols, grow_words

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class MadeTokenizer:
    """What a made-up tokenizer is made of.

    special_tokens: text -> id, as the model's configuration has them; bos, eos, pad name three of them.
    adds_bos: whether every text begins with bos, as with the real one. named: attributes that the family's processor
    reads from its tokenizer, such as {"image_token": "<image>"}, all of them special tokens.
    """

    vocab_size: int
    special_tokens: Mapping[str, int]
    eos: str
    bos: str | None = None
    pad: str | None = None
    adds_bos: bool = False
    named: Mapping[str, str] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.vocab_size, tuple(self.special_tokens.items()), self.eos, self.bos, self.adds_bos))


@lru_cache(maxsize=32)
def make_tokenizer(made: MadeTokenizer) -> Tokenizer:
    """Make a byte-level tokenizer; the same description gives the same ids."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    taken = set(made.special_tokens.values())
    if len(taken) != len(made.special_tokens):
        raise ValueError(f"two special tokens have the same id: {dict(made.special_tokens)}")
    free = (number for number in range(made.vocab_size) if number not in taken)
    symbols = byte_symbols()
    vocabulary = dict(zip(symbols, free, strict=False))
    if len(vocabulary) < len(symbols):
        raise UserError(f"vocab_size: {made.vocab_size} is too small; a tokenizer needs 256 tokens for the bytes")
    merges = grow_words(vocabulary, free)
    vocabulary |= made.special_tokens  # a special token that the vocabulary knows keeps its id
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in made.special_tokens])
    if made.adds_bos:
        if made.bos is None:
            raise ValueError("adds_bos needs a bos token")
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{made.bos} $A", special_tokens=[(made.bos, made.special_tokens[made.bos])]
        )
    return tokenizer


def wrapped(made: MadeTokenizer) -> Any:
    """Make a tokenizer of transformers of it, for the family's processor."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer(made),
        bos_token=made.bos,
        eos_token=made.eos,
        pad_token=made.pad or made.eos,
        extra_special_tokens=dict(made.named),
        model_max_length=1 << 30,
        clean_up_tokenization_spaces=False,
    )
    for token, number in made.special_tokens.items():
        if tokenizer.convert_tokens_to_ids(token) != number:
            raise AssertionError(f"{token} has id {tokenizer.convert_tokens_to_ids(token)}, not {number}")
    return tokenizer
