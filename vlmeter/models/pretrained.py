"""Load a checkpoint's processor and model, by transformers."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from vlmeter.common.errors import Unsupported, UserError
from vlmeter.models.checkpoints import (
    CONFIG_FILE,
    PREPROCESSOR_FILE,
    PROCESSOR_FILE,
    Checkpoint,
    open_checkpoint,
    read_json,
)
from vlmeter.models.families.preset_data import read_presets
from vlmeter.models.families.processors import BY_ITSELF, class_named, processor_class
from vlmeter.models.families.registry import family_of
from vlmeter.models.packing import chosen_packing, mark_packed, packing_of, require_libraries, require_packed
from vlmeter.models.weights import check_announced, check_room, check_weights, require_plain

if TYPE_CHECKING:
    from vlmeter.models.families.base import SubjectSpec


#: Characters of a library's message that are quoted: one of transformers lists all model types.
LONGEST_QUOTE = 240


def open_for_loading(spec: SubjectSpec, *, device: str, check: Callable[[Checkpoint], object]) -> Checkpoint:
    """Find a subject's checkpoint; its weights are downloaded only once its configuration has passed.

    check: refuses a checkpoint by its configuration. On meta no weight is wanted.
    """
    code = spec.trust_remote_code
    found = open_checkpoint(spec.weights, revision=spec.revision, weights=False, code=code)
    check(found)
    chosen_packing(packing_of(found), spec, source=found.source)
    if device == "meta":
        return found
    check_announced(found, spec, device=device)
    return open_checkpoint(spec.weights, revision=spec.revision, code=code)


def load_processor(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> Any:
    """Make the processor of a checkpoint; one that asks for a video processor gets none where torchvision is absent."""
    import transformers
    from transformers import AutoProcessor, AutoTokenizer
    from transformers.utils.import_utils import is_torchvision_available

    folder = str(checkpoint.folder)
    settings = checkpoint.processor_config()
    image_type = settings["image_processor"].get("image_processor_type")
    name, file = _processor_name(checkpoint)
    if not trust_remote_code:
        _require_known_image_processor(checkpoint, image_type, settings["image_processor"].file)
        _require_known_processor(checkpoint, name, file)
    try:
        processor = processor_class(name) if name is not None and hasattr(transformers, name) else None
        whole = processor is None or (name not in BY_ITSELF and "video_processor" not in processor.get_attributes())
        if processor is None or whole or is_torchvision_available():
            found = AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
        else:
            images = image_processor_class(image_type) if image_type else transformers.AutoImageProcessor
            parts = {
                "image_processor": images.from_pretrained(folder),
                "tokenizer": AutoTokenizer.from_pretrained(folder),
                "video_processor": None,
            }
            arguments, _ = processor.get_processor_dict(folder)
            made = without_video(processor)
            found = made.from_args_and_dict([parts[name] for name in made.get_attributes()], arguments)
    except ImportError as error:
        raise Unsupported(f"{checkpoint.source}: its processor needs what is not installed: {_first(error)}") from error
    except UserError:
        raise
    except Exception as error:  # files of a checkpoint, read by code that trusts them
        raise UserError(
            f"{checkpoint.source}: its processor cannot be made of {PROCESSOR_FILE}, {PREPROCESSOR_FILE} and the "
            f"tokenizer's files ({type(error).__name__}: {_first(error)})"
        ) from error
    if getattr(found, "tokenizer", None) is None or getattr(found, "image_processor", None) is None:
        raise UserError(
            f"{checkpoint.source}: its files make a {type(found).__name__}, which is no processor of text and images; "
            f"{PROCESSOR_FILE} has to name one (processor_class)"
        )
    return found


def _processor_name(checkpoint: Checkpoint) -> tuple[Any, str]:
    """Name of the processor's class, and of the file that says it, in the order in which transformers looks for it."""
    settings = checkpoint.processor_config()
    image, path = settings["image_processor"], checkpoint.folder / "tokenizer_config.json"
    places = [(settings, settings.file), (image, image.file), (read_json(path) if path.is_file() else {}, path.name)]
    found = ((place["processor_class"], file) for place, file in places if place.get("processor_class"))
    return next(found, (None, settings.file))


def _require_known_processor(checkpoint: Checkpoint, name: object, file: str) -> None:
    """Refuse a processor that transformers does not have, with the name of the one that is meant."""
    import transformers

    if name is None or (isinstance(name, str) and hasattr(transformers, name)):
        return
    known: Mapping[str, str] = import_module("transformers.models.auto.processing_auto").PROCESSOR_MAPPING_NAMES
    close = difflib.get_close_matches(str(name), sorted(set(known.values())), n=1)
    hint = known.get(str(checkpoint.config.get("model_type"))) or next(iter(close), None)
    raise UserError(
        f"{checkpoint.source}: processor_class {name!r} in {file} is not known to transformers"
        + (f"; {hint} is meant, so write that" if hint else "")
    )


def _require_known_image_processor(checkpoint: Checkpoint, name: object, file: str) -> None:
    """Refuse an image processor that transformers does not have, with the name of the one that is meant."""
    import transformers

    known: Mapping[str, Any] = import_module(
        "transformers.models.auto.image_processing_auto"
    ).IMAGE_PROCESSOR_MAPPING_NAMES
    by_type = {kind: [_stem(each) for each in dict(classes).values() if each] for kind, classes in known.items()}
    names = {each for classes in by_type.values() for each in classes}
    if name is None or (isinstance(name, str) and (_stem(name) in names or hasattr(transformers, _stem(name)))):
        return
    close = difflib.get_close_matches(str(name), sorted(names), n=1)
    of_type = by_type.get(str(checkpoint.config.get("model_type")), [])
    hint = next(iter([*_published(checkpoint), *of_type, *close]), None)
    raise UserError(
        f"{checkpoint.source}: image_processor_type {name!r} in {file} is not known to transformers"
        + (f"; {hint} is meant, so write that" if hint else "")
    )


def _published(checkpoint: Checkpoint) -> list[str]:
    """The image processor that a family's published models have, for a checkpoint that a family of its own reads."""
    family = family_of(checkpoint.config)
    entries = read_presets(family).values() if family is not None else ()
    found = (entry.get("processor_config", {}).get("image_processor_type") for entry in entries)
    return [_stem(name) for name in found if isinstance(name, str)][:1]


def _stem(name: str) -> str:
    """Name of an image processor without what says how it works."""
    return name.removesuffix("Fast").removesuffix("Pil")


def image_processor_class(name: str) -> Any:
    """Return an image processor's class; the one that needs no torchvision where that is not installed."""
    import transformers
    from transformers.utils.import_utils import is_torchvision_available

    stem = _stem(name)
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
    saved = packing_of(checkpoint)
    packing = chosen_packing(saved, spec, source=checkpoint.source)
    shapes: Any = None
    if device == "meta" or not spec.trust_remote_code:  # a checkpoint's own code may want the device itself
        try:
            with torch.device("meta"), no_init_weights():
                shapes = auto.from_config(config, dtype=dtype, attn_implementation=spec.attention, **remote)
            shapes.tie_weights()
        except Exception as error:  # a configuration of the checkpoint's makers, of which a model is built
            raise UserError(_refusal(checkpoint, spec, error)) from error
    if device == "meta":
        if packing:
            mark_packed(shapes, packing)
        return shapes.eval().requires_grad_(False)
    require_libraries(spec, saved)
    values = check_weights(checkpoint.folder)
    if saved is None:
        require_plain(checkpoint)
    if saved is None and shapes is not None:
        _require_enough_weights(checkpoint, sum(parameter.numel() for parameter in shapes.parameters()), values)
    check_room(checkpoint, values, spec, packing=packing, device=device)
    placing = _placing(spec, device, packs=saved is None and packing is not None, packed=packing is not None)
    logging.disable_progress_bar()  # it would run through the session's own
    try:
        loaded = auto.from_pretrained(
            str(checkpoint.folder),
            config=config,
            dtype=dtype,
            attn_implementation=spec.attention,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
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
            told = sorted(str(name[0] if isinstance(name, tuple) else name) for name in names)
            listed = ", ".join(told[:3]) + (", ..." if len(told) > 3 else "")
            raise UserError(
                f"{checkpoint.source}: the checkpoint {complaint} {len(told)} tensors: {listed}, by what its "
                f"{CONFIG_FILE} says the model is"
            )
    if saved is not None:
        require_packed(model, saved, spec, device=device)
    if "device_map" not in placing:
        model.to(device)
    elif set(getattr(model, "hf_device_map", {}).values()) & {"cpu", "disk"} and device != "cpu":
        raise UserError(
            f"{checkpoint.source}: only a part of the model has room on the GPU, and the rest would be fetched from "
            "the host again and again; choose a smaller checkpoint, a quantization, or more GPUs with device_map: auto"
        )
    return model.eval().requires_grad_(False)


def _require_enough_weights(checkpoint: Checkpoint, described: int, held: int) -> None:
    """Refuse weights that are too few by far, before the rest is made up: it may be more than the machine can hold.

    A few that are missing are refused by name, once the others are loaded.
    """
    if described > 2 * held:
        raise UserError(
            f"{checkpoint.source}: its {CONFIG_FILE} describes a model of {described:,} values, and its weights hold "
            f"{held:,}; the two do not belong together, or {CONFIG_FILE} lacks keys of text_config or vision_config"
        )


def read_config(checkpoint: Checkpoint, spec: SubjectSpec) -> Any:
    """Read a checkpoint's configuration as transformers understands it."""
    from transformers import AutoConfig

    remote = remote_code(checkpoint, spec)
    try:
        found = AutoConfig.from_pretrained(str(checkpoint.folder), **remote)
    except Exception as error:  # a file of the checkpoint's makers, read by code that trusts it
        raise UserError(
            f"{checkpoint.source}: transformers does not know its configuration, {CONFIG_FILE} ({_first(error)})"
        ) from error
    for name, value in checkpoint.config.items():
        if name.endswith("_config") and value is None and name in getattr(found, "sub_configs", {}):
            raise UserError(f"{checkpoint.source}: {name} in {CONFIG_FILE} is null; the published model has a mapping")
    return found


def _auto_class(config: Any, spec: SubjectSpec) -> Any:
    """The class of transformers that makes the model; code in a checkpoint may go by another of them."""
    import transformers

    own = getattr(config, "auto_map", None) or {}
    names = ("AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoModel")
    name = next((name for name in names if spec.trust_remote_code and name in own), names[0])
    return getattr(transformers, name)


def _refusal(checkpoint: Checkpoint, spec: SubjectSpec, error: Exception) -> str:
    """Say that a checkpoint cannot be loaded; attention is named where the library speaks of it."""
    said = _first(error)
    if any(word in str(error).lower() for word in ("attention", "attn", "sdpa")):
        return f"{checkpoint.source}: cannot be loaded with attention {spec.attention} ({said})"
    return f"{checkpoint.source}: no model is made of its {CONFIG_FILE} and weights ({type(error).__name__}: {said})"


def _first(error: Exception) -> str:
    """First line of an error's message, with the next where it only announces that; its kind if it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    said = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return said if len(said) <= LONGEST_QUOTE else f"{said[:LONGEST_QUOTE]} ..."


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


def _placing(spec: SubjectSpec, device: str, *, packs: bool, packed: bool) -> dict[str, Any]:
    """What transformers is told about where the weights go, and how they are packed while loading.

    packs: whether they are packed now; packed: whether they are, now or before, and cannot be moved afterwards.
    """
    has_accelerate = find_spec("accelerate") is not None
    placing: dict[str, Any] = {}
    if spec.device_map and device != "cpu":
        placing["device_map"] = spec.device_map
    elif has_accelerate and (device != "cpu" or packed):
        placing["device_map"] = {"": device}
    if packs:
        import torch
        from transformers import BitsAndBytesConfig

        eight = spec.quantization == "bitsandbytes-8bit"
        placing["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=eight, load_in_4bit=not eight, bnb_4bit_compute_dtype=getattr(torch, spec.dtype)
        )
    return placing
