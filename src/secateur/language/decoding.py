"""Make inputs for the pass that writes one more token, with earlier tokens in the cache of keys and values.

Importing this module needs transformers.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from secateur._compat import register_constant
from secateur.devices import device_of
from secateur.errors import UsageError

_NAMES = ("cache", "past_key_values")
"""Names of the cache among the arguments of networks, the newest first."""


class _RepeatedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Hold as many copies of the keys and values of the new tokens as the cache has earlier tokens.

    Args:
        length: number of earlier tokens.
        kept: how many of them the layer still reads.
    """

    def __init__(self, length: int, kept: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.length, self.kept, self.is_sliding = length, kept, kept < length

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values of all tokens, ``(batch, heads, length + new, width)``; nothing is kept."""
        del args, kwargs
        return self._extended(key_states), self._extended(value_states)

    def _extended(self, new: Tensor) -> Tensor:
        earlier = new[..., :1, :].expand(*[-1] * (new.dim() - 2), self.kept, -1)
        return torch.cat([earlier, new], -2)

    def get_seq_length(self) -> int:
        """Return the number of earlier tokens."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many tokens are read, and the place of the first of them."""
        return self.kept + query_length, self.length - self.kept


class RepeatedCache(Cache):
    """A cache of keys and values that repeats those of the new token for all earlier ones.

    It has no tensors of its own: its widths are those of the network at any time, so that one cache serves a
    network before and after a cut, and a captured pass shows on which channels its work depends. A pass with
    it reads and writes as much as with a real cache; its results have no meaning.

    Args:
        length: number of earlier tokens.
        kept: for each attention layer, how many of them it still reads.
    """

    def __init__(self, length: int, kept: Sequence[int]) -> None:
        super().__init__(layers=[_RepeatedLayer(length, count) for count in kept])
        self._key = length, *kept

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RepeatedCache) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __deepcopy__(self, memo: dict[int, Any]) -> RepeatedCache:
        return self


register_constant(RepeatedCache)


def one_token(model: nn.Module, context: int, batch: int = 1) -> dict[str, Any]:
    """Make inputs for the pass that writes one more token.

    Give them to :class:`secateur.recipes.LatencyOptions` for a budget of the time of a token, or trace a
    network with them to count its costs.

    Args:
        model: a causal language model of transformers.
        context: number of earlier tokens in the cache.
        batch: number of texts.

    Returns:
        Keyword arguments of the forward pass: ids, shape ``(batch, 1)``, on the network's device, and a
            cache.

    Raises:
        UsageError: the network takes no such cache.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=1, vocab_size=32,
        ...     num_attention_heads=2, num_key_value_heads=2)
        >>> model = LlamaForCausalLM(config).eval()
        >>> model(**one_token(model, context=100)).logits.shape
        torch.Size([1, 1, 32])
    """
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else None
    name = next((name for name in _NAMES if name in inspect.signature(model.forward).parameters), None)
    kept = None if text is None or getattr(config, "is_encoder_decoder", False) else _kept(text, context)
    if name is None or kept is None:
        raise UsageError(
            f"{type(model).__name__} takes no cache of keys and values in all layers, as most causal "
            "language models of transformers do; the time of a token after others cannot be measured"
        )
    most = getattr(text, "max_position_embeddings", None) or context + 1
    if not 1 <= context < most:
        raise UsageError(
            f"context is the number of tokens in the cache, from 1 to {most - 1:,}, not {context}"
        )
    if batch < 1:
        raise UsageError(f"batch is the number of texts, at least 1, not {batch}")
    ids = torch.zeros(batch, 1, dtype=torch.int64, device=device_of(model))
    return {"input_ids": ids, "use_cache": True, name: RepeatedCache(context, kept)}


def _kept(config: Any, context: int) -> list[int] | None:
    """List how many earlier tokens each attention layer reads; nothing if some layers have other caches."""
    count = getattr(config, "num_hidden_layers", 0)
    layers = DynamicCache(config=config).layers or [DynamicLayer() for _ in range(count)]  # type: ignore[no-untyped-call]
    if not layers or any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        return None
    # A window contains the new token.
    windows = [getattr(layer, "sliding_window", context + 1) for layer in layers]
    return [min(context, window - 1) for window in windows]
