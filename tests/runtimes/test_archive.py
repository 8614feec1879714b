"""Nothing in a .pt2 file is run, whatever PyTorch's own reader would do with it."""

from __future__ import annotations

import contextlib
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from secateur.errors import CheckpointError
from secateur.export import export
from secateur.runtimes import open_exported

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:copyreg")


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("good") / "net.pt2"
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    export(file, net, torch.zeros(2, 2, 3))
    return file


def changed(good: Path, bad: Path, end: str, change: Callable[[bytes], bytes]) -> Path:
    """A copy of a file with one record changed."""
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(bad, "w") as new:
        names = old.namelist()
        assert sum(name.endswith(end) for name in names) == 1
        for name in names:
            data = old.read(name)
            new.writestr(name, change(data) if name.endswith(end) else data)
    return bad


def edited(edit: Callable[[dict], None]) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        content = json.loads(data)
        edit(content)
        return json.dumps(content).encode()

    return change


def test_pickled_samples_are_not_opened_though_pytorch_would(good, tmp_path):
    mark = tmp_path / "mark"
    bad = changed(good, tmp_path / "bad.pt2", "sample_inputs/model.pt", lambda _: pickle.dumps(Bomb(mark)))
    open_exported(bad)(torch.zeros(1, 2, 3))
    assert not mark.exists()
    with contextlib.suppress(Exception):
        torch.export.load(bad)
    assert mark.exists()  # so this test has teeth


def test_pickled_weights_are_refused(good, tmp_path):
    mark = tmp_path / "mark"

    def pickled(config: dict) -> None:
        next(iter(config["config"].values()))["use_pickle"] = True

    first = changed(good, tmp_path / "a.pt2", "model_weights_config.json", edited(pickled))
    bad = changed(first, tmp_path / "b.pt2", "weights/weight_0", lambda _: pickle.dumps(Bomb(mark)))
    with pytest.raises(CheckpointError, match="pickled objects"):
        open_exported(bad)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["custom_obj_0", "opaque_obj_0", "../../weight_0"])
def test_objects_among_the_constants_are_refused(good, tmp_path, name):
    def foreign(config: dict) -> None:
        config["config"]["c"] = {
            "path_name": name,
            "is_param": False,
            "use_pickle": False,
            "tensor_meta": None,
        }

    bad = changed(good, tmp_path / "bad.pt2", "model_constants_config.json", edited(foreign))
    with pytest.raises(CheckpointError, match="pickled objects"):
        open_exported(bad)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('pathlib').Path('MARK').touch()",
        "Symbol('s77', positive=True).__class__",
        "(lambda: 1)()",
        "Symbol('s77') if 1 else S('1')",
        "FloorDiv.__init__",
    ],
)
def test_sizes_that_are_code_are_refused(good, tmp_path, text):
    mark = tmp_path / "mark"

    def coded(program: dict) -> None:
        values = program["graph_module"]["graph"]["tensor_values"]
        size = next(size for value in values.values() for size in value["sizes"] if "as_expr" in size)
        size["as_expr"]["expr_str"] = text.replace("MARK", str(mark))

    bad = changed(good, tmp_path / "bad.pt2", "models/model.json", edited(coded))
    with pytest.raises(CheckpointError, match="no formula"):
        open_exported(bad)
    assert not mark.exists()


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.save.default",
        "torch.ops.aten.absent.default",
        "torch.hub.load",
        "torch.load",
        "_operator.call",
        "_operator.attrgetter",
        "math.__loader__.load_module",
        "os.system",
        "#extension:thing",
        "torch.ops.mine.thing.default",
        "torch.ops.higher_order.cond",
    ],
)
def test_calls_that_do_more_than_compute_are_refused(good, tmp_path, target):
    def calling(program: dict) -> None:
        program["graph_module"]["graph"]["nodes"][0]["target"] = target

    bad = changed(good, tmp_path / "bad.pt2", "models/model.json", edited(calling))
    with pytest.raises(CheckpointError, match="does more than compute"):
        open_exported(bad)


@pytest.mark.parametrize("argument", [{"as_operator": "torch.hub.load"}, {"as_custom_obj": {"name": "x"}}])
def test_functions_among_the_arguments_are_refused(good, tmp_path, argument):
    def handing(program: dict) -> None:
        node = program["graph_module"]["graph"]["nodes"][0]
        node["target"] = "torch.ops.higher_order.wrap_with_set_grad_enabled"
        node["inputs"][0]["arg"] = argument

    bad = changed(good, tmp_path / "bad.pt2", "models/model.json", edited(handing))
    with pytest.raises(CheckpointError, match="hands functions or objects"):
        open_exported(bad)


def test_guards_are_not_run(good, tmp_path):
    mark = tmp_path / "mark"

    def guarded(program: dict) -> None:
        program["guards_code"] = [f"__import__('pathlib').Path({str(mark)!r}).touch()"]

    bad = changed(good, tmp_path / "bad.pt2", "models/model.json", edited(guarded))
    open_exported(bad)(torch.zeros(1, 2, 3))
    assert not mark.exists()


def test_containers_that_import_are_refused(good, tmp_path):
    def container(program: dict) -> None:
        node = {"type": "collections.defaultdict", "context": "{}", "children_spec": []}
        program["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = json.dumps([1, node])

    bad = changed(good, tmp_path / "bad.pt2", "models/model.json", edited(container))
    with pytest.raises(CheckpointError, match=r"takes or returns a collections\.defaultdict"):
        open_exported(bad)


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.999])
def test_files_that_are_cut_short_are_refused(good, tmp_path, share):
    data = good.read_bytes()
    bad = tmp_path / "bad.pt2"
    bad.write_bytes(data[: int(share * len(data))])
    with pytest.raises(
        CheckpointError, match=r"bad\.pt2 cannot be opened: it (is no \.pt2 file|holds no program)"
    ):
        open_exported(bad)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_file_with_a_bit_turned_is_refused_or_as_it_was(good, tmp_path, place, bit):
    data = bytearray(good.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    bad = tmp_path / "bad.pt2"
    bad.write_bytes(data)
    x = torch.randn(2, 2, 3)
    try:
        found = open_exported(bad)(x)[0]
    except CheckpointError:
        return
    assert torch.equal(found, open_exported(good)(x)[0])


def test_records_that_are_missing_are_named(good, tmp_path):
    bad = tmp_path / "bad.pt2"
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(bad, "w") as new:
        for name in old.namelist():
            if "model_weights_config" not in name:
                new.writestr(name, old.read(name))
    with pytest.raises(CheckpointError, match=r"lacks data/weights/model_weights_config\.json"):
        open_exported(bad)
    with zipfile.ZipFile(bad, "w") as new:
        new.writestr("code.py", "print()")
    with pytest.raises(CheckpointError, match="no program of a known format"):
        open_exported(bad)


@pytest.mark.parametrize("end", ["models/model.json", "weights/weight_0"])
def test_a_file_that_unfolds_to_gigabytes_is_refused_before_it_is_read(good, tmp_path, monkeypatch, end):
    bad = tmp_path / "bomb.pt2"
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(bad, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            with new.open(name, "w") as file:
                file.write(old.read(name))
                if name.endswith(end):
                    for _ in range(64):
                        file.write(bytes(1 << 20))
    assert bad.stat().st_size < 1 << 20
    read: list[str] = []
    monkeypatch.setattr(zipfile.ZipFile, "read", _noting(zipfile.ZipFile.read, read))
    with pytest.raises(CheckpointError, match="unfolds to many times its own size"):
        open_exported(bad)
    assert not any(name.endswith(end) for name in read)


def _noting(real, read):
    def noting(archive, name, *rest):
        read.append(name)
        return real(archive, name, *rest)

    return noting
