"""Shapes known before any weight exists."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from vlmeter.common.errors import UserError
from vlmeter.models.molmo1.architecture import Architecture
from vlmeter.models.molmo1.modeling import empty_model
from vlmeter.models.molmo1.presets import preset, presets

from .support.molmo import GOLDEN, TINY, TINY_EXPERTS, read_per_decode_step


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", [*presets(), "tiny", "tiny experts"])
def test_analytic_parameter_counts_equal_those_of_the_modules(name: str) -> None:
    architecture = {"tiny": TINY, "tiny experts": TINY_EXPERTS}.get(name) or presets()[name]
    model = empty_model(architecture, device="meta", dtype=torch.bfloat16)
    counted, projector = architecture.parameters(), model.vision_backbone.projector
    assert counted.vision_encoder == _count(model.vision_backbone.image_vit)
    assert counted.pooling == _count(projector.image_pooling_2d)
    assert counted.projection == _count(projector.image_projector)
    assert counted.padding_embedding == projector.pad_embed.numel()
    assert counted.projector == _count(projector)
    assert counted.token_embedding == _count(model.model.embed_tokens)
    assert counted.blocks == _count(model.blocks)
    assert counted.final_norm == _count(model.head.norm)
    assert counted.lm_head == _count(model.head.lm_head)
    assert counted.total == _count(model)


def test_molmo_7b_d_has_the_published_parameters_per_component() -> None:
    counted = presets()["7b-d"].parameters()
    assert counted.vision_encoder == 290_909_184
    assert counted.pooling == 7_344_128
    assert counted.projection == 106_692_608
    assert counted.padding_embedding == 4_096
    assert counted.token_embedding == 545_456_128
    assert counted.blocks == 6_525_618_176
    assert counted.final_norm == 3_584
    assert counted.lm_head == 544_997_376
    assert counted.total == 8_021_025_280


@pytest.mark.parametrize(("name", "total"), [("7b-o", 7_665_032_192), ("72b", 73_308_285_952), ("e-1b", 7_221_875_712)])
def test_other_presets_have_the_published_size(name: str, total: int) -> None:
    assert presets()[name].parameters().total == total


def test_a_decode_step_of_7b_d_reads_14_gigabytes_and_leaves_57344_bytes_per_token() -> None:
    architecture = presets()["7b-d"]
    assert 2 * read_per_decode_step(architecture) == pytest.approx(14.141e9, rel=1e-4)
    assert architecture.kv_cache_bytes_per_token(bytes_per_value=2) == 57_344


def test_molmoe_reads_about_one_billion_parameters_per_token() -> None:
    assert read_per_decode_step(presets()["e-1b"]) == pytest.approx(1.18e9, rel=0.01)


@pytest.mark.parametrize("name", presets())
def test_an_architecture_survives_its_config_json(name: str) -> None:
    values = json.loads(json.dumps(presets()[name].to_config()))
    assert Architecture.from_config(values, source="config.json") == presets()[name]


def test_a_published_config_json_is_read_as_it_is() -> None:
    published = {
        "architectures": ["MolmoForCausalLM"],
        "attention_layer_norm": False,
        "auto_map": {"AutoModelForCausalLM": "modeling_molmo.MolmoForCausalLM"},
        "clip_qkv": None,
        "embedding_size": 152064,
        "hidden_size": 3584,
        "initializer_range": 0.02,
        "intermediate_size": 37888,
        "layer_norm_eps": 1e-06,
        "layer_norm_type": "rms",
        "max_position_embeddings": 4096,
        "model_type": "molmo",
        "norm_after": False,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "qkv_bias": True,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.43.3",
        "use_cache": True,
        "use_position_ids": True,
        "vocab_size": 152064,
        "weight_tying": False,
    }
    read = Architecture.from_config(published, source="config.json")
    assert read.parameters() == presets()["7b-d"].parameters()


def test_nulls_mean_what_the_original_makes_of_them() -> None:
    values = {**presets()["e-1b"].to_config(), "num_key_value_heads": None, "intermediate_size": None}
    assert Architecture.from_config(values, source="config.json") == presets()["e-1b"]


def test_golden_configurations_are_read() -> None:
    read = {
        name: Architecture.from_config(json.loads((folder / "config.json").read_text()), source=name)
        for name, folder in GOLDEN.items()
    }
    assert read["7B-D"].qkv_bias
    assert not read["7B-D"].norm_after
    assert read["7B-O"].norm_after
    assert read["7B-O"].attention_layer_norm
    assert read["7B-D"].vision.image_num_layers == 10


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"hidden_size": None}, "missing hidden_size"),
        ({"layer_norm_type": "default"}, "layer_norm_type is 'default'"),
        ({"clip_qkv": 8.0}, "clip_qkv is 8.0"),
        ({"weight_tying": True}, "weight_tying is True"),
        ({"hidden_size": 33}, "hidden_size: 33 is not a multiple of num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_attention_heads: 4 is not a multiple of num_key_value_heads"),
        ({"embedding_size": 200}, "embedding_size: 200 is smaller than vocab_size 300"),
        ({"moe_top_k": 2}, "moe_top_k: 2"),
        ({"vision": {"depth": 3}}, "unknown key vision.depth"),
        ({"vision": {"image_num_layers": 3}}, "vision.image_feature_layers"),
    ],
)
def test_an_impossible_configuration_is_refused_with_its_key(change: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Architecture.from_config({**TINY.to_config(), **change}, source="config.json")


def test_an_unknown_preset_is_refused_with_the_legal_ones() -> None:
    with pytest.raises(UserError, match="nano, 7b-d, 7b-o, e-1b, 72b"):
        preset("7b")


def test_shapes_presets_tokenizer_and_preprocessing_need_no_torch() -> None:
    code = (
        "import sys, vlmeter.models.molmo1.presets, vlmeter.models.molmo1.processing\n"
        "import vlmeter.models.molmo1.checkpoint\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
