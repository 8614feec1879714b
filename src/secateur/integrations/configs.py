"""Find configs of transformers that describe a pruned network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from fractions import Fraction
from itertools import islice, product
from typing import Any

import torch
from torch import nn

from secateur.errors import UsageError
from secateur.integrations.huggingface import offline
from secateur.integrations.layers import Shortened
from secateur.integrations.libraries import silent

Dimension = tuple[str, int]
"""A dimension of a tensor: the tensor's name, and the number of the dimension; of an attribute, -1."""

Setting = tuple[str, ...]
"""Where a setting of a config is: its name, after those of the configs that hold it."""

_ATTRIBUTE = -1

_PROBE = 137
"""Tried for settings that are not given, such as the width of a hidden layer."""

_MOST_GUESSES = 256


def configs_of(model: nn.Module, shortened: Sequence[Shortened] = ()) -> list[Any]:
    """Find configs from which the class of a pruned network builds networks of the same shapes.

    Each whole number in the config is changed alone, on the meta device, to see which dimensions follow it;
    numbers that are equal are changed together where the class refuses one alone. Then the numbers are solved
    for the shapes of the pruned network. No setting is known by name.

    Args:
        model: a pruned network of transformers; not changed.
        shortened: lists of layers that have fewer layers than the config says.

    Returns:
        Changed copies of its config, sorted: those that reproduce most module attributes of the pruned
        network come first.

    Raises:
        UsageError: no config describes these shapes; the message names a tensor that differs.
    """
    kind, found = type(model), _dimensions(model)
    config = _with_fewer_layers(kind, _config(model), found, shortened)
    before = _built(kind, config)
    if before is None or before.keys() != found.keys():
        raise UsageError(
            f"{kind.__name__} with this config has other tensors than the network: modules were removed or "
            "replaced; save it with sec.save"
        )
    # A plan changes the attributes that the forward pass reads; others may keep numbers of the original.
    wanted = {item: size for item, size in found.items() if item[1] != _ATTRIBUTE or size != before[item]}
    if wanted.items() <= before.items():
        return [_with(config, {})]
    slopes = _all_slopes(kind, config, before)
    fitting = _fitting(kind, config, slopes, before, found, wanted)
    if not fitting:
        given = _given(kind, config, before)
        fitting = _fitting(kind, given, _all_slopes(kind, given, before), before, found, wanted)
    if not fitting:
        raise UsageError(_no_config(kind, slopes, before, wanted))
    return fitting


def _fitting(
    kind: Any,
    config: Any,
    slopes: Mapping[tuple[Setting, ...], Mapping[Dimension, float]],
    before: Mapping[Dimension, int],
    found: Mapping[Dimension, int],
    wanted: Mapping[Dimension, int],
) -> list[Any]:
    """Change the settings of a config to those that give the wanted dimensions, the best copies first."""
    fitting: list[tuple[int, Any]] = []
    for values in islice(_likeliest_first(_choices(config, slopes, before, wanted)), _MOST_GUESSES):
        changes = {
            setting: value for settings, value in zip(slopes, values, strict=True) for setting in settings
        }
        built = _built(kind, config, changes)
        if built is not None and built.keys() == before.keys() and wanted.items() <= built.items():
            other = sum(built[item] != size for item, size in found.items())
            fitting.append((other, _with(config, changes)))
    return [changed for _, changed in sorted(fitting, key=lambda pair: pair[0])]


def _given(kind: Any, config: Any, before: Mapping[Dimension, int]) -> Any:
    """Replace derived settings (``None``) by explicit numbers, such as ``head_dim``."""
    given = config
    for setting in _settings(config):
        if _get(config, setting) is not None:
            continue
        after = _built(kind, config, {setting: _PROBE}) or {}
        numbers = {
            Fraction(before.get(item, 0) * _PROBE, size)
            for item, size in after.items()
            if size and not size % _PROBE and size != before.get(item)
        }
        if len(numbers) == 1 and (number := numbers.pop()).denominator == 1:
            changed = _with(given, {setting: int(number)})
            given = changed if _built(kind, changed) == before else given
    return given


def _with_fewer_layers(
    kind: Any, config: Any, found: Mapping[Dimension, int], shortened: Sequence[Shortened]
) -> Any:
    """Change the numbers of layers in a config so that it describes the tensors of a network.

    Settings that list something for each layer lose the entries of those that were left out.

    Returns:
        The config itself if no numbers of layers do that.
    """
    lengths = [
        [setting for setting in _settings(config) if _get(config, setting) == item.length]
        for item in shortened
    ]
    for settings in product(*lengths):
        changed = _with(
            config,
            {setting: len(item.kept) for setting, item in zip(settings, shortened, strict=True)},
        )
        for item in shortened:
            for name, value in vars(config).items():
                if isinstance(value, list | tuple) and len(value) == item.length:
                    setattr(changed, name, type(value)(value[number] for number in item.kept))
        built = _built(kind, changed)
        if built is not None and built.keys() == found.keys():
            return changed
    return config


def _choices(
    config: Any,
    slopes: Mapping[tuple[Setting, ...], Mapping[Dimension, float]],
    before: Mapping[Dimension, int],
    wanted: Mapping[Dimension, int],
) -> list[Sequence[int | None]]:
    """List for each setting, or settings together, the values that may be right, the likeliest first.

    Any setting may also change as others do, such as a number of heads that divides a width.
    """
    values = [_get(config, settings[0]) for settings in slopes]
    choices = [
        _values(value, found, before, wanted) for value, found in zip(values, slopes.values(), strict=True)
    ]
    ratios = {
        Fraction(found[0], value)
        for value, found in zip(values, choices, strict=True)
        if value and found[0] and found[0] != value
    }
    for number, (value, found) in enumerate(zip(values, slopes.values(), strict=True)):
        if value and found:
            scaled = [int(value * ratio) for ratio in sorted(ratios) if (value * ratio).denominator == 1]
            choices[number] = list(dict.fromkeys([*choices[number], *scaled]))
    return choices


def _likeliest_first(choices: Sequence[Sequence[int | None]]) -> Iterator[tuple[int | None, ...]]:
    """Combine values, one of each list, those that are near the beginnings of their lists first.

    >>> list(_likeliest_first([[1, 2], [3, 4]]))
    [(1, 3), (1, 4), (2, 3), (2, 4)]
    """
    most = sum(len(values) - 1 for values in choices)
    for rank in range(most + 1):
        for places in _places(tuple(map(len, choices)), rank):
            yield tuple(values[place] for values, place in zip(choices, places, strict=True))


def _places(lengths: tuple[int, ...], rank: int) -> Iterator[tuple[int, ...]]:
    """List the places, one in each of some lists, that add up to a number."""
    if not lengths:
        if rank == 0:
            yield ()
        return
    for place in range(min(rank, lengths[0] - 1) + 1):
        for rest in _places(lengths[1:], rank - place):
            yield place, *rest


def _all_slopes(
    kind: Any, config: Any, before: Mapping[Dimension, int]
) -> dict[tuple[Setting, ...], dict[Dimension, float]]:
    """Find which dimensions follow each setting, or settings of one value together."""
    settings = list(_settings(config))
    found: dict[tuple[Setting, ...], dict[Dimension, float]] = {
        (setting,): _slopes(kind, config, (setting,), before) for setting in settings
    }
    for setting in settings:
        value = _get(config, setting)
        equal = tuple(other for other in settings if _get(config, other) == value)
        if not found[setting,] and value is not None and len(equal) > 1:
            found.setdefault(equal, _slopes(kind, config, equal, before))
    return {together: slopes for together, slopes in found.items() if slopes}


def _config(model: nn.Module) -> Any:
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(model, "save_pretrained"):
        raise UsageError(f"{type(model).__name__} is no network of transformers; save it with sec.save")
    return config


def _dimensions(model: nn.Module) -> dict[Dimension, int]:
    """List the sizes of the tensors that are saved, and the whole numbers among attributes of modules."""
    sizes = {
        (name, dim): size
        for name, tensor in model.state_dict().items()
        for dim, size in enumerate(tensor.shape)
    }
    numbers = {
        (f"{path}.{name}", _ATTRIBUTE): value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, int) and not isinstance(value, bool) and not name.startswith("_")
    }
    return sizes | numbers


def _built(
    kind: Any, config: Any, changes: Mapping[Setting, int | None] | None = None
) -> dict[Dimension, int] | None:
    """Build a network without memory for its weights; ``None`` if its class refuses the config."""
    try:
        with torch.device("meta"), offline(), silent():
            return _dimensions(kind(_with(config, changes or {})))
    except Exception:  # noqa: BLE001  # any check within the class
        return None


def _settings(config: Any) -> Iterator[Setting]:
    """List the settings that are whole numbers or not given, also those of configs within."""
    for name, value in vars(config).items():
        if name.startswith("_"):
            continue
        if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
            yield (name,)
        elif hasattr(value, "to_dict"):
            for inner in _settings(value):
                yield (name, *inner)


def _get(config: Any, setting: Setting) -> int | None:
    for name in setting:
        config = getattr(config, name)
    return config  # type: ignore[no-any-return]


def _with(config: Any, values: Mapping[Setting, int | None]) -> Any:
    """Copy a config with some settings changed."""
    changed = deepcopy(config)
    for (*path, name), value in values.items():
        holder = changed
        for part in path:
            holder = getattr(holder, part)
        setattr(holder, name, value)
    return changed


def _slopes(
    kind: Any, config: Any, settings: tuple[Setting, ...], before: Mapping[Dimension, int]
) -> dict[Dimension, float]:
    """Find the dimensions that follow settings of one value, and how much each grows when they grow by one.

    A setting that is not given stands for a number that others give: a dimension that follows it equals it.
    """
    value = _get(config, settings[0])
    for other in (_PROBE,) if value is None else (2 * value, 3 * value, value // 2):
        after = _built(kind, config, dict.fromkeys(settings, other)) if other else None
        if after is not None and after.keys() == before.keys():
            changed = {dimension: size for dimension, size in after.items() if size != before[dimension]}
            if value is None:
                return {dimension: 1.0 for dimension, size in changed.items() if size == _PROBE}
            return {
                dimension: (size - before[dimension]) / (other - value) for dimension, size in changed.items()
            }
    return {}


def _values(
    value: int | None,
    slopes: Mapping[Dimension, float],
    before: Mapping[Dimension, int],
    wanted: Mapping[Dimension, int],
) -> Sequence[int | None]:
    """Return candidate values of a setting, the one that matches most tensor dimensions first."""
    explained: dict[int | None, int] = {value: 0}
    for dimension, slope in slopes.items():
        if dimension not in wanted or wanted[dimension] == before[dimension]:
            explained[value] += dimension in wanted
            continue
        found = (
            wanted[dimension] if value is None else value + (wanted[dimension] - before[dimension]) / slope
        )
        if found >= 1 and float(found).is_integer():
            explained[int(found)] = explained.get(int(found), 0) + 1
    return sorted(explained, key=lambda found: -explained[found])[:4]


def _no_config(
    kind: type,
    slopes: Mapping[tuple[Setting, ...], Mapping[Dimension, float]],
    before: Mapping[Dimension, int],
    wanted: Mapping[Dimension, int],
) -> str:
    """Return which widths no config describes, and what to do."""
    followed = {dimension for found in slopes.values() for dimension in found}
    loose = [
        dimension
        for dimension in wanted
        if wanted[dimension] != before[dimension] and dimension not in followed
    ]
    name, dim = next(iter(loose), next(item for item in wanted if wanted[item] != before[item]))
    place = "" if dim == _ATTRIBUTE else f" in dimension {dim}"
    example = f"{name} is {wanted[name, dim]}{place}, where the config says {before[name, dim]}"
    why = (
        "no setting changes this dimension"
        if loose
        else "widths differ between layers, or follow from each other: make the plan with "
        "Widths(uniform_widths=True), and leave out of it (widths.ignore) what the config cannot describe"
    )
    return (
        f"no config of {kind.__name__} describes these widths ({example}): {why}. sec.save keeps any widths; "
        "sec.load opens that file"
    )
