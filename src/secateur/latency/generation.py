"""Measure the generation of text: the prompt, and one token with a cache of keys and values."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.devices import device_of, wait
from secateur.errors import UsageError
from secateur.latency.measure import Comparison, Latency, check_timing, interleaved_timing, torch_threads
from secateur.untouched import untouched

_MILLISECONDS = 1000


@dataclass(frozen=True)
class Generation:
    """Times of several language models that were run alternately.

    Attributes:
        prefill: times of the prompt, which fills the cache.
        decode: times of one more token, with the prompt in the cache.
        prompt: length of the prompt, tokens.
        batch: number of texts.
    """

    prefill: Comparison
    decode: Comparison
    prompt: int
    batch: int

    def prefill_rate(self, name: str) -> float:
        """Return how many tokens of prompts a network reads in a second."""
        return self.batch * self.prompt * _MILLISECONDS / self.prefill.latencies[name].median_ms

    def decode_rate(self, name: str) -> float:
        """Return how many tokens a network writes in a second."""
        return self.batch * _MILLISECONDS / self.decode.latencies[name].median_ms

    def __str__(self) -> str:
        return f"prompt of {self.prompt} tokens\n{self.prefill}\none token\n{self.decode}"


def compare_generation(
    models: Mapping[str, nn.Module],
    ids: Tensor,
    *,
    warmup: int = 3,
    min_runs: int = 10,
    min_seconds: float = 1.0,
    threads: int | None = None,
) -> Generation:
    """Measure how fast several language models read a prompt, and write one token after it.

    The networks run alternately, in evaluation and inference mode, and are left as they were. The prompt is
    computed with scores for its last token alone, as for generation, where the network has that option
    (``logits_to_keep``). For the token, the cache always contains the prompt: what a run adds is removed.

    Args:
        models: causal language models by name; the first is the reference for the others.
            They take ``input_ids`` and ``use_cache``, return a mapping with a cache among its values, and
            take the cache under the same name, as those of transformers do.
        ids: the prompt, shape ``(batch, tokens)``.
        warmup: runs of each network before the timed runs.
        min_runs: least number of timed runs of each network.
        min_seconds: least time spent on timed runs, seconds per network.
        threads: CPU threads within an operator; by default what PyTorch is set to.

    Returns:
        Both times of each network.

    Raises:
        UsageError: there is no network or no token, one has no cache, or a number is out of range.
    """
    check_timing(models.values(), warmup, min_runs, min_seconds, threads)
    if ids.dim() != 2 or not ids.numel() or ids.is_floating_point():
        raise UsageError(
            f"ids is a prompt of whole numbers of shape (batch, tokens), not {ids.dtype} of shape "
            f"{tuple(ids.shape)}"
        )
    with untouched(*models.values()), torch_threads(threads), torch.inference_mode():
        for model in models.values():
            model.eval()
        prefill, decode = (
            _compared(
                models,
                {name: prepare(name, model, ids.to(device_of(model))) for name, model in models.items()},
                len(ids),
                warmup=warmup,
                min_runs=min_runs,
                min_seconds=min_seconds,
            )
            for prepare in (_prefill, _decode)
        )
    return Generation(prefill, decode, ids.shape[1], len(ids))


def _compared(
    models: Mapping[str, nn.Module], runs: Mapping[str, Callable[[], None]], batch: int, **options: Any
) -> Comparison:
    """Time functions alternately, one for each network."""
    measured = interleaved_timing(runs, **options)
    first, threads = next(iter(models)), torch.get_num_threads()
    latencies = {
        name: Latency.of(measured.times[name], threads=threads, device=str(device_of(model)), batch=batch)
        for name, model in models.items()
    }
    return Comparison(latencies, {name: measured.ratio(name, to=first) for name in models})


def _prefill(_: str, model: nn.Module, ids: Tensor) -> Callable[[], None]:
    """Return a function that reads the prompt."""
    last = _scoring_the_last(model)

    def run() -> None:
        with torch.inference_mode():
            model(input_ids=ids, use_cache=True, **last)
            wait(ids.device)

    return run


def _decode(name: str, model: nn.Module, ids: Tensor) -> Callable[[], None]:
    """Return a function that computes one token with the prompt in the cache."""
    outputs = model(input_ids=ids, use_cache=True, **_scoring_the_last(model))
    entries = outputs.items() if isinstance(outputs, Mapping) else ()
    cache = next(((key, value) for key, value in entries if hasattr(value, "crop")), None)
    if cache is None:
        raise UsageError(f"network '{name}' ({type(model).__name__}) returns no cache of keys and values")
    token, given = ids[:, -1:], dict([cache])

    def run() -> None:
        with torch.inference_mode():
            model(input_ids=token, use_cache=True, **given)
            wait(ids.device)
            cache[1].crop(-1)

    return run


def _scoring_the_last(model: nn.Module) -> dict[str, int]:
    """Return the argument with which a network scores the last token alone, if it has it."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
