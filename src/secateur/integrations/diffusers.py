"""Build networks of diffusers from a local folder with a ``config.json``: ``diffusers:path/to/unet``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from secateur.errors import CheckpointError, UsageError, closest
from secateur.inputs import InputSpec, Json, NamedInput, NamedInputs
from secateur.integrations.huggingface import offline
from secateur.integrations.libraries import LocalFolders, config_file, library, positive, read_config

_SIDE, _LENGTH, _STEPS = 32, 16, 1000
"""Side of maps and number of text tokens if not given; number of time steps."""

Config = Mapping[str, Any]


class Diffusers(LocalFolders):
    """The networks of diffusers; arguments change settings of the config.

    ``length`` is the number of tokens of the text, or of the sequence, in example inputs.
    """

    origin = "diffusers"

    def build(self, name: str, arguments: Mapping[str, Json]) -> nn.Module:
        """Build the class that the config names."""
        kind, config = _opened(name, arguments)
        with offline():
            model: nn.Module = kind.from_config(dict(config))
        return model

    def inputs(self, name: str, arguments: Mapping[str, Json]) -> InputSpec | NamedInputs:
        """Derive the inputs from the config."""
        kind, config = _opened(name, arguments)
        defaults = {key: value.default for key, value in inspect.signature(kind).parameters.items()}
        with_defaults = {
            key: value for key, value in defaults.items() if value is not inspect.Parameter.empty
        }
        with_defaults |= config
        return inputs_of(
            kind.__name__, with_defaults, positive("diffusers", "length", arguments.get("length"))
        )

    def default_weights(self, name: str) -> Mapping[str, Tensor]:
        """Read the folder's safetensors.

        Raises:
            CheckpointError: there are none.
        """
        if not self.has_weights(name):
            raise CheckpointError(f"there are no *.safetensors beside the config of diffusers:{name}")
        kind, _ = _opened(name, {})
        with offline():
            model: nn.Module = kind.from_pretrained(
                str(config_file("diffusers", name).parent), local_files_only=True, use_safetensors=True
            )
        return model.state_dict()


def example_inputs(model: nn.Module, *, length: int | None = None, batch: int = 2) -> dict[str, Any]:
    """Draw inputs for a network of diffusers.

    Args:
        model: a UNet, a transformer or an autoencoder.
        length: number of tokens; 16 if not given.
        batch: number of examples.

    Returns:
        Tensors by the names of the arguments, on the CPU, always the same.

    Raises:
        UsageError: the config does not say what the inputs look like.
    """
    config: Any = model.config
    example = inputs_of(type(model).__name__, dict(config), length).example(batch)
    return {"sample": example} if isinstance(example, Tensor) else example


def inputs_of(kind: str, config: Config, length: int | None = None) -> InputSpec | NamedInputs:
    """Derive the inputs of a class of networks from its config.

    Raises:
        UsageError: nothing is known of this class, or the config has something special.
    """
    if kind.startswith(("AutoencoderKL", "AutoencoderTiny", "VQModel", "AsymmetricAutoencoderKL")):
        if kind.removeprefix("AutoencoderKL"):
            _only(kind, ("AutoencoderTiny", "VQModel", "AsymmetricAutoencoderKL"))
        size = (*_channels(config), *_square(config))
        return InputSpec(size, (0.5,) * size[0], (0.5,) * size[0])
    _only(kind, _INPUTS)
    return NamedInputs(_INPUTS[kind](config, length or _LENGTH))


def _only(kind: str, known: Any) -> None:
    if kind not in known:
        raise UsageError(
            f"the inputs of {kind} are not known here; pass them in Python: "
            "sec.trace(model, {name: tensor, ...})"
        )


def _unet(config: Config, _length: int) -> dict[str, NamedInput]:
    return {"sample": _map(config), "timestep": _time(), **_labels(config)}


def _conditional_unet(config: Config, length: int) -> dict[str, NamedInput]:
    if config.get("addition_embed_type") or config.get("encoder_hid_dim_type"):
        raise UsageError(
            "UNet2DConditionModel with added conditions: pass the inputs in Python: "
            "sec.trace(model, {name: tensor, ...})"
        )
    width = config["cross_attention_dim"]
    width = width[0] if isinstance(width, list | tuple) else width
    text = NamedInput((length, int(width)))
    return {"sample": _map(config), "timestep": _time(), "encoder_hidden_states": text, **_labels(config)}


def _dit(config: Config, _length: int) -> dict[str, NamedInput]:
    classes = NamedInput((), 0, int(config["num_embeds_ada_norm"]))
    return {"hidden_states": _map(config), "timestep": _time(), "class_labels": classes}


def _pixart(config: Config, length: int) -> dict[str, NamedInput]:
    if config.get("use_additional_conditions") or config.get("sample_size") == 128:
        raise UsageError("PixArtTransformer2DModel with sizes as conditions: pass the inputs in Python")
    text = NamedInput((length, int(config["caption_channels"])))
    return {"hidden_states": _map(config), "encoder_hidden_states": text, "timestep": _time()}


def _sd3(config: Config, length: int) -> dict[str, NamedInput]:
    return {
        "hidden_states": _map(config),
        "encoder_hidden_states": NamedInput((length, int(config["joint_attention_dim"]))),
        "pooled_projections": NamedInput((int(config["pooled_projection_dim"]),)),
        "timestep": _time(),
    }


def _flux(config: Config, length: int) -> dict[str, NamedInput]:
    found = {
        "hidden_states": NamedInput((length, int(config["in_channels"]))),
        "encoder_hidden_states": NamedInput((length, int(config["joint_attention_dim"]))),
        "pooled_projections": NamedInput((int(config["pooled_projection_dim"]),)),
        "timestep": _time(),
        "img_ids": NamedInput((length, 3), batched=False),
        "txt_ids": NamedInput((length, 3), batched=False),
    }
    return found | ({"guidance": NamedInput(())} if config.get("guidance_embeds") else {})


_INPUTS: Mapping[str, Callable[[Config, int], dict[str, NamedInput]]] = {
    "UNet2DModel": _unet,
    "UNet2DConditionModel": _conditional_unet,
    "DiTTransformer2DModel": _dit,
    "PixArtTransformer2DModel": _pixart,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
}
"""Inputs of UNets and transformers, by class."""


def _time() -> NamedInput:
    return NamedInput((), 0, _STEPS)


def _labels(config: Config) -> dict[str, NamedInput]:
    if config.get("class_embed_type") not in (None, "timestep"):
        raise UsageError(f"class_embed_type {config['class_embed_type']!r}: pass the inputs in Python")
    count = config.get("num_class_embeds") or (_STEPS if config.get("class_embed_type") else None)
    return {"class_labels": NamedInput((), 0, int(count))} if count else {}


def _map(config: Config) -> NamedInput:
    return NamedInput((*_channels(config), *_square(config)))


def _channels(config: Config) -> tuple[int]:
    return (int(config.get("in_channels") or 3),)


def _square(config: Config) -> tuple[int, int]:
    side = config.get("sample_size") or _SIDE
    height, width = side if isinstance(side, list | tuple) else (side, side)
    return int(height), int(width)


def _opened(name: str, arguments: Mapping[str, Json]) -> tuple[Any, dict[str, Any]]:
    """Return class and settings of the network."""
    data = read_config("diffusers", name)
    where, named = f"diffusers:{name}", data.get("_class_name")
    if not isinstance(named, str):
        raise UsageError(f"{where}: its config has no _class_name, which says what to build")
    diffusers = library("diffusers")
    kind = getattr(diffusers, named, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)):
        raise UsageError(f"{where}: diffusers {diffusers.__version__} has no network {named!r}")
    changes = {key: value for key, value in arguments.items() if key != "length"}
    if "num_classes" in changes:
        raise UsageError(f"{where}: it has no classes to count; leave classes out")
    known = set(inspect.signature(kind).parameters)
    for key in changes.keys() - known:
        raise UsageError(f"{where}: its config has no setting {key!r}{closest(key, known)}")
    return kind, {**data, **changes}
