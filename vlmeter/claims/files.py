"""Judged claims as a file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlmeter.claims.base import Claim, Evidence
from vlmeter.common.files import write_atomically


def write_claims(path: Path, claims: Mapping[str, Sequence[Claim]]) -> None:
    """Write judged claims, subject by subject, as JSON."""
    data: dict[str, Any] = {name: [asdict(claim) for claim in judged] for name, judged in claims.items()}
    write_atomically(path, (json.dumps(_without_nan(data), indent=1, ensure_ascii=False) + "\n").encode())


def read_claims(path: Path) -> dict[str, list[Claim]]:
    """Read claims back."""
    return {
        subject: [
            Claim(
                **{
                    **claim,
                    "evidence": tuple(
                        Evidence(**{**item, "value": math.nan if item["value"] is None else item["value"]})
                        for item in claim["evidence"]
                    ),
                    "figures": tuple(claim["figures"]),
                }
            )
            for claim in claims
        ]
        for subject, claims in json.loads(path.read_text(encoding="utf-8")).items()
    }


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: it becomes null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
