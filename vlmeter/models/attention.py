"""Which kernel PyTorch's attention may choose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_cudnn_attention(wanted: bool = True) -> Iterator[None]:
    """Keep SDPA from choosing cuDNN's attention while entered, if `wanted`.

    cuDNN builds a plan for every new shape, which takes milliseconds per call; with a cache that grows by one
    key per step every shape is new. Seen on an H100 with torch 2.11, Molmo-7B-D in bfloat16: 78 ms per token
    with cuDNN, 18 to 21 ms with the flash kernel. With shapes that stay (a static cache) cuDNN is the faster.
    """
    enabled = wanted and torch.backends.cuda.cudnn_sdp_enabled()
    if enabled:
        torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        if enabled:
            torch.backends.cuda.enable_cudnn_sdp(True)
