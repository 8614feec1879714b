"""Settings of jobs from files, options and ``--set``; all without PyTorch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from secateur.budget import Budget, Widths
from secateur.cli.job_settings import CRITERIA, data_choice, frontier_job, prune_job, train_job
from secateur.cli.recipe import _meanings
from secateur.criteria import criterion_names
from secateur.errors import UsageError
from secateur.jobs.settings import FrontierJob, PruneJob, TrainJob
from secateur.recipes import PRESETS, Recipe
from secateur.settings import setting_paths
from secateur.training.settings import FitSettings, OptimizerSettings

Command = Callable[..., Result]

SETTINGS: dict[str, tuple[object, Callable[[Recipe], Any]]] = {
    "criterion": ("obd", lambda recipe: recipe.criterion),
    "normalize": ("max", lambda recipe: recipe.normalize),
    "cost_regularization.quantity": ("params", lambda recipe: recipe.cost_regularization.quantity),
    "allocation": ("uniform", lambda recipe: recipe.allocation),
    "reconstruct": (False, lambda recipe: recipe.reconstruct),
    "reconstruct_batches": (7, lambda recipe: recipe.reconstruct_batches),
    "reconstruct_ridge": (0.02, lambda recipe: recipe.reconstruct_ridge),
    "curve_batches": (3, lambda recipe: recipe.curve_batches),
    "distillation.weight": (0.25, lambda recipe: recipe.distillation.weight),
    "distillation.temperature": (6.5, lambda recipe: recipe.distillation.temperature),
    "distillation.outputs": (0.5, lambda recipe: recipe.distillation.outputs),
    "distillation.flip": (True, lambda recipe: recipe.distillation.flip),
    "steps": (4, lambda recipe: recipe.steps),
    "channels_per_step": (9, lambda recipe: recipe.channels_per_step),
    "between.epochs": (2, lambda recipe: recipe.between.epochs),
    "between.updates": (30, lambda recipe: recipe.between.updates),
    "finetune.epochs": (6, lambda recipe: recipe.finetune.epochs),
    "filters_only": (True, lambda recipe: recipe.filters_only),
    "scoring_batches": (11, lambda recipe: recipe.scoring_batches),
    "widths.multiple_of": (8, lambda recipe: recipe.widths.multiple_of),
    "widths.min_channels": (5, lambda recipe: recipe.widths.min_channels),
    "finetune.optimizer.name": ("adamw", lambda recipe: recipe.finetune.optimizer.name),
    "finetune.optimizer.learning_rate": (0.0123, lambda recipe: recipe.finetune.optimizer.learning_rate),
    "between.optimizer.momentum": (0.8, lambda recipe: recipe.between.optimizer.momentum),
    "finetune.optimizer.nesterov": (True, lambda recipe: recipe.finetune.optimizer.nesterov),
    "between.optimizer.weight_decay": (0.003, lambda recipe: recipe.between.optimizer.weight_decay),
    "finetune.schedule": ("one-cycle", lambda recipe: recipe.finetune.schedule),
    "finetune.ema_decay": (0.95, lambda recipe: recipe.finetune.ema_decay),
    "finetune.patience": (3, lambda recipe: recipe.finetune.patience),
    "finetune.warmup": (0.2, lambda recipe: recipe.finetune.warmup),
    "between.label_smoothing": (0.15, lambda recipe: recipe.between.label_smoothing),
    "finetune.clip_norm": (2.5, lambda recipe: recipe.finetune.clip_norm),
    "finetune.keep_best": (False, lambda recipe: recipe.finetune.keep_best),
    "attention": ("head_dim", lambda recipe: recipe.attention),
    "cost_regularization.rate": (0.02, lambda recipe: recipe.cost_regularization.rate),
    "widths.floors": (0.25, lambda recipe: recipe.widths.floors),
    "widths.caps": (0.75, lambda recipe: recipe.widths.caps),
    "widths.ignore": (["stem"], lambda recipe: list(recipe.widths.ignore)),
    "widths.only": (["stem"], lambda recipe: list(recipe.widths.only or ())),
    "widths.depth": ("auto", lambda recipe: recipe.widths.depth),
    "widths.uniform_depth": (True, lambda recipe: recipe.widths.uniform_depth),
    "widths.uniform_widths": (True, lambda recipe: recipe.widths.uniform_widths),
    "distillation.divergence": ("reverse", lambda recipe: recipe.distillation.divergence),
}
NEEDED = {
    **{f"between.{name}": ("steps=2",) for name in FitSettings.model_fields},
    "between.optimizer.momentum": ("steps=2",),
    "between.optimizer.weight_decay": ("steps=2",),
    "normalize": ("allocation=global",),
    "cost_regularization.rate": ("cost_regularization.quantity=macs",),
    "widths.uniform_depth": ("widths.depth=auto",),
}
"""Other settings, without which a setting would have no effect."""
OPTIONS = {
    "network.source": ("RUN", "secateur:digits"),
    "data.source": ("--data", "digits"),
    "budget.macs": ("--macs", 0.5),
    "seed": ("--seed", None),
    "out": ("--out", Path("out")),
}


def job(*sets: str, recipe: str | None = None, finetune: bool = True, **options: Any) -> PruneJob:
    """The job that a command line comes to: ``seed=3`` stands for ``--seed 3``."""
    changed = {
        path: (word, options.get(path.split(".")[-1], value)) for path, (word, value) in OPTIONS.items()
    }
    return prune_job(changed, recipe, sets, finetune=finetune)


def refused(*sets: str, **options: Any) -> str:
    with pytest.raises(UsageError) as error:
        job(*sets, **options)
    return str(error.value)


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_of_the_recipe_can_be_set(name: str) -> None:
    value, setting = SETTINGS[name]
    assert setting(Recipe()) != value
    written = str(value).lower() if isinstance(value, bool) else value
    assert setting(job(f"{name}={written}", *NEEDED.get(name, ())).recipe) == value


def test_each_setting_of_the_recipe_has_an_example() -> None:
    examples = {name.replace("between.", "finetune.") for name in SETTINGS}  # one for both phases
    paths = {path.replace("between", "finetune") for path in setting_paths(Recipe)}
    missing = [path for path in paths if not any(f"{name}.".startswith(f"{path}.") for name in examples)]
    assert missing == []


def test_settings_of_the_job_can_be_set() -> None:
    found = job(
        "data.batch_size=64",
        "data.strict=true",
        "data.mixup=0.2",
        "network.size=32",
        "device.precision=bf16",
        "device.channels_last=no",
        "latency_batch=8",
        "tensorboard=true",
    )
    assert (found.data.batch_size, found.data.strict, found.data.mixup) == (64, True, 0.2)
    assert (found.network.size, found.latency_batch, found.tensorboard) == (32, 8, True)
    assert (found.device.precision, found.device.channels_last) == ("bf16", "no")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("widths.ignore=stem", ("stem",)),
        ('widths.ignore=["stem", "layer4.*"]', ("stem", "layer4.*")),
        ("widths.multiple_of=auto", "auto"),
        ("widths.floors=0.5", 0.5),
        ('widths.floors."layer4.*"=0.5', {"layer4.*": 0.5}),
        ('widths.floors={"layer4.*" = 0.5, stem = 8}', {"layer4.*": 0.5, "stem": 8}),
    ],
)
def test_values_are_toml_and_bare_words_are_strings(text: str, value: object) -> None:
    assert getattr(job(text).recipe.widths, text.split(".")[1].partition("=")[0]) == value


def test_without_settings_the_recipe_is_as_it_stands() -> None:
    assert job().recipe == Recipe()
    assert job(recipe="plain").recipe == Recipe.preset("plain")
    untrained = prune_job({**OPTIONS, "data.source": ("--data", None)}, None, ())
    assert untrained.recipe == Recipe.preset("plain", criterion="magnitude")
    assert job(recipe="original", macs=None).budget.channels == pytest.approx(1 / 3)


def test_all_mistakes_are_named_at_once_in_the_words_of_the_command_line() -> None:
    message = refused(
        "finetune.epoch=4", "data.bath=3", "foo=1", "criterion=tailor", "plain", macs=1.0, seed=-1
    )
    for part in (
        "--set finetune.epoch=4: unknown; did you mean 'finetune.epochs'?",
        "--set data.bath=3: unknown; did you mean 'data.batch_size'?",
        "--set foo=1: unknown; choose one of criterion, ",
        "--set criterion=tailor: unknown; did you mean 'taylor'",
        "--set plain: write NAME=VALUE",
        "--macs 1.0: 1.0 is neither a share nor an amount",
        "--seed -1: Input should be greater than or equal to 0",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("sets", "options", "message"),
    [
        (("finetune.schedule=linear",), {}, "--set finetune.schedule=linear: Input should be 'constant'"),
        (("finetune={epoch=4}",), {}, "--set finetune={epoch=4}: finetune.epoch: unknown"),
        (("steps=2", "channels_per_step=3"), {}, "exclude each other"),
        (("steps=2", "steps=3"), {}, "--set steps=2 and --set steps=3 give the same setting"),
        (("seed=3",), {"seed": 4}, "--seed 4 and --set seed=3 give the same setting"),
        (("out=elsewhere",), {}, "--out out and --set out=elsewhere give the same setting"),
        (("between.epochs=3",), {}, "between.epochs=3: no effect while there is one cut"),
        ((), {"recipe": "stew"}, "--recipe stew: unknown; choose one of default"),
        ((), {"recipe": "absent.toml"}, "--recipe absent.toml: cannot be read"),
        ((), {"macs": None}, "give at least one of --macs"),
        ((), {"source": "runs/absent"}, "RUN: runs/absent does not exist"),
    ],
)
def test_one_mistake(sets: tuple[str, ...], options: dict[str, Any], message: str) -> None:
    assert message in refused(*sets, **options)


def test_what_is_required_is_named_as_an_option() -> None:
    with pytest.raises(UsageError, match=r"--model: is required; --data: is required"):
        train_job({"network.source": ("--model", None), "data.source": ("--data", None)} | OUT, None, ())


OUT = {"out": ("--out", Path("out"))}


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (("fit.epochs=0", "fit.warmup=0.1"), "--set fit.warmup=0.1: no effect while fit.epochs is 0"),
        (("fit={epochs=0, clip_norm=1}",), "fit.clip_norm: no effect while fit.epochs is 0"),
        (("fit.epochs=3", "fit.updates=9"), "--set fit.epochs=3: no effect while fit.updates is given"),
        (
            ("fit.optimizer.name=adamw", "fit.optimizer.momentum=0.5"),
            "fit.optimizer.momentum=0.5: no effect while fit.optimizer.name is 'adamw'; set",
        ),
    ],
)
def test_settings_of_training_that_have_no_effect_are_refused(sets: tuple[str, ...], message: str) -> None:
    options = {"network.source": ("--model", "secateur:digits"), "data.source": ("--data", "digits"), **OUT}
    with pytest.raises(UsageError, match=re.escape(message)):
        train_job(options, None, sets)
    assert train_job(options, None, ("fit.updates=9", "fit.warmup=0.1")).fit.warmup == 0.1


@pytest.mark.parametrize(
    "text", ["finetune.epochs=3", "between.updates=4", "distillation.weight=0.5", "data.mixup=0.2"]
)
def test_settings_of_training_are_refused_where_nothing_is_trained(text: str) -> None:
    """``--no-finetune --set finetune.epochs=3`` is a slip; so is the setting without data."""
    assert refused(text, finetune=False).startswith(f"--set {text}: no effect with --no-finetune; leave that")
    expected = (
        "--data: is required" if text.startswith("data.") else f"--set {text}: no effect without --data;"
    )
    with pytest.raises(UsageError, match=expected):
        prune_job({**OPTIONS, "data.source": ("--data", None)}, None, (text,))


def frontier(*sets: str, file: Path | None = None) -> FrontierJob:
    options = {path: OPTIONS[path] for path in ("network.source", "data.source", "out")}
    return frontier_job(options, None if file is None else str(file), sets)


@pytest.mark.parametrize(
    "text",
    ["steps=3", "channels_per_step=9", "reconstruct=false", "finetune.warmup=0.2", "data.mixup=0.2"],
)
def test_settings_that_a_frontier_does_not_have_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"^--set {text}: no effect on a frontier, ") as error:
        frontier(text)
    assert "--no-finetune" not in str(error.value), "which is no option of this command"
    assert error.value.args[0].count("no effect") == 1


def test_settings_of_a_file_may_have_no_effect(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text("steps = 3\nreconstruct = false\n[finetune]\nwarmup = 0.2\n[distillation]\nflip = true\n")
    found = frontier("curve_batches=4", file=file)
    assert "given" not in found.model_dump(), "nor in the record of the run"
    assert found.given == {"network.source", "data.source", "out", "curve_batches"}
    alone = prune_job({**OPTIONS, "data.source": ("--data", None)}, str(file), ("allocation=global",))
    assert "finetune.warmup" not in alone.given


@pytest.mark.parametrize("text", ["steps=3", "scoring_batches=7", "reconstruct=true", "curve_batches=4"])
def test_settings_that_need_data_are_refused_without(text: str) -> None:
    with pytest.raises(UsageError, match=f"--set {text}: no effect without --data"):
        prune_job({**OPTIONS, "data.source": ("--data", None)}, None, (text,))
    prune_job({**OPTIONS, "data.source": ("--data", None)}, None, ("normalize=max",))


def test_a_criterion_that_the_users_file_registers_is_left_for_later(tmp_path: Path) -> None:
    assert "did you mean" in refused("criterion=tailor")
    assert "did you mean 'finetune.optimizer.learning_rate'?" in refused("finetune.learning_rate=0.1")
    assert "did you mean 'between.epochs' or 'finetune.epochs'?" in refused("epochs=3")
    (tmp_path / "net.py").write_text("def make(): ...\n")
    builder = ("--builder", f"{tmp_path / 'net.py'}:make")
    chosen = prune_job({**OPTIONS, "network.builder": builder}, None, ("criterion=mine",))
    assert chosen.recipe.criterion == "mine"


def test_a_frontier_takes_the_recipe_of_a_file_without_its_budget(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text('criterion = "obd"\n[budget]\nmacs = 0.5\n[finetune]\nepochs = 3\n')
    options: dict[str, tuple[str, Any]] = {
        "network.source": ("RUN", "secateur:digits"),
        "data.source": ("--data", "digits"),
        "by": ("--by", "params"),
        "points": ("--points", 3),
        "out": ("--out", Path("out")),
    }
    found = frontier_job(options, str(file), ())
    assert (found.recipe.criterion, found.by, found.points) == ("obd", "params", 3)
    assert not found.recipe.finetune.trains
    for text in ("budget.macs=0.5", "points=4"):
        with pytest.raises(UsageError, match=f"--set {text}: unknown"):
            frontier_job(options, None, (text,))
    with pytest.raises(UsageError, match="--points 0: .*greater than or equal to 1"):
        frontier_job({**options, "points": ("--points", 0)}, None, ())


def test_commands_without_a_run_take_settings_of_text_alone() -> None:
    assert data_choice("digits", 4, True, ["data.text.block=512"]).text.block == 512
    with pytest.raises(UsageError, match=r"^--set data\.text\.block=0: Input should be greater than"):
        data_choice("digits", None, False, ["data.text.block=0"])
    for text in ("data.held_out=0.2", "foo=1"):
        with pytest.raises(UsageError, match=rf"^--set {text}: write data\.text\.NAME=VALUE"):
            data_choice("digits", None, False, [text])


def test_every_setting_has_a_meaning() -> None:
    for kind in (PruneJob, TrainJob, Recipe, FitSettings, OptimizerSettings, Widths, Budget):
        meanings = _meanings(kind)
        assert [name for name in kind.model_fields if not meanings.get(name)] == []


def test_no_finetune_is_one_cut_with_reconstruction() -> None:
    recipe = job(recipe="plain", finetune=False).recipe
    assert (recipe.steps, recipe.reconstruct) == (1, True)
    assert (recipe.between.epochs, recipe.finetune.epochs) == (0, 0)
    assert job("finetune.epochs=0", "distillation.weight=0", finetune=False).recipe.finetune.epochs == 0
    assert not job("reconstruct=false", finetune=False).recipe.reconstruct


def test_a_pace_in_channels_is_kept_without_training() -> None:
    assert job("channels_per_step=9", finetune=False).recipe.channels_per_step == 9
    paced = job(recipe="original", finetune=False).recipe
    assert paced.channels_per_step == Recipe.preset("original").channels_per_step
    assert paced.finetune.epochs == 0
    assert job("steps=3", finetune=False).recipe.steps == 3
    assert job("steps=3", finetune=False, recipe="original").recipe.channels_per_step is None


def test_a_recipe_file_changes_a_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('preset = "plain"\nsteps = 3\n[finetune]\nepochs = 4\n[data]\nbatch_size = 16\n')
    found = job("data.strict=true", recipe=str(file))
    assert found.recipe == Recipe.preset("plain", steps=3, finetune={"epochs": 4})
    assert (found.data.batch_size, found.data.strict) == (16, True)
    file.write_text('preset = "original"\n')
    assert job(recipe=str(file), macs=None).budget.channels == pytest.approx(1 / 3)
    file.write_text("[finetune]\nepoch = 4\n")
    assert f"{file}: finetune.epoch: unknown" in refused(recipe=str(file))
    file.write_text("finetune")
    assert f"--recipe {file}: this is not TOML" in refused(recipe=str(file))


def test_the_command_line_changes_what_a_run_was_given(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        'command = "prune"\nversion = "0"\nout = "x"\nseed = 7\n[network]\nsource = "secateur:digits"\n'
        'size = 16\n[data]\nsource = "digits"\nbatch_size = 8\n[budget]\nmacs = 0.5\n'
        '[device]\nprecision = "float32"\ndevices = 1\n[recipe]\nsteps = 2\n'
    )
    given = dict.fromkeys(("source", "macs"), None)
    kept = job(recipe=str(file), **given)
    assert (kept.seed, kept.network.size, kept.data.batch_size, kept.recipe.steps) == (7, 16, 8, 2)
    assert (kept.budget.macs, kept.out, kept.device.precision) == (0.5, Path("out"), "float32")
    search = prune_job(
        {"search.max_drop": ("--max-drop", 1.0), "seed": ("--seed", 8)} | OUT,
        str(file),
        ("search.of=params",),
    )
    assert (search.budget, search.search.max_drop, search.search.of, search.seed) == (None, 1.0, "params", 8)
    other = job(recipe=str(file), macs=None)
    assert other.network.size is None, "another network is not given the size of the first"
    with pytest.raises(UsageError, match="a run of another command than secateur train"):
        train_job(OUT, str(file), ())


def test_the_names_that_are_written_twice_are_the_same() -> None:
    assert set(CRITERIA) ^ set(criterion_names()) == set(), "add it to CRITERIA in cli/job_settings.py"


@pytest.mark.parametrize("name", PRESETS)
def test_a_printed_recipe_is_a_file_of_the_same_recipe(secateur: Command, name: str, tmp_path: Path) -> None:
    file = tmp_path / "printed.toml"
    file.write_text(secateur("recipe", name).stdout)
    assert Recipe.from_table(tomllib.loads(file.read_text())) == Recipe.preset(name)
    assert secateur("recipe", file).stdout == file.read_text()


def test_a_printed_recipe_says_what_settings_mean(secateur: Command) -> None:
    printed = secateur("recipe").stdout
    assert "steps = 1  # number of cuts; each leaves the same share of what remained" in printed
    assert "the gradient of all parameters together; 0 for no limit\n" in printed
    assert "(constant, cosine, one-cycle)" in printed
    assert "# data.batch_size =  # images or blocks of text in a batch; 32 images or 4" in printed
    assert "[fit.optimizer]" in secateur("recipe", "train").stdout
    assert secateur("recipe", "stew").exit_code == 2


WRONG = [
    ("prune", "--bogus"),
    (
        "prune",
        "secateur:digits",
        "--macs",
        "0.5",
        "--data",
        "digits",
        "--out",
        "x",
        "--set",
        "finetune.epoch=4",
    ),
    ("prune", "runs/absent", "--macs", "0.5", "--out", "x"),
    ("train", "--model", "secateur:digits", "--data", "absent", "--out", "x"),
    ("evaluate", "runs/absent", "--data", "digits"),
    ("predict", "runs/absent", "x.png"),
    ("measure", "absent.onnx"),
    ("export", "secateur:digits", "--out", "x.tflite"),
    ("oracle", "secateur:digits", "--data", "digits", "--out", "x", "--criteria", "tailor"),
    ("inspect", "secateur:digits", "--budget", "macs=1.0"),
]


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_wrong_usage_is_answered_before_torch_is_imported(words: tuple[str, ...], tmp_path: Path) -> None:
    code = (
        "import sys, atexit\n"
        "from secateur.cli import main\n"
        "atexit.register(lambda: print(sorted({'torch', 'torchvision', 'scipy'} & sys.modules.keys())))\n"
        f"sys.argv = ['secateur', *{list(words)}]\n"
        "main()"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))}
    start = time.monotonic()
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert found.returncode == 2, found.stderr
    assert found.stdout == "[]\n"
    assert time.monotonic() - start < 10, "far more than it takes, since the machine may be busy"
    assert not list(tmp_path.iterdir())
