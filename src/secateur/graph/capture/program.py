"""Capture a network and its example inputs as a flat program of ATen operators.

``torch.export`` does the work. The program keeps convolutions, linear layers and normalisations
whole, names every parameter, and knows for every operator the module that ran it, the line of
code that called it and the shape of its result.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node

from secateur._compat import lazy_graph_modules, stack_traces, tree_leaves, tree_map_only
from secateur.errors import TraceError, UsageError
from secateur.exact import seed_everything
from secateur.graph.capture.answers import Answers, ReplayAnswers, answers_of, equal_value
from secateur.graph.capture.composites import expand_composites
from secateur.graph.capture.data_attribute import DataAsOperators
from secateur.graph.capture.inlining import inline_mode_regions
from secateur.graph.capture.nodes import draws_numbers, operator_name
from secateur.graph.capture.obstacles import (
    depends_on_values,
    explain,
    find_gradients,
    find_layers_made,
    find_obstacle,
    find_unknown_size,
    is_hidden_from_export,
)
from secateur.graph.capture.operators import CONVOLUTIONS
from secateur.graph.capture.quiet import quiet_export
from secateur.graph.capture.source_locations import name_modules
from secateur.graph.capture.unknown_sizes import settle_sizes
from secateur.graph.capture.vmaps import expand_vmaps
from secateur.outputs import Parts, parts_of
from secateur.untouched import StateRecord, untouched

ExampleInputs = Tensor | Sequence[Any] | Mapping[str, Any]
"""What a network is called with: one tensor, positional arguments, or keyword arguments."""


class Origin(Enum):
    """Where the value of a program's placeholder comes from."""

    TENSOR = "parameter or buffer"
    CONSTANT = "constant"
    INPUT = "input"


@dataclass(frozen=True)
class Placeholder:
    """One argument of the captured program.

    Attributes:
        origin: what kind of value it is.
        name: qualified name of the parameter, buffer or constant; the argument's name for an input.
    """

    origin: Origin
    name: str


@dataclass(frozen=True)
class Program:
    """A captured forward pass.

    Attributes:
        module: the flat program; its placeholders take all tensors first, then the inputs.
        placeholders: for each placeholder of the program, by node name, what it stands for.
        constants: values of the constants, by name.
        training: whether the network was in training mode while it was captured.
        batch: leading size of the first input tensor (1 if inputs are not batched).
        arguments: names of the arguments that the network was called with, in their order; empty where a
            forward pass takes any number of them by position.
        outputs: where each output is in what the network returns, such as ``"['scores'][0]"``.
        left_out: what the network returns beside the outputs: for each object whose tensors are not known,
            where it is, and its class.
        equal_inputs: for inputs on whose values the code branches, the one value that they hold.
        complete: whether it is all that the network does in its mode, as far as is known.
        derived: whether it was made from the program of the other mode, which runs the same operators.
        is_part: whether it is a part of the program of evaluation mode, whose operators have the same names.
        hidden_in: modes, by whether they are training, in which the user's code has numbers that no output
            may show: those of its own random draws, and limits of values.
    """

    module: GraphModule = field(repr=False)
    placeholders: Mapping[str, Placeholder] = field(repr=False)
    constants: Mapping[str, Any] = field(repr=False)
    training: bool
    batch: int
    arguments: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    derived: bool = False
    is_part: bool = False
    hidden_in: tuple[bool, ...] = ()
    complete: bool = True
    equal_inputs: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def is_random(self) -> bool:
        """Return whether random numbers may be drawn."""
        if self.training:  # stochastic depth leaves no trace in the program of the other mode
            return True
        return any(map(draws_numbers, self.graph.nodes))

    @cached_property
    def written(self) -> frozenset[str]:
        """List the names of the parameters and buffers that operators write to."""
        changed: set[str] = set()
        for node in self.graph.nodes:
            for source in written_arguments(node):
                name = self.tensor_names.get(base_of(source).name)
                if name is not None:
                    changed.add(name)
        return frozenset(changed)

    @cached_property
    def tensor_names(self) -> Mapping[str, str]:
        """Map the placeholders of parameters and buffers to the names of these."""
        return {name: item.name for name, item in self.placeholders.items() if item.origin is Origin.TENSOR}

    def refuse_other_branch(self, leaves: Iterable[Any]) -> None:
        """Refuse inputs with which the code may run other operators than those of the program.

        Args:
            leaves: the inputs, flat.

        Raises:
            UsageError: an input on whose values the code branches holds others.
        """
        if not self.equal_inputs:
            return
        names = [item.name for item in self.placeholders.values() if item.origin is Origin.INPUT]
        for name, leaf in zip(names, leaves, strict=False):
            value = self.equal_inputs.get(name)
            if value is not None and equal_value(leaf) != value:
                raise UsageError(
                    f"input '{name}' must be {value} everywhere, as when the network was traced, since the "
                    "code branches on its values; write the code without the branch (torch.where), or give "
                    "such inputs only"
                )

    def ordered(self, inputs: ExampleInputs) -> ExampleInputs:
        """Put named arguments into the order in which the program takes them."""
        if not isinstance(inputs, Mapping) or set(inputs) != set(self.arguments):
            return inputs
        return {name: inputs[name] for name in self.arguments}

    @property
    def graph(self) -> Graph:
        """Return the operators in the order in which they run."""
        return self.module.graph

    @property
    def input_shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes of the input tensors, in order."""
        values = [
            node.meta.get("val")
            for node in self.graph.nodes
            if node.op == "placeholder" and self.placeholders[node.name].origin is Origin.INPUT
        ]
        return [tuple(value.shape) for value in values if isinstance(value, Tensor)]

    @property
    def tensors(self) -> frozenset[str]:
        """Return the names of the parameters and buffers that the program reads."""
        used = {node.name for node in self.graph.nodes if node.op == "placeholder" and node.users}
        return frozenset(tensor for name, tensor in self.tensor_names.items() if name in used)


def written_arguments(node: Node) -> Iterator[Node]:
    """List the arguments that an operator writes to."""
    schema = getattr(node.target, "_schema", None)
    for place, argument in enumerate(schema.arguments if schema else ()):
        value = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
        writes = argument.alias_info is not None and argument.alias_info.is_write
        if isinstance(value, Node) and (writes or argument.name in ("running_mean", "running_var")):
            yield value


def base_of(node: Node) -> Node:
    """Find the tensor that a node is a view of."""
    while node.op == "call_function" and node.args and isinstance(node.args[0], Node):
        schema = getattr(node.target, "_schema", None)
        if schema is None or schema.arguments[0].alias_info is None:
            break
        node = node.args[0]
    return node


def call_arguments(inputs: ExampleInputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Split example inputs into positional and keyword arguments of the forward pass.

    Args:
        inputs: a tensor, a sequence of positional arguments, or a mapping of keyword arguments.

    Returns:
        The positional and the keyword arguments.

    Example:
        >>> args, kwargs = call_arguments(torch.zeros(1, 3))
        >>> len(args), kwargs
        (1, {})
    """
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return tuple(inputs), {}


def on_device_of(model: nn.Module, inputs: ExampleInputs) -> ExampleInputs:
    """Move inputs to the device of the network, if all of it is on one device.

    Args:
        model: the network.
        inputs: a tensor, a tuple of arguments or a dict of named ones.
    """
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if len(devices) != 1:
        return inputs
    moved: ExampleInputs = tree_map_only(Tensor, lambda tensor: tensor.to(*devices), inputs)
    return moved


def copied_inputs(inputs: ExampleInputs, device: torch.device | None = None) -> ExampleInputs:
    """Copy inputs.

    Capturing a network with a view of another tensor leaves weak references to its parameters behind,
    which forbid cutting them in place.

    Args:
        inputs: a tensor, a tuple of arguments or a dict of named ones.
        device: of the copies; that of the inputs if not given.
    """

    def copied(tensor: Tensor) -> Tensor:
        return tensor.detach().to(device or tensor.device, copy=True)

    copies: ExampleInputs = tree_map_only(Tensor, copied, inputs)
    return copies


def doubled(inputs: ExampleInputs) -> ExampleInputs:
    """Repeat single examples, since batch statistics need more than one.

    Unbatched inputs and larger batches stay as they are.
    """
    args, kwargs = call_arguments(inputs)
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim() > 0]
    if any(leaf.shape[0] != 1 for leaf in leaves):
        return inputs

    def twice(leaf: Tensor) -> Tensor:
        return torch.cat([leaf, leaf]) if leaf.dim() > 0 else leaf

    args, kwargs = tree_map_only(Tensor, twice, (args, kwargs))
    widened: ExampleInputs = kwargs or args
    return widened


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Find the first name of the same tensor for every name of a parameter or buffer.

    Tied weights have several names; all others map to themselves.
    """
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    for name, tensor in [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]:
        names[name] = first.setdefault(id(tensor), name)
    return names


@contextlib.contextmanager
def mode_of(model: nn.Module, *, training: bool, fresh: bool = False) -> Iterator[None]:
    """Put every module in training or evaluation mode within a block.

    Args:
        model: the network; modes, and attributes that its own ``train`` exchanges, are restored.
        training: training mode instead of evaluation mode.
        fresh: without what evaluation mode keeps until training begins (see :func:`drop_kept`).
    """
    modes = [(module, module.training) for module in model.modules()]
    before = [(vars(module), dict(vars(module))) for module in _with_own_train(model)]
    if fresh and before:
        model.train(True)
    model.train(training)
    exchanged = [
        (now, {name: value for name, value in old.items() if now.get(name) is not value})
        for now, old in before
    ]
    try:
        yield
    finally:
        for now, old in exchanged:
            now.update(old)
        for module, mode in modes:
            module.training = mode


def drop_kept(model: nn.Module) -> None:
    """Let a network drop what its evaluation mode keeps until training begins; its modes stay as they are.

    Some networks compute a table from their weights once in evaluation mode, and drop it in their own
    ``train``. Such a table is wrong after the weights have changed.
    """
    if not _with_own_train(model):
        return
    modes = [(module, module.training) for module in model.modules()]
    model.train(True)
    for module, mode in modes:
        module.training = mode


def _with_own_train(model: nn.Module) -> list[nn.Module]:
    """List the modules that do more in ``train`` than to set the mode."""
    return [module for module in model.modules() if type(module).train is not nn.Module.train]


def capture(model: nn.Module, inputs: ExampleInputs, *, training: bool = False) -> Program:
    """Capture one forward pass of a network as a flat program.

    The network is left as it was: mode, parameters, buffers, random state.

    Args:
        model: the network.
        inputs: what to call it with.
        training: capture the training-mode forward pass (with its auxiliary heads). A single
            example is then doubled, because batch statistics need more than one.

    Returns:
        The program.

    Raises:
        TraceError: the network cannot be captured; the message names the module and the line.

    Example:
        >>> program = capture(nn.Linear(3, 2), torch.zeros(1, 3))
        >>> sorted(program.tensors)
        ['bias', 'weight']
    """
    obstacle = find_obstacle(model, inputs)
    if obstacle is not None:
        raise TraceError(obstacle)
    inputs = doubled(inputs) if training else inputs
    args, kwargs = call_arguments(inputs)
    exported, branches, returned, obstacle = _exported(model, args, kwargs, training=training, lines=False)
    if obstacle is not None:  # once more, to name the line of the user's code
        exported, branches, returned, obstacle = _exported(model, args, kwargs, training=training, lines=True)
    if obstacle is not None:
        raise TraceError(obstacle)
    name_modules(model, exported.graph)
    inline_mode_regions(exported.graph_module)
    expand_vmaps(exported.graph_module)
    expand_composites(exported.graph_module)
    exported.graph_module.delete_all_unused_submodules()
    names = canonical_names(model)
    signature = exported.graph_signature
    tensors = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    lifted = {**signature.inputs_to_lifted_tensor_constants, **signature.inputs_to_lifted_custom_objs}
    placeholders: dict[str, Placeholder] = {}
    for node in exported.graph.nodes:
        # Fake tensors refer to the network's parameters; plain shapes do not.
        node.meta["val"] = tree_map_only(Tensor, _shape_only, node.meta.get("val"))
        if node.op != "placeholder":
            continue
        if node.name in tensors:
            placeholders[node.name] = Placeholder(Origin.TENSOR, names[tensors[node.name]])
        elif node.name in lifted:
            placeholders[node.name] = Placeholder(Origin.CONSTANT, lifted[node.name])
        else:
            placeholders[node.name] = Placeholder(Origin.INPUT, node.name)
    names_of_inputs = [item.name for item in placeholders.values() if item.origin is Origin.INPUT]
    equal = {
        name: value
        for name, leaf in zip(names_of_inputs, tree_leaves((args, kwargs)), strict=False)
        if branches and (value := equal_value(leaf)) is not None
    }
    constants = dict(exported.constants)
    return Program(
        module=exported.graph_module,
        placeholders=placeholders,
        constants=constants,
        training=training,
        batch=_batch(exported.graph, placeholders),
        arguments=_argument_names(model, args, kwargs),
        outputs=returned.paths,
        left_out=returned.left_out,
        equal_inputs=equal,
    )


def _exported(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool, lines: bool
) -> tuple[ExportedProgram, bool, Parts, str | None]:
    """Export a network, which is left as it was, and look for an obstacle in the result.

    Noting the user's ``lines`` of operators takes a fifth of the time.

    Returns:
        The program, whether the code branches on values of inputs, the places of the outputs, and what is
        wrong with the program, if anything.

    Raises:
        TraceError: the network cannot be exported.
    """
    # Export replaces parameters by fake tensors, so that nothing can write to them.
    with (
        untouched(model, weights=False) as noted,
        mode_of(model, training=training, fresh=True),
        torch.set_grad_enabled(training or torch.is_grad_enabled()),
        warnings.catch_warnings(),
        quiet_export(),
        stack_traces(lines),
        lazy_graph_modules(True),  # no code is written for the programs between the steps of an export
    ):
        # Recurrent layers keep a list of their weights, which export replaces for its own time.
        warnings.filterwarnings("ignore", message="The tensor attributes? .* assigned during export")
        _stand_in(model)
        called = _as_written(model)
        returned = _returning_leaves(called)
        try:
            exported, branches = _answered(called, args, kwargs, noted)
        except Exception as error:
            raise TraceError(explain(model, error, kwargs or args)) from error
        graph = exported.graph
        _drop_failed(graph)
        settle_sizes(graph)
        obstacle = find_layers_made(model) or find_unknown_size(graph) or find_gradients(graph)
        return exported, branches, returned[-1], obstacle


class _Called(nn.Module):
    """Call a network from a module of another class, which has the same parameters under the same names."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.training = model.training
        for held in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            vars(self)[held] = vars(model)[held]

        @functools.wraps(model.forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            # Not ``model(...)``, since export asks for the name of every module that is called.
            return nn.Module._call_impl(model, *args, **kwargs)

        self.forward = forward


def _as_written(model: nn.Module) -> nn.Module:
    """Return what an export runs with its hooks; it interprets a graph module instead of calling it."""
    return _Called(model) if isinstance(model, GraphModule) else model


def _drop_failed(graph: Graph) -> None:
    """Leave out operators that failed, where the user's code caught the error: they have no result."""
    for node in reversed(graph.nodes):
        schema = getattr(node.target, "_schema", None)
        if schema is not None and schema.returns and node.meta.get("val") is None and not node.users:
            graph.erase_node(node)


def _returning_leaves(model: nn.Module) -> list[Parts]:
    """Let a network return the leaves of its output, whose class export need not know then.

    The caller removes the hook.

    Returns:
        A list that gets the places of the leaves at each call.
    """
    found: list[Parts] = []

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        parts = parts_of(output)
        found.append(replace(parts, leaves=()))
        # Where nothing is known, the error of export names the class.
        return parts.leaves if parts.tensors or not parts.left_out else output

    model.register_forward_hook(hook)
    return found


def _argument_names(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """List the names of the arguments of a call; none if a forward pass gives some of them no name."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(model.forward).parameters.values()
        known = [item.name for item in parameters if item.kind in kinds]
    except (TypeError, ValueError):  # no Python function
        known = []
    return (*known[: len(args)], *kwargs) if len(known) >= len(args) else ()


def _answered(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], noted: StateRecord
) -> tuple[ExportedProgram, bool]:
    """Export a network; where its code asks tensors for values, with the answers that are known.

    What the code does through ``.data`` is written as operators, if an export without that fails.

    Args:
        model: the network.
        args: its positional arguments.
        kwargs: its named arguments.
        noted: the state of the network, with its generators of random numbers.

    Returns:
        The program, and whether the answers hold only for inputs with the same values.
    """

    def seeded() -> None:
        """Let random choices in the code be the same in each attempt, and in the check."""
        seed_everything()
        noted.seed_generators()

    def export() -> ExportedProgram:
        seeded()
        return torch.export.export(model, args, kwargs, strict=False)

    try:
        return export(), False
    except Exception as error:  # noqa: BLE001 - it is raised if nothing helps
        failed = error
    with DataAsOperators():
        if is_hidden_from_export(failed):
            try:
                return export(), False
            except Exception as error:  # noqa: BLE001 - the first error is raised if nothing helps
                failed = error if depends_on_values(error) else failed
        seeded()
        answers, branches = _answers_after(failed, model, args, kwargs)
        if answers is None:
            raise failed
        with ReplayAnswers(answers):
            return export(), branches


def _answers_after(
    error: Exception, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Answers | None, bool]:
    """Record in a real pass the values that code reads from tensors, if an export failed for want of them."""
    if not depends_on_values(error):
        return None, False
    heard = io.StringIO()  # what the network prints was shown by the export
    with (
        untouched(model),
        contextlib.suppress(Exception),  # the user's code may fail in any way
        contextlib.redirect_stdout(heard),
        contextlib.redirect_stderr(heard),
    ):
        return answers_of(model, *tree_map_only(Tensor, torch.clone, (args, kwargs)))
    return None, False


def _stand_in(model: nn.Module) -> None:
    """Replace parameters and buffers by others on the same memory; the caller puts them back.

    PyTorch keeps weak references to the tensors of an exported network, sometimes for as long as the process
    runs. A parameter with a weak reference cannot be cut in place.
    """
    aliases: dict[int, Tensor] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = aliases.setdefault(id(tensor), _alias(tensor))  # type: ignore[assignment]


def _alias(tensor: Tensor) -> Tensor:
    """Make a tensor on the same memory, with the same attributes."""
    if type(tensor) not in (Tensor, nn.Parameter):
        return tensor
    alias = tensor.data
    if isinstance(tensor, nn.Parameter):
        alias = nn.Parameter(alias, requires_grad=tensor.requires_grad)
    vars(alias).update(vars(tensor))
    return alias


def _shape_only(value: Tensor) -> Tensor:
    if value.layout is not torch.strided:
        return torch.empty(value.shape, dtype=value.dtype, device="meta")
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def _batch(graph: Graph, placeholders: Mapping[str, Placeholder]) -> int:
    """Return the leading size of the first input, unless a convolution shows that it is a channel."""
    for node in graph.nodes:
        if operator_name(node) in CONVOLUTIONS:
            value, weight = (item.meta["val"] for item in node.args[:2])
            if value.dim() < weight.dim():
                return 1
    for node in graph.nodes:
        if node.op == "placeholder" and placeholders[node.name].origin is Origin.INPUT:
            value = node.meta.get("val")
            if isinstance(value, Tensor) and value.dim() > 0:
                return int(value.shape[0])
    return 1
