"""Read a study file, and check all of it before anything runs."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError

from vlmeter.common.errors import UserError
from vlmeter.study.refusals import sentence_of, shown
from vlmeter.study.study import Study


def load_study(path: Path) -> Study:
    """Read and check a study file; raises UserError: one sentence that names key, value, what is legal."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"study file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"study file {path} cannot be read: {error}") from None
    try:
        data = yaml.load(text, Loader=_StudyLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = getattr(error, "problem", None) or "is not valid YAML"
        raise UserError(f"study file {path}{where}: {what}") from None
    if data is None:
        raise UserError(f"study file {path} is empty; {A_STUDY_IS}")
    return parse_study(data, source=str(path))


A_STUDY_IS = "a study is a mapping of keys such as study, subjects, experiments"


def parse_study(data: object, *, source: str) -> Study:
    """Check the content of a study file; `source` is the name used in messages."""
    if not isinstance(data, Mapping):
        raise UserError(f"{source}: {A_STUDY_IS}, not {shown(data)}")
    try:
        study = Study.model_validate(data)
        for name in study.experiments.given:
            _check_sampling(study, name)
        return study
    except ValidationError as error:
        raise UserError(f"{source}: {sentence_of(error)}") from None


def _check_sampling(study: Study, experiment: str) -> None:
    try:
        study.sampling_for(experiment)
    except ValidationError as error:
        detail = error.errors()[0]
        detail["loc"] = ("experiments", experiment, "sampling", *detail["loc"])
        raise ValidationError.from_exception_data("Study", [cast(Any, detail)]) from None


class _StudyLoader(yaml.SafeLoader):
    """YAML's safe loader with two differences.

    A key given twice is an error rather than silently the last one, and 1e3 is a number as in YAML 1.2.
    """


def _construct_unique(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_StudyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_unique)


_StudyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)
