"""Write a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from secateur import __version__
from secateur.checkpoint import structure
from secateur.checkpoint.checksum import with_checksum
from secateur.checkpoint.loading import check, replaced_in
from secateur.checkpoint.metadata import Attributes, Metadata
from secateur.errors import CheckpointError, UsageError
from secateur.files import replacing
from secateur.formats import first_line
from secateur.graph.capture.wrappers import refuse_wrapped
from secateur.graph.substitutes import replacements_in
from secateur.inputs import InputSpec, Json
from secateur.models import ModelSpec


def save(
    path: str | Path,
    model: nn.Module,
    *,
    builder: ModelSpec | str | None = None,
    input_size: Sequence[int] | None = None,
    normalization: tuple[Sequence[float], Sequence[float]] | None = None,
    classes: Sequence[str] | None = None,
    metrics: Mapping[str, Json] | None = None,
    history: Sequence[Json] = (),
) -> None:
    """Save a network, pruned or not, so that :func:`load` restores it bit for bit.

    The file holds tensors and JSON, and no code. Besides parameters and buffers it holds the attributes of
    modules that are tensors, numbers, text, tuples and the like, and which modules were replaced because a
    residual branch was removed. What :func:`load` would refuse is refused here. An older file of that name is
    replaced in one step, after the new one is completely on the disk.

    Args:
        path: the file, by convention ending in ``.safetensors``.
        model: the network.
        builder: what built it at its full size, for example ``torchvision:resnet18``; with it, :func:`load`
            needs nothing else. Without, :func:`load` is given the network of full size.
        input_size: shape of one input, without the batch; by default the builder's.
        normalization: mean and deviation per channel; by default the builder's.
        classes: names of the outputs.
        metrics: figures such as accuracy; plain values.
        history: what was done to the network, oldest first; plain values, such as ``plan.to_dict()``.

    Raises:
        UsageError: if metrics or history are not plain values, the builder is unknown, or the network is
            wrapped, for example by ``torch.compile``.
        CheckpointError: if the network is not a smaller version of what the builder builds, or the file
            cannot be written.

    Example:
        >>> import tempfile
        >>> from secateur.models import build
        >>> model = build("secateur:digits")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/digits.safetensors", model, builder="secateur:digits", metrics={"top1": 0.99})
    """
    path = Path(path)
    refuse_wrapped(model)
    spec = ModelSpec.parse(builder) if isinstance(builder, str) else builder
    replaced = tuple(replace(item, path=structure.plain_name(item.path)) for item in replacements_in(model))
    reference = None if spec is None or spec.is_file else structure.blank(spec)
    if reference is not None:
        replaced_in(reference, replaced)
    attributes = _attributes(model, spec, reference)
    loose = structure.loose_names(attributes)
    referred = {name: tensor for name, tensor in structure.loose_tensors(model).items() if name in loose}
    stored, aliases = _distinct(structure.tensors(model) | referred)
    if not stored:
        raise CheckpointError(
            f"{type(model).__name__} has no parameters and no buffers: nothing can be saved"
        )
    seen = _seen(spec)
    metadata = Metadata(
        builder=spec,
        attributes=attributes,
        aliases=aliases,
        transient=structure.transient_buffers(model),
        hooked=structure.hooked(model),
        replaced=replaced,
        frozen=tuple(
            structure.plain_name(name) for name, p in model.named_parameters() if not p.requires_grad
        ),
        input_size=_tuple(input_size, seen.size if seen else None),
        normalization=_pair(normalization, seen),
        classes=tuple(map(str, classes)) if classes is not None else None,
        metrics=dict(metrics or {}),
        history=tuple(history),
        version=__version__,
    )
    plain = _separate(stored)
    text = metadata.to_json()
    # What a reader would refuse is reported now, while the network still exists.
    check(Metadata.from_json(text), plain, model if reference is None else reference)
    described = with_checksum(text, plain)
    try:
        with replacing(path) as part:
            save_file(plain, part, metadata=described)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise CheckpointError(f"{path} cannot be written: {reason}") from error


def _distinct(everything: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """List each tensor once, and map further names of it to the first."""
    first: dict[int, str] = {}
    aliases = {}
    for name, tensor in everything.items():
        if id(tensor) in first:
            aliases[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
    return {name: everything[name] for name in first.values()}, aliases


def _attributes(model: nn.Module, spec: ModelSpec | None, reference: nn.Module | None) -> Attributes:
    """Find the attributes that differ from the builder's network, or all if there is no builder."""
    if spec is None or reference is None:
        return structure.plain_attributes(model)
    try:
        structure.fitting(structure.tensors(model), structure.transient_buffers(model), reference)
        return structure.changed(model, reference)
    except CheckpointError as error:
        raise CheckpointError(f"{spec.name} builds no network that this one is a part of: {error}") from error


def _separate(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy the tensors to the CPU, dense and without overlap, as the format requires."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in stored.items():
        if tensor.is_meta:
            raise CheckpointError(
                f"{name} is on the meta device and has no values: give the network storage and weights first"
            )
        if tensor.layout != torch.strided or tensor.is_quantized:
            kind = "quantised" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
            raise CheckpointError(f"{name} is {kind}, and only dense tensors of numbers can be saved")
        value = tensor.detach().cpu().contiguous()
        storage = value.untyped_storage().data_ptr()
        plain[name] = value.clone() if storage in seen else value
        seen.add(storage)
    return plain


def _seen(spec: ModelSpec | None) -> InputSpec | None:
    """Find the images that a builder's network expects, if it expects any and says so."""
    try:
        return spec.input if spec is not None else None
    except UsageError:
        return None


def _tuple(given: Sequence[int] | None, default: tuple[int, ...] | None) -> tuple[int, ...] | None:
    return tuple(map(int, given)) if given is not None else default


def _pair(
    given: tuple[Sequence[float], Sequence[float]] | None, seen: InputSpec | None
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if given is not None:
        if len(given) != 2:
            raise UsageError(f"normalization is a pair of means and deviations, not {len(given)} values")
        return tuple(map(float, given[0])), tuple(map(float, given[1]))
    return (seen.mean, seen.std) if seen else None
