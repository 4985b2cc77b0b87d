"""Questions that mean nothing, and words to write them with: all that random weights need of a text is its length.

Tokenizers that are made on the spot know every byte, and the words here that questions about pictures are made of, so
that a question takes about as many tokens as with a real one. Imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vlmeter.common.errors import UserError

#: What questions about pictures are made of, most needed first: a made-up vocabulary may be small.
_WORDS = """
    User Assistant the a is are what color of in on this there how many man picture people does which it to
    and animal person photo woman do you holding kind wearing where at can be made any
"""

#: Texts to lengthen a prompt with: the first for most of the way, the others for the last tokens.
_FILLERS = (" the", " a", " e", " o", " x", "e", "x")


def byte_symbols() -> list[str]:
    """List the symbols by which a byte-level tokenizer writes the 256 bytes, in a fixed order."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def grow_words(vocabulary: dict[str, int], free_ids: Iterator[int]) -> list[tuple[str, str]]:
    """Add the words to a byte-level vocabulary, as long as there are free ids; returns the merges that make them.

    Each word grows from its leading space, letter by letter, so that any prefix of a known word is a token.
    """
    from tokenizers import pre_tokenizers

    space = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(" ")[0][0]
    merges: list[tuple[str, str]] = []
    for word in _WORDS.split():
        left = space
        for letter in word:
            if left + letter not in vocabulary:
                number = next(free_ids, None)
                if number is None:
                    break
                vocabulary[left + letter] = number
                merges.append((left, letter))
            left += letter
    return merges


def question_of(tokens: int, length: Callable[[str], int], *, what: str) -> str:
    """Make up a question for which `length`, the text tokens of its prompt, is exactly `tokens`.

    Raises UserError if even the shortest question takes more; `what` names the prompt in the message.
    """
    question = _FILLERS[0].strip()
    shortest = length(question)
    if tokens < shortest:
        raise UserError(f"text_tokens: {tokens} is too few for {what}; legal from {shortest} on")
    for filler in _FILLERS:
        step = max(1, length(question + filler) - length(question))
        question += filler * ((tokens - length(question)) // step)
        if length(question) == tokens:
            return question
    raise UserError(f"text_tokens: no question was found that makes {what} exactly {tokens} long; try another length")
