"""Networks of Transformers, small and with random weights: caches, labels, hidden states, attention maps."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sec
from tests.libraries import QUIET

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sec.build("torchvision:resnet18", classes=2)  # makes torchvision importable beside a CPU build of torch
transformers = pytest.importorskip("transformers", minversion="5", reason="needs transformers")

pytestmark = QUIET

TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
BOTH = {
    "vocab_size": 64,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 32,
}


def ids(*names: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randint(3, 60, (2, 8), generator=generator) for name in names}


def masked() -> dict[str, Tensor]:
    return {**ids("input_ids"), "attention_mask": torch.ones(2, 8, dtype=torch.long)}


def labelled() -> dict[str, Tensor]:
    return {**ids("input_ids"), "labels": torch.tensor([0, 1])}


def image() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}


NETWORKS: dict[str, tuple[str, str, dict[str, Any], dict[str, Tensor]]] = {
    "llama": (
        "LlamaConfig",
        "LlamaForCausalLM",
        TEXT,
        {**ids("input_ids"), "attention_mask": torch.ones(2, 8)},
    ),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 32},
        ids("input_ids"),
    ),
    "t5": (
        "T5Config",
        "T5ForConditionalGeneration",
        {"vocab_size": 64, "d_model": 32, "d_ff": 48, "num_layers": 1, "num_heads": 4, "d_kv": 8},
        ids("input_ids", "decoder_input_ids"),
    ),
    "bart": ("BartConfig", "BartForConditionalGeneration", BOTH, ids("input_ids", "decoder_input_ids")),
    "bert with labels": ("BertConfig", "BertForSequenceClassification", TEXT, labelled()),
    "bert with all that it knows": (
        "BertConfig",
        "BertModel",
        {**TEXT, "output_hidden_states": True, "output_attentions": True, "attn_implementation": "eager"},
        ids("input_ids"),
    ),
    "layoutlm": (
        "LayoutLMConfig",
        "LayoutLMForTokenClassification",
        {**TEXT, "max_2d_position_embeddings": 64},
        {**ids("input_ids"), "bbox": torch.arange(64).view(2, 8, 4).sort().values},
    ),
    "segformer": (
        "SegformerConfig",
        "SegformerForSemanticSegmentation",
        {
            "num_encoder_blocks": 2,
            "depths": [1, 1],
            "sr_ratios": [2, 1],
            "hidden_sizes": [16, 32],
            "patch_sizes": [3, 3],
            "strides": [2, 2],
            "num_attention_heads": [2, 2],
            "mlp_ratios": [2, 2],
            "decoder_hidden_size": 24,
            "num_labels": 3,
        },
        image(),
    ),
}


def build(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    config, model, settings, inputs = NETWORKS[name]
    torch.manual_seed(0)
    return getattr(transformers, model)(getattr(transformers, config)(**settings)).eval(), inputs


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "layoutlm" else name for name in NETWORKS]
)
def test_it_is_cut_right(name: str, tmp_path: Path) -> None:
    net, inputs = build(name)
    graph = sec.trace(net, inputs)
    scores = sec.score(net, graph, "random")
    plan = sec.make_plan(graph, scores, sec.Budget(channels=0.5), allocation="uniform")
    small = sec.apply_plan(net, plan)
    check = sec.verify(net, small, plan, inputs)
    assert check.ok, check
    left = sum(item.numel() for item in small.parameters()) / sum(item.numel() for item in net.parameters())
    assert left < 0.9
    sec.save(tmp_path / "net.safetensors", small)
    again = sec.load(tmp_path / "net.safetensors", model=build(name)[0])
    with torch.no_grad():
        assert torch.equal(again(**inputs)[0], small(**inputs)[0])


def test_caches_are_no_outputs() -> None:
    net, inputs = build("llama")
    graph = sec.trace(net, inputs)
    assert graph.wiring.program.outputs == ("['logits']",)
    assert "DynamicCache" in str(graph)
    heads = [group for group in graph.prunable if "k_proj" in group.name or "q_proj" in group.name]
    assert heads


def test_batches_of_tokenisers() -> None:
    net, inputs = build("bert with labels")
    batches = [transformers.BatchEncoding(inputs)] * 2
    recipe = sec.Recipe.preset("default", finetune={"epochs": 1})
    result = sec.prune(net, inputs, sec.Budget(params=0.8), batches=batches, recipe=recipe)
    assert result.ok
