"""Pruned networks of transformers, saved as folders that the library loads alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sec
from secateur.budget import params_of_body
from secateur.errors import CheckpointError, UsageError
from secateur.integrations import pretrained
from secateur.integrations.huggingface import example_inputs
from secateur.integrations.libraries import library
from tests.libraries import QUIET

pytest.importorskip("transformers", reason="needs transformers")
pytestmark = QUIET

_SIZES = {"vocab_size": 64, "use_cache": False}
_LLAMA = {**_SIZES, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2}
CONFIGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {**_LLAMA, "num_attention_heads": 12, "num_key_value_heads": 4},
    ),
    "qwen2": (
        "Qwen2Config",
        "Qwen2ForCausalLM",
        {**_LLAMA, "num_attention_heads": 8, "num_key_value_heads": 4},
    ),
    "mixtral": (
        "MixtralConfig",
        "MixtralForCausalLM",
        {**_LLAMA, "num_attention_heads": 8, "num_key_value_heads": 4, "num_local_experts": 4},
    ),
    "qwen3": (
        "Qwen3Config",
        "Qwen3ForCausalLM",
        {**_LLAMA, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8},
    ),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {**_SIZES, "n_embd": 48, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "opt": (
        "OPTConfig",
        "OPTForCausalLM",
        {
            **_SIZES,
            "hidden_size": 48,
            "word_embed_proj_dim": 48,
            "ffn_dim": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 12,
            "max_position_embeddings": 64,
        },
    ),
    "t5": (
        "T5Config",
        "T5ForConditionalGeneration",
        {**_SIZES, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "decoder_start_token_id": 0},
    ),
}


SLOW = ("qwen2", "mixtral", "qwen3", "opt", "t5")
"""Networks that the others are like."""


def some(*names: str) -> list[Any]:
    """These networks as parameters of a test, some of them slow."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in names]


def built(name: str) -> nn.Module:
    config, kind, sizes = CONFIGS[name]
    transformers = library("transformers")
    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, kind)(getattr(transformers, config)(**sizes)).eval()
    return model


def halved(model: nn.Module, allocation: str = "uniform") -> nn.Module:
    graph = sec.trace(model, example_inputs(model, length=12))
    scores = sec.score(model, graph, "magnitude")
    plan = sec.make_plan(graph, scores, sec.Budget(channels=0.5), allocation=allocation)  # type: ignore[arg-type]
    return sec.apply_plan(model, plan)


def generated(model: Any, *, cache: bool) -> torch.Tensor:
    words = torch.tensor([[5, 9, 7, 11, 3, 8]])
    found: torch.Tensor = model.generate(
        words, max_new_tokens=8, do_sample=False, use_cache=cache, pad_token_id=0, eos_token_id=None
    )
    return found


@pytest.mark.parametrize("name", some(*CONFIGS))
def test_the_library_loads_a_uniform_result(name: str, tmp_path: Path) -> None:
    small = halved(built(name))
    sec.save_pretrained(tmp_path / "small", small)
    again: Any = type(small).from_pretrained(str(tmp_path / "small"))  # type: ignore[attr-defined]
    expected = {key: tensor.shape for key, tensor in small.state_dict().items()}
    assert {key: tensor.shape for key, tensor in again.state_dict().items()} == expected
    for cache in (False, True):
        assert torch.equal(generated(again, cache=cache), generated(small, cache=cache))
    assert not list(tmp_path.glob(".*"))


def test_the_number_of_heads_is_right_where_outputs_hardly_depend_on_it(tmp_path: Path) -> None:
    transformers = library("transformers")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8}
    config = transformers.BertConfig(vocab_size=64, max_position_embeddings=32, **sizes)
    torch.manual_seed(0)
    small: Any = halved(transformers.BertForSequenceClassification(config).eval())
    sec.save_pretrained(tmp_path / "small", small)
    again = type(small).from_pretrained(str(tmp_path / "small"))
    inputs = example_inputs(small)
    assert torch.equal(again(**inputs).logits, small(**inputs).logits)
    assert again.config.num_attention_heads == 4


def test_a_process_without_secateur_computes_the_same(tmp_path: Path) -> None:
    small = halved(built("llama"))
    sec.save_pretrained(tmp_path / "small", small)
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "import torch; from transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(tmp_path / 'small')!r}).eval()\n"
        "words = torch.tensor([[5, 9, 7, 11, 3, 8]])\n"
        "fixed = {'do_sample': False, 'pad_token_id': 0, 'eos_token_id': None}\n"
        "found = model.generate(words, max_new_tokens=8, **fixed)\n"
        "assert 'secateur' not in sys.modules\n"
        "print(found.tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(generated(small, cache=True).tolist())


@pytest.mark.parametrize("name", some("llama", "qwen3", "mixtral"))
def test_a_budget_of_parameters_leaves_one_width_for_all_layers(name: str, tmp_path: Path) -> None:
    model = built(name)
    graph = sec.trace(model, example_inputs(model, length=12), ignore=["model.embed_tokens"])
    budget = sec.Budget(params=params_of_body(graph, 0.6))
    scores = {  # one layer alone would lose channels in a global order
        name: values * (100 if name.startswith("model.layers.1.") else 1)
        for name, values in sec.score(model, graph, "magnitude").items()
    }
    free = sec.make_plan(graph, scores, budget, normalize="none")
    with pytest.raises(UsageError, match="uniform_widths=True"):
        sec.save_pretrained(tmp_path / "free", sec.apply_plan(model, free))
    widths = sec.Widths(uniform_widths=True)
    plan = sec.make_plan(graph, scores, budget, widths=widths, normalize="none")
    small = sec.apply_plan(model, plan)
    sec.save_pretrained(tmp_path / "small", small)
    again: Any = type(small).from_pretrained(str(tmp_path / "small"))  # type: ignore[attr-defined]
    assert sum(item.numel() for item in again.parameters()) == plan.cost_after.params < graph.cost().params
    for cache in (False, True):
        assert torch.equal(generated(again, cache=cache), generated(small, cache=cache))


def test_widths_that_differ_between_layers_are_refused(tmp_path: Path) -> None:
    model = built("llama")
    graph = sec.trace(model, example_inputs(model, length=12))
    small = sec.apply_plan(model, sec.plan_from(graph, {"model.layers.0.mlp.gate_proj": range(10)}))
    with pytest.raises(UsageError, match=r"layers.0.mlp.* is 54 .*uniform_widths=True"):
        sec.save_pretrained(tmp_path / "small", small)
    assert not (tmp_path / "small").exists()


def test_heads_are_fewer_where_the_config_does_not_give_their_size(tmp_path: Path) -> None:
    model: Any = built("mixtral")
    assert model.config.head_dim is None
    graph = sec.trace(model, example_inputs(model, length=12), ignore=["model.embed_tokens"])
    keep = {f"model.layers.{layer}.self_attn.q_proj": (1,) for layer in range(2)}
    small: Any = sec.apply_plan(model, sec.PruningPlan(graph, keep))
    sec.save_pretrained(tmp_path / "small", small)
    again = type(small).from_pretrained(str(tmp_path / "small"))
    assert (again.config.num_attention_heads, again.config.num_key_value_heads) == (2, 1)
    assert torch.equal(generated(again, cache=True), generated(small, cache=True))


@pytest.mark.parametrize("name", some("llama", "qwen3", "gpt2"))
def test_layers_without_branches_are_left_out(name: str, tmp_path: Path) -> None:
    config, kind, sizes = CONFIGS[name]
    transformers = library("transformers")
    torch.manual_seed(0)
    layers = {"n_layer" if name == "gpt2" else "num_hidden_layers": 4}
    model = getattr(transformers, kind)(getattr(transformers, config)(**{**sizes, **layers})).eval()
    graph = sec.trace(model, example_inputs(model, length=12))
    gone = [branch.name for branch in graph.branches if ".1." in f"{branch.name}."]
    narrow = [group.name for group in graph.prunable if group.channels == graph.prunable[-1].channels]
    keep = {name: range(graph[name].channels // 2) for name in narrow if ".1." not in name}
    small = sec.apply_plan(model, sec.PruningPlan(graph, keep, gone))
    before, expected = dict(small.named_modules()), [generated(small, cache=cache) for cache in (False, True)]
    sec.save_pretrained(tmp_path / "small", small)
    assert dict(small.named_modules()) == before
    again: Any = type(small).from_pretrained(str(tmp_path / "small"))  # type: ignore[attr-defined]
    assert again.config.num_hidden_layers == 3
    assert len(again.state_dict()) == len(small.state_dict())
    for cache, tokens in zip((False, True), expected, strict=True):
        assert torch.equal(generated(again, cache=cache), tokens)
        assert torch.equal(generated(small, cache=cache), tokens)


def test_a_layer_that_lost_one_of_its_branches_is_refused(tmp_path: Path) -> None:
    model = built("llama")
    graph = sec.trace(model, example_inputs(model, length=12))
    small = sec.apply_plan(model, sec.PruningPlan(graph, {}, ["model.layers.1.mlp"]))
    with pytest.raises(UsageError, match="modules were removed"):
        sec.save_pretrained(tmp_path / "small", small)


def test_a_width_that_the_library_refuses_is_named(tmp_path: Path) -> None:
    model = built("llama")
    graph = sec.trace(model, example_inputs(model, length=12))
    small = sec.apply_plan(model, sec.plan_from(graph, {"model.embed_tokens": range(5)}))
    with pytest.raises(UsageError, match=r"refuses .*hidden size \(43\) is not a multiple .*multiple_of"):
        sec.save_pretrained(tmp_path / "small", small)
    assert not list(tmp_path.iterdir())


def test_a_network_that_computes_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built("llama")
    small = halved(model)
    right = pretrained.configs_of(small)[0]
    right.rms_norm_eps = 0.5
    monkeypatch.setattr(pretrained, "configs_of", lambda *_: [right])
    with pytest.raises(CheckpointError, match="computes something else"):
        sec.save_pretrained(tmp_path / "small", small)
    assert not list(tmp_path.iterdir())


def test_the_network_is_left_as_it_was_and_other_folders_are_kept(tmp_path: Path) -> None:
    model = built("llama")
    config, state = model.config, {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = config.to_dict()  # type: ignore[operator]
    sec.save_pretrained(tmp_path / "whole", model)
    assert model.config is config
    assert config.to_dict() == before  # type: ignore[operator]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match="holds something other"):
        sec.save_pretrained(tmp_path / "photos", model)
    with pytest.raises(UsageError, match="no network of transformers"):
        sec.save_pretrained(tmp_path / "linear", nn.Linear(2, 2))
