"""Find a checkpoint, look at its files before anything is loaded, and load it with transformers.

A checkpoint is a folder, or a repository on the hub, with `config.json`, the files of a processor, and safetensors: one
`model.safetensors`, or several with an index. The hub's own client is asked, so HF_HOME, HF_HUB_OFFLINE and HF_TOKEN
mean what they mean elsewhere; a token is read from the environment by that client alone, and never seen here.

What can be wrong with a checkpoint is found before a weight is read, by its headers: a safetensors file says at its
beginning which tensors it holds and where they end. Nothing in a checkpoint is executed, unless the study says
`trust_remote_code: true` and names an exact commit.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmeter.errors import Unsupported, UserError
from vlmeter.processors import BY_ITSELF, class_named, processor_class
from vlmeter.units import size

if TYPE_CHECKING:
    from vlmeter.families.base import SubjectSpec

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

#: What is fetched from the hub: configuration, tokenizer, processor, chat template; then weights; and code only where
#: the study trusts it.
CONFIG_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
WEIGHT_FILES = ("*.safetensors",)
CODE_FILES = ("*.py",)

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
COMMIT = re.compile(r"[0-9a-f]{40}")

#: model_type in config.json -> the family that reads it
FAMILY_OF: Mapping[str, str] = {
    "gemma3": "gemma3",
    "idefics3": "idefics3",
    "internvl": "internvl",
    "llava_next": "llava_next",
    "llava_onevision": "llava_onevision",
    "mistral3": "mistral3",
    "molmo": "molmo",
    "molmo2": "molmo2",
    "qwen2_5_vl": "qwen2_5_vl",
    "qwen3_vl": "qwen3_vl",
    "smolvlm": "smolvlm",
}

#: Bytes that one weight takes, by number format in the study, and by quantisation (four bits come with a float32 scale
#: for every 64 values).
BYTES_PER_WEIGHT = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
QUANTIZED_BYTES = {"bitsandbytes-8bit": 1.0, "bitsandbytes-4bit": 0.5 + 4 / 64}

#: Attribute of a weight on meta that is kept packed on a device: the bytes that one of its values takes there.
PACKED = "packed_bytes_per_value"

_HEADER_LIMIT_BYTES = 100 << 20
"""safetensors refuses longer headers, and so do we: what is longer is another kind of file."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder on this machine. source: what the study calls it; commit: of a repository on the hub."""

    source: str
    folder: Path
    commit: str | None = None

    @property
    def config(self) -> dict[str, Any]:
        """Content of config.json."""
        return read_json(self.folder / CONFIG_FILE)

    def check_family(self, name: str, model_types: Sequence[str]) -> None:
        """Refuse a checkpoint of another architecture; the message names the family that reads it, if one does."""
        config = self.config
        found = config.get("model_type")
        if found in model_types:
            return
        others = family_for(config)
        advice = f"family {others} reads it" if others else "no family of its own reads it; family generic may"
        raise UserError(
            f"{self.source}: {CONFIG_FILE} says model_type {found!r}, and family {name} reads "
            f"{', '.join(model_types)}; {advice}"
        )

    def processor_config(self) -> dict[str, Any]:
        """Settings of the processor and of its image processor, in whichever files the checkpoint has them.

        The image processor's own go over the processor's, as they do in transformers.
        """
        settings: dict[str, Any] = {}
        for name in ("processor_config.json", "preprocessor_config.json"):
            path = self.folder / name
            if path.is_file():
                content = read_json(path)
                settings |= {**content, **content.get("image_processor", {})}
        if not settings:
            raise UserError(f"{self.source}: has neither preprocessor_config.json nor processor_config.json")
        return settings


def family_for(config: Mapping[str, Any]) -> str | None:
    """Name the family that reads a config.json; None if none of its own does."""
    found = str(config.get("model_type"))
    if found == "llava" and config.get("vision_config", {}).get("model_type") == "pixtral":
        return "pixtral"
    return FAMILY_OF.get(found)


def open_checkpoint(
    source: str | Path, *, revision: str | None = None, weights: bool = True, code: bool = False
) -> Checkpoint:
    """Find a checkpoint, without reading a weight.

    Args:
        source: a folder, or a hub id such as "allenai/Molmo-7B-D-0924", downloaded into the hub's cache unless it is
            there; HF_HUB_OFFLINE=1 keeps off the network.
        revision: branch, tag or commit of a hub id.
        weights: whether the weights are wanted, or the configuration alone.
        code: whether Python files are wanted too.

    Raises UserError with one sentence for everything that can be wrong with it.
    """
    folder = Path(source)
    if folder.is_dir():
        return Checkpoint(source=str(source), folder=folder)
    if folder.exists():
        raise UserError(f"{source}: is a file; a checkpoint is a folder with {CONFIG_FILE} and {WEIGHTS_FILE}")
    if isinstance(source, Path) or not HUB_ID.fullmatch(source):
        raise UserError(f"{source}: no such folder, and not a hub id such as allenai/Molmo-7B-D-0924 either")
    wanted = (*CONFIG_FILES, *(WEIGHT_FILES if weights else ()), *(CODE_FILES if code else ()))
    folder = _snapshot(source, revision, wanted)
    return Checkpoint(source=source, folder=folder, commit=folder.name if COMMIT.fullmatch(folder.name) else None)


def open_for_loading(spec: SubjectSpec, *, device: str, check: Callable[[Checkpoint], object]) -> Checkpoint:
    """Find a subject's checkpoint; its weights are downloaded only once its configuration has passed.

    check: refuses a checkpoint by its configuration. On meta no weight is wanted.
    """
    code = spec.trust_remote_code
    found = open_checkpoint(spec.weights, revision=spec.revision, weights=False, code=code)
    check(found)
    if device == "meta":
        return found
    values = announced_values(found)
    if values is not None:
        check_room(found, values, spec, device=device)
    return open_checkpoint(spec.weights, revision=spec.revision, code=code)


@lru_cache(maxsize=64)
def _snapshot(hub_id: str, revision: str | None, wanted: tuple[str, ...]) -> Path:
    """Return the folder of a hub repository in the local cache, downloading what is not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    named = hub_id if revision is None else f"{hub_id} at revision {revision}"
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(wanted)))
    except GatedRepoError as error:
        raise UserError(
            f"{named}: gated on the hub; ask for access on its page, then log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{named}: the hub has no such revision; legal are its branches, tags and commits") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"{named}: not found on the hub (misspelt, private, or not a model)") from error
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{named}: not in the local cache, and the hub is out of reach (no network, or HF_HUB_OFFLINE); "
            "download it first or give a folder"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise UserError(f"{named}: the download failed: {str(error).splitlines()[0]}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint; raises UserError if it is missing or something else."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; a checkpoint has one")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object")
    return content


# --------------------------------------------------------------------------------------------------- weights


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
        if not 0 < header_bytes <= min(length_bytes - 8, _HEADER_LIMIT_BYTES):
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


# --------------------------------------------------------------------------------------------------- loading


def load_processor(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> Any:
    """Make the processor of a checkpoint; one that asks for a video processor gets none where torchvision is absent."""
    import transformers
    from transformers import AutoProcessor, AutoTokenizer
    from transformers.utils.import_utils import is_torchvision_available

    folder = str(checkpoint.folder)
    settings = checkpoint.processor_config()
    name, image_type = settings.get("processor_class"), settings.get("image_processor_type")
    try:
        processor = processor_class(name) if isinstance(name, str) and hasattr(transformers, name) else None
        whole = processor is None or (name not in BY_ITSELF and "video_processor" not in processor.get_attributes())
        if processor is None or whole or is_torchvision_available():
            return AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
        images = image_processor_class(image_type) if image_type else transformers.AutoImageProcessor
        parts = {
            "image_processor": images.from_pretrained(folder),
            "tokenizer": AutoTokenizer.from_pretrained(folder),
            "video_processor": None,
        }
        arguments, _ = processor.get_processor_dict(folder)
        made = without_video(processor)
        return made.from_args_and_dict([parts[name] for name in made.get_attributes()], arguments)
    except ImportError as error:
        raise Unsupported(f"{checkpoint.source}: its processor needs what is not installed: {_first(error)}") from error
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{checkpoint.source}: its processor cannot be made ({_first(error)})") from error


def image_processor_class(name: str) -> Any:
    """Return an image processor's class; the one that needs no torchvision where that is not installed."""
    import transformers
    from transformers.utils.import_utils import is_torchvision_available

    stem = name.removesuffix("Fast").removesuffix("Pil")
    if not is_torchvision_available() and hasattr(transformers, f"{stem}Pil"):
        return class_named(f"{stem}Pil")
    if not is_torchvision_available():
        raise Unsupported(f"{stem} needs torchvision, which is not installed; install the version that fits torch")
    return getattr(transformers, stem)


def without_video(processor: Any) -> Any:
    """Return a processor's class that takes None for its video processor, which needs torchvision for its work.

    vlmeter shows a model pictures only, and a processor asks its video processor about videos only.
    """
    if "video_processor" not in processor.get_attributes():
        return processor

    def check(self: Any, argument_name: str, argument: Any) -> Any:
        if argument_name == "video_processor" and argument is None:
            return None
        return processor.check_argument_for_proper_class(self, argument_name, argument)

    return type(processor.__name__, (processor,), {"check_argument_for_proper_class": check})


def load_pretrained(checkpoint: Checkpoint, spec: SubjectSpec, *, device: str) -> Any:
    """Load a checkpoint with transformers, ready to run; on meta only its shapes.

    Weights go straight to the device where accelerate is installed, and by way of the host's memory elsewhere. Raises
    UserError for files that are not whole, tensors that the architecture lacks, and a device that is too small.
    """
    import torch
    from transformers.initialization import no_init_weights
    from transformers.utils import logging

    remote = remote_code(checkpoint, spec)
    config = read_config(checkpoint, spec)
    auto = _auto_class(config, spec)
    dtype = getattr(torch, spec.dtype)
    try:
        if device == "meta":
            with torch.device("meta"), no_init_weights():
                model = auto.from_config(config, dtype=dtype, attn_implementation=spec.attention, **remote)
            model.tie_weights()
            if spec.quantization:
                _mark_packed(model, QUANTIZED_BYTES[spec.quantization])
            return model.eval().requires_grad_(False)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(_refusal(checkpoint, spec, error)) from error
    check_room(checkpoint, check_weights(checkpoint.folder), spec, device=device)
    placing = _placing(spec, device)
    logging.disable_progress_bar()  # it would run through the session's own
    try:
        loaded = auto.from_pretrained(
            str(checkpoint.folder),
            config=config,
            dtype=dtype,
            attn_implementation=spec.attention,
            use_safetensors=True,
            output_loading_info=True,
            **placing,
            **remote,
        )
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError):
            raise
        raise UserError(_refusal(checkpoint, spec, error)) from error
    model, report = loaded
    for names, complaint in ((report["missing_keys"], "is missing"), (report["mismatched_keys"], "has misshapen")):
        if names:
            listed = ", ".join(sorted(map(str, names))[:3]) + (", ..." if len(names) > 3 else "")
            raise UserError(f"{checkpoint.source}: the checkpoint {complaint} {len(names)} tensors: {listed}")
    if "device_map" not in placing:
        model.to(device)
    elif set(getattr(model, "hf_device_map", {}).values()) & {"cpu", "disk"} and device != "cpu":
        raise UserError(
            f"{checkpoint.source}: only a part of the model has room on the GPU, and the rest would be fetched from "
            "the host again and again; choose a smaller checkpoint, a quantization, or more GPUs with device_map: auto"
        )
    return model.eval().requires_grad_(False)


def _mark_packed(model: Any, bytes_per_value: float) -> None:
    """Note on a model's weights which of them a quantization packs: those of linear layers, the head's excepted."""
    from torch import nn
    from transformers.quantizers.base import get_keys_to_not_convert

    kept = get_keys_to_not_convert(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name not in kept:
            setattr(module.weight, PACKED, bytes_per_value)


def read_config(checkpoint: Checkpoint, spec: SubjectSpec) -> Any:
    """Read a checkpoint's configuration as transformers understands it."""
    from transformers import AutoConfig

    remote = remote_code(checkpoint, spec)
    try:
        return AutoConfig.from_pretrained(str(checkpoint.folder), **remote)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"{checkpoint.source}: transformers does not know its configuration ({_first(error)})"
        ) from error


def _auto_class(config: Any, spec: SubjectSpec) -> Any:
    """The class of transformers that makes the model; code in a checkpoint may go by another of them."""
    import transformers

    own = getattr(config, "auto_map", None) or {}
    names = ("AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoModel")
    name = next((name for name in names if spec.trust_remote_code and name in own), names[0])
    return getattr(transformers, name)


def _refusal(checkpoint: Checkpoint, spec: SubjectSpec, error: Exception) -> str:
    return f"{checkpoint.source} cannot be loaded with attention {spec.attention}: {_first(error)}"


def _first(error: Exception) -> str:
    """First line of an error's message; its kind if it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def remote_code(checkpoint: Checkpoint, spec: SubjectSpec) -> dict[str, bool]:
    """What transformers is told about code in the checkpoint: to leave it alone, unless the study trusts it.

    Even then the code is that of the pinned commit: a configuration that sends transformers to another repository for
    its code is refused.
    """
    if not spec.trust_remote_code:
        return {"trust_remote_code": False}
    for name in (CONFIG_FILE, "preprocessor_config.json", "processor_config.json", "tokenizer_config.json"):
        path = checkpoint.folder / name
        named = json.dumps(read_json(path).get("auto_map", {})) if path.is_file() else ""
        if "--" in named:
            raise UserError(
                f"{path}: auto_map names code in another repository, which no revision pins; copy that code into a "
                "folder of your own, beside the weights, and give that folder as weights"
            )
    return {"trust_remote_code": True}


def _placing(spec: SubjectSpec, device: str) -> dict[str, Any]:
    """What transformers is told about where the weights go, and how they are packed."""
    has_accelerate = find_spec("accelerate") is not None
    if (spec.device_map or spec.quantization) and not has_accelerate:
        key = "device_map" if spec.device_map else "quantization"
        raise UserError(f"{key}: {getattr(spec, key)} needs accelerate, which is not installed; pip install accelerate")
    placing: dict[str, Any] = {}
    if spec.device_map and device != "cpu":
        placing["device_map"] = spec.device_map
    elif has_accelerate and (device != "cpu" or spec.quantization):
        placing["device_map"] = {"": device}
    if spec.quantization:
        if find_spec("bitsandbytes") is None:
            raise UserError(
                f"quantization: {spec.quantization} needs bitsandbytes, which is not installed; "
                "pip install bitsandbytes"
            )
        import torch
        from transformers import BitsAndBytesConfig

        eight = spec.quantization == "bitsandbytes-8bit"
        placing["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=eight, load_in_4bit=not eight, bnb_4bit_compute_dtype=getattr(torch, spec.dtype)
        )
    return placing


# ----------------------------------------------------------------------------------------------- fingerprint


def checkpoint_digest(weights: str, revision: str | None) -> str | None:
    """Digest of what a checkpoint is right now, without the network: another one makes its cells stale.

    A hub id is its commit, if that is known here; a folder is its small files and the headers of its large ones. None
    for what is not at hand yet.
    """
    folder = Path(weights)
    if folder.is_dir():
        files = sorted(path for path in folder.iterdir() if path.is_file())
        stats = tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)
        return _folder_digest(str(folder), stats)
    commit = _known_commit(weights, revision)
    return None if commit is None else commit[:16]


@lru_cache(maxsize=16)
def _folder_digest(folder: str, stats: tuple[tuple[str, int, int], ...]) -> str:
    """Digest of a folder; when a file was written decides whether it is read again, and is no part of the digest."""
    digest = hashlib.sha256()
    for name, length_bytes, _ in stats:
        path = Path(folder) / name
        digest.update(f"{name} {length_bytes}\n".encode())
        with path.open("rb") as file:
            if path.suffix == ".safetensors":
                start = file.read(8)
                header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
                digest.update(start + file.read(min(header_bytes, _HEADER_LIMIT_BYTES)))
            elif length_bytes < _HEADER_LIMIT_BYTES:
                digest.update(file.read())
    return digest.hexdigest()[:16]


def _known_commit(hub_id: str, revision: str | None) -> str | None:
    """Commit of a hub id as the local cache knows it."""
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub.constants import HF_HUB_CACHE

    ref = Path(HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}" / "refs" / (revision or "main")
    return ref.read_text().strip() if ref.is_file() else None
