from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import DataError
from secateur.language import read_documents
from secateur.language.documents import is_text_folder, splits_of


def test_a_text_file_is_one_document_without_its_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffÜber\n\nuns\n".encode())
    assert list(read_documents(file)) == ["Über\n\nuns\n"]


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1))
def test_every_json_line_is_a_document(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    file = tmp_path_factory.mktemp("lines") / "a.jsonl"
    lines = [json.dumps({"id": 1, "body": text}, ensure_ascii=False) for text in texts]
    file.write_bytes(("\n\n".join(lines) + "\n").encode("utf-8", "surrogatepass"))
    if any(0xD800 <= ord(letter) < 0xE000 for text in texts for letter in text):
        with pytest.raises(DataError, match="is not UTF-8"):
            list(read_documents(file, "body"))
    else:
        assert list(read_documents(file, "body")) == texts


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.txt").write_text("third")
    (tmp_path / "a.jsonl").write_text('{"text": "first"}\n{"text": "second"}\n')
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    assert list(read_documents(tmp_path)) == ["first", "second", "third"]


def test_rows_of_a_data_set_are_documents() -> None:
    assert list(read_documents(iter([{"text": "a"}, "b", {"text": " "}]))) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b" \n", r"a\.txt is empty"),
        ("a.txt", b"good\nb\xffd\n", r"a\.txt, line 2: is not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a\.jsonl, line 2: is not JSON"),
        ("a.jsonl", b'{"body": "a", "id": 1}\n', r"a\.jsonl, line 1: holds no text 'text', but body, id"),
        ("a.jsonl", b'{"text": 3}\n', r"a\.jsonl, line 1: holds no text 'text'"),
        ("a.jsonl", b'["a"]\n', r"a\.jsonl, line 1: is of type list"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_documents(tmp_path / name))


def test_what_holds_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing\.txt cannot be read: No such file"):
        list(read_documents(tmp_path / "missing.txt"))
    with pytest.raises(DataError, match=r"holds no text; expected files that end in \.txt"):
        list(read_documents(tmp_path))
    with pytest.raises(DataError, match="row 2: is of type int"):
        list(read_documents(["a", 3]))
    with pytest.raises(DataError, match="has no split 'train'"):
        splits_of({"dev": ["a"]})


def test_splits_are_files_folders_or_keys(tmp_path: Path) -> None:
    assert splits_of(tmp_path / "train.txt") == {"": tmp_path / "train.txt"}
    (tmp_path / "train").mkdir()
    for name in ("valid.txt", "test.jsonl", "other.txt", ".train.txt.part"):
        (tmp_path / name).touch()
    expected = {"train": tmp_path / "train", "val": tmp_path / "valid.txt", "test": tmp_path / "test.jsonl"}
    assert splits_of(str(tmp_path)) == expected
    (tmp_path / "val.txt").touch()
    with pytest.raises(DataError, match=r"val\.txt, .*valid\.txt; keep one"):
        splits_of(tmp_path)


def test_folders_of_text_are_told_from_folders_of_images(tmp_path: Path) -> None:
    (tmp_path / "train" / "cats").mkdir(parents=True)
    (tmp_path / "train" / "cats" / "1.png").touch()
    assert not is_text_folder(tmp_path)
    (tmp_path / "train" / "1.txt").touch()
    assert is_text_folder(tmp_path)
