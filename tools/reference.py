"""The reference pages of the documentation, written from the code: commands, study keys, table columns, Python API."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import typer

#: What a notebook or a script may call, module after module; the docstrings are the pages' text.
PYTHON_API: Mapping[str, tuple[str, ...]] = {
    "vlmeter.report.notebook": ("load", "Results"),
    "vlmeter.table.files": ("read_table",),
    "vlmeter.analysis.reading": ("Unknown",),
    "vlmeter.numbers.medians": ("Estimate", "median_estimate"),
    "vlmeter.numbers.intervals": ("percentile_estimate", "paired_difference", "paired_ratio", "fit_linear", "Fit"),
    "vlmeter.analysis.prefill_cells": ("vision_cells", "part_costs", "two_factor", "crossover", "phase_shares"),
    "vlmeter.analysis.decode_runs": ("decode", "decode_law", "by_length"),
    "vlmeter.analysis.step_times": ("step_law", "step_bound", "inter_token_percentiles"),
    "vlmeter.analysis.distribution": ("sample_of", "percentiles", "explain", "slowest"),
    "vlmeter.analysis.answers": ("Answer", "answers_of", "all_answers"),
    "vlmeter.analysis.flops": ("points", "relations"),
    "vlmeter.analysis.prediction": ("predict",),
    "vlmeter.analysis.conditions": ("trust", "sentinel"),
}

#: Characters of a line of help, so that it fits a page's column.
HELP_WIDTH = 100


def pages() -> dict[str, str]:
    """Every generated page: its path in the site, and its Markdown."""
    return {
        "reference/commands.md": commands_page(),
        "reference/study-keys.md": study_keys_page(),
        "reference/table-columns.md": table_columns_page(),
        "reference/python.md": python_page(),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Commands


def command_line() -> Any:
    """The whole command line, as the library under typer has it."""
    from vlmeter.cli.app import app

    importlib.import_module("vlmeter.cli.main")  # which gives it its commands
    return typer.main.get_command(app)


def commands_page() -> str:
    """Each command's own help."""
    root = command_line()
    lines = [
        "# Commands",
        "",
        "What `vlmeter COMMAND --help` prints. Bad input gets one sentence and exit code 2.",
        "",
    ]
    for name, command in root.commands.items():
        context = command.context_class(command, info_name=f"vlmeter {name}", terminal_width=HELP_WIDTH)
        lines += [f"## vlmeter {name}", "", "```text", command.get_help(context).rstrip(), "```", ""]
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------------
# Study keys


def study_keys_page() -> str:
    """Every key of a study file, from the schema that refuses a wrong one."""
    from vlmeter.study.study import study_schema

    schema = study_schema()
    lines = [
        "# Study keys",
        "",
        "A study is one YAML file, or several laid over one another. Every key is typed: one that is misspelt, or a",
        "value that is impossible, is refused with one sentence before anything runs. `vlmeter schema` prints the same",
        "for editors.",
        "",
    ]
    for path, part in _sections(schema):
        lines += [f"## {path}", ""]
        if about := part.get("description"):
            lines += [about, ""]
        lines += ["| key | type | if absent | what |", "|---|---|---|---|"]
        wanted = part.get("required", [])
        for key, value in part["properties"].items():
            absent = "must be there" if key in wanted else _default(value)
            lines.append(f"| `{key}` | {_type(value)} | {absent} | {_cell(value.get('description', ''))} |")
        lines.append("")
    return "\n".join(lines)


def _sections(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The study itself, then every part of it under the key that it stands at; a part that is met twice, once."""
    known = schema["$defs"]
    yield "The study", schema
    seen: set[str] = set()

    def below(path: str, part: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for key, value in part["properties"].items():
            own = f"{path}.{key}" if path else key
            for name in _names_of(value):
                if name in seen:
                    continue
                seen.add(name)
                found = known[name]
                source = found["properties"].get("source", {}).get("const")
                title = (
                    f"{own} (source: {source})" if source else f"{own}.NAME" if "patternProperties" in value else own
                )
                yield title, found
                yield from below(title, found)

    yield from below("", schema)


def _names_of(value: Any) -> list[str]:
    """Names of the parts of the schema that a value refers to, in order."""
    if isinstance(value, dict):
        own = [value["$ref"].rpartition("/")[2]] if "$ref" in value else []
        return own + [name for key, item in value.items() if key != "discriminator" for name in _names_of(item)]
    return [name for item in value for name in _names_of(item)] if isinstance(value, list) else []


_LIMITS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def _type(value: Mapping[str, Any]) -> str:
    if "$ref" in value or "patternProperties" in value or "oneOf" in value:
        return "keys of its own"
    if "anyOf" in value:
        return " or ".join(_type(item) for item in value["anyOf"] if item.get("type") != "null")
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{item}`" for item in value["enum"])
    if value.get("type") == "array":
        return f"list of {_type(value.get('items', {}))}"
    limits = ", ".join(f"{sign} {value[name]}" for name, sign in _LIMITS.items() if name in value)
    return f"{value.get('type', 'anything')}{' ' + limits if limits else ''}"


def _default(value: Mapping[str, Any]) -> str:
    default = value.get("default")
    if default is None:
        return ""
    return (
        "see below"
        if isinstance(default, dict)
        else f"`{str(default).lower() if default in (True, False) else default}`"
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


# ---------------------------------------------------------------------------------------------------------------------
# Table columns


def table_columns_page() -> str:
    """Every column of table.parquet, and the quantities that are asked for by name."""
    from vlmeter.table import columns
    from vlmeter.table.quantities import QUANTITIES

    parts = {
        "What the cell is": columns.CELL_COLUMNS,
        "What was measured": columns.QUANTITY_COLUMNS,
        "Under which conditions": columns.CONDITION_COLUMNS,
    }
    lines = [
        "# Table columns",
        "",
        "The columns of `results/<study>/table.parquet`, one row per cell, arm, phase and clock; `table.csv` has the",
        "same without the lists. [How to read it](../howto/read-the-table.md).",
        "",
    ]
    for title, found in parts.items():
        lines += [f"## {title}", "", "| column | type | unit | what |", "|---|---|---|---|"]
        lines += [f"| `{each.name}` | {each.dtype} | {each.unit} | {_cell(each.description)} |" for each in found]
        lines.append("")
    lines += [
        "## Quantities",
        "",
        "Figures, claims and comparisons ask for rows by these names. *Where* is arm / phase / clock, by the kind of",
        "cell; quantities without a place are computed from others.",
        "",
        "| quantity | what | unit | where |",
        "|---|---|---|---|",
    ]
    for quantity in QUANTITIES.values():
        places = "; ".join(f"{kind}: {' / '.join(key)}" for kind, key in quantity.rows.items())
        lines.append(f"| `{quantity.name}` | {_cell(quantity.words)} | {quantity.unit} | {places} |")
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------------------------------------------------------------
# Python


def python_page() -> str:
    """Signatures and docstrings of what may be called."""
    lines = [
        "# Python",
        "",
        "For notebooks and scripts. Importing vlmeter brings neither pandas nor torch; reading results brings pandas.",
        "",
        "```python",
        "import vlmeter",
        "",
        'results = vlmeter.load("docs/gallery")  # or results/<study>',
        "results.fits  # costs and laws with their 95 % intervals",
        "```",
        "",
        "What cannot be said from the data is an `Unknown` with its reason, not a number. Times are in milliseconds.",
        "",
    ]
    for module, names in PYTHON_API.items():
        for name in names:
            found = getattr(importlib.import_module(module), name)
            shown = "vlmeter.load" if (module, name) == ("vlmeter.report.notebook", "load") else f"{module}.{name}"
            lines += [f"## {shown}", "", *_described(found, shown.rpartition(".")[2])]
            if inspect.isclass(found):
                for member, value in vars(found).items():
                    if not member.startswith("_") and (getter := _getter(value)) is not None:
                        lines += [f"### {name}.{member}", "", *_described(getter, member, signature=callable(value))]
    return "\n".join(lines)


def _getter(value: Any) -> Callable[..., Any] | None:
    """The function behind a method or a property of a class; None for what is neither."""
    if isinstance(value, property):
        return value.fget
    found = getattr(value, "func", value)
    return found if inspect.isfunction(found) else None


def _described(found: Any, name: str, *, signature: bool = True) -> list[str]:
    lines = []
    if signature:
        text = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", str(inspect.signature(found)).replace("'", ""))
        lines += ["```python", f"{name}{text}", "```", ""]
    about = inspect.getdoc(found) or ""
    return [*lines, about.replace("<", "&lt;"), ""]
