"""The language model of Molmo, first generation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache

from vlmeter.models.molmo1.architecture import Architecture
from vlmeter.models.molmo1.attention import ATTENTION
from vlmeter.models.molmo1.configuration import MolmoConfig


class MolmoRMSNorm(nn.Module):
    """Root-mean-square norm in float32, scaled in the dtype of the weights (`RMSLayerNorm`)."""

    def __init__(self, size: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, states: Tensor) -> Tensor:
        """[..., size] -> the same."""
        wide = states.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(states.dtype)


class MolmoRotaryEmbedding(nn.Module):
    """Angles of the rotary position embedding, in float32 and rotate-half layout (`RotaryEmbedding`)."""

    inv_freq: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.theta, self.head_dim = architecture.rope_theta, architecture.head_dim
        self.register_buffer("inv_freq", self._inverse_frequencies(None), persistent=False)

    def _inverse_frequencies(self, device: torch.device | None) -> Tensor:
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=device) / self.head_dim
        return 1.0 / self.theta**exponents

    def reset(self, device: torch.device) -> None:
        """Compute the buffer anew on `device`: it is no weight, so nothing fills it after a start on meta."""
        self.inv_freq = self._inverse_frequencies(device)

    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosine and sine [B, 1, T, head_dim] for positions [B, T]."""
        angles = position_ids[:, None, :, None].float() * self.inv_freq
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding to [B, H, T, head_dim] in float32."""
    wide = states.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat([-second, first], dim=-1) * sin).to(states.dtype)


@dataclass(frozen=True)
class DecoderContext:
    """What every block needs besides the hidden states; made once per forward pass."""

    cos: Tensor
    sin: Tensor
    mask: Tensor | None
    causal: bool
    cache: Cache | None
    grows_by_one: bool
    """Whether this is a decode step whose keys are one more than the last step's."""


class MolmoAttention(nn.Module):
    """Attention of one block with its norm; queries, keys and values come from one fused projection."""

    def __init__(self, config: MolmoConfig, *, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        a = config.architecture
        self.head_dim, self.norm_after = a.head_dim, a.norm_after
        self.sizes = (a.hidden_size, a.kv_size, a.kv_size)
        self.attn_norm = MolmoRMSNorm(a.hidden_size, eps=a.layer_norm_eps)
        self.att_proj = nn.Linear(a.hidden_size, sum(self.sizes), bias=a.qkv_bias)
        self.attn_out = nn.Linear(a.hidden_size, a.hidden_size, bias=False)
        self.q_norm: MolmoRMSNorm | None = None
        self.k_norm: MolmoRMSNorm | None = None
        if a.attention_layer_norm:  # over the full width, before the heads are split
            self.q_norm = MolmoRMSNorm(a.hidden_size, eps=a.layer_norm_eps)
            self.k_norm = MolmoRMSNorm(a.kv_size, eps=a.layer_norm_eps)

    def forward(self, states: Tensor, context: DecoderContext) -> Tensor:
        """[B, T, D] -> [B, T, D], without the residual."""
        projected = self.att_proj(states if self.norm_after else self.attn_norm(states))
        query, key, value = projected.split(self.sizes, dim=-1)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key, value = (x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for x in (query, key, value))
        query = _rotate(query, context.cos, context.sin)
        key = _rotate(key, context.cos, context.sin)
        if context.cache is not None:
            key, value = context.cache.update(key, value, self.layer)
        if context.causal:  # a static cache hands out its whole buffer; only the prompt's part is filled
            key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
        attended = ATTENTION[self.config._attn_implementation](query, key, value, context.mask, context.causal)
        mixed: Tensor = self.attn_out(attended.transpose(1, 2).flatten(2))
        return self.attn_norm(mixed) if self.norm_after else mixed


class MolmoMLP(nn.Module):
    """Feed-forward layer of one block with its norm; the rows of `ff_proj` are [up; gate]."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        self.norm_after = a.norm_after
        self.ff_norm = MolmoRMSNorm(a.hidden_size, eps=a.layer_norm_eps)
        self.ff_proj = nn.Linear(a.hidden_size, a.intermediate_size, bias=False)
        self.ff_out = nn.Linear(a.feed_forward_size, a.hidden_size, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D], without the residual."""
        up, gate = self.ff_proj(states if self.norm_after else self.ff_norm(states)).chunk(2, dim=-1)
        mixed: Tensor = self.ff_out(F.silu(gate) * up)
        return self.ff_norm(mixed) if self.norm_after else mixed


class MolmoExperts(nn.Module):
    """The experts of one block as two stacked matrices, so that one grouped product serves all of them."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        experts, hidden, inner = (
            architecture.moe_num_experts,
            architecture.hidden_size,
            architecture.feed_forward_size,
        )
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * inner, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, inner))

    def forward(self, tokens: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """Send `tokens` [N, D] to their `experts` [N, k] and sum the answers with `weights` [N, k] -> [N, D].

        The (token, expert) pairs are sorted by expert; `ends` says where each expert's rows end. The matrices
        of an expert that no token chose are not read. In bfloat16 on CUDA the device alone knows `ends`;
        torch's stand-in for other dtypes and for the CPU reads them on the host.
        """
        count, top_k = experts.shape
        chosen, order = experts.flatten().sort()
        every_expert = torch.arange(len(self.down_proj), device=tokens.device)
        ends = torch.searchsorted(chosen, every_expert, right=True, out_int32=True)
        gate, up = F.grouped_mm(tokens[order // top_k], self.gate_up_proj.transpose(1, 2), offs=ends).chunk(2, dim=-1)
        answers = F.grouped_mm(F.silu(gate) * up, self.down_proj.transpose(1, 2), offs=ends)
        answers = answers * weights.flatten()[order][:, None]
        unsorted = torch.empty_like(answers).index_copy_(0, order, answers)
        return unsorted.view(count, top_k, -1).sum(dim=1)


class MolmoSparseMLP(nn.Module):
    """Router and experts of MolmoE (`MolmoeMlpExpert`): the top-k weights are not normalised to one."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.top_k = architecture.moe_top_k
        self.ff_norm = MolmoRMSNorm(architecture.hidden_size, eps=architecture.layer_norm_eps)
        self.gate = nn.Linear(architecture.hidden_size, architecture.moe_num_experts, bias=False)
        self.experts = MolmoExperts(architecture)

    def forward(self, states: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D], without the residual."""
        tokens = self.ff_norm(states).flatten(0, 1)
        weights, experts = self.gate(tokens).softmax(dim=-1, dtype=torch.float32).topk(self.top_k, dim=-1)
        mixed: Tensor = self.experts(tokens, experts, weights.to(tokens.dtype))
        return mixed.view_as(states)


class MolmoBlock(nn.Module):
    """One block of the language model: attention and feed-forward, each with a residual."""

    def __init__(self, config: MolmoConfig, *, layer: int) -> None:
        super().__init__()
        architecture = config.architecture
        self.attn = MolmoAttention(config, layer=layer)
        self.mlp = MolmoSparseMLP(architecture) if architecture.is_mixture_of_experts else MolmoMLP(architecture)

    def forward(self, states: Tensor, context: DecoderContext) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        states = states + self.attn(states, context)
        result: Tensor = states + self.mlp(states)
        return result


class MolmoEmbedding(nn.Module):
    """Token embedding in two tables: the vocabulary and the special tokens behind it (`Embedding`)."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(architecture.embedding_size, architecture.hidden_size))
        self.new_embedding = nn.Parameter(torch.empty(architecture.additional_vocab_size, architecture.hidden_size))

    def forward(self, input_ids: Tensor) -> Tensor:
        """[B, T] -> [B, T, D]."""
        rows = len(self.embedding)
        is_new = input_ids >= rows
        known = F.embedding(torch.where(is_new, 0, input_ids), self.embedding)
        new = F.embedding(torch.where(is_new, input_ids - rows, 0), self.new_embedding)
        return torch.where(is_new[..., None], new, known)


class MolmoHead(nn.Module):
    """Final norm and projection to the vocabulary; it has no rows for the special tokens."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.norm = MolmoRMSNorm(architecture.hidden_size, eps=architecture.layer_norm_eps)
        self.lm_head = nn.Linear(architecture.hidden_size, architecture.embedding_size, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """[B, T, D] -> logits [B, T, embedding_size]."""
        logits: Tensor = self.lm_head(self.norm(states))
        return logits
