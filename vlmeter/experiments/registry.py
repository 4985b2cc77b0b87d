"""The experiments that vlmeter knows: one line each, in the order in which a plan lists their cells."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import cast

from vlmeter.experiments.base import Experiment

#: experiment name -> module that defines EXPERIMENT
EXPERIMENTS: Mapping[str, str] = {
    "vision_tokens": "vlmeter.experiments.vision_tokens",
    "output_tokens": "vlmeter.experiments.output_tokens",
    "requests": "vlmeter.experiments.requests",
    "latency_distribution": "vlmeter.experiments.latency_distribution",
}


def get_experiment(name: str) -> type[Experiment]:
    """Return the experiment called `name`."""
    return cast(type[Experiment], import_module(EXPERIMENTS[name]).EXPERIMENT)
