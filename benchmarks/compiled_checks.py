"""Whether captured and compiled code computes what eager does: errors of kernels, distances of logits."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any


def kernel_errors(device: str) -> dict[str, dict[str, float]]:
    """Relative errors of our kernels and of PyTorch's own, on random numbers, against float64."""
    import torch
    import torch.nn.functional as F

    from vlmeter.backends.compiled import decode_attention, vector_product, wide_attention  # noqa: F401 - they register

    made = torch.Generator(device=device).manual_seed(0)

    def random(*shape: int, dtype: Any = torch.bfloat16) -> Any:
        return torch.randn(*shape, generator=made, device=device, dtype=torch.float32).to(dtype)

    def error(found: Any, wanted: Any) -> float:
        return float((found.double() - wanted).norm() / wanted.norm())

    errors: dict[str, dict[str, float]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        query, key, value = random(1, 28, 1, 128, dtype=dtype), *(random(1, 4, 1472, 128, dtype=dtype) for _ in "kv")
        mask = (torch.arange(1472, device=device) < 1405)[None, None, None]
        arguments: dict[str, Any] = {"attn_mask": mask, "enable_gqa": True}
        wanted = F.scaled_dot_product_attention(query.double(), key.double(), value.double(), **arguments)
        ours = decode_attention.decode_attention(query, key, value, mask)
        theirs = F.scaled_dot_product_attention(query, key, value, **arguments)
        errors[f"decode_attention {dtype}"] = {"ours": error(ours, wanted), "theirs": error(theirs, wanted)}
    states = [random(2, 577, 16, 64) for _ in "qkv"]
    turned = [part.transpose(1, 2) for part in states]
    wanted = F.scaled_dot_product_attention(*(part.double() for part in turned)).transpose(1, 2)
    wide = F.scaled_dot_product_attention(*(part.float() for part in turned)).transpose(1, 2)
    ours = torch.ops.vlmeter.wide_attention(*states, 64**-0.5, torch.float32)
    narrow = F.scaled_dot_product_attention(*turned).transpose(1, 2)
    errors["wide_attention"] = {
        "ours": error(ours, wanted),
        "theirs in float32": error(wide, wanted),
        "theirs in bfloat16": error(narrow, wanted),
    }
    for rows, columns in ((4608, 3584), (3584, 18944), (37888, 3584)):
        vector, weight, bias = random(1, 1, columns), random(rows, columns), random(rows)
        wanted = F.linear(vector.double(), weight.double(), bias.double())
        ours = torch.ops.vlmeter.vector_product(vector, weight, bias)
        errors[f"vector_product {rows}x{columns}"] = {
            "ours": error(ours, wanted),
            "theirs": error(F.linear(vector, weight, bias), wanted),
        }
    return errors


def float32_errors(runners: Mapping[str, Any], prompts: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Relative distance of each backend's logits from those of the same weights in float32: of a prefill, of a step."""
    import torch

    eager, prompt = runners["eager"], prompts["eager"]
    exact = copy.copy(eager.loaded)
    exact.model = copy.deepcopy(eager.loaded.model).float()
    wide = {name: part.float() if part.is_floating_point() else part for name, part in prompt.tensors.items()}
    token = torch.tensor([[1]], device=eager.device)

    def error(found: Any, wanted: Any) -> float:
        return float((found.double() - wanted.double()).norm() / wanted.double().norm())

    errors = {}
    with torch.inference_mode():
        first, cache = exact.prefill(wide)
        second = exact.decode(token, cache)
        for backend, runner in runners.items():
            if backend == "eager":
                logits, cache = runner.loaded.prefill(prompt.tensors)
                errors[backend] = {
                    "prefill": error(logits, first),
                    "step": error(runner.loaded.decode(token, cache), second),
                }
                continue
            shape = runner._shape_for(prompts[backend], 2)
            shape.load(prompts[backend].tensors)
            with runner._compiled():
                shape.cache.begin()
                logits, _ = runner.loaded.prefill(shape.inputs, cache=shape.cache)
                shape.rewind()
                stepped = runner.loaded.decode(token, shape.cache)
            errors[backend] = {"prefill": error(logits, first), "step": error(stepped, second)}
    return errors


def logit_gaps(eager: Any, prompt: Any, tokens: Sequence[int]) -> list[float]:
    """How far below eager's best logit each of these tokens is, after the same tokens before it.

    In steps of the number format at the best logit: with random weights and 150,000 entries several logits of a 16-bit
    format are equally high or next to it, and whichever rounding comes first decides.
    """
    import torch

    gaps = []
    with torch.inference_mode():
        logits, cache = eager.loaded.prefill(prompt.tensors)
        for token in tokens:
            eager._choose(logits, suppress=True)
            best = logits.max()
            step = torch.finfo(logits.dtype).eps * 2.0 ** torch.floor(torch.log2(best.float().abs()))
            gaps.append(float((best.float() - logits[0, token].float()) / step))
            logits = eager.loaded.decode(torch.tensor([[token]], device=eager.device), cache)
    return gaps
