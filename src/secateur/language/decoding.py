"""Make inputs for the pass that writes one more token, with earlier tokens in the cache of keys and values.

Importing this module needs transformers.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from secateur._compat import register_constant
from secateur.devices import device_of
from secateur.errors import UsageError

_NAMES = ("cache", "past_key_values")
"""Names of the cache among the arguments of networks, the newest first."""


class _RepeatedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Hold as many copies of the keys and values of the new tokens as the cache has earlier tokens.

    Args:
        length: number of earlier tokens.
    """

    def __init__(self, length: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.length = length

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values of all tokens, ``(batch, heads, length + new, width)``; nothing is kept."""
        del args, kwargs
        return self._extended(key_states), self._extended(value_states)

    def _extended(self, new: Tensor) -> Tensor:
        earlier = new[..., :1, :].expand(*[-1] * (new.dim() - 2), self.length, -1)
        return torch.cat([earlier, new], -2)

    def get_seq_length(self) -> int:
        """Return the number of earlier tokens."""
        return self.length


class RepeatedCache(Cache):
    """A cache of keys and values that repeats those of the new token for all earlier ones.

    It has no tensors of its own: its widths are those of the network at any time, so that one cache serves a
    network before and after a cut, and a captured pass shows on which channels its work depends. A pass with
    it reads and writes as much as with a real cache; its results have no meaning.

    Args:
        layers: number of attention layers.
        length: number of earlier tokens.
    """

    def __init__(self, layers: int, length: int) -> None:
        super().__init__(layers=[_RepeatedLayer(length) for _ in range(layers)])
        self._key = layers, length

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
    if context < 1:
        raise UsageError(f"context is the number of tokens in the cache, at least 1, not {context}")
    taken = inspect.signature(model.forward).parameters
    name = next((name for name in _NAMES if name in taken), None)
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else None
    layers = getattr(text, "num_hidden_layers", None)
    if name is None or layers is None or getattr(config, "is_encoder_decoder", False):
        raise UsageError(
            f"{type(model).__name__} takes no cache of keys and values, as causal language models of "
            "transformers do; the time of a token after others cannot be measured"
        )
    ids = torch.zeros(batch, 1, dtype=torch.int64, device=device_of(model))
    return {"input_ids": ids, "use_cache": True, name: RepeatedCache(int(layers), context)}
