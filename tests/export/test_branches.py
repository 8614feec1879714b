"""Files of networks that have lost residual branches hold nothing of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

import secateur as sec
from secateur.export import export
from tests.graph.residual_networks import (
    Basic,
    Chain,
    Gated,
    Nested,
    Parallel,
    Whole,
    filled_from,
    randomised,
)
from tests.graph.test_branches import X


def chains() -> tuple[nn.Module, nn.Module]:
    """A cut network, and one whose code has fewer branches."""
    model = randomised(Chain(Basic(6, 5), Whole(6, 4), Parallel(6, 5), Nested(6, 5), Gated(6, 5)))
    graph = sec.trace(model, X)
    names = ["blocks.0", "blocks.1", "blocks.2.right", "blocks.3.inside", "blocks.4"]
    small = sec.apply_plan(model, sec.PruningPlan(graph, {}, names))
    plain = Chain(
        Basic(6, 5, absent=True),
        Whole(6, 4, absent=True),
        Parallel(6, 5, {"right"}),
        Nested(6, 5, {"inner"}),
        Gated(6, 5, absent=True),
    )
    return small, filled_from(plain, model)


def onnx_operators(path: Path) -> Counter[str]:
    import onnx

    return Counter(node.op_type for node in onnx.load(path).graph.node)


def pt2_operators(path: Path) -> Counter[str]:
    program = torch.export.load(path)
    return Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")


@pytest.mark.filterwarnings("ignore::FutureWarning:copyreg")
def test_an_onnx_file_has_the_operators_of_a_network_without_the_branches(tmp_path: Path) -> None:
    small, plain = chains()
    done = export(tmp_path / "small.onnx", small, X)
    assert done.check.ok
    assert done.check.max_error <= 1e-5
    export(tmp_path / "plain.onnx", plain, X)
    assert onnx_operators(tmp_path / "small.onnx") == onnx_operators(tmp_path / "plain.onnx")


@pytest.mark.filterwarnings("ignore::FutureWarning:copyreg")
def test_a_pt2_file_adds_no_zeros(tmp_path: Path) -> None:
    small, plain = chains()
    done = export(tmp_path / "small.pt2", small, X)
    assert done.check.ok
    assert done.check.max_error <= 1e-5
    export(tmp_path / "plain.pt2", plain, X)
    found, expected = pt2_operators(tmp_path / "small.pt2"), pt2_operators(tmp_path / "plain.pt2")
    assert not [name for name in found if "zeros" in name]
    for operator in ("aten.conv2d.default", "aten.add.Tensor", "aten.linear.default"):
        assert found[operator] == expected[operator]
