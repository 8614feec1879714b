"""Times of reading a prompt and of writing a token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import UsageError
from secateur.latency import compare_generation


class Cache:
    """A cache that notes its length."""

    def __init__(self) -> None:
        self.length = 0

    def crop(self, length: int) -> None:
        self.length += length if length < 0 else length - self.length


class Language(nn.Module):
    """A language model that is called with a prompt of five tokens, or with one token after it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)

    def forward(
        self,
        input_ids: Tensor,
        cache: Cache | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
    ) -> Any:
        assert use_cache
        assert not self.training
        cache = Cache() if cache is None else cache
        scores = self.embed(input_ids)[:, -logits_to_keep:]
        assert (cache.length, input_ids.shape[1], scores.shape[1]) in {(0, 5, 1), (5, 1, 1)}
        cache.length += input_ids.shape[1]
        return {"logits": scores, "cache": cache}


def test_a_token_is_always_timed_with_the_prompt_in_the_cache() -> None:
    model = Language().train()
    ids = torch.randint(7, (2, 5))
    found = compare_generation({"a": model, "b": Language()}, ids, warmup=1, min_runs=3, min_seconds=0)
    assert model.training
    assert (found.prompt, found.batch) == (5, 2)
    for name in ("a", "b"):
        prefill, decode = (each.latencies[name] for each in (found.prefill, found.decode))
        assert prefill.runs >= 3
        assert found.prefill_rate(name) == pytest.approx(10_000 / prefill.median_ms)
        assert found.decode_rate(name) == pytest.approx(2_000 / decode.median_ms)
    assert "prompt of 5 tokens" in str(found)


def test_a_network_of_transformers_is_measured_and_left_alone() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=32,
        use_cache=False,
    )
    model = transformers.LlamaForCausalLM(config).train()
    found = compare_generation({"llama": model}, torch.randint(3, 32, (1, 6)), min_runs=2, min_seconds=0)
    assert found.decode.latencies["llama"].median_ms > 0
    assert model.training
    assert model.config.use_cache is False


def test_wrong_arguments_are_refused() -> None:
    ids = torch.ones(1, 5, dtype=torch.int64)
    with pytest.raises(UsageError, match="no network"):
        compare_generation({}, ids)
    for wrong in (ids[0], ids[:, :0], ids.float()):
        with pytest.raises(UsageError, match="shape"):
            compare_generation({"a": Language()}, wrong)
    with pytest.raises(UsageError, match="min_runs"):
        compare_generation({"a": Language()}, ids, min_runs=0)

    class NoCache(Language):
        def forward(self, input_ids: Tensor, use_cache: bool = True) -> Any:
            return {"logits": self.embed(input_ids)}

    with pytest.raises(UsageError, match=r"'a' \(NoCache\) returns no cache"):
        compare_generation({"a": NoCache()}, ids, min_runs=1, min_seconds=0)
