"""The model of a subject: its laws put together, and how far they reach."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from vlmeter.analysis import decode_runs, prefill_cells, reading
from vlmeter.analysis.prediction_laws import (
    Forecast,
    Learnt,
    Observations,
    learn_decode,
    learn_inputs,
    learn_prefill,
    total,
)
from vlmeter.analysis.reading import Unknown
from vlmeter.analysis.runs import runs_of
from vlmeter.numbers.intervals import Array
from vlmeter.table import kinds
from vlmeter.table.kinds import Kind
from vlmeter.table.quantities import BUSY_PREFILL, DECODE, INPUTS_WALL, PLAIN_WALL, WAIT, Quantity

#: How far beyond the measured range a prediction may go, as a factor: a law that was seen to hold up to some size is
#: trusted up to twice that size (attention's quadratic term, caches and other kernels wait beyond), and down to half.
FAR_FACTOR = 2.0


#: Groups of cells without which a law is not learnt: of a single one nothing can be left out.
FEWEST_GROUPS = 2


@dataclass(frozen=True)
class Query:
    """What is asked for; photograph: whether the image is resized first, as one of no exact size is."""

    crops: int
    prompt_tokens: int
    output_tokens: int
    photograph: bool = True

    @property
    def steps(self) -> int:
        """Decode steps: the first token comes out of the prefill."""
        return self.output_tokens - 1

    @property
    def contexts(self) -> float:
        """Sum of the steps' contexts: step s of n reads the prompt's keys and values, and those of s tokens."""
        return self.steps * self.prompt_tokens + self.steps * (self.steps + 1) / 2


@dataclass(frozen=True)
class Range:
    """What of a count was measured, and where predictions refuse; to_zero: whether any smaller count is known, too."""

    name: str
    unit: str
    key: str
    low: float
    high: float
    to_zero: bool = False

    def beyond(self, value: float, factor: float = 1.0) -> bool:
        """Whether a value lies outside of what was measured, by more than a factor."""
        return value > self.high * factor or (value < self.low / factor and not self.to_zero)

    def said(self) -> str:
        """The range in words."""
        if self.low == self.high:
            return f"{self.low:,.0f} {self.unit}"
        return f"{self.low:,.0f} to {self.high:,.0f} {self.unit}"


@dataclass(frozen=True)
class Model:
    """All that a study says about requests of one subject; decode is unknown where nothing was generated.

    keys: of the study's experiments that the prefill and decode were learnt from, for who wants to measure more.
    by_run: what each of several runs says by itself; empty with one, and where a run by itself says too little.
    """

    inputs: Learnt
    prefill: Learnt
    decode: Learnt | Unknown
    keys: Mapping[Kind, str]
    by_run: tuple[Model, ...] = ()

    @cached_property
    def ranges(self) -> dict[str, Range]:
        """Measured ranges of crops, prompt tokens, contexts and output tokens."""
        crops, tokens = (self.prefill.seen.features[name] for name in ("crops", "tokens"))
        images = self.keys.get(kinds.PREFILL) or self.keys.get(kinds.GENERATION, "")
        found = {
            "crops": Range("crops", "crops", images, crops.min(), crops.max()),
            "prompt_tokens": Range("prompt tokens", "tokens", images, tokens.min(), tokens.max()),
        }
        if isinstance(self.decode, Learnt):
            steps, prompts = (self.decode.seen.features[name] for name in ("steps", "prompt_tokens"))
            key = self.keys.get(kinds.GENERATION, "")
            # A shorter output than any measured one is between them and none at all, where decoding takes no time.
            found["output_tokens"] = Range(
                "output tokens", "tokens", key, steps.min() + 1, steps.max() + 1, to_zero=True
            )
            contexts = (prompts.min() + 1, (prompts + steps).max())
            found["context"] = Range("tokens in the last step's context", "tokens", key, *contexts)
        return found

    def refusal(self, query: Query) -> str | None:
        """Say why a request is too far from what was measured to be predicted; None if it is not."""
        if query.steps and isinstance(self.decode, Unknown):
            return f"no decode step can be predicted: {self.decode.reason}; one output token asks for the prefill alone"
        for name, value in self._values(query):
            limits = self.ranges[name]
            if limits.beyond(value, FAR_FACTOR):
                return (
                    f"{value:,} {limits.name} are too far from what the study measured, {limits.said()}: a prediction "
                    f"goes no farther than {FAR_FACTOR:g} times beyond; measure nearer to it ({limits.key})"
                )
        return None

    def notes(self, query: Query) -> list[str]:
        """Say what a reader of the prediction should know: where it leaves what was measured, and who sets the pace."""
        said = [
            f"extrapolated: {value:,} {self.ranges[name].name}, and the study measured {self.ranges[name].said()}"
            for name, value in self._values(query)
            if self.ranges[name].beyond(value)
        ]
        if self.prefill_of(query).by_host:
            said.append("the prefill is launch-bound: its time is what the host needs, whatever the image")
        return said

    def _values(self, query: Query) -> list[tuple[str, int]]:
        found = [("crops", query.crops), ("prompt_tokens", query.prompt_tokens)]
        if query.steps:
            found += [
                ("output_tokens", query.output_tokens),
                ("context", query.prompt_tokens + query.steps),
            ]
        return found

    def inputs_of(self, query: Query) -> Forecast:
        """Predict preprocessing and copy."""
        features = {"crops": float(query.crops), "photograph": float(query.photograph)}
        by_run = tuple(run.inputs.value_at(**features) for run in self.by_run)
        return replace(self.inputs.at(**features), by_run_ms=by_run)

    def prefill_of(self, query: Query) -> Forecast:
        """Predict the prefill."""
        features = {"crops": float(query.crops), "tokens": float(query.prompt_tokens)}
        by_run = tuple(run.prefill.value_at(**features) for run in self.by_run)
        return replace(self.prefill.at(**features), by_run_ms=by_run)

    def decode_of(self, query: Query) -> Forecast:
        """Predict all decode steps; no time for none."""
        if not query.steps:
            return Forecast(0.0, by_run_ms=(0.0,) * len(self.by_run))
        assert isinstance(self.decode, Learnt)
        features = {"steps": float(query.steps), "contexts": query.contexts}
        laws = [run.decode for run in self.by_run]
        by_run = tuple(law.value_at(**features) for law in laws if isinstance(law, Learnt))
        return replace(self.decode.at(**features), by_run_ms=by_run)

    def first_token_of(self, query: Query) -> Forecast:
        """Predict the time to first token."""
        return total([self.inputs_of(query), self.prefill_of(query)])

    def total_of(self, query: Query) -> Forecast:
        """Predict the whole request."""
        return total([self.inputs_of(query), self.prefill_of(query), self.decode_of(query)])

    def without(self, group: str) -> Model | None:
        """Return the model of a study in which a group was not measured; None if too little is left.

        It predicts means over the runs of that study, which what differs between runs is no error of.
        """
        parts = {name: part.without(group) for name, part in self.__dict__.items() if isinstance(part, Learnt)}
        if any(parts[name].group_count < FEWEST_GROUPS for name in ("inputs", "prefill")):
            return None
        decode = parts.get("decode", self.decode)
        if isinstance(decode, Learnt) and decode.group_count < FEWEST_GROUPS:
            decode = Unknown("too few photographs are left")
        return Model(parts["inputs"], parts["prefill"], decode, self.keys)


def learn(table: pd.DataFrame, subject: str | None = None) -> Model | Unknown:
    """Learn the laws of one subject from its table.

    The prefill is learnt from the vision-token cells if there are enough (photographs then test it), else from the
    photographs; inputs are learnt from both. Of several runs each is learnt by itself too, for the intervals.
    """
    rows = reading.of_subject(table, subject)
    model, runs = _learn(rows), runs_of(rows)
    if isinstance(model, Unknown) or len(runs) < 2:
        return model
    return replace(model, by_run=_alike([_learn(own) for own in runs], model.decode))


def _alike(runs: Sequence[Model | Unknown | None], decode: Learnt | Unknown) -> tuple[Model, ...]:
    """The models of runs, if each tells all that the model of all of them tells; else none."""
    known = [run for run in runs if isinstance(run, Model) and isinstance(run.decode, type(decode))]
    return tuple(known) if len(known) == len(runs) else ()


def _learn(rows: pd.DataFrame) -> Model | Unknown:
    cells, runs = prefill_cells.vision_cells(rows), decode_runs.decode(rows)
    inputs = Learnt(learn_inputs, _inputs_seen(cells, runs))
    prefill = Learnt(learn_prefill, _prefill_seen(cells))
    if prefill.group_count < FEWEST_GROUPS:
        photographed = Learnt(learn_prefill, _prefill_of_photographs(runs))
        prefill = max(prefill, photographed, key=lambda part: part.group_count)
    for name, part in (("prefills", prefill), ("images", inputs)):
        if part.group_count < FEWEST_GROUPS:
            return Unknown(
                f"a law needs {FEWEST_GROUPS} {name} of different size at least, and there "
                f"{'is' if part.group_count == 1 else 'are'} {part.group_count}"
            )
    keys = _keys(rows)
    decode = Learnt(learn_decode, _decode_seen(runs))
    if decode.group_count < FEWEST_GROUPS:
        why = f"{FEWEST_GROUPS} images with two output tokens or more are needed, and there are {decode.group_count}"
        return Model(inputs, prefill, Unknown(why), keys)
    return Model(inputs, prefill, decode, keys)


def _keys(rows: pd.DataFrame) -> dict[Kind, str]:
    """Keys of the experiments that asked for the cells of each kind, as they stand in a study."""
    found: dict[Kind, str] = {}
    for kind in (kinds.PREFILL, kinds.GENERATION):
        names = sorted(rows.loc[rows["kind"] == kind, "experiment"].unique())
        if names:
            found[kind] = ", ".join(f"experiments.{name}" for name in names)
    return found


def size_group(cells: pd.DataFrame) -> npt.NDArray[np.str_]:
    """Dummy images that become the same crops and tokens are one size, and are held out together."""
    pairs = zip(cells["crops"], cells["prompt_tokens"], strict=True)
    said = [f"{crops} crops, {tokens:,} tokens" if crops > 1 else f"{tokens:,} tokens" for crops, tokens in pairs]
    return np.array(said, dtype=str)


def photograph_group(runs: pd.DataFrame) -> npt.NDArray[np.str_]:
    """Name the image of each run: what is held out together."""
    return np.array(runs["picture"], dtype=str)


def _numbers(frame: pd.DataFrame, name: str) -> Array:
    return frame[name].to_numpy(dtype=np.float64, na_value=np.nan)


def photograph_runs(runs: pd.DataFrame, quantity: Quantity) -> pd.DataFrame:
    """One row per photograph: its counts, and the median over its runs of a quantity of the prefill or before."""
    direct = runs[runs["direct"]].dropna(subset=[quantity.column])
    names = ["image_index", "picture", "crops", "prompt_tokens"]
    return direct.groupby(names, sort=True)[[quantity.column]].median().reset_index()


def _inputs_seen(cells: pd.DataFrame, runs: pd.DataFrame) -> Observations:
    dummies, photographs = cells.dropna(subset=[INPUTS_WALL.column]), photograph_runs(runs, INPUTS_WALL)
    kinds = np.concatenate([np.zeros(len(dummies)), np.ones(len(photographs))])
    crops, values = (
        np.concatenate([_numbers(dummies, name), _numbers(photographs, name)]) for name in ("crops", INPUTS_WALL.column)
    )
    groups = np.concatenate([size_group(dummies), photograph_group(photographs)])
    return Observations({"crops": crops, "photograph": kinds}, values, groups)


def _prefill_seen(cells: pd.DataFrame) -> Observations:
    known = cells.dropna(subset=[PLAIN_WALL.column])
    signs = {"launch-bound": 1.0, "device-bound": -1.0}
    bound: Array = np.array([signs.get(bound, 0.0) for bound in known["bound"]], dtype=np.float64)
    return _prefills(known, PLAIN_WALL, _numbers(known, BUSY_PREFILL.column), bound, size_group(known))


def _prefill_of_photographs(runs: pd.DataFrame) -> Observations:
    known = photograph_runs(runs, WAIT)  # at a server more than the prefill
    nothing: Array = np.zeros(len(known), dtype=np.float64)
    unknown: Array = np.full(len(known), math.nan, dtype=np.float64)
    return _prefills(known, WAIT, unknown, nothing, photograph_group(known))


def _prefills(
    known: pd.DataFrame, quantity: Quantity, busy_ms: Array, bound: Array, groups: npt.NDArray[np.str_]
) -> Observations:
    """Observations of prefills; bound is 1 where the host sets the pace, -1 where the device does, else 0."""
    features = {"crops": _numbers(known, "crops"), "tokens": _numbers(known, "prompt_tokens")}
    return Observations({**features, "busy_ms": busy_ms, "bound": bound}, _numbers(known, quantity.column), groups)


def _decode_seen(runs: pd.DataFrame) -> Observations:
    known = runs.dropna(subset=[DECODE.column, "prompt_tokens"])
    steps, prompts = _numbers(known, "steps"), _numbers(known, "prompt_tokens")
    features = {"steps": steps, "contexts": steps * prompts + steps * (steps + 1) / 2, "prompt_tokens": prompts}
    return Observations(features, _numbers(known, DECODE.column), photograph_group(known))
