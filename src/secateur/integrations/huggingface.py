"""Build networks of transformers from a local folder with a ``config.json``: ``hf:path/to/folder``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from secateur.errors import CheckpointError, UsageError, closest
from secateur.inputs import InputSpec, Json, NamedInput, NamedInputs
from secateur.integrations.libraries import (
    LocalFolders,
    config_file,
    library,
    positive,
    read_config,
    silent,
)

_LENGTH, _SAMPLES, _SIDE = 16, 16000, 224
"""Tokens, samples of sound, and side of images where neither config nor user says it."""

_OWN = ("length", "num_classes")
"""Arguments that are no settings of the config."""

_PLACES = ("image_token_id", "image_token_index", "audio_token_id")
"""Settings of networks whose text has places for images or sounds."""

_SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")


class HuggingFace(LocalFolders):
    """The networks of transformers; arguments change settings of the config.

    ``num_classes`` is the config's ``num_labels``. ``length`` is the number of tokens, of samples of sound or
    of frames in example inputs. The folder's code is never run, and its pickles are never opened.
    """

    origin = "hf"

    def build(self, name: str, arguments: Mapping[str, Json]) -> nn.Module:
        """Build the architecture that the config names, without its cache of keys and values."""
        kind, config = _opened(name, arguments)
        with offline():
            model: nn.Module = kind(config)
        return model

    def inputs(self, name: str, arguments: Mapping[str, Json]) -> InputSpec | NamedInputs:
        """Derive the inputs from the config."""
        kind, config = _opened(name, arguments)
        return inputs_of(kind, config, positive("hf", "length", arguments.get("length")))

    def default_weights(self, name: str) -> Mapping[str, Tensor]:
        """Read the folder's safetensors, as float32.

        Raises:
            CheckpointError: there are none.
        """
        if not self.has_weights(name):
            raise CheckpointError(
                f"there are no *.safetensors beside the config of hf:{name}; pickles are not opened"
            )
        import torch

        folder = config_file("hf", name).parent
        kind, config = _opened(name, {})
        with offline(), silent():
            model: nn.Module = kind.from_pretrained(
                str(folder), config=config, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
        return model.state_dict()


def example_inputs(model: nn.Module, *, length: int | None = None, batch: int = 2) -> dict[str, Tensor]:
    """Draw inputs for a network of transformers.

    Args:
        model: any network with a config.
        length: number of tokens, of samples of sound, or of frames; chosen by the config if not given.
        batch: number of examples.

    Returns:
        Tensors by the names of the arguments, on the CPU, always the same.

    Raises:
        UsageError: the config does not say what the inputs look like.
    """
    config: Any = model.config
    found = inputs_of(type(model), config, length)
    example = found.example(batch)
    return {"pixel_values": example} if isinstance(example, Tensor) else example


def inputs_of(kind: type, config: Any, length: int | None = None) -> InputSpec | NamedInputs:
    """Derive the inputs of an architecture from its config.

    Args:
        kind: class of the network.
        config: its config.
        length: as for :func:`example_inputs`.

    Raises:
        UsageError: the config does not tell.
    """
    takes = inspect.signature(kind.forward).parameters  # type: ignore[attr-defined]  # every module has one
    if any(_get(config, key) is not None for key in _PLACES):
        raise _unclear(kind, "the text marks the places of the images or sounds")
    tensors: dict[str, NamedInput] = {}
    main = kind.main_input_name  # type: ignore[attr-defined]  # of all networks of transformers
    if "pixel_values" in takes and (main == "pixel_values" or _get(config, "vision_config") is not None):
        tensors["pixel_values"] = NamedInput(_pixels(config))
    if main == "input_values" or main == "input_features":
        tensors[main] = NamedInput(_sound(kind, config, main, length))
    if main == "input_ids" or ("input_ids" in takes and _get(config, "text_config") is not None):
        tensors["input_ids"] = tokens(config.get_text_config(), length)
        if "attention_mask" in takes:
            tensors["attention_mask"] = NamedInput(tensors["input_ids"].size, 1, 2)
    if "decoder_input_ids" in takes and _get(config, "is_encoder_decoder"):
        tensors["decoder_input_ids"] = tokens(config.get_text_config(decoder=True), length, share=2)
    if not tensors:
        raise _unclear(kind, f"its main input is {main}")
    if tensors.keys() == {"pixel_values"} and next(iter(takes.values()), None) is not None:
        return InputSpec(tensors["pixel_values"].size, *_statistics(tensors["pixel_values"].size[0]))
    return NamedInputs(tensors)


def tokens(config: Any, length: int | None, share: int = 1) -> NamedInput:
    """Describe token ids: ordinary words, no padding and no other special tokens.

    Args:
        config: of the text.
        length: number of tokens; by default 16, or as many as the network has positions.
        share: divides the length.
    """
    most = next(
        (value for key in ("max_position_embeddings", "n_positions") if (value := _get(config, key))), None
    )
    if length is None:
        length = min(_LENGTH, most) if isinstance(most, int) and most > 0 else _LENGTH
    words = int(config.vocab_size)
    special = [value for key in _SPECIAL if isinstance(value := _get(config, key), int)]
    low = max((value + 1 for value in special if value < words // 2), default=0)
    return NamedInput((max(1, length // share),), low, words)


@contextmanager
def offline() -> Iterator[None]:
    """Refuse all connections to the Hugging Face Hub within the block."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _opened(name: str, arguments: Mapping[str, Json]) -> tuple[Any, Any]:
    """Return class and config of the network."""
    data = read_config("hf", name)
    where = f"hf:{name}"
    if data.get("auto_map"):
        raise UsageError(f"{where}: its network is code in the folder, which is not run; build it in Python")
    architectures = data.get("architectures")
    if not (isinstance(architectures, list) and architectures and isinstance(architectures[0], str)):
        raise UsageError(
            f'{where}: its config names no architecture; add "architectures": ["BertModel"] or another'
        )
    transformers = library("transformers")
    kind = getattr(transformers, architectures[0], None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise UsageError(
            f"{where}: transformers {transformers.__version__} has no network {architectures[0]!r}"
        )
    changes = {key: value for key, value in arguments.items() if key not in _OWN}
    if "num_classes" in arguments:
        # The names of the labels would set their number.
        data = {
            key: value for key, value in data.items() if key not in ("id2label", "label2id", "num_labels")
        }
        changes["num_labels"] = arguments["num_classes"]
    maker: Any = kind
    config = maker.config_class.from_dict({**data, **changes})
    _check(where, config, set(changes))
    for part in (config, config.get_text_config(), config.get_text_config(decoder=True)):
        if hasattr(part, "use_cache"):
            part.use_cache = False
    if getattr(config, "use_pretrained_backbone", False):
        config.use_pretrained_backbone = False
    return kind, config


def _check(where: str, config: Any, changes: set[str]) -> None:
    """Refuse settings that the class of the config does not have, and attention that is fetched."""
    fresh = {*type(config)().to_dict(), "num_labels"}
    for key in changes - fresh:
        raise UsageError(f"{where}: its config has no setting {key!r}{closest(key, fresh)}")
    chosen = str(getattr(config, "_attn_implementation", None))
    if "/" in chosen:
        raise UsageError(f"{where}: the attention {chosen!r} would be fetched; choose eager or sdpa")


def _pixels(config: Any) -> tuple[int, int, int]:
    """Return channels, height and width of the images."""
    vision = _get(config, "vision_config") or config
    backbone = _get(config, "backbone_config") or vision
    side = _get(vision, "image_size") or _get(backbone, "image_size") or _SIDE
    channels = _get(vision, "num_channels") or 3
    height, width = side if isinstance(side, list | tuple) else (side, side)
    return int(channels), int(height), int(width)


def _statistics(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation that map [0, 1] to [-1, 1], as most of these networks expect."""
    return (0.5,) * channels, (0.5,) * channels


def _sound(kind: type, config: Any, main: str, length: int | None) -> tuple[int, ...]:
    """Return the shape of one example of sound: samples, or features over time."""
    bands = _get(config, "num_mel_bins")
    if main == "input_values" and bands and _get(config, "max_length"):
        return length or int(config.max_length), int(bands)
    if main == "input_values":
        channels = _get(config, "audio_channels")
        return (*((int(channels),) if channels else ()), length or _SAMPLES)
    if bands and _get(config, "max_source_positions"):
        # Two frames make one position, and the network takes one length only.
        return int(bands), 2 * int(config.max_source_positions)
    features = _get(config, "input_feat_per_channel") or _get(config, "feature_projection_input_dim")
    features = features or bands
    if features is None:
        raise _unclear(kind, "the config has no number of features")
    return length or 8 * _LENGTH, int(features)


def _get(config: Any, key: str) -> Any:
    return getattr(config, key, None)


def _unclear(kind: type, why: str) -> UsageError:
    return UsageError(
        f"{kind.__name__}: its inputs do not follow from its config ({why}); pass them in Python: "
        "sec.trace(model, {name: tensor, ...})"
    )
