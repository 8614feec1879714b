from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from secateur.errors import CheckpointError
from secateur.models import LoadedWeights, load_weights


class Net(nn.Module):
    def __init__(self, classes=4, tie=False):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
        self.classifier = nn.Linear(6, classes)
        if tie:
            self.again = nn.Linear(6, classes)
            self.again.weight = self.classifier.weight


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "best_prec1": 91.0},
        lambda state: {"epoch": 3, "model": {f"module.{name}": t for name, t in state.items()}},
        lambda state: OrderedDict((f"_orig_mod.module.{name}", t) for name, t in state.items()),
        lambda state: {name: t.double() for name, t in state.items()},
    ],
)
def test_files_of_training_scripts(tmp_path, wrap):
    source, model = Net().state_dict(), Net()
    path = tmp_path / "weights.pth"
    torch.save(wrap(source), path)
    report = load_weights(model, path)
    assert same(model.state_dict(), source)
    assert report == LoadedWeights(tuple(source), (), (), ())
    assert str(report) == "9 tensors loaded"


def test_safetensors(tmp_path):
    source, model = Net().state_dict(), Net()
    save_file(source, tmp_path / "weights.safetensors")
    load_weights(model, str(tmp_path / "weights.safetensors"))
    assert same(model.state_dict(), source)


def test_another_classifier_stays_fresh():
    source, model = Net(classes=10).state_dict(), Net(classes=4)
    before = model.classifier.weight.clone()
    report = load_weights(model, source)
    assert report.unfitting == ("classifier.weight", "classifier.bias")
    assert str(report) == "7 tensors loaded; classifier.weight, classifier.bias are new"
    assert torch.equal(model.classifier.weight, before)
    assert torch.equal(model.features[0].weight, source["features.0.weight"])


def test_missing_and_unexpected_tensors_are_named():
    source = Net().state_dict()
    del source["classifier.weight"], source["classifier.bias"], source["features.1.num_batches_tracked"]
    source |= {"aux.weight": torch.zeros(1), "aux.bias": torch.zeros(1)}
    report = load_weights(Net(), source)
    assert report.missing == ("classifier.weight", "classifier.bias")
    assert report.unexpected == ("aux.weight", "aux.bias")
    assert str(report) == (
        "6 tensors loaded; classifier.weight, classifier.bias are new; "
        "aux.weight, aux.bias of the file not used"
    )


def test_many_names_are_cut_short():
    report = LoadedWeights(("a",), tuple("bcdefg"), (), ())
    assert str(report) == "1 tensor loaded; b, c, d, e and 2 more are new"


def test_a_tied_tensor_is_filled_by_either_name():
    source, model = Net().state_dict(), Net(tie=True)
    assert load_weights(model, source).missing == ("again.bias",)
    assert torch.equal(model.again.weight, source["classifier.weight"])


def test_a_network_whose_own_names_begin_like_a_wrapper():
    source, model = nn.ModuleDict({"model": nn.Linear(2, 3)}), nn.ModuleDict({"model": nn.Linear(2, 3)})
    load_weights(model, source.state_dict())
    assert same(model.state_dict(), source.state_dict())


def test_weights_of_another_network_are_refused():
    with pytest.raises(CheckpointError, match="nothing in the weights fits Net: it has weight, bias"):
        load_weights(Net(), nn.Linear(3, 3).state_dict())


@pytest.mark.parametrize("data", [{}, [1, 2], {"epoch": 3}, {"state_dict": {}}, torch.zeros(3)])
def test_files_without_tensors_by_name(tmp_path, data):
    path = tmp_path / "weights.pt"
    torch.save(data, path)
    with pytest.raises(CheckpointError, match="save model.state_dict"):
        load_weights(Net(), path)


def test_a_pickled_network_is_refused(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(Net(), path)
    with pytest.raises(CheckpointError, match="save model.state_dict"):
        load_weights(Net(), path)


def test_absent_file(tmp_path):
    with pytest.raises(CheckpointError, match="no weights file"):
        load_weights(Net(), tmp_path / "absent.pth")


@settings(max_examples=40)
@given(data=st.data(), suffix=st.sampled_from([".pth", ".safetensors"]))
def test_damaged_files_give_one_clear_error_or_load(tmp_path_factory, data, suffix):
    path = tmp_path_factory.mktemp("damaged") / f"weights{suffix}"
    state = {"weight": torch.ones(2, 2), "bias": torch.ones(2)}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    damaged = bytearray(path.read_bytes())
    if data.draw(st.booleans(), label="truncate"):
        damaged = damaged[: data.draw(st.integers(0, len(damaged) - 1), label="length")]
    else:
        damaged[data.draw(st.integers(0, len(damaged) - 1), label="place")] ^= 1 << data.draw(
            st.integers(0, 7)
        )
    path.write_bytes(damaged)
    try:
        load_weights(nn.Linear(2, 2), path)
    except CheckpointError as error:
        assert "\n" not in str(error)
