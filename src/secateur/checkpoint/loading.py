"""Read a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from secateur.checkpoint import structure
from secateur.checkpoint.checksum import check_checksum, without_checksum
from secateur.checkpoint.metadata import Metadata
from secateur.errors import CheckpointError, SurgeryError, UsageError
from secateur.graph.branches import Replacement
from secateur.graph.capture.wrappers import refuse_wrapped
from secateur.graph.cutting.tensors import named_tensors, renew_flat_weights
from secateur.graph.cutting.ties import storage_ties, tied_again
from secateur.graph.substitutes import replace_modules


@torch.inference_mode(False)  # a tensor that is made in that mode could not be trained
def load(
    path: str | Path, model: nn.Module | None = None, *, device: torch.device | str = "cpu"
) -> nn.Module:
    """Load a network that :func:`save` wrote.

    Reading runs no code: a builder is looked up by name, plain attributes are set (numbers, text, tuples and
    the like, and no methods), and tensors are filled in, after all names, shapes and types have been checked.

    Args:
        path: the file.
        model: the network at its full size, for example ``MyNet()``; it becomes the smaller one, with new
            parameters, or stays as it is if the file does not fit. By default the file's builder makes it.
        device: where the tensors go.

    Returns:
        The network, in evaluation mode.

    Raises:
        CheckpointError: if the file is damaged, foreign, of a later format or does not fit the network; or
            if it names no builder that is known here and no model is given.
        UsageError: if the model is wrapped, for example by ``torch.compile``.

    Example:
        >>> import tempfile
        >>> from secateur.checkpoint.saving import save
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/net.safetensors", nn.Linear(4, 2))
        ...     load(f"{folder}/net.safetensors", model=nn.Linear(4, 2))
        Linear(in_features=4, out_features=2, bias=True)
    """
    path = Path(path)
    if model is not None:
        refuse_wrapped(model)
    try:
        metadata, stored = _read(path)
        target = model if model is not None else _built(metadata)
        put_back = replaced_in(target, metadata.replaced)
        try:
            values = check(metadata, stored, target)
        except CheckpointError:
            put_back()
            raise
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be loaded: {error}") from error
    _fill(target, values, metadata, torch.device(device))
    return target.eval()


def replaced_in(model: nn.Module, replacements: Iterable[Replacement]) -> Callable[[], None]:
    """Replace the modules that removed residual branches have lost.

    Args:
        model: the network at its full size; changed in place.
        replacements: which modules, and by what.

    Returns:
        A function that puts the former modules back.

    Raises:
        CheckpointError: the network has no such module; nothing is changed.
    """
    try:
        return replace_modules(model, replacements)
    except SurgeryError as error:
        raise CheckpointError(f"it does not fit {type(model).__name__}: {error}") from error


def check(metadata: Metadata, stored: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Check that the content of a file fits a network.

    Args:
        metadata: of the file.
        stored: its tensors; only names, shapes and types matter.
        model: the network at its full size, with modules replaced; not changed.

    Returns:
        The tensors that the network has a place for, under all their names.

    Raises:
        CheckpointError: something does not fit.
    """
    every = _with_aliases(stored, metadata.aliases)
    loose = structure.loose_names(metadata.attributes)
    known = {name: tensor for name, tensor in every.items() if name not in loose}
    fitting = structure.fitting(known, metadata.transient, model)
    _check_aliases({a: n for a, n in metadata.aliases.items() if not {a, n} & loose}, fitting, model)
    structure.check_attributes(metadata.attributes, every.keys(), model)
    return fitting | {name: every[name] for name in loose}


def read_metadata(path: str | Path) -> Metadata:
    """Read what a checkpoint says about its network, without reading the tensors.

    Args:
        path: the file.

    Raises:
        CheckpointError: if the file cannot be read, or Secateur did not write it.
    """
    path = Path(path)
    try:
        with _opened(path) as file:
            return Metadata.from_json(without_checksum(file.metadata()))
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be loaded: {error}") from error


def _read(path: Path) -> tuple[Metadata, dict[str, Tensor]]:
    with _opened(path) as file:
        header = file.metadata()
        metadata = Metadata.from_json(without_checksum(header))
        try:
            # Copies, since the file may be replaced or cut short while the network is in use.
            stored = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # not a mapping
        except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
            raise CheckpointError(f"its tensors cannot be read ({error})") from error
    check_checksum(header, stored)
    return metadata, stored


def _opened(path: Path) -> safe_open:
    if not path.is_file():
        raise CheckpointError("there is no such file")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        if _looks_pickled(path):
            raise CheckpointError(
                "it is a pickle, which may hold code: give it as weights instead"
            ) from error
        raise CheckpointError(f"it is not a safetensors file, or is incomplete ({error})") from error


def _looks_pickled(path: Path) -> bool:
    """Return whether a file begins like a zip archive or a pickle, as files of ``torch.save`` do."""
    try:
        with path.open("rb") as file:
            return file.read(2) in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")
    except OSError:
        return False


def _built(metadata: Metadata) -> nn.Module:
    spec = metadata.builder
    if spec is None:
        raise CheckpointError("it names no builder: pass model=, the network at its full size")
    if spec.is_file:
        raise CheckpointError(
            f"its builder {spec.name} is code, which is not run: pass model=, what it builds"
        )
    try:
        return structure.blank(spec)
    except UsageError as error:
        raise CheckpointError(f"its network cannot be built here ({error}): pass model=") from error


def _with_aliases(stored: dict[str, Tensor], aliases: dict[str, str]) -> dict[str, Tensor]:
    for alias, name in aliases.items():
        if name not in stored or alias in stored:
            raise CheckpointError(f"it calls {alias} another name of {name}, which cannot be")
    return stored | {alias: stored[name] for alias, name in aliases.items()}


def _check_aliases(aliases: dict[str, str], fitting: dict[str, Tensor], model: nn.Module) -> None:
    for alias, name in aliases.items():
        kinds = {structure.is_parameter(model, each) if each in fitting else None for each in (alias, name)}
        if len(kinds) > 1:
            raise CheckpointError(f"it calls {alias} another name of {name}, which it is not in this network")


def _fill(model: nn.Module, values: dict[str, Tensor], metadata: Metadata, device: torch.device) -> None:
    loose = structure.loose_names(metadata.attributes)
    placed: dict[str, Tensor] = {}
    filled: set[int] = set()
    ties = storage_ties(named_tensors(model))
    values = tied_again(ties, {name: value.to(device) for name, value in values.items()})
    for name in sorted(
        values, key=lambda name: (name in loose, name)
    ):  # a parameter before what refers to it
        stored = metadata.aliases.get(name, name)
        if stored not in placed:
            placed[stored] = _placed(model, name, values[name], metadata, filled)
        if name not in loose:
            structure.set_tensor(model, name, placed[stored])
    references = {name: placed[metadata.aliases.get(name, name)] for name in loose}
    known = structure.without_marks(metadata.attributes, metadata.hooked, model)
    structure.set_attributes(known, references, model)
    renew_flat_weights(model)


def _placed(model: nn.Module, name: str, value: Tensor, metadata: Metadata, filled: set[int]) -> Tensor:
    """Convert a stored tensor to what the network holds: for a parameter, the same object, filled.

    Lists, hooks and closures of the network may hold the parameter too.
    """
    if name in structure.loose_names(metadata.attributes) or not structure.is_parameter(model, name):
        return value
    is_number = value.is_floating_point() or value.is_complex()
    needs = name not in metadata.frozen and is_number
    old = structure.parameter(model, name)
    # A parameter without memory cannot be filled, nor one with two names that are two in the file.
    fits = type(old) is nn.Parameter and old.device.type == value.device.type and id(old) not in filled
    if old is None or not fits:
        return nn.Parameter(value, requires_grad=needs)
    filled.add(id(old))
    old.requires_grad_(False)
    old.grad = None
    old.data = value
    return old.requires_grad_(needs)
