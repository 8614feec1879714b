"""Find where sizes come from: the integers that a network's code reshapes with, and their sources.

A captured program holds bare numbers: ``reshape(1, 197, 3, 6, 64)``. Whether the 6 is an attribute
of a module, the size of another tensor or a number in the code decides what a cut must change.
So the network is run once more, on shapes alone, with integers that remember their making.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain, product, zip_longest
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from secateur._compat import FakeTensorMode, said_to_be_exported, tree_leaves, tree_map_only
from secateur.exact import seed_everything
from secateur.graph.capture.calls import ModuleCall
from secateur.graph.capture.nodes import module_path, operator_name
from secateur.graph.capture.operators import DROPOUTS
from secateur.graph.capture.program import ExampleInputs, Program, call_arguments, doubled, mode_of
from secateur.graph.capture.quiet import quiet_fakes
from secateur.graph.checking.execution import uncompiled
from secateur.graph.cutting.attributes import integer_attributes, is_of_class, owner_of, set_attribute
from secateur.graph.cutting.substitute import substituted
from secateur.graph.cutting.tensors import named_tensors
from secateur.graph.sizes.caches import uncached
from secateur.graph.sizes.drawing import counts_chosen_among, draws, limits, numbers_in, tensors_read
from secateur.graph.sizes.given import Step, given_sizes, index_steps
from secateur.graph.sizes.shape_passes import ShapeMode
from secateur.graph.sizes.source import Computed, FromAttribute, FromTensor, Power, Sizes, Source
from secateur.graph.sizes.traced import Proportional, Size, recorded_equalities
from secateur.outputs import Parts, parts_of


@dataclass(frozen=True, eq=False)
class _Call:
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
    kept: Mapping[int, _Made] = field(default_factory=dict)
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

    @property
    def is_harmless(self) -> bool:
        """Return whether it couples no channels and computes with no number that may follow a width.

        It couples none if at most one argument has more than one number per example.
        """
        return self.wide <= 1 and self.key[1] in _HARMLESS and not self.numbers


@dataclass(frozen=True)
class _Made:
    """The size of a dimension of something that was made: by a call, or a named tensor."""

    maker: _Call | str
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

    calls: Sequence[_Call]
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
                stack.enter_context(mode_of(model, training=training))
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


def sizes_of(seen: Observation | None, program: Program) -> Sizes:
    """Find out where the sizes in a program come from.

    Args:
        seen: what was recorded when the network ran on shapes, in the mode of the program.
        program: the captured forward pass.

    Returns:
        The sources of sizes, for the operators for which they are known.
    """
    return {} if seen is None else _aligned(seen, program)


# fmt: off
_HARMLESS = {
    "dropout", "feature_dropout", "alpha_dropout", "dropout1d", "dropout2d", "dropout3d", "mul", "div",
    "add", "sub", "rand", "rand_like", "bernoulli", "empty", "new_empty", "new_tensor", "floor",
    "new_zeros", "zeros", "ones", "new_ones", "full", "new_full", "to", "detach", "clone", "tensor",
}
# fmt: on
"""Operators that couple no channels, where at most one tensor with channels goes in."""


_COMPUTING = {"mul", "div", "add", "sub", "tensor", "new_tensor"}
"""Those of them that compute with numbers, not with sizes alone."""


class Likeness(Enum):
    """How the operators of the two modes of a network compare."""

    SAME = "the same operators, with the same numbers"
    ALIKE = "the same as far as channels are concerned"
    DIFFERENT = "other operators"


def likeness(
    evaluation: Observation | None, training: Observation | None, in_training: Collection[str]
) -> Likeness:
    """Compare what a network runs in its two modes.

    Args:
        evaluation: what was recorded in evaluation mode.
        training: what was recorded in training mode; of twice as many examples, where it takes two.
        in_training: paths of the modules that were in training mode; an operator of theirs that the mode
            should switch and that the code keeps switched off counts as another one.

    Returns:
        ``SAME`` if only the mode of dropout and batch normalisation differs; ``ALIKE`` if there are besides
        these only operators that couple no channels, such as random masks of whole examples.
    """
    if evaluation is None or training is None or evaluation.outputs != training.outputs:
        return Likeness.DIFFERENT
    if _keeps_off(training, in_training):
        return Likeness.DIFFERENT
    # A number that follows a width shows in a cut of a program that has it.
    following = [[call for call in seen.calls if call.follows_size] for seen in (evaluation, training)]
    if any(call.is_dropout for call in following[1]) or not _equal(*following):
        return Likeness.DIFFERENT
    # Dropout that only one mode has, or that has another probability there, is not that of the other program.
    if not _equal(*([call for call in seen.calls if call.is_dropout] for seen in (evaluation, training))):
        return Likeness.DIFFERENT
    if _equal(*([call for call in seen.calls if not call.counts] for seen in (evaluation, training))):
        return Likeness.SAME
    if _equal(*([call for call in seen.calls if not call.is_harmless] for seen in (evaluation, training))):
        return Likeness.ALIKE
    return Likeness.DIFFERENT


def _keeps_off(training: Observation, in_training: Collection[str]) -> bool:
    """Return whether code keeps an operator switched off that the mode of its module should switch on."""
    return any(call.is_on is False and call.key[0] in in_training for call in training.calls)


def outputs_within(
    evaluation: Observation | None,
    training: Observation | None,
    in_training: Collection[str],
    program: Program,
) -> Mapping[str, str] | None:
    """Find the outputs of training mode among the operators of evaluation mode.

    A detector, for example, returns the numbers of its heads in training and decodes them in evaluation.

    Args:
        evaluation: what was recorded in evaluation mode.
        training: what was recorded in training mode.
        in_training: paths of the modules that were in training mode.
        program: the evaluation-mode program.

    Returns:
        For each output of training mode, where it is, and the operator of the program that computes it;
        ``None`` if training runs other operators, or with other numbers, or returns anything else.
    """
    if evaluation is None or training is None or _keeps_off(training, in_training):
        return None
    left, same = iter(evaluation.calls), dict[tuple[str, str, int], _Call]()
    for call, origin in _numbered(training.calls).items():
        if call.counts:
            continue
        found = next((other for other in left if _same(other, call)), None)
        if found is None:
            return None
        same[origin] = found
    nodes = _nodes_of(evaluation, program)
    names = {
        path: nodes[same[origin]]
        for path, (origin, place) in training.outputs
        if place == 0 and origin in same and same[origin] in nodes
    }
    return names if len(names) == len(training.outputs) else None


def _numbered(calls: Sequence[_Call]) -> dict[_Call, tuple[str, str, int]]:
    """Give each call its module, its operator, and the number of earlier calls of the same one."""
    earlier: Counter[tuple[str, str]] = Counter()
    numbers: dict[_Call, tuple[str, str, int]] = {}
    for call in calls:
        path, name, _ = call.key
        numbers[call] = (path, name, earlier[path, name])
        earlier[path, name] += 1
    return numbers


def _same(one: _Call, other: _Call) -> bool:
    """Return whether two calls are of one operator in one module, with the same numbers and sizes."""
    return one.key == other.key and one.numbers == other.numbers


def _equal(one: Sequence[_Call], other: Sequence[_Call]) -> bool:
    return len(one) == len(other) and all(
        left.key[:2] == right.key[:2]
        and left.numbers == right.numbers
        and _of_one_size(left.key[2], right.key[2])
        for left, right in zip(one, other, strict=True)
    )


def _of_one_size(one: Sequence[int], other: Sequence[int]) -> bool:
    """Return whether shapes are equal but for the number of examples, which may have been doubled."""
    changed = [pair for pair in zip(one, other, strict=False) if pair[0] != pair[1]]
    return len(one) == len(other) and (
        not changed or (len(changed) == 1 and changed[0][1] == 2 * changed[0][0])
    )


def changed_factor(before: Observation | None, after: Observation | None) -> str | None:
    """Find an operator that gets another number, such as a scale, after channels were removed.

    Args:
        before: what was recorded of the network.
        after: what was recorded of it without these channels, in the same mode.

    Returns:
        The first such operator, with its module; ``None`` if there is none, or the operators differ.
    """
    if before is None or after is None:
        return None
    pairs = list(zip(before.calls, after.calls, strict=False))
    if len(before.calls) != len(after.calls) or any(one.key[:2] != other.key[:2] for one, other in pairs):
        return None
    return next((_place(one) for one, other in pairs if one.numbers != other.numbers), None)


def hidden_change(model: nn.Module, inputs: ExampleInputs, before: Recorded, *, fewer: bool) -> str | None:
    """Find a number that no output may show and that is another one after channels were removed.

    Args:
        model: the network without these channels; not changed.
        inputs: what ``before`` was recorded with.
        before: what was recorded of the whole network by :func:`record_modes`; the same modes are recorded.
        fewer: whether residual branches are gone, with their operators.

    Returns:
        The change in words, with operator and module; ``None`` if there is none.
    """
    for training, seen in before.items():
        (after,) = record_modes(model, inputs, [training]).values()
        place = _changed_switch(seen, after, fewer=fewer)
        if place:
            return f"{'in training mode, ' if training else ''}code changes {place} with the width"
    return None


def _changed_switch(before: Observation | None, after: Observation | None, *, fewer: bool) -> str | None:
    """Find the first dropout or random operator whose parameters changed after a cut.

    What code computes from a width may not remember it, as a product of a float with it does not. In
    evaluation mode dropout hides its numbers; truth values and normalisations hide those of what was drawn;
    and a limit shows only where a value is beyond it.

    Returns:
        The first operator that gets another number, is switched off or on, or is gone, with its module;
        ``None`` if there is none.
    """
    if before is None or after is None:
        return None
    if fewer:
        # Zeros that take the place of a branch are made of numbers alone, so only a call's own ones compare.
        left = iter([_comparison_key(call, call.numbers) for call in before.calls if call.numbers])
        others = [call for call in after.calls if call.may_hide and call.numbers]
        # Each is looked for behind the one that was found last.
        return next(
            (_place(call) for call in others if _comparison_key(call, call.numbers) not in left), None
        )
    ones, others = (
        [call for call in seen.calls if call.may_hide and (before.hides or not call.follows_openly)]
        for seen in (before, after)
    )
    for one, other in zip_longest(ones, others):
        found = one or other
        if (
            one is None
            or other is None
            or _comparison_key(one, one.hidden) != _comparison_key(other, other.hidden)
        ):
            return _place(found)
    return None


def _comparison_key(call: _Call, numbers: tuple[float | bytes, ...]) -> tuple[Any, ...]:
    """Return the key by which two calls are compared: module and operator, numbers, and the mode."""
    return call.key[:2], numbers, call.is_on


def _place(call: _Call) -> str:
    path, name, _ = call.key
    return f"{name} in '{path}'" if path else name


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
    """Run on numbers, for code that looks at them."""
    copies = {name: tensor.detach().clone() for name, tensor in named_tensors(model).items()}
    return copies, tree_map_only(Tensor, torch.clone, call_arguments(inputs)), contextlib.nullcontext()


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


class _SizeTracer(ShapeMode):
    """Records every call of an operator and hands out sizes that remember."""

    def __init__(self) -> None:
        super().__init__()
        self.path = [""]
        self.norms: set[str] = set()
        self.layers: set[str] = set()
        self.calls: list[_Call] = []
        self.modules: dict[str, list[ModuleCall]] = defaultdict(list)
        # Noted here, not on the tensors: some of them are the user's. Holding them keeps their identity.
        self._makers: dict[int, tuple[Tensor, _Call | str, int]] = {}

    def made_by(self, tensor: Tensor, maker: _Call | str, place: int) -> None:
        """Note what made a tensor: a call, with the place among its results, or a name."""
        self._makers[id(tensor)] = (tensor, maker, place)

    def _sized(self, tensor: Tensor, dim: int, size: int) -> int:
        made = self._made(tensor, dim)
        return size if made is None else Size(size, made)

    def _made(self, tensor: Tensor, dim: int) -> _Made | None:
        """Find what made a dimension of a tensor, if that is known."""
        if id(tensor) not in self._makers:
            return None
        _, maker, place = self._makers[id(tensor)]
        kept = maker.kept if isinstance(maker, _Call) else {}
        return kept.get(dim, _Made(maker, place, dim))

    def _maker(self, tensor: Tensor) -> _Call | None:
        """Return the call that made a tensor, if one did."""
        _, maker, _ = self._makers.get(id(tensor), (None, None, 0))
        return maker if isinstance(maker, _Call) else None

    def origins(self, parts: Parts) -> list[tuple[str, Any]]:
        """List the parts of an output, each with what made it."""
        numbers = _numbered(self.calls)
        made = [
            self._makers.get(id(leaf), (leaf, None, 0))[1:] if isinstance(leaf, Tensor) else (leaf, 0)
            for leaf in parts.leaves
        ]
        origins = [(numbers[maker] if isinstance(maker, _Call) else maker, place) for maker, place in made]
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
            self._record(_normal(name), args, kwargs, results)
        return result

    def _record(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        results: Sequence[Any],
        kept: Mapping[int, _Made] = MappingProxyType({}),
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
        call = _Call(
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


def _normal(name: str) -> str:
    """Return one name for the forms of an operator: ``__iadd__``, ``add_`` and ``add``."""
    if name.startswith("__"):
        name = name.strip("_")
        name = name[1:] if name[:1] in "ir" and name not in ("invert", "rshift") else name
    name = name.removesuffix("_")
    return _SAME.get(name, name)


def _nodes_of(seen: Observation, program: Program) -> Mapping[_Call, str]:
    """Match calls with the operators of the program: same module, same name, same shape, same order."""
    made: dict[tuple[str, str, tuple[int, ...]], list[_Call]] = defaultdict(list)
    found: dict[tuple[str, str, tuple[int, ...]], list[str]] = defaultdict(list)
    for call in seen.calls:
        made[call.key].append(call)
    for node in program.graph.nodes:
        key = _key(node)
        if key is not None:
            found[key].append(node.name)
    return {
        call: name
        for key, names in found.items()
        if len(made[key]) == len(names)
        for call, name in zip(made[key], names, strict=True)
    }


def _aligned(seen: Observation, program: Program) -> Sizes:
    """Find the sources of the sizes that operators of the program are called with."""
    nodes = _nodes_of(seen, program)
    sizes = {
        name: tuple(
            _resolved(size.source, nodes) if isinstance(size, Size | Proportional) else None
            for size in call.sizes
        )
        for call, name in nodes.items()
        if call.sizes
    }
    pairs = [(_resolved(one, nodes), _resolved(other, nodes)) for one, other in seen.equal]
    return sizes | {"": tuple(Computed("eq", *pair) for pair in dict.fromkeys(pairs) if None not in pair)}  # type: ignore[arg-type]


def _key(node: Node) -> tuple[str, str, tuple[int, ...]] | None:
    result = node.meta.get("val")
    first = result[0] if isinstance(result, Sequence) and result else result
    if node.op != "call_function" or not isinstance(first, Tensor):
        return None
    name = operator_name(node)
    return module_path(node), _normal(name), tuple(first.shape)


def _resolved(source: Any, nodes: Mapping[_Call, str]) -> Source | None:
    """Replace calls in a source by operators of the program; ``None`` where that is not possible."""
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
