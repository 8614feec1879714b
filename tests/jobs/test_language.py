"""Commands for language models, on a tiny one that is made here."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import secateur as sec
from secateur.errors import DataError, UsageError
from secateur.jobs.evaluate import evaluate
from secateur.jobs.frontier import frontier
from secateur.jobs.measure import measure
from secateur.jobs.networks import open_network
from secateur.jobs.pretrained import export_folder
from secateur.jobs.prune import prune
from secateur.jobs.settings import (
    Conditions,
    DataChoice,
    ExportChoice,
    FrontierJob,
    NetworkChoice,
    PruneJob,
    TrainJob,
)
from secateur.jobs.train import train
from secateur.recipes import Recipe
from secateur.report.page import run_page
from secateur.training.run_folder import read_metrics, read_summary
from tests.libraries import QUIET
from tests.tiny_language import BLOCK, write_model, write_text

sec.build("torchvision:resnet18", classes=2)  # makes torchvision importable beside a CPU build of torch
transformers = pytest.importorskip("transformers", minversion="5", reason="needs transformers")
pytestmark = QUIET

TEXT = {"block": BLOCK}
QUICK = {"epochs": 2, "optimizer": {"learning_rate": 3e-3}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a language model and a text."""
    folder = tmp_path_factory.mktemp("language")
    write_model(folder / "model")
    write_text(folder / "text.txt")
    return folder


def pruning(place: Path, out: Path, **changes: Any) -> PruneJob:
    recipe = {
        "preset": "language",
        "curve_batches": 4,
        "reconstruct_batches": 4,
        "finetune": QUICK,
        **changes.pop("recipe", {}),
    }
    table = {
        "network": {"source": f"hf:{place}/model"},
        "data": {"source": str(place / "text.txt"), "batch_size": 8, "text": TEXT},
        "budget": {"params": 0.7},
        "latency_seconds": 0,
    } | changes
    return PruneJob(**table, out=out, recipe=Recipe.from_table(recipe))


@pytest.fixture(scope="module")
def pruned(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a plan with equal widths in all layers and a whole residual stream, fine-tuned."""
    out = tmp_path_factory.mktemp("runs") / "pruned"
    widths = {"uniform_widths": True, "ignore": ["model.embed_tokens"]}
    prune(pruning(place, out, recipe={"widths": widths}))
    return out


def losses_of(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """The loss of each predicted token, computed by the network itself."""
    ids = tokens[: len(tokens) // BLOCK * BLOCK].view(-1, BLOCK)
    with torch.no_grad():
        scores = model.eval()(input_ids=ids).logits[:, :-1].double().log_softmax(-1)
    return -scores.gather(-1, ids[:, 1:, None])


def held_out(place: Path, tokenizer: Any) -> torch.Tensor:
    ids = torch.tensor(tokenizer((place / "text.txt").read_text(), add_special_tokens=False)["input_ids"])
    return ids[len(ids) - round(0.1 * len(ids)) :]


def test_a_run_holds_a_network_that_from_pretrained_loads(pruned: Path, place: Path) -> None:
    summary = read_summary(pruned)
    assert summary["status"] == "done"
    assert summary["pruned"]["params"] <= 0.7 * summary["baseline"]["params"]
    assert summary["verification"]["ok"]
    model = transformers.AutoModelForCausalLM.from_pretrained(pruned / "pretrained")
    tokenizer = transformers.AutoTokenizer.from_pretrained(pruned / "pretrained")
    assert sum(parameter.numel() for parameter in model.parameters()) == summary["pruned"]["params"]
    tokens = held_out(place, tokenizer)
    losses = losses_of(model, tokens)
    assert summary["pruned"]["perplexity"] == pytest.approx(losses.mean().exp().item(), rel=1e-4)
    assert summary["protocol"] == {
        "block": BLOCK,
        "stride": BLOCK,
        "blocks": len(tokens) // BLOCK,
        "predicted": losses.numel(),
    }
    assert summary["start"]["tested_on"] == "validation"
    assert model.config.use_cache
    prompt = tokens[None, :4]
    written = [
        model.generate(prompt, max_new_tokens=6, do_sample=False, use_cache=cached, pad_token_id=0)
        for cached in (True, False)
    ]
    assert torch.equal(*written)
    loaded = sec.load(pruned / "checkpoints" / "best.safetensors")
    assert torch.equal(losses_of(loaded, tokens), losses)


def test_fine_tuning_lowers_perplexity_and_keeps_the_lowest(pruned: Path) -> None:
    epochs = [event for event in read_metrics(pruned) if event["event"] == "epoch"]
    assert {event["metric_name"] for event in epochs} == {"perplexity"}
    assert [event["epoch"] for event in epochs] == [0, 1, 2]
    kept = read_summary(pruned)["training"]["kept"]
    assert kept["perplexity"] == min(event["metric"] for event in epochs) < 0.9 * epochs[0]["metric"]
    assert math.exp(kept["loss"]) == pytest.approx(kept["perplexity"])
    page = run_page(pruned)
    assert f">{kept['perplexity']:.2f}<" in page
    assert "perplexity of the validation text" in page
    assert "accurac" not in page.partition('id="course"')[2].partition('id="widths"')[0].lower()


def test_a_run_and_its_source_are_evaluated_on_a_whole_text(pruned: Path, place: Path) -> None:
    data = DataChoice(source=str(place / "text.txt"), text={**TEXT, "stride": 4, "evaluation_tokens": 101})
    before = evaluate(NetworkChoice(source=f"hf:{place}/model"), data)
    after = evaluate(NetworkChoice(source=str(pruned)), data)
    assert before["examples"] == after["examples"] == BLOCK - 1 + (101 - BLOCK) // 4 * 4
    assert after["protocol"]["stride"] == 4
    assert after["perplexity"] < before["perplexity"]


def test_widths_that_no_config_describes_are_in_the_checkpoint_alone(place: Path, tmp_path: Path) -> None:
    recipe = {"curve_batches": 1, "reconstruct_batches": 1, "finetune": {"epochs": 0}}
    job = pruning(place, tmp_path / "free", recipe=recipe)
    found = prune(job)
    assert found["pretrained"] is None
    assert not (tmp_path / "free" / "pretrained").exists()
    notes = [event["text"] for event in read_metrics(job.out) if event["event"] == "note"]
    assert any(note.startswith("not written for from_pretrained: no config of Llama") for note in notes)
    assert (tmp_path / "free" / "tokenizer" / "tokenizer.json").is_file()
    data = DataChoice(source=str(place / "text.txt"), text=TEXT)
    assert math.isfinite(evaluate(NetworkChoice(source=str(job.out)), data)["perplexity"])


def test_widths_that_the_config_refuses_do_not_stop_the_run(place: Path, tmp_path: Path) -> None:
    recipe = {"allocation": "uniform", "widths": {"uniform_widths": True}, "finetune": {"epochs": 0}}
    job = pruning(place, tmp_path / "odd", recipe=recipe)  # the stream has 19 channels, for 4 heads
    assert prune(job)["pretrained"] is None
    notes = [event["text"] for event in read_metrics(job.out) if event["event"] == "note"]
    expected = "refuses the config that describes these widths (The hidden size (19) is not a multiple"
    assert any(expected in note for note in notes)


def test_a_frontier_has_perplexities(place: Path, tmp_path: Path) -> None:
    job = pruning(place, tmp_path / "none", recipe={"curve_batches": 1, "reconstruct_batches": 1})
    shared = {"network": job.network, "data": job.data, "recipe": job.recipe}
    found = frontier(FrontierJob(**shared, out=tmp_path / "frontier", by="params", points=2))
    baseline, points = found["frontier"]["baseline"], found["frontier"]["points"]
    assert len(points) == 2
    assert points[1]["perplexity"] != points[0]["perplexity"]
    assert baseline["error"] > 0
    assert "Perplexity against cost" in run_page(tmp_path / "frontier")


def test_a_language_model_is_trained_further(pruned: Path, place: Path, tmp_path: Path) -> None:
    job = TrainJob(
        network={"source": str(pruned)},
        data={"source": str(place / "text.txt"), "batch_size": 8, "text": TEXT},
        out=tmp_path / "longer",
        fit={"epochs": 1, "optimizer": {"name": "adamw", "learning_rate": 1e-3}},
        latency_seconds=0,
    )
    found = train(job)
    before = read_summary(pruned)["pruned"]
    assert found["network"]["params"] == before["params"]
    assert found["network"]["perplexity"] <= before["perplexity"] * 1.001
    assert found["validation_perplexity"] == pytest.approx(found["network"]["perplexity"])
    config = json.loads((tmp_path / "longer" / "pretrained" / "config.json").read_text())
    assert config["use_cache"] is True


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"given": ["finetune.label_smoothing"]}, "finetune.label_smoothing: no effect"),
        ({"recipe": {"distillation": {"flip": True}}}, "distillation.flip: no effect"),
        ({"given": ["data.strict"]}, "data.strict: no effect on text; leave data.strict out"),
        ({"given": ["detector.batch"]}, "detector.batch: no effect on networks that are no detectors"),
        ({"budget": None, "search": {"max_drop": 1}}, "--max-drop: not for language models"),
    ],
)
def test_settings_for_images_are_refused(
    changes: dict[str, Any], message: str, place: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        prune(pruning(place, tmp_path / "out", **changes))


def test_training_on_text_refuses_settings_for_images(place: Path, tmp_path: Path) -> None:
    job = TrainJob(
        network={"source": f"hf:{place / 'model'}"},
        data={"source": str(place / "text.txt"), "text": TEXT},
        out=tmp_path / "out",
        fit={"label_smoothing": 0.1},
        given=["fit.label_smoothing"],
    )
    with pytest.raises(UsageError, match=r"fit\.label_smoothing: no effect on language models"):
        train(job)
    assert not (tmp_path / "out").exists()


Change = Callable[[Path], dict[str, Any]]


def no_tokenizer(folder: Path) -> dict[str, Any]:
    for file in folder.glob("model/tokenizer*"):
        file.unlink()
    return {}


def other_tokenizer(folder: Path) -> dict[str, Any]:
    write_model(folder / "other")
    tokenizer = json.loads((folder / "other" / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = {word: 3 * at for word, at in tokenizer["model"]["vocab"].items()}
    (folder / "other" / "tokenizer.json").write_text(json.dumps(tokenizer))
    return {"tokenizer": folder / "other"}


def pickled(folder: Path) -> dict[str, Any]:
    (folder / "model" / "model.safetensors").rename(folder / "model" / "pytorch_model.bin")
    return {}


def with_code(folder: Path) -> dict[str, Any]:
    file = folder / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": {"AutoModel": "net.Net"}}))
    return {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_tokenizer, r"holds no tokenizer \(tokenizer\.json"),
        (other_tokenizer, r"the tokenizer returns the id 39, and hf:.* has 14 tokens"),
        (lambda folder: {"block": 65}, "reads at most 64 tokens at once, not 65; lower data.text.block"),
        (pickled, "holds no weights that can be read"),
        (with_code, "its network is code in the folder, which is not run"),
    ],
)
def test_what_does_not_fit_is_refused(change: Change, message: str, tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    write_text(tmp_path / "text.txt")
    text = {**TEXT, **change(tmp_path)}
    with pytest.raises((UsageError, DataError), match=message):
        evaluate(
            NetworkChoice(source=f"hf:{tmp_path}/model"),
            DataChoice(source=str(tmp_path / "text.txt"), text=text),
        )


def test_networks_of_another_kind_are_refused(tmp_path: Path, place: Path) -> None:
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(**size, vocab_size=14, max_position_embeddings=64)
    data = DataChoice(source=str(place / "text.txt"), text={**TEXT, "tokenizer": place / "model"})
    for kind in ("BertForMaskedLM", "BertModel"):
        getattr(transformers, kind)(config).save_pretrained(tmp_path / kind)
        with pytest.raises(DataError, match="sees the tokens that it predicts"):
            evaluate(NetworkChoice(source=f"hf:{tmp_path}/{kind}"), data)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "classes")
    with pytest.raises(DataError, match="returns scores of shape"):
        evaluate(NetworkChoice(source=f"hf:{tmp_path}/classes"), data)
    with pytest.raises(DataError, match="is a file, and the network takes images"):
        evaluate(NetworkChoice(source="secateur:digits"), data)


def test_tokens_a_second_are_measured_beside_each_other(pruned: Path, place: Path) -> None:
    choices = [NetworkChoice(source=f"hf:{place}/model"), NetworkChoice(source=str(pruned))]
    data = DataChoice(source=str(place / "text.txt"), text=TEXT)
    found = measure(choices, data, conditions=Conditions(seconds=0, prompt=24, threads=(1,)))
    first, second = found["networks"]
    assert found["latency"]["prompt"] == 24
    assert min(first["prefill"], first["decode"], second["prefill"], second["decode"]) > 0
    assert second["perplexity"] < first["perplexity"]
    model = transformers.AutoModelForCausalLM.from_pretrained(place / "model", use_cache=False)
    ids = torch.zeros(2, 24, dtype=torch.int64)
    assert first["macs"] == sec.cost(model, {"input_ids": ids}).macs > second["macs"]
    assert second["params"] == read_summary(pruned)["pruned"]["params"]


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"memory": True}, "--memory"),
        ({"batches": (2,)}, "--batch"),
        ({"runtimes": ("bf16",)}, "--runtime bf16"),
        ({"threads": (1, 2)}, "--threads"),
        ({"prompt": 65}, "reads at most 64 tokens at once, not 65"),
    ],
)
def test_conditions_of_other_networks_are_refused(
    conditions: dict[str, Any], message: str, place: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        measure([NetworkChoice(source=f"hf:{place}/model")], conditions=Conditions(**conditions))


def test_language_models_are_measured_alone(place: Path) -> None:
    with pytest.raises(UsageError, match="secateur:digits is no language model"):
        measure([NetworkChoice(source=name) for name in (f"hf:{place}/model", "secateur:digits")])


def test_a_run_is_exported_as_a_folder_for_from_pretrained(pruned: Path, tmp_path: Path) -> None:
    found = export_folder(NetworkChoice(source=str(pruned)), tmp_path / "small")
    assert found["tokenizer"] is True
    loaded = transformers.AutoModelForCausalLM.from_pretrained(found["folder"])
    words = torch.arange(6)[None]
    expected = sec.load(pruned / "checkpoints" / "best.safetensors")
    torch.testing.assert_close(loaded(words).logits, expected(words).logits)
    assert len(transformers.AutoTokenizer.from_pretrained(found["folder"])) > 2
    with pytest.raises(UsageError, match="no network of transformers"):
        export_folder(NetworkChoice(source="torchvision:resnet18", weights="none"), tmp_path / "other")
    with pytest.raises(UsageError, match="as they are"):
        ExportChoice(out=tmp_path / "half", format="hf", weights_as="float16")


def test_the_timed_pass_is_that_of_a_token_with_a_cache(place: Path, tmp_path: Path) -> None:
    job = pruning(place, tmp_path / "run", latency_context=40, latency_batch=3)
    network = open_network(job.network)
    timed = network.timed(job)
    lengths = [item.get_seq_length() for item in timed.values() if hasattr(item, "layers")]
    assert (timed["input_ids"].shape, lengths) == ((3, 1), [40])
    assert network.model(**timed).logits.shape[:2] == (3, 1)


def test_the_time_of_a_token_needs_a_network_with_a_cache(tmp_path: Path) -> None:
    job = PruneJob(
        network={"source": "resnet18", "weights": "none"},
        budget={"latency": 0.5},
        latency_context=40,
        out=tmp_path / "run",
        recipe=Recipe.preset("one-shot", criterion="magnitude"),
    )
    with pytest.raises(UsageError, match="latency_context: ResNet takes no cache of keys and values"):
        prune(job)
