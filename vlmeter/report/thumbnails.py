"""Read the small pictures that the report shows."""

from __future__ import annotations

import json
from pathlib import Path

from vlmeter.common.errors import UserError


def read_thumbnails(path: Path) -> dict[str, dict[int, str]]:
    """Read thumbnails back; raises UserError on a file that holds none."""
    try:
        data = json.loads(path.read_bytes())
        return {subject: {int(index): str(uri) for index, uri in own.items()} for subject, own in data.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"thumbnails {path} cannot be read ({error}); the workflow makes them again") from None
