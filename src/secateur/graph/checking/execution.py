"""Run a network and its masked original for a comparison, and compare their outputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur._compat import FakeTensor, tree_leaves, tree_map_only
from secateur.errors import TraceError
from secateur.exact import Float64, exact
from secateur.formats import first_line
from secateur.graph.capture.program import ExampleInputs, call_arguments, mode_of
from secateur.graph.capture.quiet import uncompiled
from secateur.graph.channel_graph import ChannelGraph
from secateur.graph.checking.compare import Outputs, Slices, differences
from secateur.graph.checking.masked import run_masked
from secateur.graph.cutting.tensors import named_tensors
from secateur.graph.labels import BoolArray
from secateur.graph.propagation.findings import Rescale
from secateur.graph.wiring import Pass
from secateur.precision import full_precision
from secateur.untouched import untouched

_LEFT_BEHIND = (
    "the code keeps a tensor of an earlier pass in a place that a trace does not put back, so its values are "
    "lost (such a place is a context variable without a default, or a variable of a file that a forward pass "
    "is the first to import). Start Python again, and keep the tensor in an attribute of a module, or call "
    "the network once (model(inputs)) before it is traced"
)


def run_network(
    model: nn.Module,
    inputs: ExampleInputs,
    *,
    training: bool,
    random: bool,
    native: bool = False,
    guarded: bool = True,
    watched: Collection[str] = (),
    constants: int | None = None,
) -> Outputs:
    """Run a network in float64 and leave it as it was.

    In training mode gradients are enabled, as in training. Nothing is kept for a backward pass, unless the
    forward pass runs one. A network that fails with gradients is run without.

    Args:
        model: the network.
        inputs: what to call it with; not changed.
        training: in training mode instead of evaluation mode.
        random: whether it may draw random numbers, which are then replaced by fixed ones.
        native: run it in the dtype of its weights instead.
        guarded: put back what the pass changes; otherwise the caller does.
        watched: buffers and parameters that the pass writes to; in training mode, their values belong
            to the outputs.
        constants: how many tensors of a less precise type the captured pass holds. If the code keeps more of
            them, such as a table that an earlier pass computed in float32, the outputs count as rounded.

    Returns:
        What it returns.

    Raises:
        TraceError: the code keeps a tensor of a capture, which has no values.
    """

    def run(gradients: AbstractContextManager[Any]) -> Outputs:
        with (
            # A second attempt must find the attributes that the first one found.
            untouched(*[model] if guarded or training else [], weights=guarded) as noted,
            mode_of(model, training=training, fresh=True),
            gradients,
            _mode(random, native, training) as mode,
        ):
            noted.seed_generators()
            args, kwargs = tree_map_only(Tensor, partial(_copied, native=native), call_arguments(inputs))
            _own_tensors(model, watched, native=native)
            mode.kept.clear()  # inputs and buffers were copied from less precise ones
            found = model(*args, **kwargs)
            if any(map(_has_no_values, tree_leaves(found))):
                raise TraceError(_LEFT_BEHIND)
            tensors = named_tensors(model)
            kept = mode.kept.keys() - set(map(id, tensors.values()))
            keeps_more = constants is not None and len(kept) > constants
            output = Outputs.of(found, rounded=native or mode.rounded or keeps_more)
            return output.with_buffers({name: tensors[name] for name in sorted(watched) if training})

    if not training:
        return run(torch.no_grad())
    failed = ""
    for gradients in (_unsaved_gradients, torch.enable_grad):
        try:
            return run(gradients())
        except Exception as error:  # noqa: BLE001 - the user's code may fail in any way
            failed = failed or described(error)
    return replace(run(torch.no_grad()), without_gradients=failed)


def _has_no_values(leaf: Any) -> bool:
    """Return whether a tensor has a shape alone."""
    return isinstance(leaf, Tensor) and (leaf.is_meta or isinstance(leaf, FakeTensor))


@contextmanager
def _unsaved_gradients() -> Iterator[None]:
    """Enable gradients within a block and save no tensor for the backward pass, which cannot be run.

    Else the float64 weights of all operators would be held until the end of the forward pass.
    """

    def refuse(_: None) -> Tensor:
        raise RuntimeError("nothing was saved for a backward pass")

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda _: None, refuse):
        yield


def described(error: Exception) -> str:
    """Format the class of an error and the first line of what it says."""
    return f"{type(error).__name__}: {first_line(error)}"


def run_reference(
    forward: Pass,
    removed: BoolArray,
    tensors: Mapping[str, Tensor],
    inputs: ExampleInputs,
    *,
    native: bool = False,
    watched: ChannelGraph | None = None,
) -> Outputs:
    """Run the masked original in float64.

    Args:
        forward: the evaluation-mode or the training-mode pass.
        removed: per slot, whether its channel is masked.
        tensors: parameters and buffers by name, in the original shapes; not changed.
        inputs: of the shapes that the pass was captured with; not changed.
        native: run it in the dtype of its weights instead.
        watched: the graph after the cut; what is left of the buffers that the pass writes to belongs to the
            outputs then.

    Returns:
        What it returns.
    """
    written: dict[str, Tensor] = {}
    if not native:
        written_names = forward.program.written & tensors.keys()
        tensors = {**tensors, **{name: _copied(tensors[name]) for name in written_names}}
    with reference_mode(forward, native=native) as mode:
        args, kwargs = tree_map_only(Tensor, partial(_copied, native=native), call_arguments(inputs))
        leaves = run_masked(forward, removed, tensors, kwargs or args, written)
        output = replace(Outputs.of(leaves, rounded=native or mode.rounded), paths=forward.program.outputs)
    if watched is None:
        return output
    return output.with_buffers(
        {name: watched.left_of(name, written[name]) for name in written_buffers(forward, watched)}
    )


def written_buffers(forward: Pass, after: ChannelGraph) -> list[str]:
    """List the tensors that a pass writes to and that a cut network has."""
    return sorted(forward.program.written & after.tensors.keys())


def _own_tensors(model: nn.Module, written: Collection[str], *, native: bool) -> None:
    """Replace what a pass may write to by copies, in float64 unless native.

    Args:
        model: the network; the caller puts its tensors back.
        written: parameters that the pass writes to, such as a moving average; all buffers are copied.
        native: keep their dtype.
    """
    own = {id(tensor) for name, tensor in model.named_parameters() if name in written}
    copies: dict[int, Tensor] = {}
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = copies.setdefault(id(buffer), _copied(buffer, native=native))
        for name, weight in module._parameters.items():
            if id(weight) in own and type(weight) is nn.Parameter:
                copied = nn.Parameter(_copied(weight, native=native), requires_grad=weight.requires_grad)
                module._parameters[name] = copies.setdefault(id(weight), copied)  # type: ignore[assignment]


def _copied(tensor: Tensor, *, native: bool = False) -> Tensor:
    """Copy a tensor, in float64 unless native."""
    copied = tensor.detach().clone()
    return copied.double() if copied.is_floating_point() and not native else copied


@contextmanager
def reference_mode(forward: Pass, *, native: bool) -> Iterator[Float64]:
    """Run a captured pass within a block as :func:`run_reference` does."""
    program = forward.program
    with untouched(), _mode(program.is_random, native, program.training) as mode:
        yield mode


@contextmanager
def _mode(random: bool, native: bool, training: bool) -> Iterator[Float64]:
    with full_precision(), uncompiled(), exact(random=random, native=native, training=training) as mode:
        yield mode


@dataclass(frozen=True)
class ComparedPass:
    """A pass that is run twice: as the masked original, and as the cut network.

    In training mode, the buffers that the pass writes to belong to the outputs.

    Attributes:
        forward: the evaluation-mode or the training-mode pass.
        after: the graph after the cut.
        native: run both in the dtype of their weights instead of float64.
    """

    forward: Pass
    after: ChannelGraph
    native: bool = False

    def run_masked(self, tensors: Mapping[str, Tensor], inputs: ExampleInputs) -> Outputs:
        """Run the masked original with parameters and buffers of the original shapes."""
        watched = self.after if self.forward.program.training else None
        return run_reference(
            self.forward, self.after.removed, tensors, inputs, native=self.native, watched=watched
        )

    def run_cut(self, model: nn.Module, inputs: ExampleInputs, *, guarded: bool = True) -> Outputs:
        """Run the cut network, as :func:`run_network` does."""
        program = self.forward.program
        return run_network(
            model,
            inputs,
            training=program.training,
            random=program.is_random,
            native=self.native,
            guarded=guarded,
            watched=written_buffers(self.forward, self.after),
            constants=sum(
                isinstance(item, Tensor) and item.dtype in (torch.float16, torch.bfloat16, torch.float32)
                for item in program.constants.values()
            ),
        )


@dataclass(frozen=True)
class Judgement:
    """How a network's outputs differ from the reference.

    Attributes:
        error: largest difference of a slice, relative to how far it moves between inputs.
        allowed: the tolerance for that slice.
        place: where that slice is.
        problem: what makes the outputs incomparable, if anything.
        noisy: outputs with slices of which rounding noise leaves nothing to compare.
    """

    error: float
    allowed: float
    place: str = ""
    problem: str | None = None
    noisy: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Return whether the outputs are equal."""
        return self.problem is None and self.error <= self.allowed

    @property
    def times(self) -> float:
        """Return the error as a multiple of the tolerance."""
        if self.problem is not None:
            return float("inf")
        return self.error / self.allowed if self.allowed else float("inf") * (self.error > 0)


def judge(
    expected: Outputs,
    found: Outputs,
    noise: Callable[[bool], Outputs],
    tolerance: float,
    others: Sequence[Outputs] = (),
    blur: float = 0.0,
) -> Judgement:
    """Compare outputs with a reference.

    Args:
        expected: outputs of the reference.
        found: outputs of the network.
        noise: runs the reference once more with its inputs and weights moved by their last bit: of float32 if
            the argument is true, of float64 otherwise. It is called only if a difference is too large.
        tolerance: largest relative difference that counts as equal in float64.
        others: what the reference, or the network, returns for other inputs.
        blur: differences below this share of the usual size of a slice are ignored: for float32.

    Returns:
        The worst slice.
    """
    slices = differences(expected, found, others)
    if isinstance(slices, str):
        return Judgement(float("inf"), tolerance, problem=slices)
    slices = [item.coarse(blur) for item in slices] if blur else slices
    worst = _worst(slices, [None] * len(slices), tolerance)
    if worst.ok:
        return worst
    moved = differences(expected, noise(expected.rounded or found.rounded))
    if isinstance(moved, str):  # what decides by a threshold may come out another way
        return worst
    return _worst(slices, [item.gap for item in moved], tolerance)


def _worst(slices: list[Slices], noise: list[Any], tolerance: float) -> Judgement:
    """Find the slice that exceeds its tolerance by most."""
    found = Judgement(0.0, tolerance)
    most = -1.0
    noisy: dict[str, None] = {}
    for item, own in zip(slices, noise, strict=True):
        excess = item.exceeding(own, tolerance)
        if excess.noisy:
            noisy[f"output{item.path}"] = None
        if not excess.only_noisy and excess.times > most:
            most = excess.times
            found = Judgement(excess.error, excess.tolerance, f"output{item.path}, dimension {item.dim}")
    return replace(found, noisy=tuple(noisy))


def moved(
    tensors: Mapping[str, Tensor],
    inputs: ExampleInputs,
    *,
    coarse: bool,
    native: bool = False,
    rescales: tuple[Rescale, ...] = (),
) -> tuple[dict[str, Tensor], ExampleInputs]:
    """Move weights and inputs by their last bit, up or down at random.

    Args:
        tensors: parameters and buffers by name.
        inputs: of the network.
        coarse: by the last bit of float32 instead of float64, since something was computed in less.
        native: by the last bit of their dtype, which they keep.
        rescales: normalised weights whose length was rounded after a cut; these move by the last bit of
            their own dtype.

    Returns:
        The tensors and the inputs, in float64 unless they keep their dtype.
    """
    generator = torch.Generator().manual_seed(3)
    lengths = {item.length for item in rescales}

    def one(tensor: Tensor, rounded: bool = False) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        own = torch.finfo(tensor.dtype).eps
        size = max(own if native or rounded else 0.0, 2.0**-23 if coarse and not native else 2.0**-52)
        sign = torch.randint(0, 2, tensor.shape, generator=generator).double().to(tensor.device) * 2 - 1
        changed = tensor.detach().double() * (1 + size * sign)
        return changed.to(tensor.dtype) if native else changed

    changed = {name: one(tensor, name in lengths) for name, tensor in tensors.items()}
    args, kwargs = tree_map_only(Tensor, one, call_arguments(inputs))
    return changed, kwargs or args
