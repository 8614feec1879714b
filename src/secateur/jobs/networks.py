"""Open the networks that a user names: a run, a checkpoint, or the name of a builder."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur._compat import tree_map_only
from secateur.checkpoint import load, read_metadata, save
from secateur.detection.files import open_detector
from secateur.detection.head_outputs import HeadOutputs, is_torchvision_detector
from secateur.detection.library import is_ultralytics
from secateur.detection.raw_outputs import (
    RawOutputs,
    copy_without_trainer,
    with_raw_outputs,
    without_raw_outputs,
)
from secateur.detection.settings import DetectorSettings
from secateur.detection.tuning import image_size_of
from secateur.errors import CheckpointError, DataError, SecateurError, UsageError
from secateur.formats import first_line, listed
from secateur.graph.capture.program import mode_of
from secateur.inputs import Json
from secateur.integrations.libraries import library
from secateur.jobs.settings import Job, NetworkChoice, is_checkpoint, is_pickled
from secateur.models import InputSpec, LoadedWeights, ModelSpec, NamedInputs, image_spec, load_weights
from secateur.models.userfile import find_function, names_a_file
from secateur.training.losses import main_output
from secateur.training.run_folder import DETECTOR, find_checkpoint


@dataclass(frozen=True)
class Network:
    """A network and everything that is needed to save it again.

    Attributes:
        model: the network itself.
        name: of its builder, or of its class.
        spec: builds it at its full size; ``None`` for a user's class.
        inputs: what it expects; size and normalisation for images.
        classes: names of its outputs, if known.
        history: what was done to it, oldest first.
        file: the checkpoint that it came from, if any.
        weights: which tensors were filled with weights, if weights were requested.
    """

    model: nn.Module
    name: str
    spec: ModelSpec | None
    inputs: InputSpec | NamedInputs
    classes: tuple[str, ...] | None = None
    history: tuple[Json, ...] = ()
    file: Path | None = None
    weights: LoadedWeights | None = field(default=None, repr=False)

    @property
    def input(self) -> InputSpec:
        """Return size and normalisation of the images that it expects.

        Raises:
            UsageError: it expects something else.
        """
        return image_spec(self.name, self.inputs)

    def example(self, batch: int = 2) -> Any:
        """Return inputs of the right shape on the network's device, always the same."""
        device = next((tensor.device for tensor in self.model.parameters()), torch.device("cpu"))
        return tree_map_only(Tensor, lambda tensor: tensor.to(device), self.inputs.example(batch))

    def timed(self, job: Job) -> Any:
        """Return inputs of the forward pass whose time is measured.

        Args:
            job: with the number of examples, and of tokens in the cache.

        Raises:
            UsageError: there are to be tokens in the cache, and the network has none.
        """
        if not job.latency_context:
            return self.example(job.latency_batch)
        library("transformers")
        from secateur.language.decoding import one_token

        try:
            return one_token(self.model, job.latency_context, job.latency_batch)
        except UsageError as error:
            raise UsageError(f"latency_context: {error}") from error

    def save(self, path: Path, metrics: dict[str, Json] | None = None) -> None:
        """Write a checkpoint.

        Args:
            path: the file.
            metrics: figures to store with the tensors.
        """
        seen = self.inputs if isinstance(self.inputs, InputSpec) else None
        save(
            path,
            whole_network(self.model),
            builder=self.spec,
            input_size=seen.size if seen else None,
            normalization=(seen.mean, seen.std) if seen else None,
            classes=self.classes,
            metrics=metrics,
            history=self.history,
        )

    def reload(self, path: Path) -> nn.Module:
        """Read a checkpoint of this network back and compare it with the network, bit for bit.

        Args:
            path: a file that :meth:`save` has just written.

        Raises:
            CheckpointError: a tensor differs.
        """
        full = self.spec.build() if self.spec is not None and self.spec.is_file else None
        again = load(path, full)
        expected, found = self.model.state_dict(), again.state_dict()
        same = expected.keys() == found.keys() and all(
            same_bits(tensor, found[name]) for name, tensor in expected.items()
        )
        if not same:
            raise CheckpointError(
                f"{path} does not give back the network that was saved; keep it and report this"
            )
        return again

    def after(self, records: Iterable[Mapping[str, Json]]) -> Network:
        """Return the same network with a longer history.

        Args:
            records: what was done, oldest first.
        """
        return replace(self, history=(*self.history, *map(dict, records)))

    def copy(self) -> Network:
        """Return the same network with a copy of the model."""
        return replace(self, model=copy.deepcopy(self.model))


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same shape, type and bits, including NaN.

    >>> nothing = torch.tensor([float("nan")])
    >>> same_bits(nothing, nothing.clone()), same_bits(torch.ones(1), torch.ones(2))
    (True, False)
    """
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    pair = [tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return torch.equal(*pair)


def input_of(choice: NetworkChoice) -> InputSpec:
    """Find the size and normalisation of the images that a network expects, before it is built.

    Args:
        choice: as for :func:`open_network`.

    Raises:
        UsageError: there is no such network, or it expects something else than images.
        CheckpointError: the checkpoint cannot be read.
    """
    return image_spec(choice.source, inputs_of(choice))


def inputs_of(choice: NetworkChoice) -> InputSpec | NamedInputs:
    """Find what a network expects, before it is built.

    Args:
        choice: as for :func:`open_network`.

    Raises:
        UsageError: there is no such network, or its config does not tell.
        CheckpointError: the checkpoint cannot be read.
    """
    if is_pickled(choice.source):
        raise UsageError(
            f"{choice.source} is a file of ultralytics, which only prune, frontier, evaluate, inspect and "
            "measure read"
        )
    if is_checkpoint(choice.source):
        metadata = read_metadata(find_checkpoint(choice.source))
        known = metadata.input or (metadata.builder.inputs if metadata.builder else InputSpec())
    else:
        known = ModelSpec.parse(choice.source).inputs
    return known if choice.size is None else sized(image_spec(choice.source, known), choice.size)


def run_file(choice: NetworkChoice) -> None:
    """Run the user's file that builds a network, if one does: it may register criteria and rules.

    Raises:
        UsageError: there is no such file or function, or it fails.
    """
    for spec in (choice.builder, choice.source):
        if spec is not None and names_a_file(spec):
            find_function(spec)


def open_network(choice: NetworkChoice, classes: Sequence[str] | None = None) -> Network:
    """Open the network that a user names.

    Args:
        choice: a run folder, a checkpoint, a ``.pt`` file of ultralytics, or a name and the weights for it.
        classes: names of the classes that it must distinguish, if there is data.

    Returns:
        The network, on the CPU.

    Raises:
        UsageError: there is no such network, or the file of ultralytics is not trusted.
        CheckpointError: the checkpoint or the weights cannot be used.
        DataError: a checkpoint has other classes.
    """
    if is_pickled(choice.source):
        return _from_pickle(choice)
    if is_checkpoint(choice.source):
        return _from_checkpoint(choice, classes)
    return _from_name(choice, classes)


def captured_network(network: Network) -> Network:
    """Return the part of a network that can be captured: of a detector, what its heads compute.

    Args:
        network: any network; one that is no detector is returned as it is.
    """
    if is_torchvision_detector(network.model):
        return replace(network, model=HeadOutputs(network.model))
    if is_ultralytics(network.model):
        return replace(network, model=with_raw_outputs(network.model))
    return network


def whole_network(model: nn.Module) -> nn.Module:
    """Return the whole network for the part that :func:`captured_network` returned.

    Args:
        model: any network; one that is no such part is returned as it is.
    """
    if isinstance(model, HeadOutputs):
        return model.detector()
    return copy_without_trainer(without_raw_outputs(model)) if isinstance(model, RawOutputs) else model


def refuse_ultralytics(choice: NetworkChoice, call: str, model: nn.Module | None = None) -> None:
    """Refuse networks of ultralytics, for what that library does itself.

    Args:
        choice: the network.
        call: the method of ``YOLO`` that does it, with its arguments.
        model: the network, if it was opened already.

    Raises:
        UsageError: it is a ``.pt`` file, or a network of ultralytics.
    """
    if is_pickled(choice.source) or (model is not None and is_ultralytics(model)):
        file = _file_for_ultralytics(choice)
        how = f"use that library for this: YOLO('{file or 'best.pt'}').{call}"
        if file is None:
            how = f"write a .pt file of it with secateur.detection.save_detector, then {how}"
        raise UsageError(f"{choice.source} is a network of ultralytics; {how}")


def _file_for_ultralytics(choice: NetworkChoice) -> Path | None:
    """Find the ``.pt`` file with the same network as a run, its best checkpoint, or a file of that kind."""
    file = Path(choice.source)
    if is_pickled(choice.source):
        return file
    if is_checkpoint(choice.source) and file.is_file() and file.name == "best.safetensors":
        file = file.parent.parent
    file = file / DETECTOR
    return file if file.is_file() else None


def _from_pickle(choice: NetworkChoice) -> Network:
    """Open a ``.pt`` file of ultralytics."""
    for option, given in (("--weights", choice.weights), ("--builder", choice.builder)):
        if given is not None:
            raise UsageError(f"{choice.source} contains a whole network already; leave {option} out")
    detector: Any = copy_without_trainer(open_detector(choice.source, trusted=choice.trusted))
    side = choice.size or image_size_of(detector, DetectorSettings())
    names = getattr(detector, "names", None)
    spec = _description(detector, side)
    channels = int(getattr(detector, "yaml", {}).get("channels", 3))
    return Network(
        model=detector,
        name=spec.name if spec else Path(choice.source).name,
        spec=spec,
        inputs=InputSpec((channels, side, side), (0.0,) * channels, (1.0,) * channels),
        classes=tuple(map(str, names.values())) if names else None,
        file=Path(choice.source),
    )


def _description(detector: nn.Module, side: int) -> ModelSpec | None:
    """Find the description of ultralytics from which a detector was built, if it is one of the library's."""
    description: Any = getattr(detector, "yaml", {})
    file = Path(str(description.get("yaml_file", ""))).name
    try:
        return ModelSpec.parse(f"ultralytics:{file}", classes=int(description["nc"]), image_size=side)
    except (SecateurError, KeyError, TypeError, ValueError):
        return None


def _from_checkpoint(choice: NetworkChoice, classes: Sequence[str] | None) -> Network:
    if choice.weights is not None:
        raise UsageError(f"{choice.source} contains weights already; leave --weights out")
    path = find_checkpoint(choice.source)
    metadata = read_metadata(path)
    known = metadata.classes
    if known is not None and classes is not None and tuple(classes) != known:
        raise DataError(f"{path} has the classes {listed(known)}, but the data has {listed(classes)}")
    spec = metadata.builder
    if choice.builder is not None:
        # A detector has one class more than there are names: the background.
        outputs = spec.arguments.get("num_classes") if spec is not None else None
        count = outputs if isinstance(outputs, int) else len(known) if known else None
        spec = ModelSpec.parse(choice.builder, classes=count)
    model = load(path, spec.build() if spec is not None and choice.builder is not None else None)
    return Network(
        model=model,
        name=spec.name if spec else type(model).__name__,
        spec=spec,
        inputs=inputs_of(choice),
        classes=known or (tuple(classes) if classes is not None else None),
        history=metadata.history,
        file=path,
    )


def _from_name(choice: NetworkChoice, classes: Sequence[str] | None) -> Network:
    count = len(classes) if classes is not None else choice.classes
    spec = ModelSpec.parse(choice.source, classes=count)
    model = spec.build()
    weights = choice.weights
    if weights is None:
        weights = "default" if spec.has_weights else "none"
    loaded = None
    if weights != "none":
        loaded = load_weights(model, spec.default_weights() if weights == "default" else weights)
    names = tuple(classes) if classes is not None else None
    return Network(model, spec.name, spec, inputs_of(choice), names, weights=loaded)


def check_outputs(network: Network, classes: Sequence[str]) -> None:
    """Check that a network has as many classes as the data.

    Args:
        network: any network.
        classes: of the data.

    Raises:
        DataError: the numbers differ.
        UsageError: it fails on images of this size.
        TrainingError: its output is not a tensor of class scores.
    """
    example = network.example()
    with mode_of(network.model, training=False), torch.inference_mode():
        try:
            outputs = network.model(example)
        except Exception as error:  # code of the user's
            size = "x".join(map(str, example.shape[1:]))
            raise UsageError(
                f"{network.name} fails on 2 images of {size} ({type(error).__name__}: {first_line(error)}); "
                "check its code, or choose another size"
            ) from error
    scores = main_output(outputs)
    if scores.ndim != 2 or scores.shape[1] != len(classes):
        raise DataError(
            f"{network.name} returns scores of shape {tuple(scores.shape)} for 2 examples, the data has "
            f"{len(classes)} classes; train it on these classes first"
        )


def sized(spec: InputSpec, side: int | None) -> InputSpec:
    """Change an input specification to square images of another size.

    Args:
        spec: the network's own.
        side: in pixels; ``None`` changes nothing.

    >>> sized(InputSpec(), 64).size
    (3, 64, 64)
    """
    return spec if side is None else replace(spec, size=(spec.size[0], side, side))
