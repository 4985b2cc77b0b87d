"""Records in the schema of VQA v2, as parquet files, for the tests of datasets."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

QUESTIONS_PER_IMAGE = 5


def jpeg(seed: int, *, width_px: int = 96, height_px: int = 64) -> bytes:
    """Make a small JPEG of noise, which does not compress."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def row(image_id: int, question: int, image: object) -> dict[str, Any]:
    """Make one record."""
    return {
        "question_type": "what is",
        "multiple_choice_answer": "noise",
        "answers": [{"answer": "noise", "answer_confidence": "yes", "answer_id": answer} for answer in range(1, 11)],
        "image_id": image_id,
        "answer_type": "other",
        "question_id": image_id * 1000 + question,
        "question": f"What is picture {image_id}, question {question}?",
        "image": image,
    }


def rows(images: int, *, first_image_id: int = 1, **size: int) -> list[dict[str, Any]]:
    """Make the records of some images, each with its questions one after the other, as VQA v2 has them."""
    made = []
    for image_id in range(first_image_id, first_image_id + images):
        image = {"bytes": jpeg(image_id, **size), "path": f"{image_id}.jpg"}
        made += [row(image_id, question, image) for question in range(QUESTIONS_PER_IMAGE)]
    return made


def write_parquet(file: Path, records: Sequence[dict[str, Any]], *, row_group_size: int = 1000) -> None:
    """Write records as a parquet file, uncompressed columns of noise and all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(records)), file, row_group_size=row_group_size, use_dictionary=False)
