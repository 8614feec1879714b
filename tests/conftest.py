from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import nn

from secateur.graph import rules
from secateur.jobs.network_summary import module_times
from secateur.latency import Comparison, compare_latency
from secateur.latency.operator_timer import CACHE
from tests.latency import fake_device

# Time limits on single examples would fail on a busy machine for no fault of the code.
settings.register_profile("secateur", deadline=None, print_blob=True)
settings.load_profile("secateur")

# A test has the same outcome with a GPU in the machine and without; those that need one are asked for.
GPU = "SECATEUR_GPU"
if GPU not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

SECONDS = 0.05
"""The longest that a job of the tests spends on timing a network."""

# pytest-xdist runs one process a core.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _rules_of_its_own() -> Iterator[None]:
    """A rule that a test or a page of the documents registers ends with it."""
    rules.find_rule("aten.relu.default")  # ours are loaded on first use
    before = dict(rules._TABLE)
    yield
    rules._TABLE.clear()
    rules._TABLE.update(before)


@pytest.fixture(autouse=True, scope="session")
def _timings_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests measure on this machine is kept apart from what its user has measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE, str(tmp_path_factory.mktemp("timings")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _few_timed_passes() -> Iterator[None]:
    """Jobs spend seconds on timing a network by default; no test needs times as exact."""

    def compared(models: Mapping[str, nn.Module], inputs: Any, min_seconds: float) -> Comparison:
        return compare_latency(models, inputs, min_seconds=min(min_seconds, SECONDS))

    def timed(models: Sequence[nn.Module], inputs: Any, seconds: float) -> tuple[list[dict[str, float]], int]:
        return module_times(models, inputs, min(seconds, SECONDS))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("secateur.jobs.figures.compare_latency", compared)
        patch.setattr("secateur.jobs.network_summary.module_times", timed)
        yield


@pytest.fixture
def made_up_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A device whose times are a law, instead of this one."""
    monkeypatch.setenv(CACHE, str(tmp_path / "made-up"))
    monkeypatch.setattr("secateur.latency.build.DeviceTimer", lambda *_: fake_device.FakeTimer())
    monkeypatch.setattr("secateur.latency.build.compare_latency", fake_device.compare)
    monkeypatch.setattr("secateur.recipes.latency_tuner.compare_latency", fake_device.compare)
