from __future__ import annotations

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from secateur.checkpoint import load, read_metadata, save
from secateur.checkpoint.checksum import with_checksum
from secateur.checkpoint.metadata import Metadata
from secateur.errors import CheckpointError
from secateur.models import build
from tests.checkpoint.nets import Net, cut_by_hand


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "small.safetensors"
    save(path, cut_by_hand(Net(), [1, 2]))
    return path


@pytest.fixture
def built(tmp_path):
    path = tmp_path / "built.safetensors"
    save(path, build("secateur:digits", classes=3), builder="secateur:digits")
    return path


def error(path, model=None):
    """The one clear line with which a file is refused; the given network must stay as it was."""
    before = copy.deepcopy(model)
    with pytest.raises(CheckpointError) as caught:
        load(path, model=model)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    if model is not None:
        state = before.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
        assert str(model) == str(before)
    return message


def rewrite(path, change=lambda data: None, tensors=lambda tensors: tensors):
    """A forgery: changed contents under a checksum that is right."""
    stored = tensors(load_file(path))
    data = json.loads(metadata_of(path))
    del data["crc32"]
    change(data)
    save_file(stored, path, metadata=with_checksum(json.dumps(data), stored))
    return path


def metadata_of(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()["secateur"]


def test_no_file(tmp_path):
    assert "there is no such file" in error(tmp_path / "absent.safetensors")
    assert "there is no such file" in error(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"hello, this is no checkpoint", b"\0" * 64, b"\xff" * 64])
def test_files_of_another_kind(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    assert "not a safetensors file" in error(path)


@pytest.mark.parametrize("modern", [True, False])
def test_pickles_are_not_opened(tmp_path, modern):
    path = tmp_path / "a.pt"
    torch.save(nn.Linear(2, 2), path, _use_new_zipfile_serialization=modern)
    assert "it is a pickle, which may hold code: give it as weights instead" in error(path)


def test_tensors_that_secateur_did_not_write(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    assert "Secateur did not write it" in error(path)
    save_file({"weight": torch.zeros(2)}, path, metadata={"format": "pt"})
    assert "Secateur did not write it" in error(path)


def test_a_later_format(path):
    message = error(rewrite(path, lambda data: data.update(format=5, surprise=1)), Net())
    assert "written by a newer version of Secateur: upgrade" in message


def test_no_builder(path):
    assert "it names no builder: pass model=" in error(path)


def test_a_builder_that_is_not_known_here(built):
    rewrite(built, lambda data: data["builder"].update(name="torchvision:resnet18000"))
    assert "its network is not known here" in error(built)


def test_a_builder_that_does_not_take_the_arguments(built):
    rewrite(built, lambda data: data["builder"].update(arguments={"num_classes": "many"}))
    assert "its network cannot be built here" in error(built)


def test_a_builder_in_a_file_is_named_but_never_run(tmp_path):
    code = tmp_path / "net.py"
    code.write_text("from torch import nn\ndef net():\n    return nn.Linear(2, 2)\n")
    path = tmp_path / "a.safetensors"
    save(path, nn.Linear(2, 2), builder=f"{code}:net")
    code.write_text("raise SystemExit('run from a checkpoint')\n")
    assert "is code, which is not run: pass model=" in error(path)
    assert read_metadata(path).builder.name == f"{code}:net"
    load(path, model=nn.Linear(2, 2))


def test_another_network(path):
    assert "it lacks bias and 1 more, which Linear has" in error(path, nn.Linear(2, 2))
    assert "it has again.bias and" in error(path, nn.Module())


def test_a_network_that_is_smaller(path):
    model = Net()
    model.conv.weight = nn.Parameter(torch.zeros(1, 3, 3, 3))
    assert "conv.weight has shape (2, 3, 3, 3), which is not a part of (1, 3, 3, 3) in Net" in error(
        path, model
    )


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(2, 3, 3), "conv.weight has shape"),
        (torch.zeros(2, 3, 3, 4), "conv.weight has shape"),
        (torch.zeros(2, 3, 3, 3, dtype=torch.int32), "conv.weight is of type torch.int32"),
    ],
)
def test_forged_tensors(path, tensor, message):
    assert message in error(rewrite(path, tensors=lambda t: {**t, "conv.weight": tensor}), Net())


def test_forged_names(path):
    def renamed(tensors):
        return {("__class__" if name == "conv.weight" else name): tensor for name, tensor in tensors.items()}

    def added(tensors):
        return {**tensors, "__class__": torch.zeros(1)}

    assert "it has __class__, which Net lacks" in error(rewrite(path, tensors=added), Net())
    assert "it lacks conv.weight, which Net has" in error(rewrite(path, tensors=renamed), Net())


@pytest.mark.parametrize(
    ("module", "attribute", "value"),
    [
        ("conv", "forward", 2),
        ("conv", "training", 1),
        ("conv", "training", True),
        ("conv", "_parameters", 2),
        ("conv", "_forward_hooks", None),
        ("conv", "call_super_init.x", 2),
        ("conv", "extra_repr", "text"),
        ("bn", "running_mean", 2),
        ("", "fc", None),
        ("conv", "cache", {"tensor": "absent"}),
        ("conv", "weight", 2),
        ("conv", "__class__", 2),
        ("absent", "x", 2),
    ],
)
def test_forged_attributes(path, module, attribute, value):
    forged = rewrite(path, lambda data: data["attributes"].update({module: {attribute: value}}))
    assert "it sets " in error(forged, Net())


@pytest.mark.parametrize(
    ("aliases", "message"),
    [
        ({"again.weight": "absent"}, "another name of absent, which cannot be"),
        ({"fc.bias": "fc.weight"}, "another name of fc.weight, which cannot be"),
        ({"again.weight": "fc.bias"}, "again.weight has shape (6,)"),
        ({"again.weight": "fc.weight", "bn.bias": "bn.running_mean"}, "which it is not in this network"),
    ],
)
def test_forged_aliases(path, aliases, message):
    def tensors(stored):
        return {name: tensor for name, tensor in stored.items() if name != "bn.bias" or name not in aliases}

    assert message in error(rewrite(path, lambda data: data.update(aliases=aliases), tensors), Net())


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("history"),
        lambda data: data.update(surprise=1),
        lambda data: data.update(format="1"),
        lambda data: data.update(format=True),
        lambda data: data.update(attributes=[]),
        lambda data: data.update(attributes={"conv": 3}),
        lambda data: data.update(attributes={"conv": {"out_channels": 10**20}}),
        lambda data: data.update(attributes={"conv": {"stride": {}}}),
        lambda data: data.update(attributes={"conv": {"stride": {"tuple": 3}}}),
        lambda data: data.update(attributes={"conv": {"stride": {"size": ["x"]}}}),
        lambda data: data.update(attributes={"conv": {"stride": {"dtype": "nn"}}}),
        lambda data: data.update(attributes={"conv": {"stride": {"dtype": "_dynamo"}}}),
        lambda data: data.update(attributes={"conv": {"stride": {"device": "moon"}}}),
        lambda data: data.update(attributes={"conv": {"stride": {"import": "os"}}}),
        lambda data: data.update(attributes={"conv": {"stride": [[[[[[[[[[1]]]]]]]]]]}}),
        lambda data: data.update(aliases={"a": 3}),
        lambda data: data.update(frozen=3),
        lambda data: data.update(transient=[3]),
        lambda data: data.update(input_size=[0, 2]),
        lambda data: data.update(input_size="3,2,2"),
        lambda data: data.update(normalization=[[0.5]]),
        lambda data: data.update(normalization=[[0.5], ["x"]]),
        lambda data: data.update(classes=[1, 2]),
        lambda data: data.update(metrics=[]),
        lambda data: data.update(history={}),
        lambda data: data.update(version=1),
        lambda data: data.update(builder="resnet18"),
    ],
)
def test_forged_descriptions(path, change):
    error(rewrite(path, change), Net())
    with pytest.raises(CheckpointError):
        read_metadata(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "not JSON"),
        ("[" * 40 + "]" * 40, "nested deeper than 32"),
        ('{"a":' * 40 + "1" + "}" * 40, "nested deeper than 32"),
        (" " * (17 << 20), "characters long"),
        ('{"format": NaN}', "not a finite number"),
        ("3", "unknown form"),
        ('{"format": 1', "not JSON"),
    ],
)
def test_descriptions_beyond_all_limits(text, message):
    with pytest.raises(CheckpointError, match=message):
        Metadata.from_json(text)


def small_net():
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A place, a file's content, and the network in it."""
    path = tmp_path_factory.mktemp("damaged") / "a.safetensors"
    model = small_net()
    save(path, model, metrics={"top1": 0.5})
    return path, path.read_bytes(), model


@settings(max_examples=150)
@given(data=st.data())
def test_a_file_that_ends_too_early_is_refused(written, data):
    path, content, _ = written
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    error(path, small_net())


@settings(max_examples=300)
@given(data=st.data())
def test_changed_bytes_are_noticed_or_do_not_matter(written, data):
    path, content, model = written
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3), label="changes")):
        damaged[data.draw(st.integers(0, len(content) - 1), label="place")] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    target = small_net()
    try:
        load(path, model=target)
    except CheckpointError as caught:
        assert "\n" not in str(caught)
    else:
        state = model.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in target.state_dict().items())
