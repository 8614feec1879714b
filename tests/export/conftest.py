from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import secateur as sec
from secateur.export import Exported
from secateur.export import export as write
from secateur.models import ModelSpec

SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2"}
CLASSES = tuple(f'zéro "{number}" & <{number}>' for number in range(10))


@pytest.fixture(scope="session")
def pruned() -> nn.Module:
    """The network for digits, cut to a third of its MACs, its normalisations set by some inputs."""
    torch.manual_seed(0)
    net = sec.build("secateur:digits")
    for _ in range(5):
        net(torch.rand(32, 1, 8, 8) * 3)
    return sec.prune(net, torch.zeros(2, 1, 8, 8), sec.Budget(macs=0.3), "magnitude").model.eval()


@pytest.fixture(scope="session")
def spec() -> ModelSpec:
    return ModelSpec.parse("secateur:digits")


@pytest.fixture(scope="session")
def exported(
    pruned: nn.Module, spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Exported]:
    """Exports the pruned network once in every format and kind of weights that is asked for."""
    folder = tmp_path_factory.mktemp("exported")
    done: dict[tuple[str, str], Exported] = {}

    def export(format: str, weights_as: str = "float32") -> Exported:  # noqa: A002
        if (format, weights_as) not in done:
            draw = torch.Generator().manual_seed(1)
            batches = [torch.rand(16, 1, 8, 8, generator=draw) for _ in range(4)]
            done[format, weights_as] = write(
                folder / f"{weights_as}{SUFFIXES[format]}",
                pruned,
                torch.zeros(2, 1, 8, 8),
                weights_as=weights_as,
                calibration=batches if weights_as == "int8" else None,
                pictures=spec.input,
                classes=CLASSES,
                network=spec.name,
            )
        return done[format, weights_as]

    return export
