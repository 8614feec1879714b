"""The pass that writes one more token: its inputs, its costs, and a budget of its time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import secateur as sec
from secateur.errors import UsageError
from secateur.latency import Comparison, Latency, Timings, latency_table
from secateur.latency.operators import OperatorCall

transformers = pytest.importorskip("transformers")

from transformers.cache_utils import DynamicCache  # noqa: E402

from secateur.language.decoding import one_token  # noqa: E402

SIZES = {"vocab_size": 40, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
NETWORKS = {
    "Llama": ("LlamaForCausalLM", "LlamaConfig", LLAMA),
    "Qwen3": ("Qwen3ForCausalLM", "Qwen3Config", LLAMA | {"head_dim": 8}),
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 16, "n_layer": 2, "n_head": 4}),
    "OPT": (
        "OPTForCausalLM",
        "OPTConfig",
        {
            "hidden_size": 16,
            "ffn_dim": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "word_embed_proj_dim": 16,
        },
    ),
}


def network(name: str = "Llama") -> nn.Module:
    model, config, sizes = NETWORKS[name]
    torch.manual_seed(0)
    made: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**SIZES, **sizes))
    return made.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_token_equals_that_of_a_real_cache_of_equal_tokens(name: str) -> None:
    model = network(name)
    inputs = one_token(model, 9, batch=2)
    (argument, cache) = next((key, value) for key, value in inputs.items() if hasattr(value, "layers"))
    real = DynamicCache()
    seen = []
    for used in (cache, real):
        keys = torch.randn(2, 3, 1, 4, generator=torch.Generator().manual_seed(1))
        values = keys + 1
        if used is real:
            real.update(keys.expand(-1, -1, 9, -1), values.expand(-1, -1, 9, -1), 0)
        seen.append(used.update(keys, values, 0))
    for one, other in zip(*seen, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert cache.get_seq_length() == 9
    assert model(**inputs).logits.shape == (2, 1, 40)
    again = one_token(model, 9)[argument]
    assert (cache == again, hash(cache) == hash(again), cache == one_token(model, 8)[argument]) == (
        True,
        True,
        False,
    )


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        *((name, None) for name in NETWORKS),
        ("Llama", "query_heads"),
        pytest.param("Qwen3", "query_heads", marks=pytest.mark.slow),
    ],  # the heads of the others have keys and values of their own
)
def test_costs_of_a_token_are_predicted_for_a_smaller_network(name: str, unit: str | None) -> None:
    model = network(name)
    inputs = one_token(model, 50)
    graph = sec.trace(model, inputs, attention=unit)
    plan = sec.make_plan(graph, sec.score(model, graph, "magnitude"), sec.Budget(params=0.6))
    small = sec.apply_plan(model, plan)
    assert sec.cost(small, inputs) == plan.cost_after
    # The work of attention grows with the tokens in the cache: it is counted.
    assert sec.cost(model, one_token(model, 100)).macs > sec.cost(model, inputs).macs
    assert sec.verify(model, small, plan, inputs).ok


class _Timer:
    conditions = "a made-up device"

    def __call__(self, call: OperatorCall) -> float:
        return 1e-3 + 1e-6 * sum(float(np.prod(spec.shape)) for spec in call.specs)


def _compare(models: Mapping[str, nn.Module], inputs: Any, **_: Any) -> Comparison:
    sizes = {name: sum(item.numel() for item in model.parameters()) for name, model in models.items()}
    times = {name: 0.5 + 1e-6 * size for name, size in sizes.items()}
    return Comparison({name: Latency(ms, ms, ms, 9, 1, "cpu", 1) for name, ms in times.items()})


@pytest.mark.parametrize("unit", [None, pytest.param("query_heads", marks=pytest.mark.slow)])
def test_a_graph_of_the_prompt_predicts_the_time_of_a_token(unit: str | None) -> None:
    model = network()
    prompt = {"input_ids": torch.randint(0, 40, (2, 12))}
    graph = sec.trace(model, prompt, attention=unit)
    inputs = one_token(model, 500)

    def measured(network: nn.Module, graph: sec.ChannelGraph) -> Any:
        return latency_table(
            network, graph, inputs, timings=Timings(), operator_timer=_Timer(), network_timer=_compare
        )

    table = measured(model, graph)
    same = measured(model, sec.trace(model, inputs, attention=unit))
    heads, hidden = graph.groups[1].channels, graph.groups[2].channels
    for widths in ([16, heads, hidden], [16, heads - 1, hidden], [9, heads, 7]):
        full = np.array([*graph.widths])
        full[:3] = widths
        np.testing.assert_allclose(table.milliseconds(full), same.milliseconds(full), rtol=1e-9)
    # The cache of 500 tokens is most of the work, so heads count more than for 12 tokens without one.
    fewer = np.array([*graph.widths])
    fewer[1] -= 1
    short = latency_table(
        model, graph, prompt, timings=Timings(), operator_timer=_Timer(), network_timer=_compare
    )
    saved = [1 - each.milliseconds(fewer) / each.milliseconds(graph.widths) for each in (table, short)]
    assert saved[0] > saved[1]


def test_other_channels_than_traced_are_refused() -> None:
    class Depends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.a(x)
            return self.b(hidden if x.shape[1] == 3 else hidden + hidden.sort(-1)[0])

    model = Depends()
    graph = sec.trace(model, torch.randn(2, 3, 4))
    with pytest.raises(UsageError, match="other prunable channels; trace it with inputs of this shape"):
        latency_table(
            model,
            graph,
            torch.randn(2, 5, 4),
            timings=Timings(),
            operator_timer=_Timer(),
            network_timer=_compare,
        )


def test_what_takes_no_cache_is_refused() -> None:
    with pytest.raises(UsageError, match="Linear takes no cache of keys and values"):
        one_token(nn.Linear(2, 2), 4)
    config = transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=4, d_ff=20, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    with pytest.raises(UsageError, match="T5ForConditionalGeneration takes no cache"):
        one_token(transformers.T5ForConditionalGeneration(config), 4)
    mamba = transformers.MambaForCausalLM(
        transformers.MambaConfig(hidden_size=8, num_hidden_layers=1, **SIZES)
    )
    with pytest.raises(UsageError, match="MambaForCausalLM takes no cache of keys and values in all layers"):
        one_token(mamba, 4)
    for context in (0, 2048):
        with pytest.raises(UsageError, match=f"from 1 to 2,047, not {context}"):
            one_token(network(), context)
    with pytest.raises(UsageError, match="at least 1, not 0"):
        one_token(network(), 4, batch=0)


@pytest.mark.parametrize(("name", "windows"), [("Mistral", [8, 8]), ("Gemma2", [8, None])])
def test_a_layer_with_a_window_reads_what_it_reads_with_a_real_cache(
    name: str, windows: list[int | None]
) -> None:
    config = getattr(transformers, f"{name}Config")(**SIZES, **LLAMA, head_dim=8, sliding_window=8)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    inputs = one_token(model, 20)
    argument = next(key for key, value in inputs.items() if hasattr(value, "layers"))
    real = DynamicCache(config=config)
    model(input_ids=torch.zeros(1, 20, dtype=torch.int64), use_cache=True, **{argument: real})
    read = []
    for cache in (inputs[argument], real):
        found = [
            cache.update(*torch.zeros(2, 1, 2, 1, 8), layer)[0].shape[-2] for layer in range(len(windows))
        ]
        read.append(found)
    assert read[0] == read[1] == [window or 21 for window in windows]
    grows = [sec.cost(model, one_token(model, context)).macs for context in (20, 200)]
    assert (grows[0] < grows[1]) == (None in windows)
