"""Turn what is wrong with a study into one sentence: the key, the value, what would be legal."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from vlmeter.study.dataset_source import HUB_NAME_PATTERN, SOURCES
from vlmeter.study.study import NAME_PATTERN, Study
from vlmeter.study.subject import DEVICE_PATTERN

#: What the patterns of the study's keys mean in words.
PATTERNS_IN_WORDS = {
    NAME_PATTERN: "letters, digits, '.', '_' and '-', the first of them a letter or digit, at most 100",
    DEVICE_PATTERN: "auto, cpu, cuda, or a numbered one such as cuda:0",
    HUB_NAME_PATTERN: "owner/name, such as lmms-lab/VQAv2",
}


#: What pydantic's types of error mean in words; {} is filled from the error's context.
TYPES_IN_WORDS = {
    "bool_type": "true or false",
    "dict_type": "a mapping of keys",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "int_type": "a whole number",
    "invalid_key": "plain text as a key",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "list_type": "a list",
    "literal_error": "{expected}",
    "model_attributes_type": "a mapping of keys",
    "model_type": "a mapping of keys",
    "string_too_short": "text that is not empty",
    "string_type": "text",
    "too_short": "at least {min_length} of them",
    "union_tag_invalid": "{expected_tags}",
}


def sentences_of(error: ValidationError) -> list[str]:
    """Turn pydantic's complaints into a sentence for each key: key, value, what would be legal."""
    left, found = list(error.errors()), list[str]()
    while left:
        found.append(_sentence(*_most_telling(left)))
        place = left[0]["loc"]
        place = place[:-1] if place and _is_tag(place[-1]) else place
        left = [detail for detail in left[1:] if detail["loc"][: len(place)] != place]
    return list(dict.fromkeys(found))


def _sentence(detail: ErrorDetails, alternatives: Sequence[str]) -> str:
    """Say one complaint, and what else would be legal at its place."""
    location = [part for part in detail["loc"] if not _is_tag(part)]
    kind, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        name = str(context["discriminator"]).strip("'")
        location.append(name)
        value = value.get(name) if isinstance(value, Mapping) else value
    key = ".".join(str(part) for part in location) or "study"
    if kind == "extra_forbidden":
        legal = _legal_keys(detail["loc"][:-1])
        guess = difflib.get_close_matches(str(location[-1]), legal, n=1)
        hint = f" (did you mean {guess[0]}?)" if guess else ""
        return f"key {key} is not known{hint}; legal there: {', '.join(legal)}"
    if kind == "union_tag_not_found":
        return f"key {key} is missing; legal: {', '.join(SOURCES)}"
    if kind == "missing":
        return f"key {key} is missing: {_description(detail['loc'])}"
    if kind == "value_error":
        return f"{key}: {detail['msg'].removeprefix('Value error, ')}"
    if kind == "string_pattern_mismatch" and context["pattern"] in PATTERNS_IN_WORDS:
        wanted = PATTERNS_IN_WORDS[context["pattern"]]
    elif kind in TYPES_IN_WORDS:
        wanted = TYPES_IN_WORDS[kind].format(**context)
    else:
        wanted = detail["msg"]
    hint = _meant(value, str(context.get("expected", ""))) if kind == "literal_error" else ""
    return f"{key}: {shown(value)} is not legal{hint}; legal: {' or '.join([wanted, *alternatives])}"


#: What people write elsewhere, and what it is called here.
OTHER_NAMES = {
    "bf16": "bfloat16",
    "flash": "flash_attention_2",
    "flash_attn": "flash_attention_2",
    "flash_attention": "flash_attention_2",
    "float": "float32",
    "fp16": "float16",
    "fp32": "float32",
    "half": "float16",
}


def _meant(value: object, expected: str) -> str:
    """Say which of the legal words may be meant; empty if none is near."""
    legal = re.findall(r"'([^']+)'", expected)
    if not isinstance(value, str) or not legal:
        return ""
    word = value.lower().removeprefix("torch.")
    word = OTHER_NAMES.get(word.replace("-", "_"), word)
    found = [word] if word in legal else difflib.get_close_matches(word, legal, n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def shown(value: object) -> str:
    """A value as the file may have it, cut to a length that fits a sentence."""
    text = json.dumps(_with_text_keys(value), default=str, ensure_ascii=False)
    return text if len(text) < 80 else f"{text[:77]}..."


def _with_text_keys(value: object) -> object:
    """A value whose mappings have keys that JSON can write: YAML has dates and lists as keys, too."""
    if isinstance(value, Mapping):
        return {str(key): _with_text_keys(under) for key, under in value.items()}
    return [_with_text_keys(part) for part in value] if isinstance(value, (list, tuple)) else value


def _most_telling(details: list[ErrorDetails]) -> tuple[ErrorDetails, list[str]]:
    """Choose the complaint to pass on, and say what else would be legal at its place.

    Where a key takes either a word or a list, pydantic complains about both. If a list is given, its own
    complaint is the one that helps; if neither, both are legal.
    """
    first = details[0]
    if first["type"] != "literal_error" or not _is_tag(first["loc"][-1]):
        return first, []
    place = first["loc"][:-1]
    others = [detail for detail in details[1:] if detail["loc"][: len(place)] == place]
    inside = [detail for detail in others if detail["type"] != "list_type"]
    return (inside[0], []) if inside else (first, ["a list" for _ in others[:1]])


def _is_tag(part: int | str) -> bool:
    """Whether a part of an error's place is pydantic's own word for a branch, and no key."""
    return isinstance(part, str) and (part in SOURCES or part == "[key]" or part.startswith(("list[", "literal[")))


def _legal_keys(location: Sequence[int | str]) -> list[str]:
    """Names of the fields at a place of the study."""
    return sorted({name for model in _models_at(location) for name in model.model_fields})


def about(location: Sequence[int | str]) -> str:
    """What a study's key says of itself; empty for a name of one's own, such as a subject's."""
    fields = [model.model_fields.get(str(location[-1])) for model in _models_at(location[:-1])]
    return next((str(field.description) for field in fields if field is not None and field.description), "")


def _description(location: Sequence[int | str]) -> str:
    """What a key says, from the class that has it."""
    name = str(location[-1])
    return next(str(model.model_fields[name].description) for model in _models_at(location[:-1]))


def _models_at(location: Sequence[int | str]) -> list[type[BaseModel]]:
    """Find the classes at a place of the study by walking from its root."""
    models: list[type[BaseModel]] = [Study]
    for part in location:
        if part in SOURCES:
            models = [SOURCES[str(part)]]
            continue
        following = [
            found
            for model in models
            if isinstance(part, str) and part in model.model_fields
            for found in _models_in(model.model_fields[part].annotation)
        ]
        # a mapping's own key (a subject's name) stays at the classes found before
        models = following or models
    return models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
