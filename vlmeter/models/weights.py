"""The weights of a checkpoint: their files, their sizes, whether they fit."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from vlmeter.common.errors import UserError
from vlmeter.models.checkpoints import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE, Checkpoint, read_json
from vlmeter.models.packing import packing_of
from vlmeter.numbers.units import size

if TYPE_CHECKING:
    from vlmeter.models.families.base import SubjectSpec
    from vlmeter.models.packing import Packing


#: Bytes that one weight takes, by number format in the study.
BYTES_PER_WEIGHT = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}


#: Number formats, as safetensors calls them, of weights that are not packed.
PLAIN_FORMATS = ("F64", "F32", "F16", "BF16")

#: Ends of the names of packed weights.
_PACKED_ENDS = (".qweight", ".weight_packed", ".weight_scale", ".weight_scale_inv", ".weight.quant_state")

#: Files of weights that are not read, and what they are.
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.bin.index.json")


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read which tensors a safetensors file holds, and their shapes, without reading a weight.

    Raises UserError for a file that is missing, is another kind of file, or is not as long as its header says.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"{path}: no such file, though the checkpoint's index names it")
    try:
        with safe_open(path, framework="np") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: truncated or not a safetensors file ({error}); download it again") from error


def tensor_files(folder: Path) -> dict[str, Path]:
    """Map every tensor name of a checkpoint to the file that holds it, by the file that transformers would load.

    That is the one which config.json names (`transformers_weights`), else model.safetensors, else the shards of
    model.safetensors.index.json: an index beside a whole file is not looked at.
    """
    named = read_json(folder / CONFIG_FILE).get("transformers_weights") if (folder / CONFIG_FILE).is_file() else None
    if named is not None:
        path = folder / str(named)
        if not path.resolve().is_relative_to(folder.resolve()) or not str(named).endswith(
            (".safetensors", ".safetensors.index.json")
        ):
            raise UserError(
                f"{folder / CONFIG_FILE}: transformers_weights {named!r} must be a safetensors file in the folder, or "
                "the index of several"
            )
    elif (folder / WEIGHTS_FILE).is_file():
        path = folder / WEIGHTS_FILE
    else:
        path = folder / INDEX_FILE
    if path.name.endswith(".index.json"):
        if not path.is_file():
            raise UserError(_no_weights(folder))
        weight_map = read_json(path).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise UserError(f"{path}: has no weight_map, from names of tensors to names of files")
        return {name: path.parent / file for name, file in weight_map.items()}
    return dict.fromkeys(tensor_shapes(path), path)


def _no_weights(folder: Path) -> str:
    """Say that a folder has no weights that are read, and which others it has."""
    said = f"{folder / WEIGHTS_FILE}: no such file, and no {INDEX_FILE} beside it"
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    others = sorted(path.name for path in folder.glob("*.safetensors")) + sorted(p.name for p in folder.glob("*.gguf"))
    if pickled:
        return (
            f"{said}; {pickled[0]} holds pickled weights, which can run code while they are read: load the model with "
            "transformers and save it again (save_pretrained), which writes safetensors"
        )
    return f"{said}; {', '.join(others[:3])} there is not what transformers looks for" if others else said


def check_weights(folder: Path) -> int:
    """Check that every file of a checkpoint's weights is there and whole; returns the number of its values.

    Of packed weights so many values as their tensors have, which is fewer than the model's.
    """
    files = tensor_files(folder)
    values = 0
    for path in sorted(set(files.values())):
        shapes = tensor_shapes(path)
        missing = [name for name, file in files.items() if file == path and name not in shapes]
        if missing:
            raise UserError(f"{path}: does not hold {missing[0]}, though the checkpoint's index says so")
        values += sum(prod(shape) for shape in shapes.values())
    return values


def require_plain(checkpoint: Checkpoint) -> None:
    """Refuse packed weights of which config.json does not say that they are: they would be taken for plain ones."""
    for path in sorted(set(tensor_files(checkpoint.folder).values())):
        for name, kind in _formats(path).items():
            if name.endswith(_PACKED_ENDS) or (name.endswith(".weight") and kind not in PLAIN_FORMATS):
                raise UserError(
                    f"{path}: {name} is stored as {kind}, packed, and {CONFIG_FILE} has no quantization_config, "
                    "without which transformers takes the weights for plain ones; write it there"
                )


def _formats(path: Path) -> dict[str, str]:
    """Number format of every tensor of a safetensors file, by its header."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as tensors:
        return {name: str(tensors.get_slice(name).get_dtype()) for name in tensors.keys()}  # noqa: SIM118


def stored_bytes(folder: Path) -> int:
    """Size of the files that hold a checkpoint's weights."""
    return sum(path.stat().st_size for path in set(tensor_files(folder).values()))


def announced_bytes(checkpoint: Checkpoint) -> int | None:
    """Size of a checkpoint's weights by its index, before one is there; None if unknown."""
    index = checkpoint.folder / INDEX_FILE
    metadata = read_json(index).get("metadata") if index.is_file() else None
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return int(total) if isinstance(total, int | float) and not isinstance(total, bool) else None


def announced_values(checkpoint: Checkpoint) -> int | None:
    """Number of a checkpoint's values by its index and its number format, before a weight is there; None if unknown."""
    config, total = checkpoint.config, announced_bytes(checkpoint)
    bytes_per_value = BYTES_PER_WEIGHT.get(str(config.get("dtype") or config.get("torch_dtype")))
    return int(total / bytes_per_value) if total is not None and bytes_per_value else None


def check_announced(checkpoint: Checkpoint, spec: SubjectSpec, *, device: str) -> None:
    """Refuse a subject whose checkpoint says before its download that it does not fit on the device."""
    saved = packing_of(checkpoint)
    if saved is not None:
        total = announced_bytes(checkpoint)
        if total is not None:
            _check_bytes(
                checkpoint.source, total, f"weights saved as {saved.name}", device=device, spread=_spread(spec)
            )
        return
    values = announced_values(checkpoint)
    if values is not None:
        check_room(checkpoint, values, spec, packing=None, device=device)


def check_room(checkpoint: Checkpoint, values: int, spec: SubjectSpec, *, packing: Packing | None, device: str) -> None:
    """Refuse a subject whose checkpoint cannot fit on the device; see `check_fits`.

    A checkpoint that was saved packed takes what its files take.
    """
    if packing is not None and packing_of(checkpoint) is not None:
        what = f"weights saved as {packing.name}"
        _check_bytes(checkpoint.source, stored_bytes(checkpoint.folder), what, device=device, spread=_spread(spec))
        return
    per_value = packing.bytes_per_value if packing else None
    how = f"{spec.dtype}, {packing.name}" if packing else spec.dtype
    check_fits(
        checkpoint.source,
        values,
        how=how,
        bytes_per_value=per_value or BYTES_PER_WEIGHT[spec.dtype],
        device=device,
        spread=_spread(spec),
    )


def _spread(spec: SubjectSpec) -> bool:
    return spec.device_map == "auto"


def check_fits(source: str, values: int, *, how: str, bytes_per_value: float, device: str, spread: bool) -> None:
    """Refuse a checkpoint that cannot fit on the device, before a weight is read; see `_check_bytes`.

    how: the number format of its values, and how they are packed.
    """
    _check_bytes(source, int(values * bytes_per_value), f"{values:,} values in {how}", device=device, spread=spread)


def _check_bytes(source: str, weights_bytes: int, what: str, *, device: str, spread: bool) -> None:
    """Refuse weights that the device has no room for.

    Five hundredths and 256 MiB are added for what is no weight. spread: whether all GPUs may be used.
    """
    import psutil
    import torch

    needed = int(weights_bytes * 1.05) + (256 << 20)
    if device.startswith("cuda"):
        cards = range(torch.cuda.device_count()) if spread else [torch.device(device).index or 0]
        free = sum(torch.cuda.mem_get_info(card)[0] for card in cards)
    else:
        free = psutil.virtual_memory().available
    if needed > free:
        raise UserError(
            f"{source}: {what} need about {size(needed)} of memory, and {device} has {size(free)} "
            "free; choose a smaller checkpoint, another dtype or device, device_map: auto over several GPUs, or a "
            "quantization"
        )
