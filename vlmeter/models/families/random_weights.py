"""Random weights at a published architecture, made on the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmeter.common.errors import UserError

#: transformers' own `initializer_range` nearly everywhere.
_STD = 0.02


def random_model(config: Mapping[str, Any], *, device: str, dtype: str, attention: str, seed: int) -> Any:
    """Make a model with random weights on the device, as transformers initialises it; on meta only its shapes.

    No weight ever exists elsewhere. The same seed gives the same weights on the same kind of device.
    """
    import torch

    model = empty_model(config, dtype=dtype, attention=attention)
    if device != "meta":
        materialise(model, device)
        cards = [torch.device(device)] if device.startswith("cuda") else []
        with torch.random.fork_rng(devices=cards), torch.no_grad():
            torch.manual_seed(seed)
            model.initialize_weights()
            for parameter in model.parameters():
                # Some are left at zero (Gemma 3's projector), which would hide the picture from the language model.
                if parameter.ndim > 1 and not parameter.any():
                    parameter.normal_(std=_STD)
        model.tie_weights()
    return model.eval().requires_grad_(False)


def empty_model(config: Any, *, dtype: str, attention: str) -> Any:
    """Make a model of transformers on meta, from the content of config.json or a configuration."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.initialization import no_init_weights

    made = AutoConfig.for_model(**config) if isinstance(config, Mapping) else config
    try:
        with torch.device("meta"), no_init_weights():
            model = AutoModelForImageTextToText.from_config(
                made, dtype=getattr(torch, dtype), attn_implementation=attention
            )
    except (ImportError, ValueError) as error:
        raise UserError(
            f"attention: {attention} cannot be used with {made.model_type} here ({str(error).splitlines()[0]})"
        ) from error
    model.tie_weights()
    return model


def materialise(model: Any, device: str) -> None:
    """Give every parameter and buffer of a model on meta its memory on the device; what is shared stays shared."""
    import torch

    memory: dict[int, Any] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in memory:
                    empty = torch.empty_like(parameter, device=device)
                    memory[id(parameter)] = torch.nn.Parameter(empty, requires_grad=False)
                module._parameters[name] = memory[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = memory.setdefault(id(buffer), torch.empty_like(buffer, device=device))
