"""Record the operators that a network's code calls, and where the sizes that it gives them come from.

A captured program holds bare numbers: ``reshape(1, 197, 3, 6, 64)``. Whether the 6 is an attribute
of a module, the size of another tensor or a number in the code decides what a cut must change.
So the network is run once more, on shapes alone, with integers that remember their making.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, product
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur._compat import FakeTensorMode, said_to_be_exported, tree_leaves, tree_map_only
from secateur.exact import SameNumbers, seed_everything
from secateur.graph.capture.calls import ModuleCall
from secateur.graph.capture.operators import DROPOUTS
from secateur.graph.capture.program import ExampleInputs, call_arguments, doubled, mode_of
from secateur.graph.capture.quiet import quiet_fakes, uncompiled
from secateur.graph.cutting.attributes import integer_attributes, is_of_class, owner_of, set_attribute
from secateur.graph.cutting.substitute import substituted
from secateur.graph.cutting.tensors import named_tensors
from secateur.graph.propagation.size_source import FromAttribute
from secateur.graph.sizes.caches import uncached
from secateur.graph.sizes.drawing import counts_chosen_among, draws, limits, numbers_in, tensors_read
from secateur.graph.sizes.given import Step, given_sizes, index_steps
from secateur.graph.sizes.shape_passes import ShapeMode
from secateur.graph.sizes.traced import Proportional, Size, recorded_equalities
from secateur.outputs import Parts, parts_of


@dataclass(frozen=True, eq=False)
class Call:
    """One operator as the network's code called it."""

    key: tuple[str, str, tuple[int, ...]]
    sizes: tuple[Any, ...]
    wide: int = 1
    numbers: tuple[float | bytes, ...] = ()
    counts: bool = False
    is_on: bool | None = None
    """Whether it was called as in training mode, of operators that the mode switches."""
    follows_size: bool = False
    """Whether a number that it computes with was computed from a size."""
    kept: Mapping[int, Made] = field(default_factory=dict)
    """The dimensions of the result that are whole dimensions of what was indexed."""
    hidden: tuple[float, ...] = ()
    """Its numbers that no output may show, if it is an operator of that kind."""
    follows_openly: bool = False
    """Whether it multiplies with a number known to come from a size, as where a sum is divided by a width.
    Such a number may change: outputs show whether it is right, unless a limit or a draw comes after it."""
    is_random: bool = False
    """Whether it draws random numbers, or computes with what was drawn."""
    is_limit: bool = False
    """Whether the user's code compares values with numbers, or limits them."""
    made_of: tuple[float, ...] | None = None
    """The numbers that its result was made of; ``None`` if it was made of other tensors too."""

    @property
    def is_dropout(self) -> bool:
        """Return whether it is dropout of any kind."""
        return "dropout" in self.key[1]

    @property
    def may_hide(self) -> bool:
        """Return whether no output may show its numbers: what is limited then hides those before it too."""
        return self.is_on is not None or self.is_random or len(self.hidden) > 0


@dataclass(frozen=True)
class Made:
    """The size of a dimension of something that was made: by a call, or a named tensor."""

    maker: Call | str
    place: int
    dim: int


@dataclass(frozen=True)
class Observation:
    """What a run on shapes showed.

    Attributes:
        calls: every operator that the code called, in order.
        equal: sources of pairs of sizes that the code found equal.
        modules: the calls of every module, by its path.
        outputs: for each part of the output, where it is, and what made it: an operator of a module, with the
            number of earlier calls of the same one; the name of a parameter or buffer; or a plain value.
        left_out: what it returns beside them, as in :class:`~secateur.graph.capture.program.Program`.
    """

    calls: Sequence[Call]
    equal: Sequence[tuple[Any, Any]]
    modules: Mapping[str, Sequence[ModuleCall]]
    outputs: Sequence[tuple[str, Any]]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def hides(self) -> bool:
        """Return whether the user's code has numbers that no output may show: of draws, and of limits."""
        return any(call.is_random or call.is_limit for call in self.calls)


def record_run(model: nn.Module, inputs: ExampleInputs, *, training: bool) -> Observation | None:
    """Run a network on shapes alone and record every operator and every module that its code calls.

    Each run begins with the same state and the same random numbers.

    Args:
        model: the network; not changed.
        inputs: what to call it with.
        training: in training mode instead of evaluation mode.

    Returns:
        What was seen; nothing if the network does not run on shapes alone.
    """
    # Code may ask for gradients, which are on in training; a network that fails with them runs without.
    modes = (True, False) if training else (False,)
    for gradients, way in product(modes, (_on_meta, _on_fakes, _for_real)):
        tracer = _SizeTracer()
        with contextlib.suppress(Exception):  # the user's code may fail in any way
            tensors, (args, kwargs), mode = way(model, inputs)
            with substituted(model, tensors), uncompiled(), contextlib.ExitStack() as stack:
                seed_everything()
                stack.callback(_label(model, tracer))
                stack.enter_context(_paths(model, tracer))
                stack.enter_context(mode_of(model, training=training, fresh=True))
                stack.enter_context(torch.set_grad_enabled(gradients))
                stack.enter_context(mode)
                stack.enter_context(uncached(model))
                # Code that asks whether it is exported must take the way that was captured.
                stack.enter_context(said_to_be_exported())
                stack.enter_context(tracer)
                equal = stack.enter_context(recorded_equalities())
                parts = parts_of(model(*args, **kwargs))
                outputs = tracer.origins(parts)
            return Observation(tracer.calls, tuple(equal), tracer.modules, outputs, parts.left_out)
    return None


Recorded = Mapping[bool, Observation | None]
"""What was seen in some modes, by whether they are training."""


def record_modes(model: nn.Module, inputs: ExampleInputs, modes: Iterable[bool]) -> Recorded:
    """Record what a network runs in some modes.

    Args:
        model: the network; not changed.
        inputs: what to call it with; twice in training mode, where batch statistics need two examples.
        modes: by whether they are training.

    Returns:
        What was seen in each mode; nothing if the network does not run on shapes alone.
    """
    return {
        training: record_run(model, doubled(inputs) if training else inputs, training=training)
        for training in modes
    }


def numbered(calls: Sequence[Call]) -> dict[Call, tuple[str, str, int]]:
    """Give each call its module, its operator, and the number of earlier calls of the same one."""
    earlier: Counter[tuple[str, str]] = Counter()
    numbers: dict[Call, tuple[str, str, int]] = {}
    for call in calls:
        path, name, _ = call.key
        numbers[call] = (path, name, earlier[path, name])
        earlier[path, name] += 1
    return numbers


_Way = tuple[dict[str, Tensor], tuple[Any, Any], contextlib.AbstractContextManager[Any]]
"""Tensors to run with, arguments, and a mode in which to run."""


def _on_meta(model: nn.Module, inputs: ExampleInputs) -> _Way:
    """Run on shapes alone; what the code makes without naming a device is a shape as well."""
    tensors = {name: tensor.detach().to("meta") for name, tensor in named_tensors(model).items()}
    arguments = tree_map_only(Tensor, lambda leaf: leaf.to("meta"), call_arguments(inputs))
    return tensors, arguments, torch.device("meta")


def _on_fakes(model: nn.Module, inputs: ExampleInputs) -> _Way:
    """Run on shapes that know their device, for code that makes tensors on a certain device."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    tensors: dict[str, Tensor] = {
        name: mode.from_tensor(tensor.detach()) for name, tensor in named_tensors(model).items()
    }
    return tensors, tree_map_only(Tensor, mode.from_tensor, call_arguments(inputs)), quiet_fakes(mode)


def _for_real(model: nn.Module, inputs: ExampleInputs) -> _Way:
    """Run on numbers, for code that looks at them; what it draws to decide by follows no width."""
    copies = {name: tensor.detach().clone() for name, tensor in named_tensors(model).items()}
    return copies, tree_map_only(Tensor, torch.clone, call_arguments(inputs)), SameNumbers()


def _label(model: nn.Module, tracer: _SizeTracer) -> Callable[[], None]:
    """Replace integer attributes by sizes that remember their source; mark tensors with their names.

    Returns:
        A function that puts the integers back.
    """
    before: list[tuple[nn.Module, str, Any]] = []
    for path, name, value in list(integer_attributes(model)):
        module = model.get_submodule(path)
        of_class = is_of_class(owner_of(module, name), name.rpartition(".")[2])
        if isinstance(value, int):
            made: Any = Size(value, FromAttribute(path, name, None, value, of_class))
        else:
            sizes = [Size(item, FromAttribute(path, name, i, item, of_class)) for i, item in enumerate(value)]
            made = type(value)(sizes)
        before.append((module, name, value))
        set_attribute(module, name, made)
    for name, tensor in named_tensors(model).items():
        tracer.made_by(tensor, name, 0)

    def restore() -> None:
        for module, name, value in before:
            set_attribute(module, name, value)

    return restore


@contextlib.contextmanager
def _paths(model: nn.Module, tracer: _SizeTracer) -> Iterator[None]:
    """Let the tracer know which module is running, and how it is called."""
    handles = []

    def entering(path: str) -> Callable[..., None]:
        return lambda *_: tracer.path.append(path)

    def leaving(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        tracer.modules[tracer.path.pop()].append(ModuleCall.of(args, kwargs, output))

    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            tracer.norms.add(path)
        if type(module).__module__.startswith("torch.nn."):
            tracer.layers.add(path)
        handles.append(module.register_forward_pre_hook(entering(path)))
        handles.append(module.register_forward_hook(leaving, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


_COMPUTING = {"mul", "div", "add", "sub", "tensor", "new_tensor"}
"""Those of them that compute with numbers, not with sizes alone."""


class _SizeTracer(ShapeMode):
    """Records every call of an operator and hands out sizes that remember."""

    def __init__(self) -> None:
        super().__init__()
        self.path = [""]
        self.norms: set[str] = set()
        self.layers: set[str] = set()
        self.calls: list[Call] = []
        self.modules: dict[str, list[ModuleCall]] = defaultdict(list)
        # Noted here, not on the tensors: some of them are the user's. Holding them keeps their identity.
        self._makers: dict[int, tuple[Tensor, Call | str, int]] = {}

    def made_by(self, tensor: Tensor, maker: Call | str, place: int) -> None:
        """Note what made a tensor: a call, with the place among its results, or a name."""
        self._makers[id(tensor)] = (tensor, maker, place)

    def _sized(self, tensor: Tensor, dim: int, size: int) -> int:
        made = self._made(tensor, dim)
        return size if made is None else Size(size, made)

    def _made(self, tensor: Tensor, dim: int) -> Made | None:
        """Find what made a dimension of a tensor, if that is known."""
        if id(tensor) not in self._makers:
            return None
        _, maker, place = self._makers[id(tensor)]
        kept = maker.kept if isinstance(maker, Call) else {}
        return kept.get(dim, Made(maker, place, dim))

    def _maker(self, tensor: Tensor) -> Call | None:
        """Return the call that made a tensor, if one did."""
        _, maker, _ = self._makers.get(id(tensor), (None, None, 0))
        return maker if isinstance(maker, Call) else None

    def origins(self, parts: Parts) -> list[tuple[str, Any]]:
        """List the parts of an output, each with what made it."""
        numbers = numbered(self.calls)
        made = [
            self._makers.get(id(leaf), (leaf, None, 0))[1:] if isinstance(leaf, Tensor) else (leaf, 0)
            for leaf in parts.leaves
        ]
        origins = [(numbers[maker] if isinstance(maker, Call) else maker, place) for maker, place in made]
        return list(zip(parts.paths, origins, strict=True))

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operator, and record it."""
        result = super().run(func, args, kwargs)
        if isinstance(result, torch.Size):
            return torch.Size([self._sized(args[0], dim, size) for dim, size in enumerate(result)])
        name = getattr(func, "__name__", "")
        steps = index_steps(args[1], args[0].dim()) if name in ("__getitem__", "__setitem__") else None
        if steps is not None:
            self._indexed(args[0], steps, result)
            return result
        if name == "size" and type(result) is int:
            dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
            return self._sized(args[0], dim % args[0].dim(), result)
        if name == "numel" and args[0].dim() == 1:
            return self._sized(args[0], 0, result)
        results = result if isinstance(result, tuple | list) else [result]
        if results and isinstance(results[0], Tensor):
            self._record(normal_name(name), args, kwargs, results)
        return result

    def _record(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        results: Sequence[Any],
        kept: Mapping[int, Made] = MappingProxyType({}),
    ) -> None:
        """Record a call of an operator, and that it made its results."""
        key = (self.path[-1], name, tuple(results[0].shape))
        leaves = tree_leaves((args, kwargs))
        numbers = tuple(_number(item) for item in leaves if _is_number(item))
        counts = name == "add" and self.path[-1] in self.norms and key[2] == ()
        is_on = _is_on(name, args, kwargs)
        wide = sum(map(_is_wide, leaves))
        computes = name in _DROPOUTS or name in _COMPUTING
        follows = any(
            isinstance(item, Proportional) or (computes and isinstance(item, Size)) for item in leaves
        )
        sizes = given_sizes(name, args, kwargs)
        makers = [self._maker(item) for item in tensors_read(name, args, kwargs)]
        own = numbers_in(name, args, kwargs)
        free = [maker for maker in makers if maker is not None and maker.made_of is not None]
        behind = tuple(dict.fromkeys(chain(own, *(maker.made_of or () for maker in free))))
        made_of = behind if len(free) == len(makers) else None
        in_layer = self.path[-1] in self.layers
        drawn = draws(name, args, kwargs)
        drawn = drawn or (name in _DROPOUTS and is_on is True and any(own) and not in_layer)
        drawn = drawn or (made_of is not None and any(maker.is_random for maker in free))
        limited = not in_layer and len(behind) > 0 and limits(name, args, kwargs)
        # Integers of a computation with integers make indices, which follow what they count.
        numeric = any(isinstance(item, Tensor) and item.is_floating_point() for item in (*leaves, *results))
        shown = is_on is None and (in_layer or not numeric)
        hidden = behind if drawn or limited else () if shown else own
        scales = name in ("mul", "div") and any(isinstance(item, Size | Proportional) for item in leaves)
        if drawn and made_of is not None:
            hidden += counts_chosen_among(name, args, kwargs, results[0])
        call = Call(
            key,
            sizes,
            wide=wide,
            numbers=numbers,
            counts=counts,
            is_on=is_on,
            follows_size=follows,
            kept=kept,
            hidden=hidden,
            follows_openly=scales and not (drawn or limited),
            is_random=drawn,
            is_limit=limited,
            made_of=made_of,
        )
        self.calls.append(call)
        for place, item in enumerate(results):
            if isinstance(item, Tensor):
                self.made_by(item, call, place)

    def _indexed(self, tensor: Tensor, steps: Sequence[Step], result: Tensor | None) -> None:
        """Record an index as the operators that it runs; there is no result if the index is written to."""
        for number, (dim, item) in enumerate(steps or [(0, slice(None))]):
            if result is not None and number >= len(steps) - 1:
                piece = result
            else:
                piece = tensor[(*[slice(None)] * dim, item)]
            gone, new = (isinstance(item, int), item is None)
            kept = {
                place + (place >= dim) * (new - gone): made
                for place in range(tensor.dim())
                if (place != dim or new) and (made := self._made(tensor, place)) is not None
            }
            name = "select" if gone else "unsqueeze" if new else "slice"
            self._record(name, (tensor, item), {}, [piece], kept)
            tensor = piece


_SWITCHES = {"batch_norm": (5, "training"), "instance_norm": (5, "use_input_stats"), "rrelu": (3, "training")}
"""Where operators take the mode of the network, dropout aside: position and name of the argument."""


_DROPOUTS = DROPOUTS | {"dropout1d", "dropout2d", "dropout3d"}
"""Functions and operators that drop values."""


def _is_on(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool | None:
    """Return whether an operator is called as in training mode; ``None`` if all modes are the same to it."""
    if name in _DROPOUTS:
        usual = "alpha" not in name  # the default value of the argument, which operators call "train"
        return bool(args[2] if len(args) > 2 else kwargs.get("training", kwargs.get("train", usual)))
    if name not in _SWITCHES:
        return None
    place, keyword = _SWITCHES[name]
    return bool(args[place] if len(args) > place else kwargs.get(keyword, False))


def _is_number(item: Any) -> bool:
    """Return whether an argument is a number or an array of numbers, whose source is not known."""
    return isinstance(item, float | np.ndarray) and not isinstance(item, Proportional)


def _number(item: float | np.ndarray[Any, Any]) -> float | bytes:
    """Return a hashable form of a number or an array."""
    return item.tobytes() if isinstance(item, np.ndarray) else item


def _is_wide(item: Any) -> bool:
    return isinstance(item, Tensor) and item.dim() > 0 and item.numel() > item.shape[0]


_SAME = {
    "split_with_sizes": "split",
    "_unsafe_view": "view",
    "truediv": "div",
    "concat": "cat",
    "concatenate": "cat",
}


def normal_name(name: str) -> str:
    """Return one name for the forms of an operator: ``__iadd__``, ``add_`` and ``add``."""
    if name.startswith("__"):
        name = name.strip("_")
        name = name[1:] if name[:1] in "ir" and name not in ("invert", "rshift") else name
    name = name.removesuffix("_")
    return _SAME.get(name, name)
