from __future__ import annotations

import json
import sys
from urllib.error import URLError

import pytest
import torch
from torch import nn

from secateur._torchvision import torchvision
from secateur.errors import CheckpointError, UsageError
from secateur.models import InputSpec, ModelSpec, build
from secateur.models.families import FAMILIES

USER_FILE = """
from dataclasses import dataclass
from torch import nn
from neighbour import WIDTH

@dataclass
class Widths:
    hidden: int = WIDTH

def network(num_classes=7):
    width = Widths().hidden
    return nn.Sequential(nn.Flatten(), nn.Linear(12, width), nn.Linear(width, num_classes))

def fixed():
    return nn.Linear(12, 5)

def number():
    return 3

def picky(width: int):
    return nn.Linear(width, width)
"""


@pytest.fixture
def user_file(tmp_path):
    (tmp_path / "neighbour.py").write_text("WIDTH = 4\n")
    path = tmp_path / "mine.py"
    path.write_text(USER_FILE)
    yield path
    sys.modules.pop("neighbour", None)


def outputs(model, spec):
    return model.eval()(spec.input.example(batch=2)).shape


@pytest.mark.parametrize("text", ["secateur:digits", "secateur:resnet20", "torchvision:squeezenet1_1"])
def test_classes_become_outputs(text):
    spec = ModelSpec.parse(text, classes=3)
    assert outputs(spec.build(), spec) == (2, 3)
    assert outputs(build(text, classes=3), spec) == (2, 3)


def test_a_bare_name_is_torchvisions():
    assert ModelSpec.parse("alexnet").name == "torchvision:alexnet"
    assert isinstance(build("alexnet", classes=2), torchvision.models.AlexNet)


def test_timm():
    pytest.importorskip("timm")
    spec = ModelSpec.parse("timm:resnet18.a1_in1k", classes=3, in_chans=1)
    assert spec.input == InputSpec((1, 224, 224), (0.5,), (0.5,))
    assert spec.build().fc.out_features == 3
    with pytest.raises(UsageError, match="no_such_tag"):
        build("timm:resnet18.no_such_tag")


def test_without_timm_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("secateur.integrations.libraries.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'torch-secateur\[timm\]'"):
        build("timm:resnet18")


@pytest.mark.parametrize("name", FAMILIES["torchvision"].names())
def test_every_torchvision_classifier_can_have_other_classes(name):
    spec = ModelSpec.parse(name, classes=3)
    try:
        with torch.device("meta"):
            model = spec.build()
    except UsageError:  # regnets compute with the values of a tensor while they are built
        assert name.startswith("regnet")
        return
    sizes = [m.out_features for m in model.modules() if isinstance(m, nn.Linear)]
    sizes += [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert 3 in sizes
    assert 1000 not in sizes


def test_input_sizes():
    assert ModelSpec.parse("resnet18").input == InputSpec()
    assert ModelSpec.parse("inception_v3").input.size == (3, 299, 299)
    assert ModelSpec.parse("vit_b_16", image_size=64).input.size == (3, 64, 64)
    assert ModelSpec.parse("vit_h_14").input.size == (3, 518, 518)
    assert ModelSpec.parse("efficientnet_v2_l").input.mean == (0.5, 0.5, 0.5)
    assert ModelSpec.parse("secateur:digits").input.size == (1, 8, 8)


def test_inception_still_has_its_auxiliary_head_and_converts_the_usual_normalisation():
    model = build("inception_v3", classes=3)
    assert model.transform_input
    assert model.AuxLogits.fc.out_features == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resnet19", "did you mean 'torchvision:resnet18'"),
        ("ResNet18", "did you mean 'torchvision:resnet18'"),
        ("resnet20", "did you mean 'secateur:resnet20'"),
        ("secateur:resnet21", "did you mean 'secateur:resnet20'"),
        ("hub:resnet18", "choose torchvision, timm, secateur, hf, .* or path/to/file.py:function"),
        ("", "no network ''"),
    ],
)
def test_unknown_names(text, message):
    with pytest.raises(UsageError, match=message):
        build(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 3}, "depth"),
        ({"pretrained": True}, "give weights as weights="),
        ({"weights_backbone": "x"}, "give weights as weights="),
        ({"norm_layer": nn.BatchNorm2d}, "must be a number"),
        ({"classes": 0}, "at least one class"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(UsageError, match=message):
        build("resnet18", **arguments)


def test_arguments_reach_the_builder_and_survive_json():
    spec = ModelSpec.parse("squeezenet1_1", classes=2, dropout=0.25)
    again = ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert again.build().classifier[0].p == 0.25


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        {"name": "torchvision:resnet18"},
        {"name": 3, "arguments": {}},
        {"name": "torchvision:resnet18", "arguments": {}, "code": "print()"},
        {"name": "torchvision:resnet18", "arguments": {"weights": "DEFAULT"}},
        {"name": "torchvision:resnet18", "arguments": {"layers": {"a": 1}}},
        {"name": "os:system", "arguments": {}},
    ],
)
def test_foreign_descriptions_are_refused(data):
    with pytest.raises(UsageError):
        ModelSpec.from_dict(data)


def test_reading_a_description_runs_no_file(tmp_path):
    path = tmp_path / "evil.py"
    path.write_text("raise SystemExit")
    assert ModelSpec.from_dict({"name": f"{path}:network", "arguments": {}}).is_file


def test_function_in_a_file(user_file):
    spec = ModelSpec.parse(f"{user_file}:network", classes=3)
    assert spec.arguments == {"num_classes": 3}
    assert spec.build()[-1].out_features == 3
    assert spec.input == InputSpec()
    # A function that takes no number of classes gets none.
    assert build(f"{user_file}:fixed", classes=3).out_features == 5


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("netwrok", "did you mean 'network'"),
        ("number", "returns a int, not a torch.nn.Module"),
        ("picky", "missing 1 required positional argument"),
    ],
)
def test_wrong_functions_in_a_file(user_file, function, message):
    with pytest.raises(UsageError, match=message):
        build(f"{user_file}:{function}")


def test_wrong_files(tmp_path):
    with pytest.raises(UsageError, match="no file"):
        build(f"{tmp_path}/absent.py:network")
    path = tmp_path / "broken.py"
    path.write_text("import no_such_module\n")
    before = list(sys.path)
    with pytest.raises(UsageError, match="ModuleNotFoundError: No module named 'no_such_module'"):
        build(f"{path}:network")
    assert sys.path == before


def test_default_weights_that_cannot_be_fetched(monkeypatch):
    def unreachable(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(CheckpointError, match=r"torchvision:alexnet cannot be fetched \(no route to host\)"):
        build("alexnet", weights="default")


def test_default_weights_are_loaded_but_for_the_classifier(monkeypatch):
    published = torchvision.models.squeezenet1_1()
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda *a, **k: published.state_dict()
    )
    model = build("squeezenet1_1", classes=2, weights="default")
    torch.testing.assert_close(model.features[0].weight, published.features[0].weight, rtol=0, atol=0)
    assert model.classifier[1].weight.shape[0] == 2


def test_networks_without_published_weights(user_file):
    with pytest.raises(CheckpointError, match="no published weights"):
        build("secateur:resnet20", weights="default")
    with pytest.raises(UsageError, match="no published weights"):
        build(f"{user_file}:network", weights="default")


@pytest.mark.parametrize(
    "settings",
    [{"size": (3, 224)}, {"size": (3, 0, 4)}, {"size": (1, 8, 8)}, {"std": (1.0, 0.0, 1.0)}],
)
def test_input_specification_is_checked(settings):
    with pytest.raises(UsageError):
        InputSpec(**settings)
