from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur as sec
from secateur.errors import CheckpointError, ExportError
from secateur.export import export
from secateur.export import run as export_run
from secateur.runtimes import open_exported
from tests.export.conftest import CLASSES

FORMATS = ("onnx", "pt2")


def by_its_own_runtime(path: Path, x: torch.Tensor) -> tuple[torch.Tensor, str]:
    """What a file answers, and its metadata, without any of our code."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        [output] = session.run(["output"], {"input": x.numpy()})
        return torch.from_numpy(output), session.get_modelmeta().custom_metadata_map["secateur"]
    extra = {"secateur.json": ""}
    program = torch.export.load(path, extra_files=extra)
    return program.module()(x), extra["secateur.json"]


@pytest.mark.filterwarnings("ignore::FutureWarning:copyreg")
@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_answers_as_the_network_does_for_any_batch_size(exported, pruned, kind):
    done = exported(kind)
    assert done.check.ok
    assert done.check.max_error <= 1e-5
    assert done.check.batches == (1, 3, 8)
    assert done.check.agreement == 1.0
    for batch in (1, 5):
        x = torch.randn(batch, 1, 8, 8)
        found, _ = by_its_own_runtime(done.path, x)
        torch.testing.assert_close(found, pruned(x), rtol=1e-4, atol=1e-5, check_device=False)


@pytest.mark.filterwarnings("ignore::FutureWarning:copyreg")
@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_says_how_images_are_prepared(exported, spec, pruned, kind):
    done = exported(kind)
    _, text = by_its_own_runtime(done.path, torch.zeros(1, 1, 8, 8))
    given = json.loads(text)
    assert given["network"] == "secateur:digits"
    assert tuple(given["classes"]) == CLASSES
    assert given["preprocessing"]["mean"] == list(spec.input.mean)
    assert given["preprocessing"]["std"] == list(spec.input.std)
    steps = {step.pop("step"): step for step in given["preprocessing"]["steps"]}
    assert steps["colour"] == {"to": "grey"}
    assert steps["resize"]["shorter_side"] == 8
    assert steps["crop"] == {"from": "centre", "height": 8, "width": 8}
    needs = sec.cost(pruned, torch.zeros(1, 1, 8, 8))
    assert (given["params"], given["macs"]) == (needs.params, needs.macs)
    assert open_exported(done.path, trusted=True).metadata == done.metadata


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_tells_nothing_of_the_machine(exported, kind):
    data = exported(kind).path.read_bytes()
    source = Path(sec.__file__).parent
    for word in (str(source), "site-packages", "digits.py", str(Path.home()) + os.sep, str(Path.cwd())):
        assert word.encode() not in data
    assert str(exported(kind).path.parent).encode() not in data


@pytest.mark.parametrize(
    ("kind", "weights_as", "share", "error"),
    [
        ("onnx", "float16", 0.55, 1e-3),
        ("onnx", "int8", 0.4, 0.2),
        ("pt2", "bfloat16", 0.75, 1e-2),
    ],
)
def test_fewer_bits_make_smaller_files_that_are_near(exported, kind, weights_as, share, error):
    done, whole = exported(kind, weights_as), exported(kind)
    assert done.bytes < share * whole.bytes
    assert 0 < done.check.max_error < error
    assert done.check.agreement >= 0.75
    assert open_exported(done.path, trusted=True).metadata.weights == weights_as
    assert "is near" in str(done)


def test_the_network_is_left_as_it_was(pruned, tmp_path):
    pruned.train()
    before = {name: tensor.clone() for name, tensor in pruned.state_dict().items()}
    export(tmp_path / "a.pt2", pruned, torch.zeros(2, 1, 8, 8), weights_as="float16")
    assert all(module.training for module in pruned.modules())
    pruned.eval()
    assert all(torch.equal(tensor, before[name]) for name, tensor in pruned.state_dict().items())
    assert {path.name for path in tmp_path.iterdir()} == {"a.pt2"}


@pytest.mark.parametrize("suffix", [".pt2", pytest.param(".onnx", marks=pytest.mark.slow)])
def test_a_network_that_was_exported_can_still_be_cut_in_place(tmp_path, suffix):
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    x = torch.zeros(8, 3)[::4]
    plan = sec.plan_from(sec.trace(net, torch.zeros(2, 3)), {"0": [1, 5]})
    expected = sec.apply_plan(net, plan)(torch.ones(1, 3))
    done = export(tmp_path / f"net{suffix}", net, x)
    sec.apply_plan(net, plan, inplace=True)
    assert net[0].out_features == 4
    torch.testing.assert_close(net(torch.ones(1, 3)), expected)
    assert done.metadata.params == 3 * 6 + 6 + 6 * 2 + 2


class Pair(nn.Module):
    """Two inputs, and two outputs in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(5, 4)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor | None]:
        a, b = self.one(a), self.two(b)
        return {"sum": a + b, "nothing": None, "product": (a * b).sum(1)}


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_several_inputs_and_outputs(tmp_path, suffix):
    net, inputs = Pair(), (torch.randn(1, 3), torch.randn(1, 5))
    done = export(tmp_path / f"pair{suffix}", net, inputs)
    assert done.check.agreement is not None
    a, b = torch.randn(6, 3), torch.randn(6, 5)
    found = open_exported(done.path, trusted=True)(a, b)
    expected = net(a, b)
    torch.testing.assert_close(found[0], expected["sum"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], expected["product"], rtol=1e-4, atol=1e-5)
    with pytest.raises(sec.UsageError, match="takes inputs of 3 and 5 after the batch, not 5 and 3"):
        open_exported(done.path, trusted=True)(b, a)


class Fixed(nn.Module):
    def forward(self, x):
        return x.reshape(2, -1)


class Text(nn.Module):
    def forward(self, x):
        return "no tensor"


class Fickle(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("net", "inputs", "options", "kind", "message"),
    [
        (Pair(), {"a": torch.zeros(2, 3), "b": 5}, {}, sec.UsageError, "takes tensors"),
        (Pair(), (torch.zeros(2, 3), torch.zeros(4, 5)), {}, sec.UsageError, "batch as its first dimension"),
        (Text(), torch.zeros(2, 3), {}, sec.UsageError, "this one returns str"),
        (Fixed(), torch.zeros(2, 3), {}, ExportError, "fixes the batch size|cannot be captured"),
        (Fickle(), torch.zeros(2, 3), {}, ExportError, "branches on the values of a tensor"),
        (nn.Linear(3, 2), torch.zeros(2, 3), {"format": "tflite"}, sec.UsageError, "no format 'tflite'"),
        (
            nn.Linear(3, 2),
            torch.zeros(2, 3),
            {"format": "onnx"},
            sec.UsageError,
            "files of onnx end in .onnx",
        ),
        (nn.Linear(3, 2), torch.zeros(2, 3), {"weights_as": "int4"}, sec.UsageError, "not as 'int4'"),
        (nn.Linear(3, 2), torch.zeros(2, 3), {"weights_as": "int8"}, sec.UsageError, "needs calibration"),
        (
            nn.Linear(3, 2),
            torch.zeros(2, 3),
            {"weights_as": "int8", "calibration": [torch.zeros(2, 3)]},
            sec.UsageError,
            "int8 is for onnx",
        ),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(tmp_path, net, inputs, options, kind, message):
    with pytest.raises(kind, match=message) as caught:
        export(tmp_path / "net.pt2", net, inputs, **options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written(tmp_path):
    net, x = nn.Linear(3, 2), torch.zeros(2, 3)
    with pytest.raises(sec.UsageError, match="there is no folder"):
        export(tmp_path / "absent" / "net.pt2", net, x)
    with pytest.raises(sec.UsageError, match=r"end its name in \.onnx, \.pt2"):
        export(tmp_path / "net.h5", net, x)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that not even root can write to")
def test_a_folder_that_refuses_is_an_error_of_the_system():
    with pytest.raises(OSError, match="/proc"):
        export("/proc/net.pt2", nn.Linear(3, 2), torch.zeros(2, 3))


def test_a_file_that_computes_something_else_does_not_stay(tmp_path, monkeypatch):
    net, x = nn.Linear(3, 2), torch.zeros(2, 3)
    write = export_run._WRITERS["pt2"]

    def wrongly(path, exportable, metadata, calibration):
        with torch.no_grad():
            exportable.model.bias += 0.1
        write(path, exportable, metadata, calibration)
        with torch.no_grad():
            exportable.model.bias -= 0.1

    monkeypatch.setitem(export_run._WRITERS, "pt2", wrongly)
    file = tmp_path / "net.pt2"
    file.write_text("an earlier one")
    with pytest.raises(sec.VerificationError, match="DIFFERS FROM"):
        export(file, net.eval(), x)
    assert file.read_text() == "an earlier one"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_does_not_run_does_not_stay(tmp_path, monkeypatch):
    write = export_run._WRITERS["pt2"]

    def narrower(path, exportable, metadata, calibration):
        other = type(exportable)(nn.Linear(4, 2).eval(), (torch.zeros(2, 4),), exportable.arguments, 1)
        write(path, other, metadata, calibration)

    monkeypatch.setitem(export_run._WRITERS, "pt2", narrower)
    with pytest.raises(sec.VerificationError, match="cannot run it on a batch of 1"):
        export(tmp_path / "net.pt2", nn.Linear(3, 2), torch.zeros(2, 3))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", ["onnx", "onnxscript"])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        sec.UsageError, match=rf"^{module} is not installed: pip install 'torch-secateur\[onnx\]'$"
    ):
        export(tmp_path / "net.onnx", nn.Linear(3, 2), torch.zeros(2, 3))
    assert not list(tmp_path.iterdir())


def test_drawn_inputs_are_in_the_range_of_normalised_images():
    from secateur.export.check import drawn
    from secateur.export.program import Exportable
    from secateur.models import InputSpec

    spec = InputSpec((3, 4, 4), (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    exportable = Exportable.of(nn.Flatten(), torch.zeros(2, 3, 4, 4))
    [x] = drawn(exportable, spec, 50)
    low = [(0 - m) / s for m, s in zip(spec.mean, spec.std, strict=True)]
    high = [(1 - m) / s for m, s in zip(spec.mean, spec.std, strict=True)]
    found = x.transpose(0, 1).flatten(1)
    assert (found.amin(1) >= torch.tensor(low) - 1e-5).all()
    assert (found.amax(1) <= torch.tensor(high) + 1e-5).all()
    np.testing.assert_allclose(found.mean(1), [0.0, 0.5, 0.2 / 0.3], atol=0.2)


@pytest.mark.parametrize("kind", FORMATS)
def test_files_that_are_cut_short_are_refused(exported, tmp_path, kind):
    whole = exported(kind).path
    file, data = tmp_path / whole.name, whole.read_bytes()
    for share in (0.2, 0.9):
        file.write_bytes(data[: int(share * len(data))])
        with pytest.raises(CheckpointError, match="cannot be opened") as caught:
            open_exported(file, trusted=True)
        assert "\n" not in str(caught.value)


def test_the_example_inputs_are_not_written(tmp_path):
    done = export(tmp_path / "net.pt2", nn.Linear(3, 2), torch.zeros(2, 3))
    assert torch.export.load(done.path).example_inputs is None


def test_a_program_is_unpickled_only_on_request(exported, monkeypatch):
    path = exported("pt2").path
    monkeypatch.setattr(torch.export, "load", None)
    with pytest.raises(sec.UsageError, match="can run any code .* give trusted=True, or --trusted"):
        open_exported(path)


def test_openvino_reads_the_onnx_file(exported, pruned):
    openvino = pytest.importorskip("openvino")
    model = openvino.Core().compile_model(exported("onnx").path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    x = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(torch.from_numpy(model(x.numpy())[0]), pruned(x), rtol=1e-4, atol=1e-5)


class Windows(nn.Module):
    """Attention over windows and heads: five dimensions."""

    def __init__(self, masked: bool, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.project = nn.Linear(8, 24)
        self.mask = torch.arange(16).view(4, 4) % 3 < 2 if masked else None

    def forward(self, x: Tensor) -> Tensor:
        parts = self.project(x).view(-1, 2, 4, 3, 2, 4).permute(3, 0, 1, 4, 2, 5)
        return nn.functional.scaled_dot_product_attention(
            parts[0], parts[1], parts[2], attn_mask=self.mask, is_causal=self.causal, scale=0.3
        )


@pytest.mark.parametrize(("masked", "causal"), [(False, False), (True, False), (False, True)])
def test_attention_over_five_dimensions_is_written_as_onnx(tmp_path, masked, causal):
    done = export(tmp_path / "windows.onnx", Windows(masked, causal).eval(), torch.randn(2, 8, 8))
    assert done.check.max_error < 1e-5


class Keeps(nn.Module):
    """Keeps a table that it computes in its first forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.kept is None or self.kept.shape[-1] != y.shape[-1]:
            self.kept = torch.linspace(0.5, 1, y.shape[-1])
        return y * self.kept


@pytest.mark.filterwarnings("ignore::FutureWarning:copyreg")
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_network_that_keeps_what_it_computes_is_exported(tmp_path, suffix):
    net, x = Keeps().eval(), torch.randn(2, 1, 8, 8)
    done = export(tmp_path / f"net{suffix}", net, x)
    assert done.check.ok
    assert net.kept is None
    torch.testing.assert_close(by_its_own_runtime(done.path, x)[0], net(x), rtol=1e-4, atol=1e-5)
