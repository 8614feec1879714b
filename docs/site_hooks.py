"""Add the documents of the repository root to the site, and convert docstrings to Markdown.

Called by mkdocs (``hooks`` and ``extensions`` in ``mkdocs.yml``).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from griffe import Extension, Object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

FROM_ROOT = {
    "BENCHMARKS.md": "benchmarks.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""Documents outside ``docs``, and their place on the site."""

_ROLE = re.compile(r":(?:func|class|meth|attr|mod):`~?([\w.]+)`")
_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add the documents of the root."""
    root = Path(config.config_file_path).parent
    for source, place in FROM_ROOT.items():
        files.append(File.generated(config, place, abs_src_path=str(root / source)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Convert links that work in the repository to links that work on the site."""
    prefix = "](" if page.file.src_uri in FROM_ROOT.values() else "../"
    for source, place in FROM_ROOT.items():
        markdown = markdown.replace(f"{prefix}{source}", f"{prefix.removeprefix('../')}{place}")
    return markdown.replace("](docs/", "](") if prefix == "](" else markdown


class Docstrings(Extension):
    """Convert roles and examples of docstrings to the syntax of the site's parser."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite one docstring before it is parsed."""
        if obj.docstring is None:
            return
        text = _ROLE.sub(_linked, obj.docstring.value)
        text = _EXAMPLE.sub("Examples:", text)
        head, bare, examples = text.partition("\n\n>>> ")
        if bare:
            indented = f">>> {examples}".replace("\n", "\n    ")
            text = f"{head}\n\nExamples:\n    {indented}"
        obj.docstring.value = text


def _linked(role: re.Match[str]) -> str:
    """Return a link if the site has a page for the name."""
    name = role[1]
    return f"[`{name}`][{name}]" if name.startswith("secateur.") and name.count(".") == 1 else f"`{name}`"
