from __future__ import annotations

import copy
import json
import stat

import pytest
import torch
from safetensors import safe_open
from torch import nn

from secateur.checkpoint import load, read_metadata, save, structure
from secateur.errors import CheckpointError, UsageError
from secateur.graph import trace
from secateur.models import InputSpec, ModelSpec, build
from secateur.plan import plan_from
from secateur.surgery import apply_plan
from tests.checkpoint.nets import Net, cut_by_hand, trained


def assert_same(a: nn.Module, b: nn.Module) -> None:
    """Equal bit for bit: tensors with their types, ties and flags, attributes, and behaviour."""
    ours, theirs = structure.tensors(a), structure.tensors(b)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
        assert ours[name].dtype == theirs[name].dtype
        assert ours[name].requires_grad == theirs[name].requires_grad
        assert isinstance(ours[name], nn.Parameter) == isinstance(theirs[name], nn.Parameter)
    names = list(ours)
    assert [[ours[m] is ours[n] for m in names] for n in names] == [
        [theirs[m] is theirs[n] for m in names] for n in names
    ]
    assert structure.transient_buffers(a) == structure.transient_buffers(b)
    assert structure.plain_attributes(a) == structure.plain_attributes(b)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "small.safetensors"


def pruned_by_hand():
    return trained(cut_by_hand(Net(), [0, 3, 4, 7]))


def test_into_a_users_own_class(path):
    model = pruned_by_hand()
    model.conv.weight.requires_grad_(False)
    save(path, model)
    mine = Net()
    again = load(path, model=mine)
    assert again is mine
    assert not again.training
    assert_same(again, model)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(again(x), model(x))
    # It is a network like any other: it trains, and can be saved again.
    again.train()(x).sum().backward()
    assert again.fc.weight.grad is not None
    assert again.conv.weight.grad is None


def test_from_its_builder_alone(path):
    model = build("secateur:resnet20", classes=7)
    torch.manual_seed(5)
    stream = model.layer1[0]
    keep = [1, 2, 5]
    stream.conv1.weight = nn.Parameter(stream.conv1.weight[keep].detach())
    for name in ("weight", "bias"):
        setattr(stream.bn1, name, nn.Parameter(getattr(stream.bn1, name)[keep].detach()))
    stream.bn1.running_mean, stream.bn1.running_var = torch.zeros(3), torch.ones(3)
    stream.conv2.weight = nn.Parameter(stream.conv2.weight[:, keep].detach())
    stream.conv1.out_channels = stream.bn1.num_features = stream.conv2.in_channels = 3
    save(path, trained(model), builder=ModelSpec.parse("secateur:resnet20", classes=7))
    again = load(path)
    assert_same(again, model)
    assert again.layer1[0].conv1.out_channels == 3
    assert torch.equal(again(x := torch.randn(2, 3, 32, 32)), model(x))
    # Only what differs is written down.
    assert read_metadata(path).attributes == {
        "layer1.0.conv1": {"out_channels": 3},
        "layer1.0.bn1": {"num_features": 3},
        "layer1.0.conv2": {"in_channels": 3},
    }


def test_after_the_engine_has_cut_a_padded_residual_stream(path):
    model = trained(build("secateur:resnet20"))
    inputs = torch.randn(2, 3, 32, 32)
    plan = plan_from(
        trace(model, inputs), {"conv1": [2, 3], "layer1.0.conv1": [5], "layer2.0.conv2": [0, 1, 2, 15]}
    )
    small = apply_plan(model, plan)
    save(path, small, builder="secateur:resnet20")
    again = load(path)
    assert_same(again, small)
    assert torch.equal(again(inputs), small.eval()(inputs))
    assert read_metadata(path).attributes["layer2.0.shortcut"] == {"before": 5}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("torchvision:squeezenet1_1", {}),
        ("torchvision:googlenet", {}),
        ("torchvision:shufflenet_v2_x0_5", {}),
        ("torchvision:regnet_y_400mf", {}),  # cannot be built without storage
        ("torchvision:swin_v2_t", {}),
        ("timm:efficientvit_b0", {}),
        ("timm:vit_tiny_patch16_224", {"img_size": 32}),
    ],
)
def test_networks_of_all_origins(path, name, arguments):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    spec = ModelSpec.parse(name, classes=3, **arguments)
    model = spec.build()
    save(path, model, builder=spec)
    assert read_metadata(path).attributes == {}
    assert_same(load(path), model)


def test_other_precisions(path):
    model = build("secateur:digits").to(torch.bfloat16)
    save(path, model, builder="secateur:digits")
    assert_same(load(path), model)
    assert load(path).features[1].num_batches_tracked.dtype == torch.int64


def test_a_bias_that_the_builder_does_not_give(path):
    model = build("secateur:digits")
    model.features[0].bias = nn.Parameter(torch.randn(32))
    save(path, model, builder="secateur:digits")
    assert_same(load(path), model)


def test_fewer_classes_need_no_argument(path):
    model = build("secateur:resnet20", classes=4)
    save(path, model, builder="secateur:resnet20")
    assert load(path).linear.out_features == 4


def test_tensors_that_share_memory_without_being_the_same(path):
    model = nn.Module()
    model.register_buffer("whole", torch.arange(6.0))
    model.register_buffer("part", model.whole[2:4])
    save(path, model)
    blank = nn.Module()
    blank.register_buffer("whole", torch.zeros(6))
    blank.register_buffer("part", torch.zeros(2))
    assert_same(load(path, model=blank), model)


def test_transient_buffers_need_not_match(path):
    model = pruned_by_hand()
    model.register_buffer("cache", torch.ones(3), persistent=False)  # as on a first forward pass
    save(path, model)
    again = load(path, model=Net())
    assert not hasattr(again, "cache")
    assert torch.equal(again.attention.ramp, model.attention.ramp)


class Cached(nn.Module):
    """Keeps a tensor that is neither parameter nor buffer."""

    def __init__(self):
        super().__init__()
        self.scale = torch.tensor(2.0)
        self.linear = nn.Linear(2, 2)


def test_networks_with_loose_tensors_are_built_in_full(monkeypatch, path):
    monkeypatch.setattr("secateur.models.families._BUILTIN", {"digits": (lambda **_: Cached(), InputSpec())})
    save(path, Cached(), builder="secateur:digits")
    again = load(path)
    assert again.scale.item() == 2.0
    assert not any(t.is_meta for t in structure.tensors(again).values())


def test_loading_leaves_random_numbers_as_they_were(path):
    save(path, build("torchvision:regnet_y_400mf"), builder="torchvision:regnet_y_400mf")
    state = torch.get_rng_state()
    load(path)
    assert torch.equal(torch.get_rng_state(), state)


def test_saving_leaves_the_network_as_it_was(path):
    model = pruned_by_hand().train()
    before = copy.deepcopy(model)
    save(path, model)
    assert_same(model, before)
    assert model.training


def test_metadata(path):
    history = [{"criterion": "taylor", "keep": {"conv": [0, 2]}}]
    save(
        path,
        build("secateur:digits", classes=2),
        builder=ModelSpec.parse("secateur:digits", classes=2),
        classes=("cats", "dogs"),
        metrics={"top1": 0.95, "macs": 123456789012},
        history=history,
    )
    metadata = read_metadata(path)
    assert metadata.builder == ModelSpec("secateur:digits", {"num_classes": 2})
    assert metadata.input == InputSpec((1, 8, 8), (0.305,), (0.376,))
    assert metadata.classes == ("cats", "dogs")
    assert metadata.metrics == {"top1": 0.95, "macs": 123456789012}
    assert metadata.history == tuple(history)
    with safe_open(path, "pt") as file:  # any reader of the format can see it
        assert json.loads(file.metadata()["secateur"])["format"] == 4


def test_metadata_without_a_builder(path):
    save(path, nn.Linear(4, 2), input_size=(4,))
    assert read_metadata(path).input_size == (4,)
    assert read_metadata(path).input is None
    save(path, nn.Linear(4, 2), input_size=(1, 2, 2), normalization=([0.5], [2]))
    assert read_metadata(path).input == InputSpec((1, 2, 2), (0.5,), (2.0,))


def test_the_file_can_be_read_by_others_and_stands_alone(path):
    save(path, nn.Linear(2, 2))
    (path.parent / "usual").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((path.parent / "usual").stat().st_mode)
    assert sorted(p.name for p in path.parent.iterdir()) == ["small.safetensors", "usual"]


# What cannot be saved.


def test_another_network_than_the_builders(path):
    with pytest.raises(CheckpointError, match="resnet18 builds no network that this one is a part of"):
        save(path, nn.Linear(2, 2), builder="resnet18")
    assert not path.exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"metrics": {"loss": float("nan")}},
        {"history": [torch.zeros(2)]},
        {"metrics": {"plan": {1, 2}}},
        {"normalization": ((0.5,),)},
        {"builder": "resnet19"},
    ],
)
def test_wrong_arguments(path, settings):
    with pytest.raises(UsageError):
        save(path, nn.Linear(2, 2), **settings)
    assert not path.exists()


def test_a_network_without_values(path):
    with pytest.raises(CheckpointError, match="weight is on the meta device and has no values"):
        save(path, nn.Linear(2, 2, device="meta"))


def test_an_absent_folder(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be written: No such file or directory"):
        save(tmp_path / "absent" / "a.safetensors", nn.Linear(2, 2))


def test_on_a_full_disk_the_old_file_survives(path):
    resource = pytest.importorskip("resource")
    save(path, nn.Linear(2, 2), metrics={"which": "old"})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="cannot be written"):
            save(path, nn.Linear(200, 200), metrics={"which": "new"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_metadata(path).metrics == {"which": "old"}
    load(path, model=nn.Linear(2, 2))
    assert list(path.parent.iterdir()) == [path]
