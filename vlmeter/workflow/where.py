"""Say where the report of a study will be, or what is wrong with the study.

`python -m vlmeter.workflow.where STUDY.yaml` is what `make run` asks before it runs anything.
"""

from __future__ import annotations

import sys
from pathlib import Path

from vlmeter.common.errors import UserError
from vlmeter.study.layout import Layout
from vlmeter.study.loader import load_study


def main() -> None:
    """Print the path of the report; one sentence and exit code 2 for a study that cannot be run."""
    try:
        print(Layout(load_study(*map(Path, sys.argv[1:])).study).report.resolve())
    except UserError as error:
        print(f"vlmeter: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
