"""All rows of docs/compiled.md in one command: every model and picture in a process of its own, in one file.

    python -m benchmarks.compiled_rows --output benchmarks/results/compiled-h200.json

Each row is a call of `benchmarks.compiled`, which is printed; about 12 minutes on an H200. What is finished stands in
the file after every row, and a row that is there already is not measured again: what was cut off goes on from there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmeter.common.files import write_atomically

MOLMO = ("--family", "molmo", "--preset", "7b-d", "--dtype", "bfloat16", "--text-tokens", "32", "--output-tokens", "64")
QWEN = ("--family", "qwen2_5_vl", "--preset", "7b", "--dtype", "bfloat16", "--text-tokens", "40")
INTERNVL = ("--family", "internvl", "--preset", "8b", "--dtype", "bfloat16", "--text-tokens", "40")

#: Row of the file -> what benchmarks.compiled is asked for.
ROWS: Mapping[str, tuple[str, ...]] = {
    "molmo 7b-d": (*MOLMO, "--images", "2800x336", "--rounds", "5", "--float32"),
    "molmo 7b-d, vision attention in the weights' format": (
        *MOLMO, "--images", "2800x336", "--rounds", "7", "--vision-attention-dtype", "weights",
    ),
    "molmo 7b-d, one crop": (*MOLMO, "--images", "336x336", "--rounds", "7"),
    "qwen2_5_vl 7b, 448x448": (*QWEN, "--images", "448x448", "--output-tokens", "64", "--rounds", "7"),
    "qwen2_5_vl 7b, 1344x1344": (*QWEN, "--images", "1344x1344", "--output-tokens", "32", "--rounds", "5"),
    "internvl 8b": (*INTERNVL, "--images", "896x896", "--output-tokens", "64", "--rounds", "7"),
    "same tokens": ("--same-tokens",),
}  # fmt: skip

#: Digits that a number keeps in the file.
DIGITS = 6


def measure(rows: Mapping[str, Sequence[str]], output: Path) -> int:
    """Measure the rows that the file lacks; 1 if one failed, whose output has been printed."""
    found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
    failed = False
    for name, asked in rows.items():
        if name in found:
            print(f"{name}: there already", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "row.json"
            command = [sys.executable, "-m", "benchmarks.compiled", *asked, "--output", str(file)]
            print(f"{name}: python -m benchmarks.compiled {' '.join(asked)}", file=sys.stderr, flush=True)
            if subprocess.run(command, check=False).returncode:
                print(f"{name}: failed, see above", file=sys.stderr)
                failed = True
                continue
            found[name] = rounded(json.loads(file.read_text(encoding="utf-8")))
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, (json.dumps(found, indent=1) + "\n").encode())
    return int(failed)


def rounded(value: Any) -> Any:
    """Keep DIGITS significant digits of every float in JSON."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all rows, or those that are named."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compiled_rows", description=__doc__.partition("\n\n")[0]
    )
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks/compiled-rows.json"))
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    given = parser.parse_args(arguments)
    return measure({name: ROWS[name] for name in given.rows}, given.output)


if __name__ == "__main__":
    sys.exit(main())
