"""Run a network with other tensors, attributes and modules in place, and restore the old ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from secateur.graph.branches import Replacement
from secateur.graph.channel_graph import AttributeValue
from secateur.graph.cutting.tensors import named_tensors, set_attributes
from secateur.graph.substitutes import replace_modules
from secateur.untouched import StateRecord


@contextmanager
def substituted(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    attributes: Iterable[AttributeValue] = (),
    replacements: Iterable[Replacement] = (),
    state: StateRecord | None = None,
) -> Iterator[None]:
    """Exchange tensors, attributes and modules of a network within a block, and leave it as it was.

    Nothing is copied, so closures, hooks and everything else that refers to the network see the exchange.

    Args:
        model: the network.
        tensors: parameters and buffers by name; tied ones by their first name.
        attributes: integer attributes to set.
        replacements: modules to replace.
        state: the recorded state of the network, which is the present one, without the values of its
            parameters; recorded here if none is given.

    Raises:
        SurgeryError: the network has no such attribute or module.
    """
    state = state or StateRecord(model, weights=False)
    with state.restored():
        state.seed_generators()
        new: dict[int, Tensor] = {}
        for name, old in named_tensors(model).items():
            if name in tensors:
                found = tensors[name]
                new[id(old)] = (
                    nn.Parameter(found, old.requires_grad) if isinstance(old, nn.Parameter) else found
                )
        for module in model.modules():
            for held in (module._parameters, module._buffers):
                for leaf, tensor in held.items():
                    if tensor is not None and id(tensor) in new:
                        held[leaf] = new[id(tensor)]  # type: ignore[assignment]
            if isinstance(module, nn.RNNBase):
                # Recurrent layers keep a list of their weights beside the registered ones.
                module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]
        set_attributes(model, attributes)
        replace_modules(model, replacements)
        yield
