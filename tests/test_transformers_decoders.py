"""Decoders of transformers, small and with random weights: what may be cut of each, and is the cut right?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import secateur as sec
from tests.libraries import QUIET

transformers = pytest.importorskip("transformers", reason="needs transformers")

pytestmark = QUIET

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
EXPERTS = {"num_local_experts": 3, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 12,
    "q_lora_rank": 20,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}

MODELS: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen3": {"head_dim": 8},
    "Gemma3Text": {"head_dim": 8, "sliding_window": 4},
    "Phi3": {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1},
    "Mixtral": EXPERTS,
    "GptOss": EXPERTS
    | {"head_dim": 8, "layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4},
    "DeepseekV2": LATENT,
}
"""By name: settings beside the common ones."""
SLOW = ("Gemma3Text", "Phi3")
"""Each has a relative among the others."""


def build(name: str, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SMALL | settings)
    config.use_cache = False
    return getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")(config).eval()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in MODELS]
)
def test_everything_but_words_may_be_cut(name: str) -> None:
    model = build(name, **MODELS[name])
    inputs = {"input_ids": torch.randint(2, 60, (2, 8)), "attention_mask": torch.ones(2, 8, dtype=torch.long)}
    graph = sec.trace(model, inputs)
    free = {(member.tensor, member.dim) for group in graph.prunable for member in group.members}
    left = {
        (name, dim)
        for name, tensor in model.named_parameters()
        for dim in range(tensor.dim())
        if tensor.dim() > 1 and (name, dim) not in free
    }
    words = {(name, 0) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    assert left <= words
    plan = sec.make_plan(
        graph, sec.score(model, graph, "magnitude"), sec.Budget(channels=0.5), allocation="uniform"
    )
    small = sec.apply_plan(model, plan)
    check = sec.verify(model, small, plan, inputs)
    assert check.ok, check
    small(**inputs).logits.sum().backward()


def test_heads_may_be_cut_of_many_layers_with_one_rotary_embedding() -> None:
    model = build("Llama", num_hidden_layers=6, head_dim=16)
    graph = sec.trace(model, {"input_ids": torch.randint(2, 60, (1, 8))})
    heads = [group.channels for group in graph.prunable if group.name.endswith("self_attn.q_proj")]
    assert heads == [2] * 6
