"""The networks that mutants are tried on: small, and between them through every rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.graph import (
    networks,
    operator_networks,
    random_networks,
    test_attention_units,
    test_decoders,
    test_sizes_in_code,
)
from tests.graph.operator_networks import CONTRACTED, FROZEN, STATISTICS
from tests.graph.random_networks import KINDS, Recipe, Step
from tests.graph.trap_networks import TRAPS, TwoInputs
from tests.mutants.more_networks import MORE

Made = tuple[nn.Module, Any]
"""A network in float64 and its example inputs."""

LEFT_OUT = {"spectral norm", "observed while they are rounded"}
"""A network whose own buffers move when it runs in training mode, and one that does not run in float64."""

RANDOM = 20
"""How many random networks there are."""


def names() -> list[str]:
    """The names of all networks."""
    return [name for name in _makers() if name not in LEFT_OUT]


def build(name: str) -> Made:
    """Make a network whose tensors all hold different numbers, always the same ones.

    Numbers that are all different tell which positions of a tensor were cut.
    """
    # A draw of its own for each network, whatever was built before it.
    with torch.random.fork_rng():
        torch.manual_seed(sum(ord(letter) * (place + 1) for place, letter in enumerate(name)))
        model, inputs = _makers()[name]()
        model = model.double().eval()
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point() and (tensor.dim() < 2 or (tensor == tensor.flatten()[0]).all()):
                shift = 0.6 if key.endswith(("weight", "running_var", "scale")) else -0.3
                tensor.copy_(torch.rand_like(tensor) + shift)
    return model, inputs


def _makers() -> dict[str, Callable[[], Made]]:
    makers: dict[str, Callable[[], Made]] = {}
    for name in networks.NAMES:
        makers[name] = lambda name=name: (networks.build(name), _image(2, 3, 8, 8))
    for name, (make, shape, _) in TRAPS.items():
        makers[name] = lambda make=make, shape=shape: (make(), _image(*shape))
    for name, (make, shape) in MORE.items():
        makers[name] = lambda name=name, make=make, shape=shape: (
            make(),
            torch.randint(0, 20, shape) if name.startswith("words") else _image(*shape),
        )
    for name, (make, shape, _) in (
        *CONTRACTED.items(),
        *FROZEN.items(),
        *test_sizes_in_code.NETWORKS.items(),
    ):
        makers.setdefault(name, lambda make=make, shape=shape: (make(), _image(*shape)))
    for name, (make, _) in (*test_attention_units.MODELS.items(), *test_decoders.MODELS.items()):
        inner = make if name in test_decoders.MODELS else lambda make=make: test_decoders.Model(make())
        makers[f"decoder, {name}"] = lambda inner=inner: (
            inner(),
            torch.randint(0, test_decoders.WORDS, (2, 5)),
        )
    for name, (between, shape) in STATISTICS.items():
        makers[name] = lambda between=between, shape=shape: (_over_channels(between, shape), _image(*shape))
    makers["two inputs"] = lambda: (TwoInputs(), {"picture": _image(2, 3, 4, 4), "numbers": _image(2, 5)})
    for number in range(RANDOM):
        makers[f"random {number}"] = lambda number=number: random_networks.build(recipe(number))
    return makers


def _over_channels(between: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> nn.Module:
    around = operator_networks.lines if len(shape) == 2 else operator_networks.pictures
    return around(between)()


def recipe(number: int) -> Recipe:
    """A random recipe: between them the numbers from zero use every kind of block."""
    generator = torch.Generator().manual_seed(number)

    def draw(below: int) -> int:
        return int(torch.randint(below, (), generator=generator))

    kinds = [*KINDS, "add", "concat"]
    order = [kinds[(5 * number + place * 7) % len(kinds)] for place in range(2 + draw(2))]
    steps = tuple(Step(kind, draw(8), draw(8), draw(3)) for kind in order)
    return Recipe((2, 1, 2, 3)[number % 4], steps, flat=number % 3 == 0, seed=number)


def _image(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)
