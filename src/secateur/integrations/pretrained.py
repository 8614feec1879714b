"""Save pruned networks of transformers as folders that ``from_pretrained`` loads."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.errors import CheckpointError, UsageError
from secateur.formats import first_line
from secateur.integrations.configs import configs_of
from secateur.integrations.huggingface import example_inputs, offline
from secateur.integrations.layers import without_empty_layers
from secateur.integrations.libraries import silent
from secateur.outputs import parts_of
from secateur.untouched import untouched


def save_pretrained(
    folder: str | Path, model: nn.Module, tokenizer: Any = None, *, check: bool = True, shard: str = "5GB"
) -> Path:
    """Save a pruned network of transformers so that ``from_pretrained`` loads it, without Secateur.

    The config describes the widths: hidden and intermediate sizes, heads, key-value heads, size of the
    heads, number of layers. It knows one width for all layers, so plans need
    ``Widths(uniform_widths=True)``, and ``uniform_depth=True`` where residual branches are removed. Networks
    with other widths are saved with :func:`secateur.save` and loaded with :func:`secateur.load`.

    Args:
        folder: created, or replaced if a pruned network was saved there before.
        model: the pruned network; not changed.
        tokenizer: saved too, if given: anything with ``save_pretrained``.
        check: load what was written, and compare its outputs with those of ``model``. This needs memory for a
            second network for a moment.
        shard: largest size of one file of weights.

    Returns:
        The folder.

    Raises:
        UsageError: no config describes the network, or the folder holds something else.
        CheckpointError: what was written does not give the same outputs; nothing is left behind.

    Example:
        >>> import tempfile
        >>> import secateur as sec
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(
        ...     hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        ...     num_key_value_heads=2, vocab_size=64, use_cache=False)
        >>> model = LlamaForCausalLM(config).eval()
        >>> graph = sec.trace(model, torch.randint(3, 64, (1, 8)))
        >>> scores = sec.score(model, graph, "magnitude")
        >>> widths = sec.Widths(uniform_widths=True)
        >>> plan = sec.make_plan(
        ...     graph, scores, sec.Budget(channels=0.5), widths=widths, allocation="uniform")
        >>> small = sec.apply_plan(model, plan)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_pretrained(f"{folder}/small", small)
        ...     again = LlamaForCausalLM.from_pretrained(f"{folder}/small")
        >>> again.config.hidden_size, again.config.intermediate_size
        (16, 24)
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise UsageError(f"{folder} holds something other than a saved network; choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with without_empty_layers(model) as shortened:
        configs = configs_of(model, shortened)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            configs = _accepted(configs, partial)
            with _configured(model, configs[0]), silent():
                model.save_pretrained(partial, max_shard_size=shard)  # type: ignore[operator]
            if tokenizer is not None:
                tokenizer.save_pretrained(partial)
            if check:
                _choose(model, partial, configs)
            if folder.exists():
                shutil.rmtree(folder)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def _accepted(configs: Sequence[Any], folder: Path) -> list[Any]:
    """Select the configs that the library writes; it refuses, for example, widths that heads do not divide.

    Raises:
        UsageError: it writes none.
    """
    accepted, refused = [], []
    for config in configs:
        try:
            with silent():
                config.save_pretrained(folder)
            accepted.append(config)
        except Exception as error:  # noqa: BLE001  # any check within its class
            refused.append(str(error).strip().splitlines()[-1].strip().removeprefix("ValueError: "))
    if not accepted:
        raise UsageError(
            f"transformers refuses the config that describes these widths ({refused[0]}); choose others with "
            "widths.multiple_of, leave groups out of the plan with widths.ignore, or use sec.save"
        )
    return accepted


def _choose(model: nn.Module, folder: Path, configs: Sequence[Any]) -> None:
    """Write the config with which a saved network computes the same.

    With small weights, a wrong number of heads changes outputs hardly at all. So among configs with which
    outputs are close, that with the smallest difference is written.

    Raises:
        CheckpointError: there is none.
    """
    close: list[tuple[float, int]] = []
    refused: list[CheckpointError] = []
    for number, config in enumerate(configs):
        with silent():
            config.save_pretrained(folder)
        try:
            difference = _compare(model, folder)
        except CheckpointError as error:
            refused.append(error)
            continue
        if difference == 0:
            return
        close.append((difference, number))
    if not close:
        raise refused[0]
    with silent():
        configs[min(close)[1]].save_pretrained(folder)


@contextmanager
def _configured(model: nn.Module, config: Any) -> Iterator[None]:
    """Give a network another config within a block."""
    before = model.config
    model.config = config
    try:
        yield
    finally:
        model.config = before


@untouched()
def _compare(model: nn.Module, folder: Path) -> float:
    """Load a folder and compare the outputs with those of the network.

    Returns:
        The largest difference.

    Raises:
        CheckpointError: it cannot be loaded, or the outputs differ.
    """
    kind: Any = type(model)
    dtype = next(model.parameters()).dtype
    device = next(model.parameters()).device
    try:
        with offline(), silent():
            again: nn.Module = kind.from_pretrained(str(folder), local_files_only=True, dtype=dtype)
    except Exception as error:
        raise CheckpointError(f"the saved network cannot be loaded: {first_line(error)}") from error
    inputs = {name: tensor.to(device) for name, tensor in example_inputs(model).items()}
    training = model.training
    with torch.no_grad():
        expected, found = (parts_of(each.eval()(**inputs)).tensors for each in (model, again.to(device)))
    model.train(training)
    try:
        torch.testing.assert_close(found, expected)
    except AssertionError as error:
        raise CheckpointError(
            "a network of the same shapes that is built from the config computes something else. A number in "
            "it may follow from a width that was cut, as the scale of attention from the size of its heads: "
            "leave such groups out of the plan (widths.ignore), or save the network with sec.save"
        ) from error
    return max(float((one - other).abs().max()) for one, other in zip(found, expected, strict=True))
