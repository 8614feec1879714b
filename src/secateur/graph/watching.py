"""Where sizes come from: the integers that a network's code reshapes with, and what they were made of.

A captured program holds bare numbers: ``reshape(1, 197, 3, 6, 64)``. Whether the 6 is an attribute
of a module, the size of another tensor or a number in the code decides what a cut must change.
So the network is run once more, on shapes alone, with integers that remember their making.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx import Node
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from secateur.graph.attributes import attribute_of, integer_attributes, set_attribute
from secateur.graph.capture import ExampleInputs, Program, call_arguments, doubled, mode_of, module_path
from secateur.graph.cutting import copy_with, named_tensors
from secateur.graph.given import given_sizes
from secateur.graph.opened import opened
from secateur.graph.remembering import EQUAL, Proportional, Size
from secateur.graph.sizes import Computed, FromAttribute, FromTensor, Power, Sizes, Source


@dataclass(frozen=True, eq=False)
class _Call:
    """One operator as the network's code called it."""

    key: tuple[str, str, tuple[int, ...]]
    sizes: tuple[Any, ...]


@dataclass(frozen=True)
class _Made:
    """The size of a dimension of something that was made: by a call, or a named tensor."""

    maker: _Call | str
    place: int
    dim: int


def watch_sizes(model: nn.Module, inputs: ExampleInputs, program: Program) -> Sizes:
    """Finds out where the sizes in a program come from.

    Args:
        model: the network; not changed.
        inputs: what it was captured with.
        program: the captured forward pass.

    Returns:
        The sources of sizes, for the operators for which they are known.
    """
    for way in (_on_meta, _on_fakes, _for_real):
        state = torch.get_rng_state()
        watch = _Watch()
        EQUAL.clear()
        try:
            tensors, moved, mode = way(model, doubled(inputs) if program.training else inputs)
            copied = copy_with(model, tensors, ())
            _label(copied, model)
            args, kwargs = moved
            with (
                _paths(copied, watch),
                mode_of(copied, training=program.training),
                torch.no_grad(),
                mode,
                watch,
            ):
                copied(*args, **kwargs)
        except Exception:  # noqa: BLE001 - the user's code may fail in any way
            continue
        finally:
            torch.set_rng_state(state)
        return _aligned(watch.calls, program)
    return {}


_Way = tuple[dict[str, Tensor], tuple[Any, Any], contextlib.AbstractContextManager[Any]]
"""Tensors to run with, arguments, and a mode in which to run."""


def _on_meta(model: nn.Module, inputs: ExampleInputs) -> _Way:
    """Shapes alone; what the code makes without saying where is a shape as well."""
    tensors = {name: tensor.detach().to("meta") for name, tensor in named_tensors(model).items()}
    arguments = tree_map_only(Tensor, lambda leaf: leaf.to("meta"), call_arguments(inputs))
    return tensors, arguments, torch.device("meta")


def _on_fakes(model: nn.Module, inputs: ExampleInputs) -> _Way:
    """Shapes that know their device, for code that makes tensors on a device of its own."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    tensors: dict[str, Tensor] = {
        name: mode.from_tensor(tensor.detach()) for name, tensor in named_tensors(model).items()
    }
    return tensors, tree_map_only(Tensor, mode.from_tensor, call_arguments(inputs)), mode


def _for_real(_model: nn.Module, inputs: ExampleInputs) -> _Way:
    """Numbers, for code that looks at them."""
    return {}, tree_map_only(Tensor, torch.clone, call_arguments(inputs)), contextlib.nullcontext()


def _label(model: nn.Module, original: nn.Module) -> None:
    """Replaces the integers in attributes by such that remember, and marks tensors with their names.

    An object that the copy shares with the original network is left as it is.
    """
    modules = dict(original.named_modules())
    for path, name, value in list(integer_attributes(model)):
        module, owner = model.get_submodule(path), name.rpartition(".")[0]
        if owner and attribute_of(module, owner) is attribute_of(modules[path], owner):
            continue
        if isinstance(value, int):
            set_attribute(module, name, Size(value, FromAttribute(path, name, None, value)))
        else:
            sizes = [Size(item, FromAttribute(path, name, i, item)) for i, item in enumerate(value)]
            set_attribute(module, name, type(value)(sizes))
    for name, tensor in named_tensors(model).items():
        tensor._secateur_maker = (name, 0)  # type: ignore[attr-defined]


@contextlib.contextmanager
def _paths(model: nn.Module, watch: _Watch) -> Iterator[None]:
    """Lets the watch know which module is running."""
    handles = []

    def entering(path: str) -> Callable[..., None]:
        return lambda *_: watch.path.append(path)

    def leaving(*_: Any) -> None:
        watch.path.pop()

    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(entering(path)))
        handles.append(module.register_forward_hook(leaving))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Watch(TorchFunctionMode):
    """Records every call of an operator and hands out sizes that remember."""

    def __init__(self) -> None:
        super().__init__()
        self.path = [""]
        self.calls: list[_Call] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs one operator."""
        function = opened(func)
        if function is not None:
            with self:
                return function(*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Size):
            return torch.Size([_sized(args[0], dim, size) for dim, size in enumerate(result)])
        name = getattr(func, "__name__", "")
        if name == "size" and type(result) is int:
            dim = args[1] if len(args) > 1 else (kwargs or {}).get("dim", 0)
            return _sized(args[0], dim % args[0].dim(), result)
        if name == "numel" and args[0].dim() == 1:
            return _sized(args[0], 0, result)
        results = result if isinstance(result, tuple | list) else [result]
        if results and isinstance(results[0], Tensor):
            name = _normal(name)
            sizes = given_sizes(name, args, kwargs or {})
            key = (self.path[-1], "slice" if name == "getitem" else name, tuple(results[0].shape))
            call = _Call(key, sizes)
            self.calls.append(call)
            for place, item in enumerate(results):
                if isinstance(item, Tensor):
                    item._secateur_maker = (call, place)  # type: ignore[attr-defined]
        return result


def _sized(tensor: Tensor, dim: int, size: int) -> int:
    maker, place = getattr(tensor, "_secateur_maker", (None, 0))
    return size if maker is None else Size(size, _Made(maker, place, dim))


_SAME = {
    "split_with_sizes": "split",
    "_unsafe_view": "view",
    "truediv": "div",
    "concat": "cat",
    "concatenate": "cat",
}


def _normal(name: str) -> str:
    """One name for the forms of an operator: ``__iadd__``, ``add_`` and ``add``."""
    if name.startswith("__"):
        name = name.strip("_")
        name = name[1:] if name[:1] in "ir" and name not in ("invert", "rshift") else name
    name = name.removesuffix("_")
    return _SAME.get(name, name)


def _aligned(calls: Sequence[_Call], program: Program) -> Sizes:
    """Matches calls with the operators of the program: same module, same name, same shape, same order."""
    made: dict[tuple[str, str, tuple[int, ...]], list[_Call]] = defaultdict(list)
    found: dict[tuple[str, str, tuple[int, ...]], list[str]] = defaultdict(list)
    for call in calls:
        made[call.key].append(call)
    for node in program.graph.nodes:
        key = _key(node)
        if key is not None:
            found[key].append(node.name)
    nodes = {
        call: name
        for key, names in found.items()
        if len(made[key]) == len(names)
        for call, name in zip(made[key], names, strict=True)
    }
    sizes = {
        name: tuple(
            _resolved(size.source, nodes) if isinstance(size, Size | Proportional) else None
            for size in call.sizes
        )
        for call, name in nodes.items()
        if any(isinstance(size, Size | Proportional) for size in call.sizes)
    }
    pairs = [(_resolved(one, nodes), _resolved(other, nodes)) for one, other in EQUAL]
    return sizes | {"": tuple(Computed("eq", *pair) for pair in dict.fromkeys(pairs) if None not in pair)}  # type: ignore[arg-type]


def _key(node: Node) -> tuple[str, str, tuple[int, ...]] | None:
    result = node.meta.get("val")
    first = result[0] if isinstance(result, Sequence) and result else result
    if node.op != "call_function" or not isinstance(first, Tensor):
        return None
    name = str(node.target).removeprefix("aten.").partition(".")[0]
    return module_path(node), _normal(name), tuple(first.shape)


def _resolved(source: Any, nodes: Mapping[_Call, str]) -> Source | None:
    """The source with calls replaced by operators of the program; ``None`` where that is not possible."""
    if isinstance(source, FromAttribute):
        return source
    if isinstance(source, Power):
        base = _resolved(source.base, nodes)
        return None if base is None else Power(base, source.power)
    if isinstance(source, _Made):
        if isinstance(source.maker, str):
            return FromTensor("", source.maker, source.place, source.dim)
        node = nodes.get(source.maker)
        return None if node is None else FromTensor(node, "", source.place, source.dim)
    if isinstance(source, Computed):
        parts = [
            item if type(item) is int else _resolved(item, nodes) for item in (source.left, source.right)
        ]
        if parts[0] is None or parts[1] is None:
            return None
        return Computed(source.operator, parts[0], parts[1])
    return None
