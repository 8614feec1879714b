from __future__ import annotations

from pathlib import Path

import pytest

from tests.documents.page import blocks, run


def written(folder: Path, text: str) -> Path:
    (folder / "page.md").write_text(text)
    return folder / "page.md"


def test_blocks_and_the_output_below_them():
    text = "```python\na\n```\n\n```text\nb ... c\n```\n\nWords.\n\n```text\nd\n```\n"
    first, second, third = blocks(text)
    assert (first.language, first.text, first.line, first.expected) == ("python", "a\n", 2, "b ... c\n")
    assert second.expected is None
    assert (third.text, third.expected) == ("d\n", None)


def test_blocks_share_names_and_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = """
```python
from pathlib import Path
n = 2
```

```sh
echo word > file  # ignored
```

```python
print(n, Path("file").read_text())
```

```text
2   word
```
"""
    run(written(tmp_path, page))


@pytest.mark.parametrize(
    "page",
    [
        "```python\nprint('one')\n```\n\n```text\ntwo\n```\n",
        "```python\nprint('one')\n```\n\n```text\n... one more\n```\n",
        "```sh\nsecateur inspect no-such-network\n```\n",
    ],
)
def test_what_is_not_as_printed_is_found(page, tmp_path):
    with pytest.raises(AssertionError):
        run(written(tmp_path, page))
