"""A server with caches: what it knows of a request is decided here, and subtraction tells its parts from outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from vlmeter.backends.base import CellFault, Known, Prompt
from vlmeter.backends.clock import Timing
from vlmeter.backends.endpoint.client import Exchange
from vlmeter.backends.endpoint.runner import Asked, EndpointRunner
from vlmeter.backends.endpoint.spans import timing_of


class CachingRunner(EndpointRunner):
    """A server with caches, which says when it answers from them: its parts can be had by subtraction.

    Each request is kept from the caches by a picture and a salt of its own, as on a server without; what is known of
    one is so because the server has met it just before.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._looked: set[tuple[int, int]] = set()
        #: what was known of prompts, by their shape; and the shape of the last one
        self._rests: dict[object, str] = {}
        self._shape: object = None

    @property
    def notes(self) -> Sequence[str]:
        """What a reader of its numbers has to know."""
        return [*super().notes, *([self._rests[self._shape]] if self._shape in self._rests else [])]

    def new(self, prompt: Prompt) -> Asked:
        """Make a picture that was never sent before, and a salt that was not."""
        self._shape = (prompt.tensors["picture"].size, prompt.counts.prompt_tokens)
        return super().new(prompt)

    def run_known(
        self, prompt: Prompt, *, output_tokens: int, stop: Literal["length", "eos"], known: Known
    ) -> tuple[Timing, int]:
        """Let the server meet a new picture, and then ask about it again: under another salt, or under the same.

        With the picture known, neither processor nor vision encoder runs, and the whole prompt does; where there are
        marks, the first request of a size is looked at for it. With the prompt known, only those tokens run that do not
        fill a block of the server's cache, and the last one. Raises CellFault for an answer that is no sample.
        """
        size = prompt.tensors["picture"].size
        if self._inside is not None and size not in self._looked:
            _, steps = self._ask_again(prompt, output_tokens=1, stop=stop, known="picture", marked=True)
            if any(span["name"] == "vision" for step in steps or () for span in step["spans"]):
                raise CellFault("the server's vision encoder ran for a picture that it was to know")
            self._looked.add(size)
        exchange, _ = self._ask_again(prompt, output_tokens=output_tokens, stop=stop, known=known, marked=False)
        usage = exchange.answer.usage
        if known == "prompt" and usage is not None:
            self._rests[self._shape] = (
                f"arm known_prompt: {usage.cached_tokens} of {usage.prompt_tokens} prompt tokens come from the "
                f"server's cache; what the others cost, subtraction leaves out"
            )
        return timing_of(exchange, ()), exchange.answer.output_tokens or 0

    def _ask_again(
        self, prompt: Prompt, *, output_tokens: int, stop: Literal["length", "eos"], known: Known, marked: bool
    ) -> tuple[Exchange, list[dict[str, Any]] | None]:
        first = self.new(prompt)
        self.ask(prompt, output_tokens=1, stop="length", marked=marked, asked=first)
        again = first if known == "prompt" else replace(first, salt=f"{first.salt}-again")
        return self.ask(prompt, output_tokens=output_tokens, stop=stop, marked=marked, asked=again, known=known)
