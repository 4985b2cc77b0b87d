"""Toy families of transformers, written as a family file would be, and checkpoints of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from vlmeter.models.families.base import SubjectSpec
from vlmeter.models.families.generic import FAMILY as GENERIC
from vlmeter.models.families.loaded_native import LoadedNative, Parts, Template
from vlmeter.models.families.made_tokenizer import MadeTokenizer
from vlmeter.models.families.native import NativeFamily, Scale

QWEN = Scale(
    about="a toy",
    config={
        "model_type": "qwen2_5_vl",
        "text_config": {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 1000,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
            "bos_token_id": 990,
            "eos_token_id": 992,
        },
        "vision_config": {
            "depth": 2,
            "hidden_size": 32,
            "num_heads": 2,
            "intermediate_size": 64,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
        },
        "image_token_id": 995,
        "video_token_id": 996,
        "vision_start_token_id": 993,
        "vision_end_token_id": 994,
        "tie_word_embeddings": False,
    },
    tokenizer=MadeTokenizer(
        vocab_size=1000,
        special_tokens={
            "<|endoftext|>": 990,
            "<|im_start|>": 991,
            "<|im_end|>": 992,
            "<|vision_start|>": 993,
            "<|vision_end|>": 994,
            "<|image_pad|>": 995,
            "<|video_pad|>": 996,
        },
        eos="<|im_end|>",
        pad="<|endoftext|>",
    ),
    processor_config={"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136, "max_pixels": 1003520},
    processor="Qwen2_5_VLProcessor",
    parameters={"vision_encoder": 58816, "projector": 24800, "embedding": 64000, "llm_blocks": 61952, "head": 64064},
)

GEMMA = Scale(
    about="a toy",
    config={
        "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text",
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "vocab_size": 1000,
            "sliding_window": 24,
            "bos_token_id": 990,
            "eos_token_id": 991,
            "pad_token_id": 992,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
            "vision_use_head": False,
        },
        "mm_tokens_per_image": 4,
        "image_token_id": 995,
        "boi_token_id": 993,
        "eoi_token_id": 994,
        "tie_word_embeddings": True,
    },
    tokenizer=MadeTokenizer(
        vocab_size=1000,
        special_tokens={
            "<bos>": 990,
            "<eos>": 991,
            "<pad>": 992,
            "<start_of_image>": 993,
            "<end_of_image>": 994,
            "<image_soft_token>": 995,
            "<start_of_turn>": 996,
            "<end_of_turn>": 997,
        },
        eos="<eos>",
        bos="<bos>",
        pad="<pad>",
        adds_bos=True,
        named={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
    ),
    processor_config={"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 56, "width": 56}},
    processor="Gemma3Processor",
    processor_arguments={"image_seq_length": 4},
)


class QwenLike(NativeFamily):
    """A projector inside the vision encoder, positions in space, special tokens around the image."""

    name = "qwen2_5_vl"
    model_types = ("qwen2_5_vl",)
    scales = {"nano": QWEN}  # noqa: RUF012
    parts = Parts(vision_encoder="model.visual", projector=("model.visual.merger",))
    template = Template(
        text="<|im_start|>user\n{image}{question}<|im_end|>\n<|im_start|>assistant\n",
        image="<|vision_start|><|image_pad|><|vision_end|>",
    )


class LlavaLike(NativeFamily):
    """A projector of its own, a beginning of sequence, features of a layer before the last."""

    name = "llava"
    model_types = ("llava",)
    scales = {"nano": GENERIC.scales["nano"]}  # noqa: RUF012
    template = Template(text="USER: {image}\n{question} ASSISTANT:", image="<image>")


class GemmaLike(NativeFamily):
    """Layers with a sliding window, an image attended in both directions, a head that is the embedding."""

    name = "gemma3"
    model_types = ("gemma3",)
    scales = {"nano": GEMMA}  # noqa: RUF012
    template = Template(
        text="<start_of_turn>user\n{image}{question}<end_of_turn>\n<start_of_turn>model\n", image="<start_of_image>"
    )


NATIVE = {"qwen": QwenLike(), "llava": LlavaLike(), "gemma": GemmaLike()}


def spec_of(**changes: Any) -> SubjectSpec:
    """A subject of the nano scale, with changes."""
    given: dict[str, Any] = {
        "preset": "nano",
        "weights": "random",
        "revision": None,
        "dtype": "float32",
        "attention": "sdpa",
        "seed": 0,
    }
    return SubjectSpec(**{**given, **changes})


def write_native_checkpoint(family: NativeFamily, folder: Path, *, shards: int = 2, seed: int = 0) -> Path:
    """Write a toy's checkpoint as transformers does: sharded weights, configuration, tokenizer, processor."""
    loaded = family.load(spec_of(seed=seed), device="cpu")
    assert isinstance(loaded, LoadedNative)
    folder.mkdir(parents=True)
    processor = loaded.processor
    processor.tokenizer.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    settings = dict(family.scales["nano"].processor_arguments)
    settings["processor_class"] = type(processor).__name__
    (folder / "processor_config.json").write_text(json.dumps(settings))
    loaded.model.config.save_pretrained(folder)
    loaded.model.generation_config.save_pretrained(folder)
    tensors = {name: tensor.contiguous() for name, tensor in loaded.model.state_dict().items()}
    weight_map = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(tensors.items())[shard::shards])
        save_file(part, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
