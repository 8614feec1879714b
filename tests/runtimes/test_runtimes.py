from __future__ import annotations

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateur as sec
from secateur.errors import CheckpointError
from secateur.models import InputSpec
from secateur.runtimes import ExportMetadata, is_exported, open_exported, prepare

HAS_COMPILER = any(map(shutil.which, ("g++", "clang++", "c++")))


def small() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))
    return sec.prune(net, torch.zeros(2, 3, 8, 8), sec.Budget(macs=0.5), "magnitude").model.eval()


@pytest.mark.parametrize(("runtime", "tolerance"), [("eager", 0), ("channels-last", 1e-5), ("bf16", 5e-2)])
def test_ways_of_pytorch_compute_the_same(runtime, tolerance):
    net, x = small().train(), torch.randn(4, 3, 8, 8)
    strides = [parameter.stride() for parameter in net.parameters()]
    found = prepare(runtime, net)(x)[0]
    assert net.training
    assert [parameter.stride() for parameter in net.parameters()] == strides
    torch.testing.assert_close(found.float(), net.eval()(x), rtol=tolerance, atol=tolerance)


def test_a_pruned_network_goes_through_dynamo_unchanged():
    net, x = small(), torch.randn(4, 3, 8, 8)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), net(x), rtol=1e-5, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.skipif(
    not HAS_COMPILER, reason="torch.compile needs a C++ compiler on the CPU, and there is none"
)
def test_a_pruned_network_goes_through_torch_compile_unchanged():
    net, x = small(), torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(prepare("compile", net)(x)[0], net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_pruned_network_goes_through_torchao_unchanged():
    quantization = pytest.importorskip("torchao.quantization")
    net, x = small(), torch.randn(4, 3, 8, 8)
    expected, layer = net(x), net[-1]
    quantization.quantize_(net, quantization.Int8WeightOnlyConfig())
    assert type(layer.weight.data) is not torch.Tensor
    assert type(layer.weight).__name__ != "Parameter"
    torch.testing.assert_close(net(x), expected, rtol=0.05, atol=0.02)


def test_an_unknown_way_is_refused():
    with pytest.raises(sec.UsageError, match="choose eager, channels-last, compile, bf16"):
        prepare("tensorrt", nn.Linear(2, 2))


@settings(max_examples=40)
@given(
    st.text(),
    st.sampled_from(["float32", "int8"]),
    st.none() | st.just(InputSpec((1, 5, 7), (0.25,), (0.5,))),
    st.none() | st.lists(st.text(), max_size=3).map(tuple),
    st.none() | st.integers(0, 2**60),
)
def test_metadata_is_read_back(network, weights, images, classes, params):
    metadata = ExportMetadata(network, weights, images, classes, params, macs=None)
    assert metadata.to_json().isascii()
    assert ExportMetadata.from_json(metadata.to_json()) == metadata


@pytest.mark.parametrize(
    "text", [None, "", "{", "[]", "3", "{}", '{"format": 2}', '{"format": 1}', "[" * 100_000, "NaN"]
)
def test_text_that_is_not_metadata_is_none(text):
    assert ExportMetadata.from_json(text) is None


def test_metadata_with_a_wrong_size_is_none():
    text = ExportMetadata("net", images=InputSpec()).to_json()
    assert ExportMetadata.from_json(text.replace("[3, 224, 224]", "[3, 0, 224]")) is None


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_files_that_are_nothing_are_refused_in_one_line(tmp_path, suffix):
    file = tmp_path / f"bad{suffix}"
    with pytest.raises(sec.UsageError, match="does not exist"):
        open_exported(file, trusted=True)
    for content in (b"", b"not a network", b"PK\x03\x04"):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"cannot be opened") as caught:
            open_exported(file, trusted=True)
        assert "\n" not in str(caught.value)


def test_other_files_are_no_exported_ones():
    assert not is_exported("runs/small/checkpoints/best.safetensors")
    with pytest.raises(sec.UsageError, match=r"ends in none of \.onnx, \.pt2"):
        open_exported("net.h5")
