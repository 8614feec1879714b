from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.data.loader import at_epoch
from secateur.errors import DataError, UsageError
from secateur.language import TextBlocks, TextSettings, open_text, open_tokenizer
from secateur.language.blocks import blocks_of, overlapping_blocks
from secateur.settings import SettingsError
from secateur.training.losses import NOT_COUNTED


class Bytes:
    """A tokenizer with one token for each byte; texts hold no byte 0, which ends them."""

    eos_token_id: int | None = 0

    def __call__(self, texts: list[str], add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        assert not add_special_tokens
        return {"input_ids": [list(text.encode()) for text in texts]}


def opened(source: object, block: int = 4, **options: object):
    return open_text(source, Bytes(), TextSettings(block=block), **options)


@given(
    st.lists(
        st.text(st.characters(min_codepoint=33, codec="utf-8")).filter(str.strip), min_size=1, max_size=40
    ),
    st.floats(0.05, 0.9),
)
def test_splits_follow_each_other_and_hold_every_token_once(texts: list[str], held_out: float) -> None:
    whole = list(b"\0".join(text.encode() for text in texts))
    held = round(held_out * len(whole))
    if len(whole) - held < 2 or held < 2:
        with pytest.raises(DataError, match="give more text"):
            opened(texts, block=2, held_out=held_out)
        return
    data = opened(texts, block=2, held_out=held_out)
    assert data.tokens["train"].tolist() + data.tokens["val"].tolist() == whole
    assert data.tokens["test"] is data.tokens["val"]
    assert data.tested_on == "validation"


def test_many_documents_are_joined_in_order() -> None:
    texts = [f"{number}" for number in range(700)]  # more than are tokenized at once
    data = opened(texts, held_out=0.5)
    both = data.tokens["train"].tolist() + data.tokens["val"].tolist()
    assert bytes(both).decode().split("\0") == texts


def test_given_splits_are_kept_apart(tmp_path: Path) -> None:
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.txt").write_text(name * 4)
    data = opened(tmp_path)
    assert {name: bytes(ids.tolist()).decode() for name, ids in data.tokens.items()} == {
        "train": "train" * 4,
        "val": "valid" * 4,
        "test": "test" * 4,
    }
    assert data.tested_on == "test"
    only = opened({"test": ["abcd"], "train": ["efgh"]}, training=False)
    assert list(only.tokens) == ["test"]
    assert bytes(only.tokens["test"].tolist()) == b"abcd"


def test_nothing_may_be_held_out_if_there_is_a_test_text() -> None:
    data = opened({"train": ["abcd" * 3], "test": ["efgh"]}, held_out=0)
    assert data.validation_batches() is None
    assert len(data.tokens["train"]) == 12
    with pytest.raises(DataError, match="nothing is held out"):
        opened(["abcd" * 3], held_out=0)


@given(st.integers(0, 200), st.integers(1, 9))
def test_blocks_follow_each_other_without_a_rest(tokens: int, block: int) -> None:
    found = blocks_of(torch.arange(tokens), block)
    assert found.flatten().tolist() == list(range(tokens - tokens % block))


@given(st.integers(2, 60), st.integers(2, 9), st.integers(1, 9))
def test_overlapping_blocks_predict_every_token_once(tokens: int, block: int, stride: int) -> None:
    stride, tokens = min(stride, block), max(tokens, block)
    ids, targets = overlapping_blocks(torch.arange(tokens), block, stride)
    assert ids[:, 0].tolist() == list(range(0, tokens - block + 1, stride))
    predicted = [
        int(token) for row in targets for place, token in enumerate(row) if place and token != NOT_COUNTED
    ]
    last = int(ids[-1, -1])
    if stride < block:
        assert predicted == list(range(1, last + 1))
        for place, row in enumerate(targets[1:]):
            first = next(at for at, token in enumerate(row) if token != NOT_COUNTED)
            assert first == block - stride, place
    else:  # the first token of a block has nothing before it
        assert predicted == [token for token in range(last + 1) if token % block]


def test_the_seed_and_the_pass_determine_the_order() -> None:
    def orders(seed: int) -> list[list[int]]:
        blocks = TextBlocks(torch.arange(40).view(20, 2), 6, shuffle=True, seed=seed)
        passes = [[inputs["input_ids"] for inputs, _ in blocks] for _ in range(2)]
        assert [len(batch) for batch in passes[0]] == [6, 6, 6]  # the rest is left out
        with at_epoch(blocks, 0):
            again = [inputs["input_ids"] for inputs, _ in blocks]
        assert all(map(torch.equal, again, passes[0]))
        return [torch.cat(batches)[:, 0].tolist() for batches in passes]

    first, second = orders(0)
    assert first != second
    assert orders(0) == [first, second]
    assert orders(1)[0] != first
    assert len(set(first)) == 18


def test_one_batch_that_is_not_full_is_kept() -> None:
    [(inputs, targets)] = TextBlocks(torch.arange(6).view(3, 2), 8, shuffle=True)
    assert sorted(inputs["input_ids"][:, 0].tolist()) == [0, 2, 4]
    assert torch.equal(inputs["input_ids"], targets)


def test_evaluation_reads_so_many_tokens_of_the_text() -> None:
    settings = TextSettings(block=4, evaluation_tokens=13, stride=2)
    data = open_text(["a" * 100], Bytes(), settings, training=False)
    assert data.protocol == {"block": 4, "stride": 2, "blocks": 5, "predicted": 3 + 4 * 2}
    whole = open_text(["a" * 100], Bytes(), TextSettings(block=4, evaluation_tokens=0), training=False)
    assert whole.protocol == {"block": 4, "stride": 4, "blocks": 25, "predicted": 75}


def test_wrong_settings_and_short_texts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="stride is 9.*give at most 8"):
        TextSettings(block=8, stride=9)
    with pytest.raises(SettingsError, match=f"tokenizer: there is no folder {tmp_path}/none"):
        TextSettings(tokenizer=tmp_path / "none")
    with pytest.raises(UsageError, match="batch size 0"):
        opened(["abcdef"], batch_size=0)
    with pytest.raises(UsageError, match="held-out share 1"):
        opened(["abcdef"], held_out=1)
    with pytest.raises(DataError, match="the train text has 5 tokens, and a block 8"):
        opened(["abcdef"], block=8)
    with pytest.raises(DataError, match="has neither test nor val"):
        opened({"train": ["abc"]}, training=False)


def test_several_documents_need_an_end_of_text_token() -> None:
    tokenizer = Bytes()
    tokenizer.eos_token_id = None
    assert len(open_text(["abcdefgh"], tokenizer, TextSettings(block=2), held_out=0.5).tokens["val"]) == 4
    with pytest.raises(UsageError, match="no end-of-text token"):
        open_text(["abcd", "efgh"], tokenizer, TextSettings(block=2))


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(UsageError, match=r"holds no tokenizer \(tokenizer\.json"):
        open_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UsageError, match=f"the tokenizer in {tmp_path} cannot be read"):
        open_tokenizer(tmp_path)
