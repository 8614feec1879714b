"""Explain why a network cannot be captured, where, and what to write instead."""

from __future__ import annotations

import contextlib
import copy
import inspect
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule
from torch.nn.parameter import is_lazy
from torch.nn.utils.rnn import PackedSequence

from secateur._compat import FakeTensor, tree_leaves
from secateur.batches import too_few_examples
from secateur.errors import UsageError
from secateur.formats import first_line
from secateur.graph.capture.nodes import module_paths
from secateur.graph.capture.source_locations import (
    SourceLocation,
    lines_with,
    location_in_stack,
    location_of,
    named,
)

_PART = "or trace only a submodule that does not do this, such as trace(model.backbone, ...)"


def find_obstacle(model: nn.Module, inputs: object) -> str | None:
    """Return why a network cannot be captured, found by static checks.

    Args:
        model: the network.
        inputs: what the user wants it to be called with.

    Returns:
        What is wrong and what to do; ``None`` if nothing was found.

    >>> find_obstacle(nn.Sequential(nn.LazyLinear(4)), torch.zeros(1, 3))
    "the network could not be captured: '0' (LazyLinear) has no weights before its first call. Call ..."
    >>> find_obstacle(nn.Linear(3, 4), torch.zeros(1, 3))
    """
    found = _of_model(model) or find_wrong_inputs(inputs) or _of_empty(inputs)
    return f"the network could not be captured: {found}" if found else None


def _of_model(model: nn.Module) -> str:
    if isinstance(model, torch.jit.ScriptModule):
        return (
            f"it is a TorchScript module (torch.jit.script or torch.jit.trace of {model.original_name}), "
            "whose forward pass is no Python code. Trace the Python module that it was made from."
        )
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and any(True for _ in _tensors(module)):
            return (
                f"'{path}' (torch.jit.script or torch.jit.trace of {module.original_name}) is a TorchScript "
                "module with weights. Use the Python module that it was made from."
            )
        if isinstance(module, GraphModule) and {"train", "eval"} <= vars(module).keys():
            # ExportedProgram.module() sets both methods to ones that raise.
            return (
                f"{named(path, module)} is the result of torch.export, which runs in one mode only and with "
                "the sizes that it was exported with. Use the Python module that it was made from."
            )
        if _is_quantised(module):
            return (
                f"{named(path, module)} is quantised: its weights are packed integers, which cannot be cut. "
                "Prune the float model, then quantise the smaller one."
            )
        if any(is_lazy(tensor) for tensor in (*module._parameters.values(), *module._buffers.values())):
            return (
                f"{named(path, module)} has no weights before its first call. "
                "Call the network once on the example inputs (model(inputs)), then trace it."
            )
    where = next((name for name, tensor in _tensors(model) if tensor.is_meta), None)
    if where is not None:
        return (
            f"'{where}' is on the meta device and has no values, which the check of every cut computes with. "
            "Give the network storage (model.to_empty(device='cpu')) and load its weights first."
        )
    return ""


def find_wrong_inputs(inputs: object) -> str:
    """Return why no network can be called with some inputs; nothing if one can."""
    if not isinstance(inputs, Tensor | Mapping | Sequence) or isinstance(inputs, str | bytes):
        return (
            f"the inputs are of type {type(inputs).__name__}. Give a tensor, a tuple of positional "
            "arguments, or a dict of keyword arguments."
        )
    if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in tree_leaves(inputs)):
        return "an input is on the meta device and has no values. Give inputs with values."
    return ""


def _of_empty(inputs: object) -> str:
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim() > 0]
    if tensors and tensors[0].shape[0] == 0:
        return f"the first input has shape {tuple(tensors[0].shape)} and holds no example. Give at least one."
    return ""


def find_layers_made(model: nn.Module) -> str | None:
    """Return which layers a network made during a capture, after one.

    Such layers consist of tensors without values, so the network has to be put back as it was.

    Args:
        model: the network, as the capture left it.

    Returns:
        What is wrong and what to do; ``None`` if the network made none.
    """
    made = [name for name, tensor in _tensors(model) if isinstance(tensor, FakeTensor)]
    if not made:
        return None
    path = made[0].rpartition(".")[0]
    return (
        f"the network could not be captured: it makes '{path or made[0]}' in its first forward pass. "
        "Call the network once on the example inputs (model(inputs)), then trace it."
    )


def find_unknown_size(graph: Graph) -> str | None:
    """Return where a captured program has a size that depends on values.

    Args:
        graph: the program, with the values that ``torch.export`` notes down.

    Returns:
        What is wrong and what to do; ``None`` if all sizes are known.
    """
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and not all(isinstance(size, int) for size in value.shape):
            location = location_in_stack(str(node.meta.get("stack_trace") or ""), module_paths(node))
            return f"the network could not be captured{location}: {_VALUES['size']}"
    return None


def find_gradients(graph: Graph) -> str | None:
    """Return where a captured program takes gradients with ``torch.func``, which it holds in part only.

    Args:
        graph: the program.

    Returns:
        What is wrong and what to do; ``None`` if it takes none.
    """
    for node in graph.nodes:
        if getattr(node.target, "__name__", "") in ("_unwrap_for_grad", "_unwrap_dual", "_make_dual"):
            location = location_in_stack(str(node.meta.get("stack_trace") or ""), module_paths(node))
            return f"the network could not be captured{location}: {_GRADIENTS_TAKEN}"
    return None


def explain_call(model: nn.Module, inputs: object) -> str | None:
    """Return why a network fails when it is called, and where; a copy of it is called in its present mode.

    Args:
        model: the network; left as it was.
        inputs: what it was called with.

    Returns:
        What is wrong and what to do; ``None`` if the copy runs, or there can be none.
    """
    wrong = find_wrong_inputs(inputs)
    if wrong:
        return wrong
    own = _error_without_export(model, inputs)
    if own is None:
        return None
    copied, failure = own
    location = location_of(copied, failure)
    return f"it fails{location} ({first_line(failure).rstrip('.')}). {_advice(model, failure)}"


@contextlib.contextmanager
def explain_small_batch(model: nn.Module, work: str) -> Iterator[None]:
    """Convert PyTorch's batch-norm error for single examples in a block into a ``UsageError``.

    Args:
        model: the network that runs in the block.
        work: what it runs for, to begin the sentence with.

    Raises:
        UsageError: batch normalisation gets a batch of one example.
    """
    try:
        yield
    except Exception as error:
        few = too_few_examples(error)
        if few is None:
            raise
        place = location_of(model, error).module
        raise UsageError(f"{work}{f' in {place}' if place else ''}: {few}") from error


def explain(model: nn.Module, error: Exception, inputs: object) -> str:
    """Return why a network could not be captured, where, and what to write instead.

    Args:
        model: the network, as the capture left it.
        error: what ``torch.export`` raised.
        inputs: what the network was called with. Where the error may lie in them, a copy of the network is
            called with them.

    Returns:
        One paragraph.
    """
    known = find_obstacle(model, inputs) or find_layers_made(model)
    if known is not None:
        return known
    cause = _caught(error)
    location = location_of(model, error, *([] if cause is error else [cause]))
    reason = _of_values(cause, location) or _of_keys(error)
    if not reason:
        own = _error_without_export(model, inputs)
        if own is not None:
            copied, failure = own
            location = location_of(copied, failure)
            reason = _of_call(model, failure)
        else:
            reason = _of_export(model, error, location)
    if not location.line:
        location = SourceLocation(location.module, *_line_that_may_be_meant(model, reason))
    return f"the network could not be captured{location}: {reason}"


_VALUES = {
    "number": (
        "the code turns values of a tensor into a Python number (float, int, bool, .item(), .tolist() or "
        f"torch.tensor), which is unknown during capture. Compute with the tensor itself, {_PART}."
    ),
    "loop": (
        "how often the loop runs depends on the values of a tensor. Loop over a fixed number, or compute on "
        f"the whole tensor with torch.where, {_PART}."
    ),
    "branch": (
        "the code branches on the values of a tensor, and a captured program has one path. Use torch.where, "
        f"decide by an attribute of the module, {_PART}."
    ),
    "size": (
        "the size of a tensor depends on values (a boolean mask, nonzero, unique, repeats, or a number from "
        "a tensor as a size or the end of a slice). Keep the size and set what is masked to zero "
        f"(torch.where), {_PART}."
    ),
    "text": (
        "the code writes values of a tensor as text (print, an f-string or a log), which are unknown during "
        f"capture. Write them outside of the forward pass, {_PART}."
    ),
}

_NO_NUMBER = (
    r"\bSym(Int|Float|Bool)\b|passed to FakeTensor\.__format__|data is not allocated yet|"
    "should be a string or a Rational"
)
"""What errors say where the code needs a number, and has something that stands for an unknown one."""


def _of_values(error: BaseException, location: SourceLocation) -> str:
    """Explain why code that depends on the values of tensors fails; empty for other errors."""
    if not _asks_for_values(error):
        return ""
    names, text = _kinds(error), str(error)
    source = location.source
    if re.search(r"__format__|JSON", text) or re.search(r"\bprint\(|\blog(ger|ging)?\.", source):
        return _VALUES["text"]
    if "DynamicOutputShapeException" in names or re.search(r"Size-like symbols: u", text):
        return _VALUES["size"]
    if re.match(r"(for|while)\b", source):
        return _VALUES["loop"]
    if re.search(r"\b(float|int|bool)\(|\.item\(|\.tolist\(", source):
        return _VALUES["number"]
    if re.search(r"\b(if|elif|assert|and|or|not)\b|(?<![.\w])(max|min|any|all)\(", source) or "Eq(" in text:
        return _VALUES["branch"]
    return _VALUES["number"]


def depends_on_values(error: Exception) -> bool:
    """Return whether an export failed because code depends on the values of tensors."""
    return _asks_for_values(_caught(error))


def is_hidden_from_export(error: Exception) -> bool:
    """Return whether an export failed because tensors were changed or made where it does not see that."""
    return "constant's list" in str(error)


def _caught(error: BaseException) -> BaseException:
    """Find the error about values that the user's code caught before it raised another one.

    Returns:
        The last such error; the error itself if there is none.
    """
    found: BaseException | None = error
    while found is not None and not _asks_for_values(found):
        found = found.__cause__ or found.__context__
    return found or error


def _asks_for_values(error: BaseException) -> bool:
    """Return whether an error says that values of tensors are unknown."""
    kinds = {"GuardOnDataDependentSymNode", "DataDependentOutputException", "DynamicOutputShapeException"}
    names, text = _kinds(error), str(error)
    if names & kinds or ("UserError" in names and "data-dependent" in text.lower()):
        return True
    return re.search(_NO_NUMBER, text) is not None


def _of_keys(error: BaseException) -> str:
    """Explain why code that looks a parameter up fails; empty for other errors."""
    if not (isinstance(error, KeyError) and error.args and isinstance(error.args[0], Tensor)):
        return ""
    return (
        "the code looks up a parameter or buffer in a dict, and a capture and trial cuts put others in its "
        f"place. Key the dict by the name, or keep the value as an attribute of the module, {_PART}."
    )


def _kinds(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _of_call(model: nn.Module, error: Exception) -> str:
    """Explain why a network fails on its inputs whether it is captured or not."""
    text = first_line(error).rstrip(".")
    return (
        f"the network itself fails on these inputs, also when it is only called ({text}). "
        f"{_advice(model, error)}"
    )


def _advice(model: nn.Module, error: Exception) -> str:
    """Return what to do about a network that fails on its inputs."""
    advice = "Check the shapes, types and number of the inputs."
    text = first_line(error).rstrip(".")
    few = too_few_examples(error)
    if few is not None:
        return f"{few[0].upper()}{few[1:]}."
    if isinstance(error, TypeError) and "argument" in text:
        with contextlib.suppress(TypeError, ValueError):  # a forward pass that is no Python function
            advice = f"{type(model).__name__}.forward takes {inspect.signature(model.forward)}. {advice}"
    elif "same device" in text or "device type" in text:
        advice = (
            "The network makes or keeps tensors on another device than its inputs: register them as buffers, "
            "so that model.to(device) moves them."
        )
    elif "dtype" in text or "scalar type" in text:
        advice = "Give inputs of the types that the network computes in, such as inputs.float()."
    return advice


def _of_export(model: nn.Module, error: Exception, location: SourceLocation) -> str:
    """Explain why ``torch.export`` refuses a network that runs."""
    text = first_line(error).rstrip(".")
    frames = list(traceback.walk_tb(error.__traceback__))
    output = re.search(r"Found <class '([^']+)'> in output", text)
    given = re.search(r"Unsupported input type <class '([^']+)'>", text)
    scripted = [
        (path, part) for path, part in model.named_modules() if isinstance(part, torch.jit.ScriptModule)
    ]
    if output:
        return (
            f"it returns an object of {output[1].rpartition('.')[2]}, a type whose tensors are not known. "
            "Return tensors, in a tuple, dict or data class."
        )
    if given:
        return (
            f"an argument is of type {given[1].rpartition('.')[2]}. Give tensors, numbers, tuples, lists "
            "or dicts, or register the data class with torch.export.register_dataclass."
        )
    if any(_is_about_packing(frame) for frame, _ in frames):
        return (
            "packed sequences have sizes that depend on the values of the lengths. "
            "Trace the network with padded sequences, without pack_padded_sequence."
        )
    if scripted:
        path, part = scripted[0]
        name = f"'{path}' (torch.jit.script or torch.jit.trace of {part.original_name})"
        return f"{name} is a TorchScript module ({text}). Use the Python module that it was made from."
    if "same device" in text:
        return (
            f"tensors lie on different devices ({text}). Register constants as buffers, so that "
            "model.to(device) moves them."
        )
    if ".numpy()" in text or "numpy" in location.source or re.search(r"\bnp\.", location.source):
        return f"NumPy computes in the forward pass ({text}). Use torch functions instead, {_PART}."
    if lines_with(model, _GRADIENTS) and re.search(r"grad|constant's list", text):
        return _GRADIENTS_TAKEN
    if lines_with(model, _MAPPED) and "constant's list" in text:
        return (
            "torch.export does not capture this call of torch.vmap. Move the dimension that it runs over "
            f"to the front (x.movedim(1, 0)) and leave out in_dims and out_dims, {_PART}."
        )
    if "constant's list" in text:
        return (
            "a tensor is changed or made where the capture does not see it (an assignment to .data, or "
            f"a thread). Compute a new tensor with torch functions instead, {_PART}."
        )
    if re.search(r"data pointer|for 'meta' device type", text):
        return (
            "the code reads the memory of a tensor (data_ptr, storage), which is not there during capture. "
            f"Use torch functions instead, {_PART}."
        )
    return (
        "torch.export does not capture this code. Write the forward pass in plain torch operators, "
        f"{_PART}. PyTorch says: {type(error).__name__}: {text}."
    )


_GRADIENTS_TAKEN = (
    "gradients are taken in the forward pass, which a captured program does not hold. Compute them "
    f"outside of the network, {_PART}."
)

_MAPPED = r"\bvmap\("

_GRADIENTS = r"autograd\.grad\(|\.backward\(|func\.(grad|jac|vjp|jvp|hessian)"


def _line_that_may_be_meant(model: nn.Module, reason: str) -> tuple[str, str]:
    """Find the line that an error without a line of the user's is about, and its text."""
    patterns = {"gradients": _GRADIENTS, "a tensor is changed or made": r"\.data\s*=[^=]|\bThread\("}
    pattern = next((pattern for start, pattern in patterns.items() if reason.startswith(start)), "")
    return next(iter(lines_with(model, pattern)), ("", "")) if pattern else ("", "")


def _error_without_export(model: nn.Module, inputs: object) -> tuple[nn.Module, Exception] | None:
    """Find the error with which a copy of the network fails when it is only called, and the copy."""
    with torch.random.fork_rng():
        try:
            copied, given = copy.deepcopy(model), copy.deepcopy(inputs)
        except Exception:  # noqa: BLE001  what cannot be copied is not run
            return None
        try:
            if isinstance(given, Mapping):
                copied(**given)
            elif isinstance(given, Tensor):
                copied(given)
            else:
                copied(*given)  # type: ignore[misc]  # a sequence, as find_obstacle made sure
        except Exception as error:  # noqa: BLE001  networks fail in many ways
            return copied, error
    return None


def _is_about_packing(frame: FrameType) -> bool:
    return frame.f_code.co_name in ("pack_padded_sequence", "pad_packed_sequence", "pack_sequence") or any(
        isinstance(value, PackedSequence) for value in frame.f_locals.values()
    )


def _is_quantised(module: nn.Module) -> bool:
    kind = type(module)
    folder = kind.__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized"))
    packed = any(type(tensor).__module__.startswith("torchao") for tensor in module._parameters.values())
    return packed or "_packed_params" in vars(module) or (folder and "FloatFunctional" not in kind.__name__)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
