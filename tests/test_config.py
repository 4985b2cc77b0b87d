"""A study file is right, or it is refused with one sentence: the key, the value, what would be legal."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from vlmeter.backends.registry import BACKENDS
from vlmeter.cells.keys import Sampling
from vlmeter.common.errors import UserError
from vlmeter.models.families.registry import FAMILIES
from vlmeter.numbers.pairs import parse_pair
from vlmeter.study.loader import load_study, parse_study, read_study
from vlmeter.study.study import Study, study_schema
from vlmeter.study.subject import Subject

ROOT = Path(__file__).parent.parent
KNOWN = ", ".join(sorted(FAMILIES))
SCHEMA = ROOT / "schemas" / "study.schema.json"
STUDIES = [ROOT / "config.yaml", *sorted((ROOT / "studies").glob("*.yaml"))]

GOOD: dict[str, Any] = {
    "study": "good",
    "subjects": {"one": {"family": "molmo", "preset": "nano"}},
    "experiments": {
        "vision_tokens": {"tilings": ["1x1", "1x2"]},
        "output_tokens": {"output_tokens": [8, 16]},
    },
}


def changed(**changes: Any) -> dict[str, Any]:
    """The good study with changes; `a__b=value` sets key b of a, and `...` (an Ellipsis) removes it."""
    data = copy.deepcopy(GOOD)
    for path, value in changes.items():
        *parents, name = path.split("__")
        place = data
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is ...:
            del place[name]
        else:
            place[name] = value
    return data


def refusal(data: object) -> str:
    with pytest.raises(UserError) as caught:
        parse_study(data, source="study.yaml")
    return str(caught.value)


def refusal_of_text(text: str, tmp_path: Path) -> str:
    path = tmp_path / "study.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_study(path)
    return str(caught.value).replace(str(path), "study.yaml")


# --- good studies -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_every_study_in_the_repository_is_legal_to_the_library_and_to_editors(path: Path) -> None:
    load_study(path)
    jsonschema.validate(yaml.safe_load(path.read_text()), study_schema())


def test_what_is_absent_has_a_default() -> None:
    study = parse_study(GOOD, source="test")
    assert study.sampling == Sampling(min_samples=10, max_samples=50, relative_half_width_fraction=0.01)
    assert (study.dataset.source, study.dataset.images) == ("embedded", 10)
    assert study.subjects["one"].device == "auto"


def test_a_study_cannot_be_changed() -> None:
    study = parse_study(GOOD, source="test")
    with pytest.raises(ValueError, match="frozen"):
        study.study = "other"  # type: ignore[misc]


def test_a_preset_may_stay_when_a_checkpoint_is_named() -> None:
    """One line goes from random weights to real ones."""
    study = parse_study(changed(subjects__one__weights="allenai/Molmo-7B-D-0924"), source="test")
    assert study.subjects["one"].preset == "nano"


def test_a_number_in_scientific_notation_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(GOOD) + "sampling: {max_seconds_per_cell: 1e3}\n")
    assert load_study(path).sampling.max_seconds_per_cell == 1000.0


def test_a_mark_of_the_byte_order_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + yaml.safe_dump(GOOD).encode())
    assert load_study(path).study == "good"


def test_subjects_may_share_keys_through_an_anchor(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    shared = """
    study: shared
    subjects:
      a: &a {family: molmo, preset: nano}
      b: {<<: *a, attention: eager}
    experiments: {vision_tokens: {tilings: [1x1]}}
    """
    path.write_text(shared)
    subjects = load_study(path).subjects
    assert (subjects["b"].preset, subjects["b"].attention) == ("nano", "eager")


def test_every_backend_of_the_registry_can_be_asked_for() -> None:
    needed: dict[str, Any] = {"endpoint": {"endpoint": {"url": "http://127.0.0.1:1/v1"}}}
    made = [Subject(family="molmo", preset="nano", backend=name, **needed.get(name, {})) for name in BACKENDS]
    assert [subject.backend for subject in made] == list(BACKENDS)


# --- files that are no study ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "study file study.yaml is empty; a study is a mapping of keys such as study, subjects, experiments"),
        ("# only a comment\n", "study file study.yaml is empty; a study is a mapping of keys"),
        ("- a\n- b\n", 'study.yaml: a study is a mapping of keys such as study, subjects, experiments, not ["a", "b"]'),
        ("just words", "study.yaml: a study is a mapping of keys such as study, subjects, experiments, not"),
        ("study: [1, 2", "study file study.yaml line 1, column 13: expected ',' or ']'"),
        ("study: a\n\tseed: 1", "study file study.yaml line 2, column 1: found character"),
        ("study: a\nstudy: b\n", "study file study.yaml line 2, column 1: key 'study' is given twice"),
        ("sampling:\n  seed: 1\n  seed: 1\n", "study file study.yaml line 3, column 3: key 'seed' is given twice"),
        ("sampling: {<<: {seed: 1, seed: 2}}", "study file study.yaml line 1, column 26: key 'seed' is given twice"),
        ("a: &a {seed: 1}\nb: {<<: *a, <<: *a}", "study file study.yaml line 2, column 13: key '<<' is given twice"),
        ("study: 2026-13-01", "study file study.yaml: cannot be read as YAML: month must be in 1..12"),
        ("[" * 3000, "study file study.yaml: cannot be read as YAML"),
        ("? [1, 2]\n: x\n", "study file study.yaml line 1, column 3: a key must be plain text"),
        ("study: !!python/object:os.system {}", "study file study.yaml line 1, column 8: could not determine"),
        ("study: !!timestamp x", "study file study.yaml: cannot be read as YAML: a tag such as !!bool"),
        ("study: !!bool x", "study file study.yaml: cannot be read as YAML: a tag such as !!bool"),
        (
            "- {2026-11-26: a}",
            'study.yaml: a study is a mapping of keys such as study, subjects, experiments, not [{"2026',
        ),
    ],
)
def test_a_file_that_is_no_study_is_refused_with_its_place(text: str, sentence: str, tmp_path: Path) -> None:
    assert refusal_of_text(text, tmp_path).startswith(sentence)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e3", 1000.0), ("2e-1", 0.2), (".5", 0.5), ("1_000", 1000), ("0x1f", 31), ("-3", -3), ("0", 0)]
    + [(text, text) for text in ("012", "12:30", "1:20.5", "0b11", "00")],
)
def test_numbers_are_those_of_yaml_1_2(text: str, value: object, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"value: {text}\n")
    found = read_study(tmp_path / "mine.yaml")["value"]
    assert (found, type(found)) == (value, type(value))


def test_a_name_that_no_file_system_takes_is_refused(tmp_path: Path) -> None:
    said = refusal_of_text(f"study: {'a' * 101}\nsubjects: {{a: {{family: molmo, preset: nano}}}}\n", tmp_path)
    assert "is not legal; legal: letters, digits" in said
    assert "at most 100" in said


@pytest.mark.parametrize("value", ["012", "12:30"])
def test_what_older_yaml_took_for_another_number_is_refused(value: str, tmp_path: Path) -> None:
    text = f"study: x\nseed: {value}\nsubjects: {{a: {{family: molmo, preset: nano}}}}\n"
    assert f'seed: "{value}" is not legal; legal: a whole number' in refusal_of_text(text, tmp_path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_study(tmp_path / "absent.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        load_study(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"study: caf\xe9\n")
    with pytest.raises(UserError, match=r"latin\.yaml is not UTF-8 \(.* at byte 10\); save it as UTF-8"):
        load_study(tmp_path / "latin.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        load_study(tmp_path / "no\0path.yaml")


# --- several files, and values over them -----------------------------------------------------------


def written(tmp_path: Path, *contents: str) -> list[Path]:
    paths = [tmp_path / f"{number}.yaml" for number, _ in enumerate(contents)]
    for path, content in zip(paths, contents, strict=True):
        path.write_text(content)
    return paths


def test_a_file_is_laid_over_the_one_before_it_and_values_over_all(tmp_path: Path) -> None:
    paths = written(
        tmp_path,
        yaml.safe_dump(GOOD) + "sampling: {max_samples: 60, max_seconds_per_cell: 9}\n",
        "sampling: {max_samples: 70}\nsubjects: {two: {family: molmo, preset: nano}}\nseed: 3\n",
    )
    study = load_study(*paths, values=["seed=4", 'sampling={"max_seconds_per_cell": 2e1}'])
    assert (study.sampling.max_samples, study.sampling.max_seconds_per_cell, study.seed) == (70, 20.0, 4)
    assert list(study.subjects) == ["one", "two"]


def test_a_list_in_a_later_file_takes_the_place_of_the_earlier_one(tmp_path: Path) -> None:
    paths = written(tmp_path, "a: [1, 2]\nb: {c: 1}\nd: 1\n", "a: [3]\nb: 2\nd: {e: 1}\n")
    assert read_study(*paths) == {"a": [3], "b": 2, "d": {"e": 1}}


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("seed", "--config 'seed': legal: KEY=VALUE, such as seed=1"),
        ("=1", "--config '=1': legal: KEY=VALUE"),
        ("seed=[1", "--config 'seed=[1' line 1, column 3: expected ',' or ']'"),
        ('sampling={"max_samples": 7, "max_samples": 8}', "key 'max_samples' is given twice"),
        ('sampling={"max_samples": "7"}', 'sampling.max_samples: "7" is not legal; legal: a whole number'),
        ("seed=2e1", "seed: 20.0 is not legal; legal: a whole number"),
        ("study=", "study: null is not legal; legal: text"),
    ],
)
def test_a_value_is_typed_as_in_a_file_and_refused_like_one(value: str, sentence: str, tmp_path: Path) -> None:
    (path,) = written(tmp_path, yaml.safe_dump(GOOD))
    with pytest.raises(UserError, match=re.escape(sentence)):
        load_study(path, values=[value])


def test_every_file_is_named_when_they_make_no_study_together(tmp_path: Path) -> None:
    first, second = written(tmp_path, yaml.safe_dump(GOOD), "seed: -1\n")
    with pytest.raises(UserError, match=re.escape(f"{first} with {second} and --config: seed: -1 is not legal")):
        load_study(first, second, values=["study=x"])
    with pytest.raises(UserError, match=r"absent\.yaml does not exist"):
        load_study(first, tmp_path / "absent.yaml")
    second.write_text("")
    with pytest.raises(UserError, match="is empty"):
        load_study(first, second)


# --- unknown keys, at every level -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "key", "guess", "legal"),
    [
        (changed(sudy="x"), "sudy", "study", "cell_time_limit_seconds, dataset, drift_tolerance_fraction"),
        (changed(subjects__one__devcie="cpu"), "subjects.one.devcie", "device", "attention, backend"),
        (changed(experiments__vision_token={}), "experiments.vision_token", "vision_tokens", "latency_distribution"),
        (changed(experiments__vision_tokens__crop=[3]), "experiments.vision_tokens.crop", "crops", "crops, force_"),
        (changed(experiments__output_tokens__imgs=3), "experiments.output_tokens.imgs", "images", "direct, images"),
        (
            changed(experiments__output_tokens__sampling={"min_sample": 3}),
            "experiments.output_tokens.sampling.min_sample", "min_samples", "energy_seconds_per_cell, max_samples",
        ),
        (changed(sampling={"max_sample": 3}), "sampling.max_sample", "max_samples", "energy_seconds_per_cell"),
        (
            changed(dataset={"source": "embedded", "imgaes": 3}),
            "dataset.imgaes",
            "images",
            "images, seed, skip_undecodable, source",
        ),
        (
            changed(dataset={"source": "hub", "name": "a/b", "split": "c", "sed": 3}),
            "dataset.sed", "seed", "config, images, name, revision, seed, skip_undecodable, source, split",
        ),
        (changed(dataset={"source": "local", "path": "a", "pth": 3}), "dataset.pth", "path", "images, path, seed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_an_unknown_key_is_named_with_a_guess_and_the_legal_ones(
    data: object, key: str, guess: str, legal: str
) -> None:
    expected = f"study.yaml: key {key} is not known (did you mean {guess}?); legal there: {legal}"
    assert refusal(data).startswith(expected)


def test_a_key_that_resembles_none_gets_no_guess() -> None:
    assert "did you mean" not in refusal(changed(zzz=1))


# --- missing keys -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (changed(study=...), "key study is missing: name of the study"),
        (changed(subjects=...), "key subjects is missing: what is measured"),
        (changed(experiments=...), "key experiments is missing: what is varied: vision_tokens, output_tokens"),
        (changed(subjects__one__family=...), f"key subjects.one.family is missing: model family: {KNOWN}"),
        (changed(dataset={"images": 3}), "key dataset.source is missing; legal: embedded, hub, local"),
        (changed(dataset={"source": "hub", "name": "a/b"}), "key dataset.split is missing: split of the dataset"),
        (changed(dataset={"source": "local"}), "key dataset.path is missing: a .parquet or .jsonl file"),
        (changed(experiments__output_tokens={}), "key experiments.output_tokens.output_tokens is missing: numbers"),
    ],
)
def test_a_missing_key_is_named_with_what_it_means(data: object, sentence: str) -> None:
    assert refusal(data).startswith(f"study.yaml: {sentence}")


# --- values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        # wrong type; YAML's yes, "1" and 1.5 are not whole numbers
        (changed(seed="1"), 'seed: "1" is not legal; legal: a whole number'),
        (changed(seed=True), "seed: true is not legal; legal: a whole number"),
        (changed(seed=1.5), "seed: 1.5 is not legal; legal: a whole number"),
        (changed(study=2024), "study: 2024 is not legal; legal: text"),
        (changed(subjects=["a"]), 'subjects: ["a"] is not legal; legal: a mapping of keys'),
        (changed(subjects__one=None), "subjects.one: null is not legal; legal: a mapping of keys"),
        (changed(sampling=3), "sampling: 3 is not legal; legal: a mapping of keys"),
        (changed(dataset="hub"), 'dataset: "hub" is not legal; legal: a mapping of keys'),
        (changed(dataset={"source": "embedded", "images": True}), "dataset.images: true is not legal; legal: a whole"),
        (
            changed(experiments__vision_tokens__force_tiling="yes"),
            'experiments.vision_tokens.force_tiling: "yes" is not legal; legal: true or false',
        ),
        (
            changed(experiments__output_tokens__output_tokens=8),
            "experiments.output_tokens.output_tokens: 8 is not legal; legal: a list",
        ),
        # out of range
        (changed(seed=-1), "seed: -1 is not legal; legal: 0 or more"),
        (changed(sampling={"min_samples": 0}), "sampling.min_samples: 0 is not legal; legal: 1 or more"),
        (
            changed(sampling={"relative_half_width_fraction": 1}),
            "sampling.relative_half_width_fraction: 1 is not legal; legal: less than 1",
        ),
        (
            changed(sampling={"max_seconds_per_cell": 0}),
            "sampling.max_seconds_per_cell: 0 is not legal; legal: more than 0",
        ),
        (
            changed(sampling={"max_seconds_per_cell": float("inf")}),
            "sampling.max_seconds_per_cell: Infinity is not legal; legal: a finite number",
        ),
        (
            changed(experiments__vision_tokens__text_tokens=3),
            "experiments.vision_tokens.text_tokens: 3 is not legal; legal: 8 or more",
        ),
        (
            changed(experiments__output_tokens__output_tokens=[8, 0]),
            "experiments.output_tokens.output_tokens.1: 0 is not legal; legal: 1 or more",
        ),
        # not among the legal ones
        (changed(subjects__one__family="qwen"), f"subjects.one.family: 'qwen' is not known; legal: {KNOWN}"),
        (
            changed(subjects__one__preset="9b"),
            "subjects.one: preset '9b' is not known; legal: nano, 7b-d, 7b-o, e-1b, 72b",
        ),
        (changed(subjects__one__preset=...), "subjects.one: preset is missing: random weights need an architecture"),
        (
            changed(subjects__one__backend="vllm"),
            "subjects.one.backend: 'vllm' is not known; legal: compile, cudagraph, eager, endpoint, fake",
        ),
        (
            changed(subjects__one__dtype="fp8"),
            "subjects.one.dtype: \"fp8\" is not legal; legal: 'float32', 'bfloat16' or 'float16'",
        ),
        (
            changed(subjects__one__device="gpu"),
            'subjects.one.device: "gpu" is not legal; legal: auto, cpu, cuda, or a numbered one such as cuda:0',
        ),
        (changed(subjects__one__revision="main"), "subjects.one: revision is given, but weights are random"),
        (changed(subjects__one__weights=""), 'subjects.one.weights: "" is not legal; legal: text that is not empty'),
        (changed(dataset={"source": "hf"}), "dataset.source: \"hf\" is not legal; legal: 'embedded', 'hub', 'local'"),
        (
            changed(dataset={"source": "hub", "name": "VQAv2", "split": "validation"}),
            'dataset.name: "VQAv2" is not legal; legal: owner/name, such as lmms-lab/VQAv2',
        ),
        (
            changed(experiments__vision_tokens__tilings="some"),
            "experiments.vision_tokens.tilings: \"some\" is not legal; legal: 'all' or a list",
        ),
        # names that become folders
        (changed(study="a/b"), 'study: "a/b" is not legal; legal: letters, digits'),
        (changed(study="../up"), 'study: "../up" is not legal; legal: letters, digits'),
        (changed(subjects={"a b": {}}), 'subjects.a b: "a b" is not legal; legal: letters, digits'),
        (changed(subjects={3: {}}), "subjects.3: 3 is not legal; legal: text"),
        # pairs
        (
            changed(experiments__vision_tokens__tilings=["1x1", "0x2"]),
            "experiments.vision_tokens.tilings.1: '0x2' is not of the form AxB, two positive whole numbers",
        ),
        (
            changed(experiments__vision_tokens__tilings=[2]),
            "experiments.vision_tokens.tilings.0: '2' is not of the form AxB",
        ),
        (
            changed(experiments__vision_tokens__image_sizes=["640*480"]),
            "experiments.vision_tokens.image_sizes.0: '640*480' is not of the form AxB",
        ),
        # given twice
        (
            changed(experiments__vision_tokens__tilings=["1x1", "2x2", "1x1"]),
            "experiments.vision_tokens.tilings: 1x1 stands there more than once",
        ),
        (
            changed(experiments__output_tokens__output_tokens=[8, 8]),
            "experiments.output_tokens.output_tokens: 8 stands there more than once",
        ),
        # values that do not go together
        (changed(sampling={"max_samples": 2}), "sampling: max_samples 2 is below min_samples 10"),
        (changed(sampling={"max_warmup": 1}), "sampling: max_warmup 1 is below min_warmup 2"),
        (
            changed(experiments__output_tokens__sampling={"min_samples": 60}),
            "experiments.output_tokens.sampling: max_samples 50 is below min_samples 60",
        ),
        (
            changed(experiments__output_tokens__direct=[8, 9]),
            "experiments.output_tokens: direct names 9, which is not among output_tokens; legal: 8, 16",
        ),
        (
            changed(experiments__output_tokens__direct=[8], experiments__output_tokens__stop="eos"),
            "experiments.output_tokens: direct must be all with stop: eos",
        ),
        (
            changed(experiments__vision_tokens={"crops": [3], "force_tiling": True}),
            "experiments.vision_tokens: force_tiling goes with tilings alone",
        ),
        (
            changed(experiments__vision_tokens={"tilings": ["1x1"], "crops": [3], "force_tiling": True}),
            "experiments.vision_tokens: force_tiling goes with tilings alone",
        ),
        # nothing to do
        (changed(subjects={}), "subjects: {} is not legal; legal: at least 1"),
        (changed(experiments={}), "experiments: no experiment given; legal: vision_tokens, output_tokens"),
        (changed(experiments__vision_tokens={}), "experiments.vision_tokens: nothing to measure; give at least one of"),
        (
            changed(experiments__output_tokens__output_tokens=[]),
            "experiments.output_tokens.output_tokens: [] is not legal; legal: at least 1",
        ),
    ],
)  # fmt: skip
def test_a_value_that_is_not_legal_is_named_with_what_would_be(data: object, sentence: str) -> None:
    assert refusal(data).startswith(f"study.yaml: {sentence}")


def test_a_refusal_is_one_line_and_says_nothing_of_the_library_that_checks() -> None:
    for data in (changed(zzz=1), changed(seed="x" * 500), changed(subjects__one__device="tpu"), changed(study=None)):
        sentence = refusal(data)
        assert "\n" not in sentence
        assert len(sentence) < 400
        assert not re.search(r"pydantic|https?:|validation error|input_", sentence)


# --- pairs and schema -------------------------------------------------------------------------------


def test_a_pair_is_two_positive_whole_numbers() -> None:
    assert parse_pair("640x480") == (640, 480)
    for text in ("", "x", "1x", "x1", "1x0", "-1x2", "1X2", "1x2x3", "1.5x2"):
        with pytest.raises(ValueError, match="is not of the form AxB"):
            parse_pair(text)
    for text in ("9999999x1", "1x99999999999", f"{'9' * 5000}x1"):
        with pytest.raises(ValueError, match="is too large: each of the two has at most 6 digits"):
            parse_pair(text)


def test_the_committed_schema_is_that_of_the_code() -> None:
    """`vlmeter schema > schemas/study.schema.json` brings it up to date."""
    assert json.loads(SCHEMA.read_text()) == study_schema()


@pytest.mark.parametrize(
    "data",
    [changed(zzz=1), changed(subjects__one__family="qwen"), changed(seed="1"), changed(dataset={"source": "hf"})],
)
def test_an_editor_sees_the_mistakes_that_a_schema_can_see(data: object) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, study_schema())


def test_every_key_of_a_study_says_what_it_means() -> None:
    schema = study_schema()
    models = [schema, *schema["$defs"].values()]
    silent = [
        f"{model.get('title')}.{name}"
        for model in models
        for name, field in model.get("properties", {}).items()
        if not field.get("description")
    ]
    assert silent == []
    assert set(schema["properties"]) == set(Study.model_fields)
