from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import secateur as sec
from secateur.checkpoint import load, read_metadata
from secateur.cli.job_settings import prune_job
from secateur.criteria import base
from secateur.errors import BudgetError, DataError, StoppedError, UsageError
from secateur.jobs.oracle import oracle
from secateur.jobs.prune import prune
from secateur.jobs.settings import DataChoice, NetworkChoice, PruneJob
from secateur.jobs.train import train
from secateur.recipes import Cut, Recipe, Tried
from secateur.training.events import Progress
from secateur.training.run_folder import RunError, read_measured, read_metrics, read_summary
from tests.jobs.conftest import SMALL_NETWORK
from tests.jobs.test_train import job as train_job
from tests.recorder import Recorder


def trained_at(rate: float, name: str, finetune: dict[str, Any], **changes: Any) -> Recipe:
    """A recipe with another learning rate in both phases."""
    optimizer = {"learning_rate": rate}
    if changes.get("steps", 1) > 1:
        changes["between"] = {"optimizer": optimizer}
    return Recipe.preset(name, finetune={**finetune, "optimizer": optimizer}, **changes)


def job(out: Path, network: Path | str | dict[str, Any], **changes: Any) -> PruneJob:
    values: dict[str, Any] = {
        "network": network if isinstance(network, dict) else {"source": str(network)},
        "data": {"source": "digits", "batch_size": 64},
        "out": out,
        "budget": {"macs": 0.25},
        "latency_seconds": 0,
        "recipe": trained_at(0.02, "plain", steps=2, finetune={"epochs": 1}),
    }
    return PruneJob(**(values | changes))


@pytest.fixture(scope="module")
def pruned(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "pruned"
    prune(job(out, trained))
    return out


def test_the_summary_compares_before_and_after(trained: Path, pruned: Path) -> None:
    summary = read_summary(pruned)
    keys = {"top1", "params", "macs", "file_bytes", "latency_ms"}
    assert summary["baseline"].keys() == summary["pruned"].keys() == keys
    before = read_summary(trained)["network"]
    assert {k: v for k, v in summary["baseline"].items() if k != "latency_ms"} == {
        k: v for k, v in before.items() if k != "latency_ms"
    }
    assert summary["pruned"]["macs"] <= 0.25 * summary["baseline"]["macs"]
    assert summary["pruned"]["file_bytes"] < 0.5 * summary["baseline"]["file_bytes"]
    assert summary["model"] == "secateur:digits"
    assert summary["criterion"] == "taylor"
    assert summary["verification"]["ok"] is True
    assert summary["verification"]["cuts"] == 2
    assert summary["verification"]["modes"] == ["evaluation", "training"]
    assert summary["verification"]["not_checked"] == []
    assert {"pruning", "evaluation", "measuring", "total"} <= summary["seconds"].keys()


def test_the_checkpoint_is_the_smaller_network_with_its_history(pruned: Path) -> None:
    file = pruned / "checkpoints" / "best.safetensors"
    summary = read_summary(pruned)
    assert summary["checkpoint"] == str(file)
    assert sec.cost(sec.load(file), torch.zeros(2, 1, 8, 8)).macs == summary["pruned"]["macs"]
    history = sec.checkpoint.read_metadata(file).history
    written = [record for record in read_metrics(pruned) if record["event"] == "cut"]
    assert [entry["removed"] for entry in history] == [record["removed"] for record in written]
    assert [entry["verification"]["ok"] for entry in history] == [True, True]


def test_a_pruned_run_can_be_pruned_again(pruned: Path, tmp_path: Path) -> None:
    summary = prune(
        job(tmp_path / "run", pruned, recipe=Recipe.preset("plain", steps=1, finetune={"epochs": 0}))
    )
    assert summary["baseline"]["macs"] == read_summary(pruned)["pruned"]["macs"]
    history = sec.checkpoint.read_metadata(summary["checkpoint"]).history
    assert len(history) == 3


def test_without_data_weights_decide_and_nothing_is_trained(trained: Path, tmp_path: Path) -> None:
    heard = Recorder()
    free = Recipe.preset("plain", criterion="magnitude")
    summary = prune(job(tmp_path / "run", trained, data=None, recipe=free), [heard])
    notes = " ".join(event for event in heard if isinstance(event, str))
    assert "no data: " in notes
    assert "nothing is trained" in notes
    assert summary["pruned"]["top1"] is None
    assert summary["criterion"] == "magnitude"
    (cut,) = (event for event in heard if isinstance(event, Cut))
    full = sec.load(trained / "checkpoints" / "best.safetensors")
    small = sec.load(summary["checkpoint"])
    kept = [c for c in range(256) if c not in cut.plan.removed["classifier.1"]]
    torch.testing.assert_close(small.classifier[1].bias, full.classifier[1].bias[kept])
    with pytest.raises(UsageError, match="taylor needs data; give --data"):
        prune(job(tmp_path / "other", trained, data=None))


def test_a_network_by_name_is_kept_beside_the_smaller_one(tmp_path: Path) -> None:
    summary = prune(
        job(
            tmp_path / "run",
            "secateur:digits",
            data=None,
            recipe=Recipe.preset("plain", criterion="magnitude"),
        )
    )
    original = tmp_path / "run" / "checkpoints" / "original.safetensors"
    assert summary["baseline"]["file_bytes"] == original.stat().st_size


def test_a_users_own_network_goes_the_whole_road(small_network: str, tmp_path: Path) -> None:
    train(train_job(tmp_path / "big", small_network))
    network = {"source": str(tmp_path / "big"), "builder": small_network}
    summary = prune(job(tmp_path / "small", network))
    assert summary["pruned"]["macs"] <= 0.25 * summary["baseline"]["macs"]
    small = sec.load(summary["checkpoint"], sec.build(small_network))
    assert small(torch.zeros(1, 3, 8, 8)).shape == (1, 10)


OWN_CRITERION = """
from secateur.criteria import WeightCriterion, register


@register
class Positions(WeightCriterion):
    name = "position-of-channel"

    def of_weights(self, weights):
        return torch.arange(len(weights)).float()
"""


def test_a_criterion_of_the_users_file_prunes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import torch\n" + SMALL_NETWORK + OWN_CRITERION)
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))  # forgotten after the test
    options = {
        "network.source": ("SOURCE", f"{file}:small"),
        "budget.macs": ("--macs", 0.5),
        "out": ("--out", tmp_path / "run"),
    }
    summary = prune(prune_job(options, "plain", ("criterion=position-of-channel",)))
    assert summary["criterion"] == "position-of-channel"
    again = {"out": ("--out", tmp_path / "again")}
    repeated = prune(prune_job(again, str(tmp_path / "run" / "config.toml"), ()))
    assert repeated["criterion"] == "position-of-channel"
    choice, data = NetworkChoice(source=f"{file}:small"), DataChoice(source="digits", batch_size=64)
    result = oracle(choice, data, tmp_path / "oracle.json", ["position-of-channel"], 64)
    assert result["agreement"][0]["criterion"] == "position-of-channel"


def test_named_modules_stay_whole(trained: Path, tmp_path: Path) -> None:
    summary = prune(
        job(
            tmp_path / "run",
            trained,
            data=None,
            budget={"macs": 0.5},
            recipe=Recipe.preset(
                "plain", criterion="magnitude", widths={"ignore": ["features.3", "classifier.1"]}
            ),
        )
    )
    small = sec.load(summary["checkpoint"])
    assert small.features[3].weight.shape[:2] == (64, 32)
    assert small.classifier[1].out_features == 256


def test_what_cannot_be_is_refused(trained: Path, small_network: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one limit"):
        prune(job(tmp_path / "a", trained, budget={}))
    assert not (tmp_path / "a").exists()
    with pytest.raises(BudgetError, match="least possible"):
        prune(job(tmp_path / "b", trained, budget={"macs": 10}))
    assert read_summary(tmp_path / "b")["status"] == "failed"
    # A network whose builder takes no number of classes has the outputs that it has.
    text = Path(small_network.partition(":")[0]).read_text()
    (tmp_path / "seven.py").write_text(text.replace("num_classes=10", "").replace("num_classes", "7"))
    seven = {"source": f"{tmp_path / 'seven.py'}:small", "size": 8}
    with pytest.raises(DataError, match=r"scores of shape \(2, 7\).*10 classes; train it"):
        prune(job(tmp_path / "c", seven))


def test_everything_that_recovers_accuracy_together(trained: Path, tmp_path: Path) -> None:
    heard = Recorder()
    settings = trained_at(
        0.01, "default", steps=2, reconstruct_batches=4, finetune={"ema_decay": 0.9, "epochs": 1}
    )
    summary = prune(job(tmp_path / "run", trained, recipe=settings), [heard])
    assert summary["verification"]["ok"]
    assert summary["pruned"]["macs"] <= 0.25 * summary["baseline"]["macs"]
    # The teacher has seen its images once, and what learns from it can hardly do better.
    assert summary["pruned"]["top1"] > summary["baseline"]["top1"] - 0.05
    again = sec.load(tmp_path / "run" / "checkpoints" / "best.safetensors")
    assert sec.cost(again, torch.zeros(2, 1, 8, 8)).macs == summary["pruned"]["macs"]
    assert sum(isinstance(event, Cut) for event in heard) == 2


def test_settings_of_text_are_refused_for_images(trained: Path, tmp_path: Path) -> None:
    data = {"source": "digits", "text": {"block": 64}}
    with pytest.raises(UsageError, match=r"data\.text\.block: no effect on images"):
        prune(job(tmp_path / "none", trained, data=data, given=["data.text.block"]))
    assert not (tmp_path / "none").exists()


def test_only_images_that_training_mirrors_are_mirrored_for_the_teacher(
    trained: Path, folder: Path, small_network: str, tmp_path: Path
) -> None:
    settings = trained_at(0.01, "default", finetune={"epochs": 1}, distillation={"flip": True})
    with pytest.raises(UsageError, match=r"images of 'digits' are not flipped.*leave distillation.flip out"):
        prune(job(tmp_path / "none", trained, recipe=settings))
    assert not (tmp_path / "none").exists()
    network, data = {"source": small_network, "size": 16}, {"source": str(folder), "batch_size": 4}
    summary = prune(job(tmp_path / "run", network, data=data, budget={"macs": 0.5}, recipe=settings))
    assert summary["verification"]["ok"]


def test_curves_without_data_are_refused(tmp_path: Path) -> None:
    network = {"source": "secateur:digits"}
    settings = Recipe(criterion="magnitude")
    with pytest.raises(UsageError, match="give --data"):
        prune(job(tmp_path / "run", network, data=None, recipe=settings))
    assert not (tmp_path / "run").exists()


def test_a_search_keeps_its_path_and_hands_over_the_smallest_that_holds(
    trained: Path, tmp_path: Path
) -> None:
    heard = Recorder()
    settings = Recipe.preset("default", finetune={"epochs": 0}, criterion="random")
    search = {"max_drop": 1.0, "of": "params", "tries": 4}
    summary = prune(job(tmp_path / "run", trained, recipe=settings, budget=None, search=search), [heard])
    path = summary["path"]
    tried = [event for event in heard if isinstance(event, Tried)]
    assert [point["number"] for point in path] == list(range(len(tried) + 1))
    assert [event.share for event in tried] == [point["share"] for point in path[1:]]
    baseline = path[0]["validation_top1"]
    for point in path[1:]:
        assert point["held"] == (point["validation_top1"] >= baseline - 0.01)
        left = load(point["checkpoint"])
        assert sum(p.numel() for p in left.parameters()) == point["cost"]["params"]
        assert point["cost"]["params"] <= point["share"] * summary["baseline"]["params"]
    best = min((point for point in path if point["held"]), key=lambda point: point["share"])
    assert summary["pruned"]["params"] == (best["cost"] or summary["baseline"])["params"]
    assert not all(point["held"] for point in path[1:])
    kept = load(summary["checkpoint"]).state_dict()
    wanted = load(best["checkpoint"] or trained / "checkpoints" / "best.safetensors").state_dict()
    assert all(torch.equal(kept[name], wanted[name]) for name in wanted)
    metadata = read_metadata(summary["checkpoint"])
    assert [entry["number"] for entry in metadata.history if "number" in entry] == [1]


def test_a_search_that_fails_says_so_and_how_near_it_came(trained: Path, tmp_path: Path) -> None:
    heard = Recorder()
    settings = Recipe.preset("one-shot", criterion="random")
    search = {"max_drop": 0.0, "tries": 1}
    run = job(tmp_path / "run", trained, recipe=settings, budget=None, search=search)
    summary = prune(run, [heard])
    start, tried = (point["validation_top1"] for point in summary["path"])
    assert tried < start
    assert summary["search_failed"] in heard.of(str)
    assert f"try 1 with 50% of the MACs, loses {100 * (start - tried):.2f} points" in summary["search_failed"]
    assert summary["pruned"]["params"] == summary["baseline"]["params"]


def test_earlier_measurements_are_used_again_and_foreign_ones_refused(trained: Path, tmp_path: Path) -> None:
    settings = Recipe.preset("default", finetune={"epochs": 0}, curve_batches=2)
    prune(job(tmp_path / "first", trained, recipe=settings))
    heard = Recorder()
    again = job(tmp_path / "again", trained, recipe=settings, measured=tmp_path / "first")
    summary = prune(again, [heard])
    assert not any(isinstance(event, Progress) and event.task == "scoring" for event in heard)
    assert summary["verification"]["ok"]
    other = job(tmp_path / "other", tmp_path / "first", recipe=settings, measured=tmp_path / "first")
    with pytest.raises(UsageError, match="other weights"):
        prune(other)
    (tmp_path / "first" / "measured.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        prune(job(tmp_path / "broken", trained, recipe=settings, measured=tmp_path / "first"))


def test_finished_measurements_are_on_the_disk_before_the_cut(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    seen: list[dict[str, Any]] = []

    def killed(*_: Any) -> None:
        seen.append(read_measured(out))
        raise StoppedError("killed")

    monkeypatch.setattr("secateur.recipes.runner.cut", killed)
    with pytest.raises(StoppedError):
        prune(job(out, trained, recipe=Recipe.preset("default", curve_batches=2)))
    (found,) = seen
    assert found["curves"]["curves"].keys() == found["scores"]["scores"].keys()


def test_either_a_budget_or_a_search(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not both"):
        job(tmp_path / "run", trained, search={"max_drop": 1.0})
