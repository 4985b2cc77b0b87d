"""Load a checkpoint's processor and model, by transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from vlmeter.common.errors import Unsupported, UserError
from vlmeter.models.checkpoints import CONFIG_FILE, Checkpoint, open_checkpoint, read_json
from vlmeter.models.processors import BY_ITSELF, class_named, processor_class
from vlmeter.models.weights import PACKED, QUANTIZED_BYTES, announced_values, check_room, check_weights

if TYPE_CHECKING:
    from vlmeter.models.families.base import SubjectSpec


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
