from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from click.testing import Result
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

import secateur as sec
from secateur.data import open_data
from secateur.jobs.networks import open_network, same_bits
from secateur.jobs.predict import predict
from secateur.jobs.settings import NetworkChoice
from secateur.training.run_folder import read_config, read_summary

Command = Callable[..., Result]
COMMANDS = (
    "demo",
    "inspect",
    "train",
    "prune",
    "evaluate",
    "predict",
    "measure",
    "export",
    "report",
    "recipe",
)


def test_the_version_is_that_of_the_package(secateur: Command) -> None:
    lines = secateur("--version").stdout.splitlines()
    assert lines[0] == f"secateur {sec.__version__}"
    assert f"torch {torch.__version__}" in lines[1]
    assert f"torchvision {version('torchvision')}" in lines[1]
    assert lines[2].startswith("devices: cpu (")
    assert f"onnxruntime {version('onnxruntime')}" in lines[3]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained_and_every_example_is_valid(secateur: Command, command: str) -> None:
    result = secateur(command, "--help")
    assert result.exit_code == 0
    examples = re.findall(rf"^ +secateur ({command} .*)$", _wide(result.stdout), re.MULTILINE)
    assert examples or command == "demo"
    for example in examples:
        words = example.split()
        known = re.findall(r"(--[a-z-]+)", result.stdout)
        assert all(word in known for word in words if word.startswith("--")), example


def sets(*texts: str) -> list[str]:
    """Each text as a ``--set``."""
    return [word for text in texts for word in ("--set", text)]


BATCH = sets("data.batch_size=64")


def _wide(text: str) -> str:
    return re.sub(r" +\n", "\n", text)


def test_pruning_ends_with_a_comparison_and_a_check(secateur: Command, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    words = (
        "--macs",
        "25%",
        *sets("steps=2", "finetune.epochs=1", "between.optimizer.learning_rate=0.02"),
        *BATCH,
    )
    result = secateur("prune", trained, "--data", "digits", *words, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("channels masked (largest relative difference") == 2
    assert "verified: after each of 2 cuts" in result.stdout
    assert "3 inputs, evaluation and training mode, float64" in " ".join(result.stdout.split())
    assert re.search(r"MACs per example +4.87 M +\S+ \S +÷4", result.stdout)
    config = read_config(out)
    assert config["recipe"]["steps"] == 2
    assert config["recipe"]["finetune"]["epochs"] == 1
    assert config["recipe"]["between"]["optimizer"]["learning_rate"] == 0.02
    assert config["budget"] == {"macs": 0.25}
    measured = secateur("measure", trained, out, "--seconds", 0, "--json")
    first, second = json.loads(measured.stdout)["networks"]
    assert second["macs"] == read_summary(out)["pruned"]["macs"] <= first["macs"] / 4


def test_pruning_without_training_repairs(secateur: Command, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "quick"
    words = ("--macs", "60%", "--no-finetune", *sets("allocation=curves"), *BATCH)
    result = secateur("prune", trained, "--data", "digits", *words, "--out", out)
    assert result.exit_code == 0, result.output
    assert "epoch" not in result.stdout
    recipe = read_config(out)["recipe"]
    assert (recipe["steps"], recipe["reconstruct"], recipe["allocation"]) == (1, True, "curves")
    assert (recipe["between"]["epochs"], recipe["finetune"]["epochs"]) == (0, 0)
    summary = read_summary(out)
    assert summary["pruned"]["top1"] > summary["baseline"]["top1"] - 0.05
    refused = secateur(
        "prune", trained, "--data", "digits", *words, *sets("finetune.epochs=3"), "--out", tmp_path / "other"
    )
    assert refused.exit_code == 2
    assert "--set finetune.epochs=3: no effect with --no-finetune" in refused.output


def test_json_is_one_object_on_standard_output_and_nothing_else(
    secateur: Command, trained: Path, tmp_path: Path
) -> None:
    words = {
        "evaluate": (trained, "--data", "digits"),
        "measure": (trained, "--seconds", 0),
        "inspect": (trained,),
        "prune": (trained, "--macs", 0.5, "--out", tmp_path / "small"),
        "train": ("--model", trained, "--data", "digits", "--epochs", 0, "--out", tmp_path / "again"),
    }
    for command, arguments in words.items():
        result = secateur(command, *arguments, "--json")
        assert result.exit_code == 0, result.output
        assert isinstance(json.loads(result.stdout), dict)
        assert result.stdout.count("\n") == 1
    assert json.loads(secateur("evaluate", *words["evaluate"], "--json").stdout)["examples"] == 450
    assert (tmp_path / "small" / "summary.json").is_file()


def test_an_exported_file_is_held_against_its_network(
    secateur: Command, trained: Path, tmp_path: Path
) -> None:
    file = tmp_path / "small.pt2"
    result = secateur("export", trained, "--out", file, "--data", "digits", "--seconds", 0)
    assert result.exit_code == 0, result.output
    assert "equals the network" in result.stdout
    assert "+0.00 points" in result.stdout
    words = (
        "--trusted",
        "--batch",
        1,
        "--batch",
        2,
        "--runtime",
        "eager",
        "--runtime",
        "channels-last",
        "--threads",
        1,
    )
    result = secateur("measure", trained, file, *words, "--data", "digits", "--seconds", 0)
    assert result.exit_code == 0, result.output
    assert "latency, alternating runs" in result.stdout
    assert result.stdout.count("channels-last") == 2
    result = secateur("measure", trained, file, *words, "--seconds", 0, "--json")
    found = json.loads(result.stdout)
    whole, again = found["networks"]
    assert (whole["params"], whole["macs"]) == (again["params"], again["macs"])
    assert again["file_bytes"] == file.stat().st_size
    assert [(row["name"] == str(file), row["runtime"], row["batch"]) for row in found["timings"]] == [
        (name, runtime, batch)
        for batch in (1, 2)
        for name, runtime in ((False, "eager"), (False, "channels-last"), (True, "pt2"))
    ]


def test_without_data_it_says_what_is_not_done(secateur: Command, trained: Path, tmp_path: Path) -> None:
    result = secateur("prune", trained, "--params", "0.5", "--out", tmp_path / "small")
    assert result.exit_code == 0, result.output
    assert "nothing is trained" in result.stdout
    assert "top-1" not in result.stdout.split("nothing is trained")[1]


def test_inspect_shows_layers_groups_and_reasons(secateur: Command) -> None:
    result = secateur("inspect", "secateur:digits")
    assert "features.10" in result.stdout
    assert "features.7 → features.10" in result.stdout
    assert "is an output of the network" in result.stdout
    assert "smaller ones" not in result.stdout


def test_inspect_shows_what_is_removed_from_attention(secateur: Command, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(GROUPED)
    words = ("inspect", f"{tmp_path / 'nets.py'}:net", "--input", "6,5")
    shown = secateur(*words).stdout
    assert re.search(r"modules +removes +or with --attention", shown)
    assert re.search(r"attention +heads +query_heads", shown)
    found = json.loads(secateur(*words, "--attention", "query_heads", "--json").stdout)
    assert found["attention"] == [{"module": "attention", "unit": "query_heads", "others": ["heads"]}]
    assert {group["name"]: group["channels"] for group in found["groups"]}["attention.q"] == 3
    failed = secateur("inspect", "secateur:digits", "--attention", "heads")
    assert failed.exit_code == 2
    assert "this network has no attention with heads" in failed.stderr


GROUPED = """
import torch
from torch import nn
import torch.nn.functional as F

class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads, self.shared = 6, 2
        self.q, self.k, self.v, self.out = (nn.Linear(5, n) for n in (24, 8, 8, 4))
        self.out = nn.Linear(24, 4)

    def forward(self, x):
        q = self.q(x).unflatten(-1, (self.heads, 4)).transpose(1, 2)
        k, v = (f(x).unflatten(-1, (self.shared, 4)).transpose(1, 2) for f in (self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.out(y.transpose(1, 2).flatten(2))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = Attention()

    def forward(self, x):
        return self.attention(x)

def net():
    return Net()
"""


def test_measure_and_evaluate_for_people(secateur: Command, trained: Path) -> None:
    result = secateur("measure", trained, "secateur:digits", "--seconds", 0, "--batch", 2)
    assert "batch 2, cpu" in result.stdout
    assert "÷1.0" in result.stdout
    result = secateur("evaluate", trained, "--data", "digits")
    top1 = read_summary(trained)["network"]["top1"]
    assert f"top-1 {top1:.2%}" in result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "--model", "secateur:digits", "--data", "digits", "--out", __file__), "is a file"),
    ],
)
def test_failures_are_one_line_and_exit_code_1(
    secateur: Command, words: tuple[str, ...], message: str
) -> None:
    result = secateur(*words)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("inspect", "resnet81"), "did you mean"),
        (("inspect", "resnet18", "--input", "3,a"), "is not a shape"),
        (("inspect", "resnet18", "--attention", "rows"), "'rows' is not one of"),
        (("prune", "secateur:digits", "--out", "x"), "at least one of --macs"),
        (("prune", "secateur:digits", "--out", "x", "--macs", "half"), "neither a share"),
        (("prune", "secateur:digits", "--out", "x", "--macs", "0.0"), "neither a share"),
        (
            ("prune", "secateur:digits", "--out", "x", "--macs", "0.5", "--recipe", "stew"),
            "--recipe stew: unknown",
        ),
        (
            ("prune", "secateur:digits", "--out", "x", "--macs", "0.5", "--set", "criterion=taylor"),
            "needs data",
        ),
        (
            (
                "prune",
                "secateur:digits",
                "--out",
                "x",
                "--macs",
                "1",
                *sets("steps=2", "channels_per_step=3"),
            ),
            "exclude each other",
        ),
        (
            ("train", "--model", "x", "--data", "x", "--out", "x", "--lr", 0, "--set", "fit.schedule=linear"),
            "--set fit.schedule=linear",
        ),
        (("train", "--model", "x", "--data", "x"), "--out"),
        (("measure", "absent.onnx"), "absent.onnx does not exist"),
        (("measure", "secateur:digits", "--runtime", "tensorrt"), "--runtime"),
        (("measure", "secateur:digits", "--batch", 0), "--batch"),
        (("export", "secateur:digits", "--out", "x"), "end its name in"),
        (("export", "secateur:digits", "--out", "x.tflite", "--format", "tflite"), "--format"),
        (("export", "secateur:digits", "--out", "absent/x.pt2"), "no folder absent"),
        (("export", "secateur:digits", "--out", "x.onnx", "--weights-as", "int8"), "needs --data"),
        (("export", "secateur:digits", "--out", "x.onnx", "--weights-as", "int4"), "int4"),
        (
            ("prune", "secateur:digits", "--macs", "0.5", "--out", "x", "--set", "widths.multiple_of=0"),
            "--set widths.multiple_of=0: must be an integer of at least 1",
        ),
        (("evaluate", "runs/absent", "--data", "digits"), "runs/absent does not exist"),
        (("evaluate", "secateur:digits", "--data", "absent"), "--data absent: there is no folder absent"),
        (
            ("evaluate", "secateur:digits", "--data", "digits", "--precision", "f8"),
            "--precision f8: Input should",
        ),
        (("export", "runs/absent", "--out", "absent.pt2"), "does not exist"),
        (("predict", "runs/absent", "x.png"), "does not exist"),
    ],
)
def test_wrong_usage_is_exit_code_2(secateur: Command, words: tuple[object, ...], message: str) -> None:
    result = secateur(*words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not Path("x").exists()


def test_an_earlier_run_is_kept(secateur: Command, trained: Path) -> None:
    before = read_summary(trained)
    words = ("train", "--model", "secateur:digits", "--data", "digits", "--epochs", 0, "--out", trained)
    result = secateur(*words)
    assert result.exit_code == 1
    assert "--overwrite" in result.stderr
    assert read_summary(trained) == before


def test_a_budget_that_cannot_be_met_says_what_can(secateur: Command, trained: Path, tmp_path: Path) -> None:
    result = secateur("prune", trained, "--macs", 5, "--out", tmp_path / "small")
    assert result.exit_code == 1
    assert "the least possible is" in result.stderr


def test_a_loss_that_is_not_a_number_says_where_the_last_good_state_is(
    secateur: Command, tmp_path: Path
) -> None:
    words = ("--data", "digits", "--lr", "1e20", "--out", tmp_path / "run")
    result = secateur("train", "--model", "secateur:digits", *words)
    assert result.exit_code == 1
    assert "the loss is" in result.stderr
    last = tmp_path / "run" / "checkpoints" / "last.safetensors"
    assert str(last) in result.stderr
    assert all(parameter.isfinite().all() for parameter in sec.load(last).parameters())


def failure(result: Result) -> str:
    """The one line that a failed command leaves."""
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9)).save(path)


def test_folders_that_are_not_as_they_should_be(secateur: Command, tmp_path: Path) -> None:
    words = ("train", "--model", "secateur:resnet20", "--out", tmp_path / "run", "--data")
    for name in ("cats", "dogs"):
        image(tmp_path / "a" / "test" / name / "1.png")
    assert "no train/ folder" in failure(secateur(*words, tmp_path / "a"))
    (tmp_path / "a" / "train" / "cats").mkdir(parents=True)
    image(tmp_path / "a" / "train" / "dogs" / "1.png")
    assert "class 'cats' is empty" in failure(secateur(*words, tmp_path / "a"))
    image(tmp_path / "a" / "train" / "cats" / "1.png")
    image(tmp_path / "a" / "train" / "owls" / "1.png")
    assert "owls" in failure(secateur(*words, tmp_path / "a"))
    assert not (tmp_path / "run").exists()


def test_a_network_that_cannot_be_captured_names_the_module_and_the_line(
    secateur: Command, tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from torch import nn\n"
        "class Fickle(nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x if x.sum() > 0 else -x\n"
        "def network():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), Fickle())\n"
    )
    result = secateur("inspect", f"{file}:network", "--input", "3,8,8")
    assert result.exit_code == 1
    line = result.stderr.splitlines()[-1]
    assert "Fickle" in line
    assert "mine.py:4" in line


def test_damaged_checkpoints_are_refused(secateur: Command, trained: Path, tmp_path: Path) -> None:
    whole = (trained / "checkpoints" / "best.safetensors").read_bytes()
    file = tmp_path / "cut.safetensors"
    file.write_bytes(whole[: len(whole) // 2])
    assert "incomplete" in failure(secateur("evaluate", file, "--data", "digits"))
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "checksum" in failure(secateur("measure", file))
    file.write_bytes(b"PK\x03\x04 a pickle in a zip")
    assert "pickle" in failure(secateur("prune", file, "--macs", 0.5, "--out", tmp_path / "run"))


def test_pruning_to_a_time(secateur: Command, trained: Path, tmp_path: Path, made_up_device: None) -> None:
    for name, words in {
        "data": ("--data", "digits", *sets("steps=2", "between.epochs=0", "finetune.epochs=0")),
        "free": sets("widths.multiple_of=auto"),
    }.items():
        out = tmp_path / name
        result = secateur("prune", trained, "--latency", "60%", *words, "--out", out)
        assert result.exit_code == 0, result.output
        assert re.search(r"latency: \S+ ms before, \S+ ms after, \S+ ms allowed", result.stdout)
        asked = read_summary(out)["asked"]["latency"]
        assert asked["allowed_ms"] == pytest.approx(0.6 * asked["before_ms"])
        assert 0.9 * asked["allowed_ms"] <= asked["measured_ms"] <= asked["allowed_ms"]
        assert read_config(out)["budget"] == {"latency": 0.6}


def test_a_time_out_of_reach_is_one_line(
    secateur: Command, trained: Path, tmp_path: Path, made_up_device: None
) -> None:
    result = secateur("prune", trained, "--latency", "10us", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert re.match(
        r"error: no plan meets the budget. milliseconds: at most 0.01 ms .* least possible", result.stderr
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("prune", "resnet18", "--latency", "fast"), "neither a share"),
        (("inspect", "resnet18", "--budget", "macs"), "is not a limit"),
        (("inspect", "resnet18", "--budget", "speed=0.5"), "is not a limit"),
        (("inspect", "resnet18", "--budget", "latency=soon"), "nor a time"),
    ],
)
def test_times_and_limits_that_cannot_be_read(
    secateur: Command, tmp_path: Path, words: tuple[str, ...], line: str
) -> None:
    extra = ("--out", tmp_path / "out") if words[0] == "prune" else ()
    result = secateur(*words, *extra)
    assert result.exit_code == 2
    assert line in re.sub(r"[\s│]+", " ", result.stderr)


def test_inspect_says_what_is_reachable(secateur: Command, made_up_device: None) -> None:
    words = ("inspect", "secateur:digits", "--budget", "macs=0.5,latency=70%")
    result = secateur(*words)
    assert result.exit_code == 0, result.output
    assert re.search(r"latency +\S+ ms +\S+ ms +\S+% +\S+ ms +70.0% +\S+ ms", result.stdout)
    found = json.loads(secateur(*words, "--json").stdout)["forecast"]
    assert found["reach"]["macs"]["planned"] <= found["reach"]["macs"]["allowed"]


def test_a_run_is_repeated_to_the_bit_by_its_config(secateur: Command, trained: Path, tmp_path: Path) -> None:
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    words = (
        "--data",
        "digits",
        "--macs",
        "50%",
        "--seed",
        3,
        *sets("finetune.epochs=1", "finetune.optimizer.learning_rate=0.02", "allocation=global"),
    )
    assert secateur("prune", trained, *words, *BATCH, "--out", first).exit_code == 0
    for out, seed in ((again, ()), (other, ("--seed", 4))):
        result = secateur("prune", "--recipe", first / "config.toml", *seed, "--out", out)
        assert result.exit_code == 0, result.output
    one, same, different = (
        load_file(out / "checkpoints" / "best.safetensors") for out in (first, again, other)
    )
    assert one.keys() == same.keys()
    assert all(same_bits(one[name], same[name]) for name in one)
    assert not all(same_bits(one[name], different.get(name, torch.zeros(0))) for name in one)
    assert read_config(first) | {"out": None} == read_config(again) | {"out": None}


def test_a_training_is_repeated_to_the_bit_by_its_config(
    secateur: Command, trained: Path, tmp_path: Path
) -> None:
    result = secateur("train", "--recipe", trained / "config.toml", "--out", tmp_path / "again")
    assert result.exit_code == 0, result.output
    one, same = (load_file(out / "checkpoints" / "best.safetensors") for out in (trained, tmp_path / "again"))
    assert all(same_bits(one[name], same[name]) for name in one)


def digit(path: Path, number: int) -> Path:
    """One of the digits as a file."""
    Image.fromarray((load_digits().images[number] * 15).astype("uint8")).save(path)
    return path


def test_predict_names_classes_and_probabilities(secateur: Command, trained: Path, tmp_path: Path) -> None:
    files = [digit(tmp_path / f"{number}.png", number) for number in range(40)]
    result = secateur("predict", trained, *files, "--top", 3, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [one["image"] for one in found["predictions"]] == list(map(str, files))
    assert found["failed"] == []
    for one in found["predictions"]:
        probabilities = [row["probability"] for row in one["classes"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert len(probabilities) == 3
        assert 0.3 < sum(probabilities) <= 1.0001
    best = [one["classes"][0]["name"] for one in found["predictions"]]
    right = sum(name == str(load_digits().target[number]) for number, name in enumerate(best))
    assert right >= 32, "the network knows nine digits of ten"
    shown = secateur("predict", trained / "checkpoints" / "best.safetensors", files[0]).stdout
    assert re.search(r"0\.png +0 +\d\d\.\d\d%", shown)
    assert shown.count("%") == 5


def test_images_are_prepared_as_in_evaluation(trained: Path, tmp_path: Path) -> None:
    for name in map(str, range(10)):
        (tmp_path / "test" / name).mkdir(parents=True)
        wide = Image.effect_noise((40, 24), 90).convert("RGB")
        wide.save(tmp_path / "test" / name / "1.png")
    network = open_network(NetworkChoice(source=str(trained)))
    data = open_data(tmp_path, network.input, training=False)
    [(inputs, _)] = list(data.test_batches())
    with torch.inference_mode():
        expected = network.model.eval()(inputs).softmax(1)
    files = [tmp_path / "test" / name / "1.png" for name in map(str, range(10))]
    found = predict(NetworkChoice(source=str(trained)), files, top=10)["predictions"]
    for row, one in zip(expected, found, strict=True):
        named = {entry["index"]: entry["probability"] for entry in one["classes"]}
        assert [named[index] for index in range(10)] == pytest.approx(row.tolist(), abs=1e-6)


def test_images_that_cannot_be_read_are_named_and_fail_the_command(
    secateur: Command, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    files = (digit(tmp_path / "3.png", 3), tmp_path / "bad.png", tmp_path / "absent.png")
    result = secateur("predict", trained, *files)
    assert result.exit_code == 1
    assert "3.png" in result.stdout
    assert result.stderr.splitlines() == [
        f"error: {tmp_path / 'bad.png'}: it is not an image",
        f"error: {tmp_path / 'absent.png'}: there is no such file",
    ]
    result = secateur("predict", trained, *files, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert [Path(one["image"]).name for one in found["failed"]] == ["bad.png", "absent.png"]
    assert len(found["predictions"]) == 1


def test_predict_needs_a_classifier(secateur: Command, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from torch import nn\ndef network():\n    return nn.Conv2d(3, 4, 3)\n")
    words = (f"{file}:network", digit(tmp_path / "1.png", 1))
    assert "predict needs a classifier" in failure(secateur("predict", *words))


def test_curves_for_tensorboard_are_written_where_they_are_asked_for(
    secateur: Command, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    words = ("--model", "secateur:digits", "--data", "digits", "--epochs", 1, "--batch-size", 64)
    out = tmp_path / "run"
    result = secateur("train", *words, "--set", "tensorboard=true", "--out", out)
    assert result.exit_code == 0, result.output
    assert list((out / "tensorboard").iterdir())
