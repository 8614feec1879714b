"""Run any code in float64 and with reproducible random numbers, without a copy of the model.

A check compares two computations of the same numbers. In float64 they agree to about 1e-12, so a
tolerance of 1e-8 separates rounding from errors. No float64 copy of the weights is made: each operator
gets its arguments converted when it runs, so memory grows by the largest operator, not by the model.
"""

from __future__ import annotations

import contextlib
import random as random_of_python
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from secateur._compat import TorchDispatchMode, tree_any, tree_leaves, tree_map, tree_map_only

_WIDE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}

_DTYPE = Tensor.dtype.__get__  # type: ignore[attr-defined]
_DATA = Tensor.data.__get__  # type: ignore[attr-defined]
_TO_WIDE = {Tensor.float, Tensor.half, Tensor.bfloat16}
_BITS = {"view_dtype", "data_ptr", "untyped_storage", "storage"}


class Float64(TorchFunctionMode):
    """Run every operator in float64, whatever the dtype of its arguments or the requested dtype.

    Parameters and buffers keep their dtype in memory, but code that reads it gets float64.

    Attributes:
        rounded: whether an operator returned a less precise type anyway. Then the result is only as precise
            as that type.
        kept: tensors of a less precise type that operators got and that are no parameters: those that code
            keeps, such as a table of an earlier pass, by identity.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> with Float64():
        ...     layer(torch.ones(1, 2)).dtype
        torch.float64
    """

    def __init__(self) -> None:
        super().__init__()
        self.rounded = False
        self.kept: dict[int, Tensor] = {}
        self._data: dict[int, Tensor] = {}  # what code reads of parameters with ``.data``

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func == _DTYPE:
            found = func(*args)
            return _WIDE.get(found, found)
        if func == _DATA and isinstance(args[0], nn.Parameter):
            found = func(*args)
            self._data[id(found)] = found
            return found
        if name in ("__get__", "__set__", "__delete__") or name in _BITS:
            return func(*args, **kwargs)
        if func in _TO_WIDE:
            return args[0] if args[0].dtype is torch.float64 else args[0].double()
        if _changes_first(name) or "out" in kwargs:
            target = kwargs.get("out", args[0] if args else None)
            self.rounded = self.rounded or tree_any(_is_coarse, target)
            kwargs = {key: _WIDE.get(item, item) if _is_dtype(item) else item for key, item in kwargs.items()}
            args = tuple([_WIDE.get(item, item) if _is_dtype(item) else item for item in args])
            return _written(func, target, args, kwargs)
        args = tuple([self._converted(item) for item in args])
        kwargs = {key: self._converted(item) for key, item in kwargs.items()}
        if name.partition(".")[0] in ("grouped_mm", "_grouped_mm") and _is_rows_by_matrices(*args, **kwargs):
            func = _grouped_product  # the operator takes no float64
        result = func(*args, **kwargs)
        if not _is_coarse(result) and not (isinstance(result, tuple | list) and any(map(_is_coarse, result))):
            return result
        self.rounded = self.rounded or tree_any(_is_float, (args, kwargs))
        return tree_map_only(Tensor, _wide, result)

    def _converted(self, item: Any) -> Any:
        """Convert the tensors and dtypes of an argument to float64."""
        if isinstance(item, Tensor):
            if item.dtype in _WIDE and not isinstance(item, nn.Parameter) and id(item) not in self._data:
                self.kept[id(item)] = item
            return _wide(item)
        if isinstance(item, torch.dtype):
            return _WIDE.get(item, item)
        if isinstance(item, list | tuple | dict) and not _holds_integers(item):
            return tree_map(self._converted, item)
        return item


def _holds_integers(item: Any) -> bool:
    """Return whether an argument contains only integers, such as the strides of a convolution."""
    return type(item) in (tuple, list) and all(type(number) is int for number in item)


def _is_dtype(item: Any) -> bool:
    return isinstance(item, torch.dtype)


def _changes_first(name: str) -> bool:
    """Check by its name whether a function writes to its first argument."""
    if name.startswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name not in ("__invert__", "__index__"))
    return name.partition(".")[0].endswith("_")


def _written(func: Any, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator that writes to a tensor, or to a list of them, with arguments of its dtype.

    Some operators (``lerp_``, ``addcmul_``, ``addmm_``, ``scatter_``) refuse arguments of another dtype. A
    less precise target rounds the arguments only where its operator is one of these.
    """
    targets = target if isinstance(target, list | tuple) else [target]
    if not any(_is_float(item) for item in targets):
        return func(*args, **kwargs)
    if any(map(_is_coarse, targets)):
        with contextlib.suppress(RuntimeError):
            return func(*args, **kwargs)
    converted = [_of_dtypes(item, target) for item in args]
    return func(*converted, **{name: _of_dtypes(item, target) for name, item in kwargs.items()})


def _of_dtypes(item: Any, target: Any) -> Any:
    """Convert a tensor to the dtype of another, and lists of them in pairs."""
    if isinstance(item, list | tuple) and isinstance(target, list | tuple) and len(item) == len(target):
        return type(item)(map(_of_dtypes, item, target))
    if not (_is_float(item) and _is_float(target)) or item.is_complex() != target.is_complex():
        return item
    return item.to(target.dtype)


def _wide(tensor: Tensor) -> Tensor:
    wide = _WIDE.get(tensor.dtype)
    return tensor if wide is None else tensor.to(wide)


def _is_coarse(item: Any) -> bool:
    return isinstance(item, Tensor) and item.dtype in _WIDE


def _is_float(item: Any) -> bool:
    return isinstance(item, Tensor) and (item.is_floating_point() or item.is_complex())


def _is_rows_by_matrices(left: Tensor, right: Tensor, offs: Tensor | None = None, **rest: Any) -> bool:
    """Return whether a grouped product is one of runs of rows with stacked matrices, and nothing else."""
    others = [item for item in rest.values() if item is not None]
    return offs is not None and left.dim() == 2 and right.dim() == 3 and not others


def _grouped_product(left: Tensor, right: Tensor, offs: Tensor, **_: None) -> Tensor:
    """Multiply each run of rows by its matrix, in any precision and at any width."""
    result = left.new_zeros(len(left), right.shape[-1])
    for expert, (start, stop) in enumerate(pairwise([0, *offs.tolist()])):
        result[start:stop] = left[start:stop] @ right[expert]
    return result


class SameNumbers(TorchDispatchMode):
    """Replace random numbers by fixed ones that do not depend on sizes, so that two widths can be compared.

    A narrower network draws different numbers from the same seed. So Bernoulli draws of a probability p are
    replaced by p (1 + p) / 2. This makes dropout and stochastic depth a scale that depends on their
    probability: with p itself they would do nothing, and one that vanished would not be seen. Other random
    tensors get values that depend only on the index along dimension 0 and on the number of earlier draws. So
    noise that is drawn independently for each channel is the same function at every width. ``rrelu`` takes
    the mean of its slopes.

    Example:
        >>> with SameNumbers():
        ...     torch.dropout(torch.ones(2), 0.2, train=True)
        tensor([0.9000, 0.9000])

    Code that sets the seed in its forward pass needs exactly these numbers. After that, nothing is replaced
    but dropout in training mode, which such code only repeats (Reformer computes layers twice).

    Args:
        training: whether the code runs in training mode.

    Attributes:
        drops: whether a dropout is running; :class:`SeenDropout` says so.
    """

    def __init__(self, *, training: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drops = False
        self._training = training
        self._drawn = 0
        self._own_seed = False

    def __enter__(self) -> Self:
        """Note the state of the generator: a seed that was set before is none of the code's own."""
        self._state = torch.get_rng_state()
        return super().__enter__()  # type: ignore[no-untyped-call, no-any-return]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator."""
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        before = torch.get_rng_state()
        own = self._own_seed or kwargs.get("generator") is not None
        if not own and not torch.equal(self._state, before):
            own = self._own_seed = True
        own = own and not (self.drops and self._training)
        if name == "native_dropout" and not own:
            scale = 1 if args[2] is False else 1 - args[1] / 2
            return args[0] * scale, torch.ones_like(args[0], dtype=torch.bool)
        if name.startswith("rrelu_with_noise") and not own:
            # Arguments: input, noise, lower, upper, training. Outside training, the slope is the mean.
            result = func(*args[:4], False)
        else:
            result = func(*args, **kwargs)
            known = [self._replace(name, item, args, kwargs) for item in tree_leaves(result) if not own]
            if known and all(known):
                # How much was drawn depends on sizes, and later draws that are not replaced must not.
                torch.set_rng_state(before)
        self._state = torch.get_rng_state()
        return result

    def _replace(self, name: str, tensor: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Replace what was drawn; return whether the kind of numbers is known."""
        base = name.removesuffix("_like").removesuffix("_")
        if base == "bernoulli":
            # bernoulli(p: Tensor), bernoulli_(out, p: float), bernoulli_(out, p: Tensor)
            mean = args[1] if len(args) > 1 else kwargs.get("p", args[0] if name == "bernoulli" else 0.5)
            visible = mean * (1 + mean) / 2
            tensor.copy_(visible) if isinstance(visible, Tensor) else tensor.fill_(visible)
            return True
        if base not in _SCALED:
            return False
        self._drawn += 1
        count = tensor.shape[0] if tensor.dim() else 1
        steps = torch.arange(count, dtype=torch.float64) * 0.6180339887 + self._drawn * 0.7548776662
        values = (0.1 + 0.8 * steps.remainder(1.0)).to(tensor)
        drawn = values.view(-1, *[1] * (tensor.dim() - 1)) if tensor.dim() else values[0]
        # Numbers of the distribution follow its result, or are the only arguments.
        given = args[1:] if name.endswith("_") else args if name == "normal" else ()
        parameters, scaled = _SCALED[base]
        numbers = [
            given[place] if len(given) > place else kwargs.get(key, default)
            for place, (key, default) in enumerate(parameters.items())
        ]
        tensor.copy_(scaled(drawn, *numbers))
        return True


_SCALED: Mapping[str, tuple[dict[str, float], Callable[..., Tensor]]] = {
    "rand": ({}, lambda drawn: drawn),
    "randn": ({}, lambda drawn: drawn),
    "normal": ({"mean": 0.0, "std": 1.0}, lambda drawn, mean, std: mean + std * drawn),
    "uniform": ({"from": 0.0, "to": 1.0}, lambda drawn, low, high: low + (high - low) * drawn),
    "exponential": ({"lambd": 1.0}, lambda drawn, rate: drawn / rate),
    "log_normal": ({"mean": 1.0, "std": 2.0}, lambda drawn, mean, std: (mean + std * drawn).exp()),
    "cauchy": ({"median": 0.0, "sigma": 1.0}, lambda drawn, median, sigma: median + sigma * drawn),
}
"""Continuous distributions: their parameters with defaults, and what they make of a number of (0, 1)."""


_PHASES = {
    "dropout": 0.0,
    **dict.fromkeys(("dropout1d", "dropout2d", "dropout3d", "feature_dropout"), 1.0),
    "alpha_dropout": 2.0,
    "feature_alpha_dropout": 3.0,
}
"""Functions and operators that drop values, each with the phase of its kind in :class:`SeenDropout`."""


class SeenDropout(TorchFunctionMode):
    """Multiply what a dropout returns by a factor that depends on each value, so that no layer hides it.

    :class:`SameNumbers` makes a scale of dropout, and a normalisation divides by that. So what is dropped
    with probability p is multiplied by ``1 + p / 4 sin(log|x| + n)`` besides, where n is a number for each
    kind of dropout. This treats each number alone, so it is the same function at every width.

    Args:
        numbers: what replaces the random numbers of the dropout.

    Example:
        >>> numbers = SameNumbers()
        >>> with SeenDropout(numbers), numbers:
        ...     dropped = torch.dropout(torch.tensor([1.0, 2.0]), 0.2, train=True)
        >>> [round(value, 3) for value in dropped.tolist()]
        [0.9, 1.858]
    """

    def __init__(self, numbers: SameNumbers) -> None:
        super().__init__()
        self._numbers = numbers

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").partition(".")[0].removesuffix("_")
        if name == "multi_head_attention_forward":  # no mode sees the dropout inside
            with _inside_attention():
                return func(*args, **kwargs)
        p = _dropped(name, args, kwargs) if name in _PHASES else 0.0
        if not p:
            return func(*args, **kwargs)
        given = args[0] if args else kwargs["input"]
        factor = _factor(given, p, _PHASES[name])
        before, self._numbers.drops = self._numbers.drops, True
        try:
            result = func(*args, **kwargs)
        finally:
            self._numbers.drops = before
        return result.mul_(factor) if result is given else result * factor


def _factor(value: Tensor, p: float, phase: float) -> Tensor:
    """Compute a factor for each value that is dropped with probability p."""
    return 1 + p / 4 * ((value.detach().abs() + 1e-30).log() + phase).sin()


@contextmanager
def _inside_attention() -> Iterator[None]:
    """Multiply what the dropout inside PyTorch's own attention returns by its factor, within a block."""
    plain = functional.dropout

    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:  # noqa: A002
        factor = _factor(input, p, _PHASES["dropout"]) if training else 1.0
        return plain(input, p, training, inplace) * factor

    functional.dropout = dropout
    try:
        yield
    finally:
        functional.dropout = plain


def _dropped(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
    """Return the probability of a dropout; zero if it is switched off."""
    usual = "alpha" not in name  # the default of the functions; operators get it as an argument
    on = args[2] if len(args) > 2 else kwargs.get("training", kwargs.get("train", usual))
    p = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
    return float(p) if on else 0.0


def seed_everything() -> None:
    """Seed Python, NumPy and PyTorch as they are seeded when a network is captured."""
    random_of_python.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the generator that users' code draws from
    if torch.accelerator.is_available():
        torch.manual_seed(0)
    else:
        # ``torch.manual_seed`` stores a stack trace for every unavailable device.
        torch.default_generator.manual_seed(0)


@contextmanager
def exact(*, random: bool, native: bool = False, training: bool = False) -> Iterator[Float64]:
    """Run code in float64 and, where it draws random numbers, with fixed ones.

    Args:
        random: whether random numbers may be drawn within the block.
        native: compute in the dtype that the code requests instead.
        training: whether it runs in training mode.

    Yields:
        The mode, whose ``rounded`` shows whether something was rounded.
    """
    # The seed must be the same on both sides for operators whose numbers are not replaced.
    seed_everything()
    mode = Float64()
    with ExitStack() as stack:
        if not native:
            stack.enter_context(mode)
        if random:
            numbers = SameNumbers(training=training)
            stack.enter_context(SeenDropout(numbers))
            stack.enter_context(numbers)
        yield mode
