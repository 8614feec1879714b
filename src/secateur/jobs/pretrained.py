"""Write networks of transformers, and their tokenizers, as folders that the library loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from secateur.errors import CheckpointError, UsageError
from secateur.files import write_text
from secateur.integrations.pretrained import save_pretrained
from secateur.jobs.networks import Network, open_network, refuse_ultralytics
from secateur.jobs.settings import NetworkChoice
from secateur.jobs.task import Task
from secateur.jobs.text import TextTask, tokenizer_folder
from secateur.jobs.workplace import Workplace
from secateur.language import holds_tokenizer, open_tokenizer
from secateur.training.events import report_note
from secateur.training.run_folder import PRETRAINED, TOKENIZER, note_exported

IN_ULTRALYTICS = "export(format='onnx')"
"""How ultralytics exports a network."""


def write_pretrained(place: Workplace, network: Network, task: Task | None) -> dict[str, Any]:
    """Write a network of transformers and its tokenizer to the run folder.

    Args:
        place: where the job runs.
        network: the result of the job.
        task: what it was trained on; the tokenizer of a text is written too.

    Returns:
        For the summary: the folders ``tokenizer`` and ``pretrained``. The latter is ``None`` if no config
        describes the network; a note gives the reason.
    """
    tokenizer = task.tokenizer if isinstance(task, TextTask) else None
    if not place.context.ranks.is_main or not is_of_transformers(network.model):
        return {}
    found: dict[str, Any] = {}
    if tokenizer is not None:
        found["tokenizer"] = place.run.path / TOKENIZER
        tokenizer.save_pretrained(str(found["tokenizer"]))
    try:
        with place.clock("pretrained"):
            found["pretrained"] = export_pretrained(place.run.path / PRETRAINED, network.model, tokenizer)
    except (UsageError, CheckpointError) as error:
        found["pretrained"] = None
        report_note(place.callbacks, f"not written for from_pretrained: {error}")
    else:
        report_note(place.callbacks, f"for from_pretrained: {found['pretrained']}")
    return found


def export_folder(choice: NetworkChoice, folder: Path) -> dict[str, Any]:
    """Write a network of transformers, and its tokenizer if it has one, as a folder for ``from_pretrained``.

    Args:
        choice: the network.
        folder: created, or replaced.

    Returns:
        ``network``, ``model``, ``folder`` and ``tokenizer``: whether that is there too.

    Raises:
        UsageError: it is no network of transformers, or no config that transformers accepts describes it; a
            network of ultralytics is exported by that library.
        CheckpointError: what was written does not give the same outputs.
    """
    refuse_ultralytics(choice, IN_ULTRALYTICS)
    network = open_network(choice)
    refuse_ultralytics(choice, IN_ULTRALYTICS, network.model)
    if not is_of_transformers(network.model):
        raise UsageError(f"--format hf: {choice.source} is no network of transformers; write onnx or pt2")
    beside = tokenizer_folder(choice)
    tokenizer = open_tokenizer(beside) if holds_tokenizer(beside) else None  # networks of images have none
    written = export_pretrained(folder, network.model, tokenizer)
    note_exported(written)
    return {
        "network": choice.source,
        "model": network.name,
        "folder": str(written),
        "tokenizer": tokenizer is not None,
    }


def is_of_transformers(model: nn.Module) -> bool:
    """Return whether a network is one of transformers."""
    return hasattr(model, "save_pretrained") and hasattr(model, "config")


def export_pretrained(folder: Path, model: nn.Module, tokenizer: Any = None) -> Path:
    """Write a network for ``from_pretrained``, with the cache of keys and values switched on.

    Args:
        folder: created, or replaced.
        model: as ``hf:FOLDER`` builds it, with the cache switched off.
        tokenizer: written too, if given.

    Raises:
        UsageError: no config describes the network, or transformers refuses it.
        CheckpointError: what was written does not give the same outputs.
    """
    written = save_pretrained(folder, model, tokenizer)
    for name in ("config.json", "generation_config.json"):
        file = written / name
        if file.is_file():
            content = json.loads(file.read_text(encoding="utf-8"))
            if content.get("use_cache") is False:
                write_text(file, json.dumps({**content, "use_cache": True}, indent=2) + "\n")
    return written
