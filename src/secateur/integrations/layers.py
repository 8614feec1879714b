"""Leave out the layers of a network whose residual branches are all removed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import nn

from secateur.graph.substitutes import PassThrough, Zeros


@dataclass(frozen=True)
class Shortened:
    """A list of layers with some left out.

    Attributes:
        length: number of layers before.
        kept: indices of those that are left.
    """

    length: int
    kept: tuple[int, ...]


@contextmanager
def without_empty_layers(model: nn.Module) -> Iterator[tuple[Shortened, ...]]:
    """Take out of every list of modules those that compute nothing, within a block.

    A layer computes nothing if all its residual branches were removed and it has no tensors: it returns its
    input. The layers that follow are numbered again, also in attributes that hold the number of the layer.

    Args:
        model: a pruned network; as before after the block.

    Yields:
        The lists that lost layers.
    """
    with ExitStack() as stack:
        found = []
        for path, layers in list(model.named_modules()):
            if not path or not isinstance(layers, nn.ModuleList):
                continue
            kept = tuple(number for number, layer in enumerate(layers) if not _is_empty(layer))
            if 0 < len(kept) < len(layers):
                found.append(Shortened(len(layers), kept))
                _shorten(stack, model, path, layers, kept)
        yield tuple(found)


def _is_empty(layer: nn.Module) -> bool:
    replaced = any(isinstance(module, PassThrough | Zeros) for module in layer.modules())
    return replaced and next(layer.parameters(), None) is None and next(layer.buffers(), None) is None


def _shorten(
    stack: ExitStack, model: nn.Module, path: str, layers: nn.ModuleList, kept: Sequence[int]
) -> None:
    """Put a shorter list in the place of a list of layers, and number its layers."""
    parent, _, name = path.rpartition(".")
    holder = model.get_submodule(parent)
    stack.callback(setattr, holder, name, layers)
    setattr(holder, name, nn.ModuleList(layers[number] for number in kept))
    for inner, attribute in _numbers({number: layers[number] for number in kept}):
        for place, number in enumerate(kept):
            module = layers[number].get_submodule(inner)
            stack.callback(setattr, module, attribute, number)
            setattr(module, attribute, place)


def _numbers(layers: Mapping[int, nn.Module]) -> set[tuple[str, str]]:
    """Find the attributes that hold the number of the layer in all of several layers.

    Args:
        layers: by their numbers; of a single one, no attribute is certain.
    """
    found = [
        {
            (path, name)
            for path, module in layer.named_modules()
            for name, value in vars(module).items()
            if type(value) is int and value == number
        }
        for number, layer in layers.items()
    ]
    return set.intersection(*found) if len(found) > 1 else set()
