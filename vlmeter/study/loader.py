"""Read a study, and check all of it before anything runs.

There is one reader: what the command line refuses, the workflow refuses in the same words, and a value means the same
in a file and behind `--config`. A study may lie in several files, each laid over the one before it, and in values that
are laid over all of them.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError

from vlmeter.common.errors import UserError
from vlmeter.study.refusals import sentences_of, shown
from vlmeter.study.study import Study


def load_study(*paths: Path, values: Sequence[str] = ()) -> Study:
    """Read and check a study; raises UserError: one sentence that names key, value, what is legal.

    paths: its files, each laid over the one before it; values: KEY=VALUE, laid over all of them.
    """
    return parse_study(read_study(*paths, values=values), source=source_of(paths, values))


def read_study(*paths: Path, values: Sequence[str] = ()) -> dict[str, Any]:
    """Read a study's files and values into the one mapping that they make; it is still to be checked.

    Raises UserError where a file or a value cannot be read, or is no mapping of keys.
    """
    content: dict[str, Any] = {}
    for path in paths:
        content = laid_over(content, _mapping_in(path))
    for value in values:
        content = laid_over(content, _pair(value))
    return content


def source_of(paths: Sequence[Path], values: Sequence[str] = ()) -> str:
    """Name what a study is made of, for messages."""
    first, *others = [*map(str, paths), *(["--config"] if values else [])] or ["the study"]
    return f"{first} with {' and '.join(others)}" if others else first


def laid_over(under: Mapping[Any, Any], over: Mapping[Any, Any]) -> dict[Any, Any]:
    """Lay one mapping over another: mappings are merged key by key, anything else is replaced."""
    merged = dict(under)
    for key, value in over.items():
        if isinstance(value, Mapping):
            below = merged.get(key)
            merged[key] = laid_over(below if isinstance(below, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged


A_STUDY_IS = "a study is a mapping of keys such as study, subjects, experiments"


def _mapping_in(path: Path) -> Mapping[Any, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"study file {path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"study file {path} cannot be read: it is a folder") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"study file {path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: no path at all
        raise UserError(f"study file {path} cannot be read: {error}") from None
    data = _yaml_of(text, source=f"study file {path}")
    if data is None:
        raise UserError(f"study file {path} is empty; {A_STUDY_IS}")
    if not isinstance(data, Mapping):
        raise UserError(f"{path}: {A_STUDY_IS}, not {shown(data)}")
    return data


def _pair(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    said = text if text.isprintable() else text.encode("unicode_escape").decode()  # on one line
    if not equals or not key.strip():
        raise UserError(f"--config '{said}': legal: KEY=VALUE, such as seed=1 or 'sampling={{\"max_samples\": 7}}'")
    return {key.strip(): _yaml_of(value, source=f"--config '{said}'")}


def _yaml_of(text: str, *, source: str) -> object:
    try:
        return cast(object, yaml.load(text, Loader=_StudyLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = getattr(error, "problem", None) or "is not valid YAML"
        raise UserError(f"{source}{where}: {what}") from None
    except (ValueError, RecursionError) as error:  # a date that there is not; brackets in brackets in brackets
        raise UserError(f"{source}: cannot be read as YAML: {error}") from None
    except (AttributeError, KeyError, TypeError):  # what PyYAML ends in where a tag stands before another kind of value
        raise UserError(f"{source}: cannot be read as YAML: a tag such as !!bool stands before what is none") from None


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
        raise UserError(f"{source}: {_together(sentences_of(error))}") from None


def _together(sentences: Sequence[str]) -> str:
    """One sentence as it is; several, each on a line of its own."""
    if len(sentences) == 1:
        return sentences[0]
    return "\n- ".join([f"{len(sentences)} keys are wrong", *sentences])


def _check_sampling(study: Study, experiment: str) -> None:
    try:
        study.sampling_for(experiment)
    except ValidationError as error:
        detail = error.errors()[0]
        detail["loc"] = ("experiments", experiment, "sampling", *detail["loc"])
        raise ValidationError.from_exception_data("Study", [cast(Any, detail)]) from None


_NUMBERS = {
    "tag:yaml.org,2002:int": r"[-+]?(?:0|[1-9][\d_]*|0x[\da-fA-F]+|0o[0-7]+)",
    "tag:yaml.org,2002:float": (
        r"[-+]?(?:\.\d+|(?:0|[1-9][\d_]*)(?:\.\d*)?)(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
    ),
}


class _StudyLoader(yaml.SafeLoader):
    """YAML's safe loader with two differences.

    A key given twice is an error rather than silently the last one, and numbers are those of YAML 1.2: 1e3 is one, and
    012 and 12:30, which PyYAML takes for 10 and 750, are text.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - the name is PyYAML's
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _construct_unique(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    _refuse_twice(loader, node)
    return loader.construct_mapping(node, deep=True)


def _refuse_twice(loader: yaml.SafeLoader, node: yaml.MappingNode) -> None:
    """Refuse a key that is given twice, also in what is merged in (`<<`) without ever being a value of its own."""
    seen: set[Any] = set()
    for key_node, value_node in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            merged = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
            for part in merged:
                if isinstance(part, yaml.MappingNode):
                    _refuse_twice(loader, part)
            key: object = "<<"
        else:
            key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
        seen.add(key)


_StudyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_unique)


for _tag, _pattern in _NUMBERS.items():
    _StudyLoader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list("-+0123456789."))
