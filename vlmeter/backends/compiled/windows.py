"""Attention over many stretches of one sequence, by lengths that the host knows.

Qwen's vision encoders attend within windows. Without the package flash-attn transformers runs them one after the other,
and asks the device for their lengths in every block: 144 windows of a 1344x1344 picture in 28 blocks are some 4,000
calls. Here the lengths are asked for once, outside of the blocks, and stretches of one length go through attention as
one batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from vlmeter.models.families.base import LoadedModel

#: transformers hands out lengths to attention implementations that are called something with "flash"
NAME = "vlmeter_flash_windows"


def attend_within(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], scale: float | None) -> Tensor:
    """Attend within stretches of queries, keys and values [1, H, T, W] -> [1, T, H, W]."""
    runs = [(length, len(list(group))) for length, group in groupby(lengths)]
    if len(runs) > 1:
        return _by_length(query, key, value, lengths, scale)
    ((length, count),) = runs
    q, k, v = (_stretches(states, count, length) for states in (query, key, value))
    attended = F.scaled_dot_product_attention(q, k, v, scale=scale)
    return attended.transpose(1, 2).reshape(1, count * length, *attended.shape[1::2])


def _stretches(states: Tensor, count: int, length: int) -> Tensor:
    """[1, H, count * length, W] -> [count, H, length, W]."""
    _, heads, _, width = states.shape
    return states.view(heads, count, length, width).transpose(0, 1)


def _by_length(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], scale: float | None) -> Tensor:
    """Attend to all stretches of one length together, whatever lies between them."""
    _, heads, tokens, width = query.shape
    starts = [sum(lengths[:n]) for n in range(len(lengths))]
    output = query.new_empty(tokens, heads, width)
    for length in sorted(set(lengths)):
        begins = [start for start, own in zip(starts, lengths, strict=True) if own == length]
        # Neighbours of one length are one slice; slices are joined, so that no index has to reach the device.
        pieces = [_neighbours(group, length) for group in _runs(begins, length)]
        q, k, v = (
            torch.cat([_stretches(states[:, :, begin:end], (end - begin) // length, length) for begin, end in pieces])
            for states in (query, key, value)
        )
        attended = F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).reshape(-1, heads, width)
        done = 0
        for begin, end in pieces:
            output[begin:end] = attended[done : done + end - begin]
            done += end - begin
    return output[None]


def _runs(begins: list[int], length: int) -> Iterator[list[int]]:
    run: list[int] = []
    for begin in begins:
        if run and begin != run[-1] + length:
            yield run
            run = []
        run.append(begin)
    yield run


def _neighbours(run: list[int], length: int) -> tuple[int, int]:
    return run[0], run[-1] + length


def for_transformers(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attend as transformers' "sdpa" does, window by window."""
    lengths = kwargs["max_length_q"]
    if not isinstance(lengths, tuple):
        raise TypeError("the lengths of the windows were not given")
    return attend_within(query, key, value, lengths, kwargs.get("scaling")), None


@contextmanager
def given_lengths(loaded: LoadedModel) -> Iterator[None]:
    """Give every block of a vision encoder with windows their lengths, and let it attend by them."""
    visual: Any = getattr(loaded.model.base_model, "visual", None)
    config: Any = getattr(visual, "config", None)
    if visual is None or not hasattr(visual, "blocks") or config._attn_implementation != "sdpa":
        yield
        return
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, for_transformers)
    known: dict[int, tuple[Tensor, tuple[int, ...]]] = {}

    def give(module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if module is visual.blocks[0]:  # a new pass
            known.clear()
        ends = kwargs["cu_seqlens"]
        if id(ends) not in known:  # the tensor is kept along, so that its id stays its own
            known[id(ends)] = ends, tuple((ends[1:] - ends[:-1]).tolist())
        # All lengths stand where transformers expects the longest: it hands them on as they are.
        return args, {**kwargs, "max_seqlen": known[id(ends)][1]}

    before = config._attn_implementation
    with ExitStack() as stack:
        stack.callback(setattr, config, "_attn_implementation", before)
        stack.callback(known.clear)
        for block in visual.blocks:
            handle = block.register_forward_pre_hook(give, with_kwargs=True)
            stack.callback(handle.remove)
        config._attn_implementation = NAME
        yield
