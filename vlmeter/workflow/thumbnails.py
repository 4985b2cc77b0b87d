"""Make small pictures of the photographs behind the slowest requests, for the report."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from vlmeter.analysis.distribution import sample_of, slowest
from vlmeter.common.files import write_atomically
from vlmeter.inputs.dataset import read_manifest
from vlmeter.inputs.images import read_image

#: Longest side of a thumbnail: one tells what is on it, and ten of them are 30 kB.
SIDE_PX = 112


JPEG_QUALITY = 70


def make_thumbnails(table: pd.DataFrame, manifest: Path) -> dict[str, dict[str, str]]:
    """Make a thumbnail of every photograph among each subject's slowest requests.

    table: the tidy table; manifest: of the photographs, whose files lie beside it. Returns subject -> place of the
    photograph in the manifest -> its picture as the address of an `<img>` (a data URI).
    """
    images = read_manifest(manifest).images
    found: dict[str, dict[str, str]] = {}
    for subject in sorted(table["subject"].dropna().unique()):
        indices = sorted({int(index) for index in slowest(sample_of(table, subject))["image_index"]})
        found[subject] = {str(index): thumbnail(manifest.parent / images[index].file) for index in indices}
    return found


def thumbnail(path: Path) -> str:
    """Make a picture small, and an address of it."""
    image = read_image(path)
    image.thumbnail((SIDE_PX, SIDE_PX))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def write_thumbnails(path: Path, found: Mapping[str, Mapping[str, str]]) -> None:
    """Write thumbnails atomically."""
    write_atomically(path, (json.dumps(found, indent=1) + "\n").encode())
