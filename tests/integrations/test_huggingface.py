"""Networks of transformers by a local folder: what is built, what they are fed, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import secateur as sec
from secateur.errors import CheckpointError, UsageError
from secateur.inputs import InputSpec, NamedInputs
from secateur.jobs.inspect import inspect
from secateur.jobs.measure import measure
from secateur.jobs.settings import NetworkChoice
from secateur.models import ModelSpec
from tests.libraries import QUIET

transformers = pytest.importorskip("transformers")
pytestmark = QUIET

TEXT = {
    "vocab_size": 128,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}


@pytest.fixture
def folder(tmp_path: Path):
    def made(architecture: str | None, **settings: Any) -> str:
        named = {"architectures": [architecture]} if architecture else {}
        (tmp_path / "config.json").write_text(json.dumps(named | settings))
        return f"hf:{tmp_path}"

    return made


def sizes(name: str, **arguments: Any) -> dict[str, tuple[int, ...]]:
    inputs = ModelSpec.parse(name, **arguments).inputs
    assert isinstance(inputs, NamedInputs)
    return inputs.sizes()


def test_text(folder) -> None:
    name = folder("BertForSequenceClassification", **TEXT)
    spec = ModelSpec.parse(name, classes=3)
    model = spec.build().eval()
    assert type(model) is transformers.BertForSequenceClassification
    example = spec.inputs.example(2)
    assert example["input_ids"].dtype == torch.int64
    assert int(example["input_ids"].min()) > model.config.pad_token_id
    assert int(example["input_ids"].max()) < 128
    assert model(**example).logits.shape == (2, 3)
    assert sizes(name, length=20) == {"input_ids": (20,), "attention_mask": (20,)}
    assert sec.build(name, num_hidden_layers=2).config.num_hidden_layers == 2
    # The file itself may be named as well.
    assert isinstance(sec.build(f"{name}/config.json"), transformers.BertForSequenceClassification)


def test_an_encoder_and_a_decoder(folder) -> None:
    name = folder(
        "T5ForConditionalGeneration", vocab_size=128, d_model=16, d_ff=24, num_layers=1, num_heads=4, d_kv=4
    )
    assert sizes(name, length=10) == {"input_ids": (10,), "attention_mask": (10,), "decoder_input_ids": (5,)}
    spec = ModelSpec.parse(name)
    model = spec.build().eval()
    assert model.config.use_cache is False
    assert model(**spec.inputs.example(2)).past_key_values is None


def test_pictures(folder) -> None:
    settings = {key: value for key, value in TEXT.items() if "vocab" not in key and "position" not in key}
    name = folder("ViTForImageClassification", image_size=32, patch_size=16, num_channels=1, **settings)
    spec = ModelSpec.parse(name, classes=5)
    assert spec.input == InputSpec((1, 32, 32), (0.5,), (0.5,))
    assert spec.build().eval()(spec.input.example(2)).logits.shape == (2, 5)


def test_sound(folder) -> None:
    settings = {key: value for key, value in TEXT.items() if "position" not in key}
    name = folder(
        "Wav2Vec2ForCTC",
        conv_dim=[8] * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
        **settings,
    )
    assert sizes(name) == {"input_values": (16000,)}
    assert sizes(name, length=4000) == {"input_values": (4000,)}
    config = {
        "num_mel_bins": 20,
        "max_source_positions": 30,
        "is_encoder_decoder": True,
        "max_target_positions": 6,
    }
    name = folder("WhisperForConditionalGeneration", **config)
    assert sizes(name)["input_features"] == (20, 60)


def test_pictures_and_text_together(folder) -> None:
    vision = {
        "image_size": 32,
        "patch_size": 16,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    name = folder("CLIPModel", text_config=TEXT, vision_config=vision, projection_dim=8)
    assert sizes(name, length=6) == {"pixel_values": (3, 32, 32), "input_ids": (6,), "attention_mask": (6,)}
    spec = ModelSpec.parse(name)
    assert spec.build().eval()(**spec.inputs.example(2)).logits_per_image.shape == (2, 2)


@pytest.mark.parametrize(
    ("architecture", "settings", "words"),
    [
        (None, {}, "names no architecture"),
        ("NoSuchModel", {}, "has no network 'NoSuchModel'"),
        ("PreTrainedTokenizerFast", {}, "has no network"),
        ("BertModel", {"auto_map": {"AutoModel": "mine.Bert"}}, "code in the folder, which is not run"),
        ("BertModel", {"_attn_implementation": "someone/kernel"}, "would be fetched"),
        ("LlavaForConditionalGeneration", {}, "pass them in Python"),
    ],
)
def test_what_is_refused(folder, architecture, settings, words) -> None:
    name = folder(architecture, **settings)
    with pytest.raises(UsageError, match=words):
        _ = ModelSpec.parse(name).inputs


def test_a_wrong_setting_is_named(folder) -> None:
    name = folder("BertModel", **TEXT)
    with pytest.raises(UsageError, match=r"no setting 'hidden_sizes'; did you mean 'hidden_size'"):
        sec.build(name, hidden_sizes=8)
    with pytest.raises(UsageError, match="length is a positive whole number, not 0"):
        _ = ModelSpec.parse(name, length=0).inputs


def test_nothing_is_downloaded(tmp_path) -> None:
    with pytest.raises(UsageError, match="nothing is downloaded; fetch it first"):
        sec.build("hf:bert-base-uncased")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match="cannot be read as JSON"):
        sec.build(f"hf:{tmp_path}")


def test_a_missing_library_is_said(folder, monkeypatch) -> None:
    name = folder("BertModel", **TEXT)
    monkeypatch.setattr("secateur.integrations.libraries.find_spec", lambda _: None)
    with pytest.raises(UsageError, match="pip install transformers"):
        sec.build(name)


def test_weights_come_from_safetensors_in_the_folder(folder, tmp_path) -> None:
    name = folder("BertModel", **TEXT)
    with pytest.raises(CheckpointError, match=r"no \*.safetensors"):
        sec.build(name, weights="default")
    model = sec.build(name)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert not ModelSpec.parse(name).has_weights
    model.save_pretrained(tmp_path)
    again = sec.build(name, weights="default").state_dict()
    assert all(torch.equal(again[key], value) for key, value in model.state_dict().items())


def test_a_checkpoint_loads_by_its_builder(folder, tmp_path) -> None:
    spec = ModelSpec.parse(folder("BertForSequenceClassification", **TEXT), classes=3)
    model, inputs = spec.build().eval(), spec.inputs.example(2)
    graph = sec.trace(model, inputs)
    plan = sec.make_plan(graph, sec.score(model, graph, "magnitude"), sec.Budget(params=0.6))
    small = sec.apply_plan(model, plan)
    sec.save(tmp_path / "small.safetensors", small, builder=spec)
    again = sec.load(tmp_path / "small.safetensors")
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, small(**inputs).logits)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match="pass model="):
        sec.load(tmp_path / "small.safetensors")


def test_it_is_inspected_and_others_refuse_it(folder) -> None:
    choice = NetworkChoice(source=folder("BertModel", **TEXT), weights="none")
    found = inspect(choice, (8,), limits={"params": 0.5})
    assert found["input"] == {"input_ids": [8], "attention_mask": [8]}
    assert sum(layer["macs"] for layer in found["layers"]) == found["cost"]["macs"]
    with pytest.raises(UsageError, match="length as one number"):
        inspect(choice, (3, 8, 8))
    with pytest.raises(UsageError, match="at most 32 tokens at once"):
        measure([choice])
