"""Draw the figures of docs/served-gpu.md from the table beside it.

python -m benchmarks.served_figures docs/served/h200.parquet --study qwen2_5_vl --into docs/served
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vlmeter.analysis.reading import of_subject
from vlmeter.figures.registry import get_figure
from vlmeter.table.files import read_table


def main() -> None:
    """Draw what a client waits for, and the same image served and beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--study", required=True, help="whose rows are drawn, as the table calls it")
    parser.add_argument("--subject", default="served")
    parser.add_argument("--into", type=Path, required=True)
    given = parser.parse_args()
    table = read_table(given.table)
    rows = table[table["study"] == given.study].reset_index(drop=True)
    if rows.empty:
        parser.error(f"{given.table} has no study {given.study!r}; it has {', '.join(sorted(set(table['study'])))}")
    given.into.mkdir(parents=True, exist_ok=True)
    for name, of in (
        ("first_token_by_tokens", of_subject(rows, given.subject).reset_index(drop=True)),
        ("side_by_side_waits", rows),
    ):
        figure = get_figure(name)
        path = given.into / f"{name}.png"
        figure.draw(of).savefig(path, dpi=110, metadata={"Software": None})
        print(f"{path}: {figure.caption(of)}")


if __name__ == "__main__":
    main()
