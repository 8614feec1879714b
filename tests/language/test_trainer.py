"""Pruned language models in ``transformers.Trainer``, with a teacher and with adapters of peft."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import secateur as sec
from secateur.training.distillation import Teacher
from tests import tiny_language as tiny

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import AutoModelForCausalLM, TrainingArguments

from secateur.language.trainer import DistillationTrainer, SavePruned


@pytest.fixture
def networks(tmp_path: Path) -> tuple[Any, Any]:
    """A language model and a pruned copy of it."""
    model = AutoModelForCausalLM.from_pretrained(tiny.write_model(tmp_path / "model")).eval()
    graph = sec.trace(model, torch.randint(2, 10, (1, tiny.BLOCK)), ignore=["model.embed_tokens"])
    plan = sec.make_plan(
        graph,
        sec.score(model, graph, "magnitude"),
        sec.Budget(params=0.8),
        widths=sec.Widths(uniform_widths=True),
        allocation="uniform",
    )
    return model, sec.apply_plan(model, plan)


def rows(count: int = 32) -> list[dict[str, torch.Tensor]]:
    ids = tiny.tokenizer()(tiny.sentences(200)).input_ids
    blocks = torch.tensor(ids)[: count * tiny.BLOCK].view(count, tiny.BLOCK)
    return [{"input_ids": block, "labels": block} for block in blocks]


def arguments(folder: Path, **given: Any) -> TrainingArguments:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers, about itself
        return TrainingArguments(
            output_dir=str(folder),
            **{"max_steps": 6, "learning_rate": 3e-3, **given},
            per_device_train_batch_size=4,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        )


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_teacher_takes_part_and_what_is_saved_loads(networks: tuple[Any, Any], tmp_path: Path) -> None:
    model, small = networks
    tuner = DistillationTrainer(
        model=small,
        args=arguments(tmp_path / "out", max_steps=4, gradient_accumulation_steps=2),
        train_dataset=rows(),
        teacher=Teacher(model, weight=0.5, temperature=1.0, dim=-1),
        callbacks=[SavePruned(tiny.tokenizer())],
    )
    batch = {name: torch.stack([row[name] for row in rows(4)]) for name in ("input_ids", "labels")}
    small.train()
    with torch.no_grad():
        joined = tuner.compute_loss(small, dict(batch))
        plain = small(**batch)
        taught, learned = (each(batch["input_ids"]).logits.log_softmax(-1) for each in (model, small))
        divergence = (taught.exp() * (taught - learned)).sum(-1).mean()
        assert torch.allclose(joined, 0.5 * plain.loss + 0.5 * divergence, atol=1e-5)
        small.eval()
        assert torch.allclose(tuner.compute_loss(small, dict(batch)), plain.loss, atol=1e-6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tuner.train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "pretrained").eval()
    with torch.no_grad():
        found, expected = (each.eval()(batch["input_ids"]).logits for each in (again, small))
    assert torch.allclose(found, expected, atol=1e-5)
    assert (tmp_path / "out" / "pretrained" / "tokenizer.json").is_file()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_adapters_are_trained_and_merged(networks: tuple[Any, Any], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, small = networks
    shapes = {name: tensor.shape for name, tensor in small.state_dict().items()}
    frozen = small.model.layers[0].mlp.up_proj.weight.detach().clone()
    adapted = peft.get_peft_model(small, peft.LoraConfig(r=2, target_modules="all-linear"))
    with pytest.raises(sec.UsageError, match="merge_and_unload"):
        DistillationTrainer(
            model=adapted,
            args=arguments(tmp_path / "out"),
            train_dataset=rows(),
            teacher=Teacher(model, weight=0.5, temperature=1.0, dim=-1),
            callbacks=[SavePruned()],
        ).train()
    tuner = DistillationTrainer(
        model=adapted,
        args=arguments(tmp_path / "out"),
        train_dataset=rows(),
        teacher=Teacher(model, weight=0.5, temperature=1.0, dim=-1),
    )
    tuner.train()
    base = adapted.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight
    assert torch.equal(base, frozen)
    merged = adapted.merge_and_unload()
    assert {name: tensor.shape for name, tensor in merged.state_dict().items()} == shapes
    assert not torch.equal(merged.model.layers[0].mlp.up_proj.weight, frozen)
    sec.save_pretrained(tmp_path / "merged", merged)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    ids = rows(1)[0]["input_ids"][None]
    with torch.no_grad():
        assert torch.allclose(again(ids).logits, merged.eval()(ids).logits, atol=1e-5)
