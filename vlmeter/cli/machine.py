"""Commands about this machine, and about the port."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from vlmeter.cli.app import FamilyName, Format, Results, say
from vlmeter.cli.show import AsJson
from vlmeter.common.errors import UserError


def doctor(form: Format = "table", results: Results = Path("results"), as_json: AsJson = False) -> None:
    """Say what on this machine would disturb a measurement right now, and what to do; exit 1 if none would be right.

    With --json the environment stands beside it, as a report of a defect needs it.
    """
    from vlmeter.cli.rows import rows_as
    from vlmeter.measure.doctor import examine, worst
    from vlmeter.measure.environment import essentials

    advice = examine(results=results)
    rows = [
        {"severity": item.severity, "topic": item.topic, "finding": item.finding, "action": item.action}
        for item in advice
    ]
    if as_json:
        say(json.dumps({"environment": essentials(), "advice": rows}, indent=2))
    elif form == "table":
        for row in rows:
            say(f"{row['severity']:8} {row['topic']}: {row['finding']}")
            if row["action"]:
                say(f"{'':8} -> {row['action']}")
    else:
        say(rows_as(rows, list(rows[0]), form=form))
    if worst(advice) == "problem":
        raise typer.Exit(1)


def verify(
    checkpoint: Annotated[str, typer.Argument(help="folder of a checkpoint in the original format")],
    cases: Annotated[list[Path], typer.Argument(help="reference cases", metavar="CASE.npz...")],
    family: FamilyName = None,
    tolerance: Annotated[float, typer.Option(help="largest relative error that passes")] = 1e-4,
) -> None:
    """Compare vlmeter's own port of a model with what the original code computed; exit 1 past tolerance."""
    from vlmeter.cli.rows import rows_as
    from vlmeter.models.checkpoints import open_checkpoint
    from vlmeter.models.families.base import HasPort
    from vlmeter.models.families.registry import FAMILIES, family_of_checkpoint, get_family

    name = family or family_of_checkpoint(open_checkpoint(checkpoint, weights=False))
    port = get_family(name)
    if not isinstance(port, HasPort):
        legal = ", ".join(each for each in FAMILIES if isinstance(get_family(each), HasPort))
        raise UserError(f"--family: {name!r} has no port of its own that could be verified; legal: {legal}")
    results = port.verify(checkpoint, cases, tolerance=tolerance)
    rows = [
        {
            "case": result.case.name,
            "features_error": f"{result.features_error:.2e}",
            "logits_error": f"{result.logits_error:.2e}",
            "tokens_with_cache": "equal" if result.tokens_equal_with_cache else "differ",
            "tokens_without_cache": "equal" if result.tokens_equal_without_cache else "differ",
            "verdict": "pass" if result.passed else "FAIL",
        }
        for result in results
    ]
    say(rows_as(rows, list(rows[0]), form="table"))
    if not all(result.passed for result in results):
        raise typer.Exit(1)
