"""The weights of a checkpoint: their files, their sizes, whether they fit."""

from __future__ import annotations

import json
import struct
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmeter.common.errors import UserError
from vlmeter.models.checkpoints import HEADER_LIMIT_BYTES, INDEX_FILE, WEIGHTS_FILE, Checkpoint, read_json
from vlmeter.numbers.units import size

if TYPE_CHECKING:
    from vlmeter.models.families.base import SubjectSpec


#: Bytes that one weight takes, by number format in the study, and by quantisation (four bits come with a float32 scale
#: for every 64 values).
BYTES_PER_WEIGHT = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}


QUANTIZED_BYTES = {"bitsandbytes-8bit": 1.0, "bitsandbytes-4bit": 0.5 + 4 / 64}


#: Attribute of a weight on meta that is kept packed on a device: the bytes that one of its values takes there.
PACKED = "packed_bytes_per_value"


def read_header(path: Path) -> dict[str, Any]:
    """Read which tensors a safetensors file holds: name -> dtype, shape, data_offsets.

    Raises UserError for a file that is missing, is another kind of file, or ends before its last tensor does.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file, though the checkpoint's index names it")
    broken = f"{path}: truncated or not a safetensors file"
    length_bytes = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < header_bytes <= min(length_bytes - 8, HEADER_LIMIT_BYTES):
            raise UserError(f"{broken} (it has no header); download it again")
        try:
            header = json.loads(file.read(header_bytes))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            end = 8 + header_bytes + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{broken} (its header cannot be read); download it again") from error
    if end != length_bytes:
        raise UserError(f"{broken} ({length_bytes} bytes, and its header says {end}); download it again")
    return tensors


def tensor_files(folder: Path) -> dict[str, Path]:
    """Map every tensor name of a checkpoint to the file that holds it, by its index if it has one."""
    index = folder / INDEX_FILE
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise UserError(f"{index}: has no weight_map")
        return {name: folder / file for name, file in weight_map.items()}
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise UserError(f"{path}: no such file, and no {INDEX_FILE} beside it")
    return dict.fromkeys(read_header(path), path)


def check_weights(folder: Path) -> int:
    """Check that every file of a checkpoint's weights is there and whole; returns the number of its values."""
    files = tensor_files(folder)
    values = 0
    for path in sorted(set(files.values())):
        tensors = read_header(path)
        missing = [name for name, file in files.items() if file == path and name not in tensors]
        if missing:
            raise UserError(f"{path}: does not hold {missing[0]}, though the checkpoint's index says so")
        values += sum(prod(entry["shape"]) for entry in tensors.values())
    return values


def announced_values(checkpoint: Checkpoint) -> int | None:
    """Number of a checkpoint's values by its index and its number format, before a weight is there; None if unknown."""
    index = checkpoint.folder / INDEX_FILE
    config = checkpoint.config
    total = read_json(index).get("metadata", {}).get("total_size") if index.is_file() else None
    bytes_per_value = BYTES_PER_WEIGHT.get(str(config.get("dtype") or config.get("torch_dtype")))
    return int(total / bytes_per_value) if isinstance(total, int | float) and bytes_per_value else None


def check_room(checkpoint: Checkpoint, values: int, spec: SubjectSpec, *, device: str) -> None:
    """Refuse a subject whose checkpoint cannot fit on the device; see `check_fits`."""
    check_fits(
        checkpoint.source,
        values,
        dtype=spec.dtype,
        quantization=spec.quantization,
        device=device,
        spread=spec.device_map == "auto",
    )


def check_fits(source: str, values: int, *, dtype: str, quantization: str | None, device: str, spread: bool) -> None:
    """Refuse a checkpoint that cannot fit on the device, before a weight is read.

    Five hundredths and 256 MiB are added for what is no weight. spread: whether all GPUs may be used.
    """
    import psutil
    import torch

    per_value = QUANTIZED_BYTES[quantization] if quantization else BYTES_PER_WEIGHT[dtype]
    needed = int(values * per_value * 1.05) + (256 << 20)
    if device.startswith("cuda"):
        cards = range(torch.cuda.device_count()) if spread else [torch.device(device).index or 0]
        free = sum(torch.cuda.mem_get_info(card)[0] for card in cards)
    else:
        free = psutil.virtual_memory().available
    if needed > free:
        how = f"{dtype}, {quantization}" if quantization else dtype
        raise UserError(
            f"{source}: {values:,} values in {how} need about {size(needed)} of memory, and {device} has {size(free)} "
            "free; choose a smaller checkpoint, another dtype or device, device_map: auto over several GPUs, or a "
            "quantization"
        )
