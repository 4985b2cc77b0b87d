"""The port of Molmo computes what the original computes, and can be timed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, StaticCache

from vlmeter.common.errors import UserError
from vlmeter.models.molmo1.checkpoint import load_model, open_checkpoint
from vlmeter.models.molmo1.modeling import MolmoForCausalLM, build_random, empty_model, merge_features
from vlmeter.models.molmo1.presets import presets
from vlmeter.models.molmo1.verify import case_tensors, greedy_tokens, read_case, verify

from .support.molmo import GOLDEN, TINY, TINY_EXPERTS, tiny_inputs, tiny_model

CASES = ("case_1x1", "case_1x2", "case_2x1")


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module", params=list(GOLDEN))
def golden(request: pytest.FixtureRequest) -> tuple[MolmoForCausalLM, dict[str, Tensor], list[int]]:
    folder = GOLDEN[request.param]
    case = read_case(folder / "case_1x2.npz")
    model = load_model(open_checkpoint(folder), device="cpu", dtype=torch.float32)
    return model, case_tensors(case), case["generated"].tolist()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("flavour", GOLDEN)
def test_features_logits_and_tokens_are_those_of_the_original(flavour: str, attention: str) -> None:
    folder = GOLDEN[flavour]
    results = verify(folder, [folder / f"{case}.npz" for case in CASES], attn_implementation=attention)
    for result in results:
        assert result.features_error < 1e-4
        assert result.logits_error < 1e-4
        assert result.tokens_equal_with_cache
        assert result.tokens_equal_without_cache


@pytest.mark.parametrize(
    "how", [{}, {"use_cache": False}, {"cache_implementation": "static"}], ids=["dynamic", "none", "static"]
)
def test_generate_says_the_tokens_of_the_original(
    golden: tuple[MolmoForCausalLM, dict[str, Tensor], list[int]], how: dict[str, object]
) -> None:
    model, inputs, expected = golden
    said = model.generate(**inputs, max_new_tokens=len(expected), do_sample=False, **how)
    assert said[0, inputs["input_ids"].shape[1] :].tolist() == expected


def test_a_static_cache_says_the_same_and_can_be_reset(
    golden: tuple[MolmoForCausalLM, dict[str, Tensor], list[int]],
) -> None:
    model, inputs, expected = golden
    cache = StaticCache(config=model.config, max_cache_len=inputs["input_ids"].shape[1] + len(expected))
    for _ in range(2):
        assert greedy_tokens(model, inputs, tokens=len(expected), cache=cache) == expected
        cache.reset()


@pytest.mark.parametrize("architecture", [TINY, TINY_EXPERTS], ids=["dense", "experts"])
def test_eager_and_sdpa_attention_agree(architecture: object) -> None:
    inputs = tiny_inputs()
    sdpa, eager = (tiny_model(architecture, attn_implementation=name)(**inputs).logits for name in ("sdpa", "eager"))
    torch.testing.assert_close(sdpa, eager, rtol=1e-4, atol=1e-5)


def test_an_unknown_attention_implementation_is_refused() -> None:
    with pytest.raises(UserError, match="'flash' is not supported; legal are sdpa, eager"):
        empty_model(TINY, device="meta", dtype=torch.float32, attn_implementation="flash")


def test_logits_are_computed_only_where_they_are_wanted() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    logits = model(**inputs).logits
    rows: list[int] = []
    model.head.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[1]))
    last = model(**inputs, logits_to_keep=2).logits
    chosen = model(**inputs, logits_to_keep=torch.tensor([0, 7])).logits
    assert rows == [2, 2]
    torch.testing.assert_close(last, logits[:, -2:])
    torch.testing.assert_close(chosen, logits[:, [0, 7]])


def test_every_phase_is_a_module_that_is_called_once_and_in_order() -> None:
    model = tiny_model()
    phases: dict[str, nn.Module] = {
        "vision encoder": model.vision_backbone.image_vit,
        "projector": model.vision_backbone.projector,
        **{f"block {i}": block for i, block in enumerate(model.blocks)},
        "head": model.head,
    }
    calls: list[str] = []
    for name, module in phases.items():
        module.register_forward_pre_hook(lambda *_, name=name: calls.append(f"{name} starts"))
        module.register_forward_hook(lambda *_, name=name: calls.append(f"{name} ends"))
    model(**tiny_inputs())
    assert calls == [f"{name} {what}" for name in phases for what in ("starts", "ends")]


def test_all_crops_go_through_the_vision_encoder_in_one_batch() -> None:
    model = tiny_model()
    shapes: list[torch.Size] = []
    model.vision_backbone.image_vit.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))
    inputs = tiny_inputs(crops=3)
    features = model.vision_backbone(inputs["images"], inputs["image_masks"])
    assert shapes == [(3, 576, 588)]
    assert features.shape == (1, 3, 144, TINY.hidden_size)


@pytest.mark.parametrize("static", [False, True], ids=["dynamic cache", "static cache"])
@pytest.mark.parametrize("architecture", [TINY, TINY_EXPERTS], ids=["dense", "experts"])
def test_a_forward_pass_never_looks_at_a_value_on_the_device(architecture: object, static: bool) -> None:
    """On the meta device there are no values, so any wait for one would raise here."""
    model = empty_model(architecture, device="meta", dtype=torch.bfloat16)
    inputs = {name: tensor.to("meta") for name, tensor in tiny_inputs().items()}
    with torch.device("meta"):
        cache = StaticCache(config=model.config, max_cache_len=512) if static else DynamicCache(config=model.config)
        for _ in range(2):
            prefill = model(**inputs, cache=cache, logits_to_keep=1)
            step = model(input_ids=inputs["input_ids"][:, :1], cache=cache)
            cache.reset()
    assert prefill.logits.shape == step.logits.shape == (1, 1, TINY.embedding_size)


def test_cudnn_attention_is_shunned_only_while_a_cache_grows_by_one() -> None:
    """It plans anew for every number of keys, which costs four times the decode step itself."""
    model, inputs = tiny_model(), tiny_inputs()
    allowed: list[bool] = []
    model.blocks[0].register_forward_pre_hook(lambda *_: allowed.append(torch.backends.cuda.cudnn_sdp_enabled()))
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        caches = DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=300)
        for cache in caches:
            model(**inputs, cache=cache)
            model(input_ids=inputs["input_ids"][:, :1], cache=cache)
        assert torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
    assert allowed == [True, False, True, True]


def test_the_merge_adds_each_feature_at_its_position_and_drops_the_rest() -> None:
    embeddings, features = torch.randn(2, 7, 4), torch.randn(2, 1, 144, 4)
    positions = torch.full((2, 1, 144), -100)
    positions[0, 0, 5], positions[0, 0, 9], positions[1, 0, 143], positions[1, 0, 0] = 6, 0, 3, -1
    expected = embeddings.clone()
    expected[0, 6] += features[0, 0, 5]
    expected[0, 0] += features[0, 0, 9]
    expected[1, 3] += features[1, 0, 143]
    assert torch.equal(merge_features(embeddings, features, positions), expected)


def test_a_crop_of_nothing_but_minus_one_is_padding_and_has_no_features() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    inputs["images"][0, 1] = -1
    features = model.vision_backbone.image_vit(inputs["images"][0])
    assert features[0].abs().min() > 0
    assert not features[1].any()


def test_images_without_their_positions_are_refused() -> None:
    inputs = tiny_inputs()
    with pytest.raises(ValueError, match="image_input_idx"):
        tiny_model()(input_ids=inputs["input_ids"], images=inputs["images"])


def test_a_prompt_in_two_parts_gives_the_logits_of_the_whole() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    whole = model(**inputs).logits[:, -3:]
    for cache in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=300)):
        model(**{**inputs, "input_ids": inputs["input_ids"][:, :-3]}, cache=cache)
        rest = model(input_ids=inputs["input_ids"][:, -3:], cache=cache).logits
        torch.testing.assert_close(rest, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_batch_gives_each_sequence_what_it_gets_alone(attention: str) -> None:
    model = tiny_model(attn_implementation=attention)
    alone = [tiny_inputs(seed=seed) for seed in (1, 2)]
    together = {name: torch.cat([inputs[name] for inputs in alone]) for name in alone[0]}
    expected = torch.cat([model(**inputs).logits for inputs in alone])
    torch.testing.assert_close(model(**together).logits, expected, rtol=1e-4, atol=1e-5)
    said = model.generate(**together, max_new_tokens=4, do_sample=False)
    for row, inputs in zip(said, alone, strict=True):
        assert row[-4:].tolist() == greedy_tokens(model, inputs, tokens=4)


def test_padding_on_the_left_changes_nothing_in_generate() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    padded = {
        **inputs,
        "input_ids": torch.cat([torch.zeros(1, 3, dtype=torch.long), inputs["input_ids"]], dim=1),
        "image_input_idx": torch.where(inputs["image_input_idx"] < 0, -100, inputs["image_input_idx"] + 3),
        "attention_mask": torch.tensor([[0] * 3 + [1] * inputs["input_ids"].shape[1]]),
    }
    for how in ({}, {"cache_implementation": "static"}, {"use_cache": False}):
        said = model.generate(**padded, max_new_tokens=4, do_sample=False, **how)
        assert said[0, -4:].tolist() == greedy_tokens(model, inputs, tokens=4)


def test_half_precision_stays_close_and_keeps_the_rotary_frequencies_in_float32() -> None:
    full = tiny_model()
    half = build_random(TINY, device="cpu", dtype=torch.bfloat16, seed=0)
    half.load_state_dict(full.state_dict())
    assert half.model.rotary.inv_freq.dtype == torch.float32
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    logits = half(**tiny_inputs()).logits.float()
    expected = full(**tiny_inputs()).logits
    assert (logits - expected).norm() < 0.05 * expected.norm()


def test_vision_attention_runs_in_float32_unless_told_otherwise() -> None:
    dtypes: list[torch.dtype] = []

    def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        dtypes.append(query.dtype)
        return query

    for in_float32, expected in ((True, torch.float32), (False, torch.bfloat16)):
        model = build_random(replace(TINY, float32_attention=in_float32), device="cpu", dtype=torch.bfloat16, seed=0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(model.vision_backbone.forward.__globals__["ATTENTION"], "sdpa", attention)
            model.vision_backbone(*(tiny_inputs()[name].bfloat16() for name in ("images", "image_masks")))
        assert set(dtypes) == {expected}
        dtypes.clear()


def test_random_weights_depend_on_the_seed_alone() -> None:
    first, again, other = (build_random(TINY, device="cpu", dtype=torch.float32, seed=s) for s in (3, 3, 4))
    for (name, a), (_, b), (_, c) in zip(
        first.named_parameters(), again.named_parameters(), other.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name
        assert a.ndim == 1 or not torch.equal(a, c), name
    assert first.model.blocks[0].attn.attn_norm.weight.eq(1).all()
    assert first.model.blocks[0].attn.att_proj.bias.eq(0).all()
    assert first.model.blocks[0].attn.att_proj.weight.std() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("name", ["nano"])
def test_a_random_preset_gives_finite_logits(name: str) -> None:
    model = build_random(presets()[name], device="cpu", dtype=torch.float32, seed=0)
    inputs = tiny_inputs(presets()[name])
    assert model(**inputs, logits_to_keep=1).logits.isfinite().all()


# ------------------------------------------------------------------------------------ MolmoE, by the formulae


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    return weight * (x / (x.pow(2).mean(-1, keepdim=True) + TINY_EXPERTS.layer_norm_eps).sqrt())


def _molmoe_logits(weights: dict[str, Tensor], ids: list[int]) -> Tensor:
    """Compute MolmoE's logits token by token, head by head, expert by expert, from the published tensors."""
    a, prefix = TINY_EXPERTS, "model.transformer."
    width = a.head_dim
    frequencies = torch.tensor([a.rope_theta ** (-2 * k / width) for k in range(width // 2)])

    def turned(x: Tensor, position: int) -> Tensor:
        angle = position * frequencies
        left, right = x[: width // 2], x[width // 2 :]
        return torch.cat([left * angle.cos() - right * angle.sin(), right * angle.cos() + left * angle.sin()])

    table = torch.cat([weights[prefix + "wte.embedding"], weights[prefix + "wte.new_embedding"]])
    states = [table[i] for i in ids]
    for layer in range(a.num_hidden_layers):
        block = {name.removeprefix(f"{prefix}blocks.{layer}."): tensor for name, tensor in weights.items()}
        keys: list[Tensor] = []
        values: list[Tensor] = []
        attended = []
        for position, x in enumerate(states):
            q, k, v = (block["attn.att_proj.weight"] @ _rms(x, block["attn.attn_norm.weight"])).chunk(3)
            q, k = _rms(q, block["attn.q_norm.weight"]), _rms(k, block["attn.k_norm.weight"])
            keys.append(torch.stack([turned(head, position) for head in k.split(width)]))
            values.append(v.view(-1, width))
            heads = []
            for number, query in enumerate(q.split(width)):
                scores = torch.stack([key[number] @ turned(query, position) / width**0.5 for key in keys])
                heads.append(sum(p * value[number] for p, value in zip(scores.softmax(0), values, strict=True)))
            attended.append(x + block["attn.attn_out.weight"] @ torch.cat(heads))
        states = []
        for x in attended:
            normed = _rms(x, block["mlp.ff_norm.weight"])
            probabilities = (block["mlp.gate.weight"] @ normed).softmax(0)
            answer = torch.zeros_like(x)
            for expert in probabilities.argsort(descending=True)[: a.moe_top_k].tolist():
                gate, up, down = (block[f"mlp.experts.{expert}.{n}_proj.weight"] for n in ("gate", "up", "down"))
                answer += probabilities[expert] * (down @ (nn.functional.silu(gate @ normed) * (up @ normed)))
            states.append(x + answer)
    final = [_rms(x, weights[prefix + "ln_f.weight"]) for x in states]
    return torch.stack(final) @ weights[prefix + "ff_out.weight"].T


def test_molmoe_computes_what_a_loop_over_its_experts_computes() -> None:
    from vlmeter.models.molmo1.checkpoint import published_tensors

    model = tiny_model(TINY_EXPERTS, seed=5)
    ids = [3, 17, 250, 301, 8, 8, 99]
    expected = _molmoe_logits(published_tensors(model), ids)
    logits = model(input_ids=torch.tensor([ids])).logits[0]
    assert (logits - expected).norm() < 1e-4 * expected.norm()


def test_molmoe_with_a_cache_computes_what_it_computes_without() -> None:
    model, inputs = tiny_model(TINY_EXPERTS), tiny_inputs(TINY_EXPERTS)
    assert greedy_tokens(model, inputs, tokens=6) == greedy_tokens(model, inputs, tokens=6, use_cache=False)
