"""Weights that are packed: how a checkpoint was saved, and what one of its values takes on a device.

A study may ask for packing while loading (`quantization`), or name a checkpoint that was saved packed: `config.json`
then has a `quantization_config`, whose many dialects are read here. What is packed are the weights of linear layers;
which of them are left as they are, the checkpoint says. How a model is packed decides what has to be read of its
weights in every pass, so that a way of packing whose bytes are not known here is named, and never taken for unpacked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from vlmeter.common.errors import Unsupported, UserError

if TYPE_CHECKING:
    from vlmeter.models.checkpoints import Checkpoint
    from vlmeter.models.families.base import SubjectSpec

#: Bytes that one value takes when it is packed while loading (four bits come with a float32 scale for every 64 values).
QUANTIZED_BYTES = {"bitsandbytes-8bit": 1.0, "bitsandbytes-4bit": 0.5 + 4 / 64}

#: Attribute of a weight on meta that is kept packed on a device: the bytes that one of its values takes there.
PACKED = "packed_bytes_per_value"

#: Package -> what pip calls it, where that is another name.
_PIP = {
    "auto_round": "auto-round",
    "compressed_tensors": "compressed-tensors",
    "fbgemm_gpu": "fbgemm-gpu",
    "flash_attn": "flash-attn",
    "optimum.quanto": "optimum-quanto",
}

#: Where libraries that pack wrote how, before config.json had a place for it, or beside it.
FILES_BESIDE = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")

#: Module that runs before a decoder block, or a whole list of them: where GPTQ packs, and nowhere else.
_IN_A_LIST = re.compile(r"\.\d+\.")


@dataclass(frozen=True)
class Packing:
    """How the weights of a checkpoint's linear layers were packed when it was saved.

    name: the way and its bits, such as awq-4bit. bytes_per_value: with its share of scales and zero points; None where
    it is not known. kept: patterns of modules that are left as they are; None stands for the head alone. blocks_alone:
    whether only decoder blocks are packed. packages: what loading needs.
    """

    name: str
    bytes_per_value: float | None
    kept: tuple[str, ...] | None = None
    blocks_alone: bool = False
    packages: tuple[str, ...] = ()

    @property
    def uncounted(self) -> str | None:
        """What has to be said where the bytes are not known."""
        if self.bytes_per_value is not None:
            return None
        return (
            f"weights: saved packed as {self.name}, whose bytes vlmeter does not know; traffic and floors count them "
            "unpacked, and are too high"
        )

    def is_kept(self, module: str, kept: Sequence[str]) -> bool:
        """Whether a module's weight is left as it is: by a name of its path, its beginning, its end, or a pattern."""
        if self.blocks_alone and not _IN_A_LIST.search(module):
            return True
        parts = set(module.split("."))
        for pattern in kept:
            if pattern in parts or module == pattern or f".{module}.".find(f".{pattern}.") >= 0:
                return True
            try:
                if re.match(pattern.removeprefix("re:") + r"(?:\.|$)", module):
                    return True
            except re.error:
                continue
        return False


def saved_packing(config: Mapping[str, Any], *, source: str) -> Packing | None:
    """Read how a checkpoint was packed when it was saved, from its config.json; None if it was not.

    Raises UserError for a way that transformers does not know, and for settings that make no sense.
    """
    where, found = "quantization_config", config.get("quantization_config") or config.get("compression_config")
    text = config.get("text_config")
    if not found and isinstance(text, Mapping):
        where, found = "text_config.quantization_config", text.get("quantization_config")
    if not found:
        return None
    if not isinstance(found, Mapping):
        raise UserError(f"{source}: {where} in config.json is {found!r}, and must be a mapping")
    method = found.get("quant_method")
    if found.get("load_in_8bit") or found.get("load_in_4bit"):
        method = "bitsandbytes"
    if not isinstance(method, str):
        raise UserError(f"{source}: {where} in config.json has no quant_method, so nobody knows how it is packed")
    read = _METHODS.get(method)
    if read is None:
        raise UserError(
            f"{source}: saved packed by {method!r} ({where} in config.json), which transformers does not read; legal: "
            f"{', '.join(sorted(_METHODS))}"
        )
    try:
        return read(found)
    except (TypeError, ValueError, ZeroDivisionError, AttributeError, KeyError, StopIteration) as error:
        raise UserError(f"{source}: {where} in config.json is not understood as one of {method} ({error!r})") from error


def packing_of(checkpoint: Checkpoint) -> Packing | None:
    """How a checkpoint was packed when it was saved; None if it was not.

    Raises UserError where only a file beside config.json says so, which transformers does not read.
    """
    found = saved_packing(checkpoint.config, source=checkpoint.source)
    beside = next((name for name in FILES_BESIDE if (checkpoint.folder / name).is_file()), None)
    if found is None and beside is not None:
        raise UserError(
            f"{checkpoint.source}: {beside} says that its weights were saved packed, and config.json has no "
            "quantization_config, without which transformers takes them for plain ones; write it there, or delete that "
            "file if they are plain"
        )
    return found


def _kept(found: Mapping[str, Any], *keys: str) -> tuple[str, ...] | None:
    """Names of modules that are left as they are, under the first key that is there."""
    for key in keys:
        value = found.get(key)
        if value is not None:
            if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
                raise ValueError(f"{key} {value!r} must be a list of names")
            return tuple(value)
    return None


def _with_head(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    return None if names is None else (*names, "lm_head")


def _bitsandbytes(found: Mapping[str, Any]) -> Packing:
    kept, packages = _kept(found, "llm_int8_skip_modules"), ("accelerate", "bitsandbytes")
    if found.get("load_in_4bit"):
        # A scale for every 64 values: float32, or one byte and a float32 for every 256 of them.
        scale = 1 / 64 + 4 / (64 * 256) if found.get("bnb_4bit_use_double_quant") else 4 / 64
        return Packing("bitsandbytes-4bit", 0.5 + scale, kept, packages=packages)
    return Packing("bitsandbytes-8bit", 1.0, kept, packages=packages)


def _grouped(bits: int, group: int, *, zeros: bool, scale_bytes: float = 2.0) -> float:
    """Bytes of a value of so many bits, with a scale and a zero point for every group; -1: one for a whole row."""
    if not 1 <= bits <= 16 or group == 0 or group < -1:
        raise ValueError(f"{bits} bits in groups of {group}")
    return bits / 8 + ((scale_bytes + (bits / 8 if zeros else 0)) / group if group > 0 else 0)


def _awq(found: Mapping[str, Any]) -> Packing:
    bits = int(found.get("bits", found.get("w_bit", 4)))
    group = int(found.get("group_size", found.get("q_group_size", 128)))
    return Packing(
        f"awq-{bits}bit",
        _grouped(bits, group, zeros=bool(found.get("zero_point", True))),
        _with_head(_kept(found, "modules_to_not_convert")),
        packages=("gptqmodel", "accelerate"),
    )


def _gptq(found: Mapping[str, Any]) -> Packing:
    """One number format, unless `dynamic` gives some layers another (a pattern after "-:" leaves them as they are)."""
    bits, dynamic = int(found["bits"]), found.get("dynamic") or {}
    left = tuple(f"re:(?:{pattern.removeprefix('-:')}).*" for pattern in dynamic if pattern.startswith("-:"))
    return Packing(
        f"gptq-{bits}bit",
        _grouped(bits, int(found.get("group_size", 128)), zeros=True) if len(left) == len(dynamic) else None,
        (*(_kept(found, "modules_to_not_convert") or ()), *left),
        blocks_alone=not found.get("lm_head"),
        packages=("optimum", "gptqmodel"),
    )


def _auto_round(found: Mapping[str, Any]) -> Packing:
    bits = int(found["bits"])
    return Packing(
        f"auto-round-{bits}bit",
        None if found.get("extra_config") else _grouped(bits, int(found.get("group_size", 128)), zeros=True),
        (),
        blocks_alone=True,
        packages=("auto_round",),
    )


def _fp8(found: Mapping[str, Any]) -> Packing:
    block = found.get("weight_block_size", (128, 128))
    scale = 4 / (int(block[0]) * int(block[1])) if block else 0.0
    kept = _kept(found, "modules_to_not_convert", "ignored_layers")
    return Packing(str(found["quant_method"]), 1.0 + scale, kept, packages=("accelerate",))


def _fbgemm(found: Mapping[str, Any]) -> Packing:
    return Packing("fbgemm_fp8", 1.0, _kept(found, "modules_to_not_convert"), packages=("fbgemm_gpu", "accelerate"))


def _compressed(found: Mapping[str, Any]) -> Packing:
    """Groups of layers, each with its number format; the bytes are known where all have one."""
    groups = found["config_groups"]
    weights = [group["weights"] for group in groups.values() if isinstance(group.get("weights"), Mapping)]
    kept = _kept(found, "ignore") or ()
    formats = {(int(w["num_bits"]), str(w.get("type", "int")), int(w.get("group_size") or -1)) for w in weights}
    dense = found.get("format") in ("dense", "sparse-24-bitmask", "sparse-bitmask")
    if len(formats) != 1 or dense:
        return Packing("compressed-tensors", None, kept, packages=("compressed_tensors",))
    (bits, kind, group) = formats.pop()
    symmetric = all(w.get("symmetric", True) for w in weights)
    size = _grouped(bits, group, zeros=not symmetric, scale_bytes=1.0 if kind == "float" and bits == 4 else 2.0)
    return Packing(f"compressed-tensors-{kind}{bits}", size, kept, packages=("compressed_tensors",))


def _fixed(name: str, size: float | None, *packages: str) -> Callable[[Mapping[str, Any]], Packing]:
    def read(found: Mapping[str, Any]) -> Packing:
        kept = _kept(found, "modules_to_not_convert", "skip_modules", "modules_to_not_quantize")
        return Packing(name, size, kept, packages=packages)

    return read


#: quant_method in quantization_config -> how it is read: those that transformers loads.
_METHODS: Mapping[str, Callable[[Mapping[str, Any]], Packing]] = {
    "aqlm": _fixed("aqlm", None, "aqlm", "accelerate"),
    "auto-round": _auto_round,
    "awq": _awq,
    "bitnet": _fixed("bitnet", 0.25, "accelerate"),
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed,
    "eetq": _fixed("eetq-8bit", 1.0, "kernels", "accelerate"),
    "fbgemm_fp8": _fbgemm,
    "fp8": _fp8,
    "fouroversix": _fixed("fouroversix", None, "fouroversix"),
    "fp_quant": _fixed("fp_quant", None, "qutlass"),
    "gptq": _gptq,
    "higgs": _fixed("higgs", None, "flute", "accelerate"),
    "hqq": _fixed("hqq", None, "hqq"),
    "metal": _fixed("metal", None, "kernels"),
    "mxfp4": _fixed("mxfp4", 0.5 + 1 / 32, "kernels", "accelerate"),
    "mxfp8": _fixed("mxfp8", 1 + 1 / 32, "accelerate"),
    "nvfp4": _fixed("nvfp4", 0.5 + 1 / 16, "kernels"),
    "quanto": _fixed("quanto", None, "optimum.quanto", "accelerate"),
    "quark": _fixed("quark", None, "quark"),
    "sinq": _fixed("sinq", None, "sinq"),
    "spqr": _fixed("spqr", None, "spqr_quant", "accelerate"),
    "torchao": _fixed("torchao", None, "torchao"),
    "vptq": _fixed("vptq", None, "vptq", "accelerate"),
}


def is_way_of_packing(name: str) -> bool:
    """Whether a name is one that a packing can have, by loading or by saving."""
    method, _, bits = name.rpartition("-")
    if method == "bitsandbytes":
        return name in QUANTIZED_BYTES
    return name in _METHODS or (method in _METHODS and re.fullmatch(r"\d+bit|(int|float)\d+", bits) is not None)


def chosen_packing(saved: Packing | None, spec: SubjectSpec, *, source: str) -> Packing | None:
    """How a subject's weights are packed on its device; None: not at all.

    Raises UserError where the study asks for another way than the one in which the checkpoint was saved.
    """
    if saved is None:
        if spec.quantization is None:
            return None
        if spec.quantization not in QUANTIZED_BYTES:
            raise UserError(
                f"quantization: {spec.quantization}, and {source} is not saved so; legal with it: "
                f"{', '.join(QUANTIZED_BYTES)}, which pack while loading"
            )
        return Packing(spec.quantization, QUANTIZED_BYTES[spec.quantization], packages=("accelerate", "bitsandbytes"))
    if spec.quantization not in (None, saved.name):
        raise UserError(
            f"quantization: {spec.quantization}, but {source} was saved packed as {saved.name}, and cannot be packed "
            "again; leave quantization out"
        )
    return saved


def lacking(packages: Sequence[str]) -> list[str]:
    """Those of some packages that are not installed, by the names that pip knows."""
    return [_PIP.get(name, name) for name in packages if not _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):  # the package that it lies in is not there
        return False


def needs_of(spec: SubjectSpec, saved: Packing | None) -> list[str]:
    """Say which libraries a subject's checkpoint takes that are not installed here, a sentence for each key."""
    asked: list[tuple[str, Sequence[str]]] = []
    if saved is not None:
        asked.append((f"weights: {spec.weights}, saved packed as {saved.name},", saved.packages))
    elif spec.quantization is not None:
        asked.append((f"quantization: {spec.quantization}", ("accelerate", "bitsandbytes")))
    if spec.device_map is not None:
        asked.append((f"device_map: {spec.device_map}", ("accelerate",)))
    if spec.attention == "flash_attention_2":
        asked.append((f"attention: {spec.attention}", ("flash_attn",)))
    return [
        f"{what} needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed; "
        f"pip install {' '.join(missing)}"
        for what, packages in asked
        if (missing := lacking(packages))
    ]


def require_libraries(spec: SubjectSpec, saved: Packing | None) -> None:
    """Raise Unsupported where a library is missing that a subject's checkpoint takes."""
    for sentence in needs_of(spec, saved):
        raise Unsupported(sentence)


def mark_packed(model: Any, packing: Packing) -> None:
    """Note on the weights of a model on meta which of them are packed, and what one of their values takes."""
    if packing.bytes_per_value is None:
        return
    for module in _packed_modules(model, packing):
        setattr(module.weight, PACKED, packing.bytes_per_value)


def _packed_modules(model: Any, packing: Packing) -> list[Any]:
    """The linear layers of a model whose weights are packed; where only blocks are, the language model's."""
    from torch import nn
    from transformers.quantizers.base import get_keys_to_not_convert

    kept = get_keys_to_not_convert(model) if packing.kept is None else packing.kept
    head, decoder = model.get_output_embeddings(), model.get_decoder() if packing.blocks_alone else model
    inside = {id(module) for module in decoder.modules()}
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and id(module) in inside
        and not packing.is_kept(name, kept)
        and not (packing.blocks_alone and module is head)
    ]


def require_packed(model: Any, packing: Packing, spec: SubjectSpec, *, device: str) -> None:
    """Refuse a model that was saved packed and is not what the record would call it, once it is loaded.

    Where a device cannot run a way of packing, transformers unpacks the weights, or changes their format, and says so
    in its log alone. Raises Unsupported for the first, and UserError for the second.
    """
    from torch import nn

    expected = _packed_modules(model, packing)
    plain = [module for module in expected if type(module) is nn.Linear and hasattr(module, "weight")]
    wide = [module for module in plain if module.weight.is_floating_point() and module.weight.element_size() > 1]
    if not getattr(model, "is_quantized", False) or (expected and len(wide) == len(expected)):
        raise Unsupported(
            f"weights: {spec.weights}, saved packed as {packing.name}, was unpacked while loading, since {device} or "
            "its libraries cannot run it packed; take a device that can, or the checkpoint that is not packed"
        )
    dtype = str(model.dtype).removeprefix("torch.")
    if dtype != spec.dtype:
        raise UserError(
            f"dtype: {spec.dtype}, and transformers runs {spec.weights}, saved packed as {packing.name}, in {dtype} on "
            f"{device}; write dtype: {dtype}"
        )
