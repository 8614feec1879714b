"""Train and judge language models on text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.batches import LossFunction
from secateur.checkpoint import read_metadata
from secateur.errors import DataError, UsageError
from secateur.formats import first_line
from secateur.graph.capture.program import mode_of
from secateur.inputs import NamedInputs
from secateur.integrations.libraries import config_file
from secateur.jobs.images import NOT_A_DETECTOR, to_choose_on
from secateur.jobs.networks import Network, open_network
from secateur.jobs.settings import DataChoice, NetworkChoice, is_checkpoint
from secateur.language import TextBlocks, TextData, open_text, open_tokenizer
from secateur.models import ModelSpec
from secateur.recipes import Recipe, RecipeContext, Training
from secateur.settings import Need
from secateur.training.context import RunContext
from secateur.training.evaluate import Evaluation, perplexity
from secateur.training.events import report_note, report_progress
from secateur.training.losses import main_output, next_token_loss
from secateur.training.metrics import PERPLEXITY, MetricKind
from secateur.training.run_folder import CHECKPOINTS, TOKENIZER, find_checkpoint
from secateur.verification.chunks import examples

_BATCH = 4


@dataclass(frozen=True)
class TextTask:
    """Text, the next-token loss, and perplexity.

    Attributes:
        data: the text, as blocks of tokens.
        tokenizer: that made them.
    """

    data: TextData
    tokenizer: Any
    loss_fn: LossFunction | None = next_token_loss
    metric: MetricKind = PERPLEXITY

    @classmethod
    def of(cls, choice: DataChoice, network: NetworkChoice, seed: int, *, training: bool) -> TextTask:
        """Open a text with the tokenizer of a network.

        Raises:
            DataError: the text cannot be used.
            UsageError: there is no tokenizer.
        """
        tokenizer = open_tokenizer(choice.text.tokenizer or tokenizer_folder(network))
        data = open_text(
            choice.source,
            tokenizer,
            choice.text,
            batch_size=choice.batch_size or _BATCH,
            held_out=choice.held_out,
            seed=seed,
            training=training,
        )
        return cls(data, tokenizer)

    @property
    def evaluated_on(self) -> str:
        """Return where networks are compared without training."""
        return "validation" if "val" in self.data.tokens else "test"

    def open(self, choice: NetworkChoice) -> Network:
        """Open a language model that reads blocks of this length, and check that it fits the text.

        Raises:
            UsageError: it reads fewer tokens at once.
            DataError: it is no language model, or the tokenizer is that of another network.
        """
        network = open_network(choice)
        if choice.weights is None and network.file is None and network.weights is None:
            raise UsageError(
                f"{choice.source} holds no weights that can be read (*.safetensors; pickles are not opened); "
                "give --weights none to start from random ones"
            )
        network = reading(network, self.data.settings.block, "data.text.block")
        check_language_model(network, max(int(tokens.max()) for tokens in self.data.tokens.values()))
        return network

    def needs(self) -> Iterator[Need]:
        """List settings without an effect."""
        yield NOT_A_DETECTOR
        for path in ("data.mixup", "data.strict"):
            yield Need(path, True, "on text")
        for phase in ("fit", "between", "finetune"):
            yield Need(f"{phase}.label_smoothing", True, "on language models")

    def read(self, folder: Path, context: RunContext) -> TextTask:
        """Report how much text there is, and how it is used."""
        report_progress(context.callbacks, "reading text", 1, 1)
        sizes = {name: len(tokens) for name, tokens in self.data.tokens.items()}
        protocol = self.data.protocol
        held = f"{sizes['val']:,} to choose on, " if "val" in sizes else ""
        same = " (the same)" if self.data.tested_on == "validation" else ""
        report_note(
            context.callbacks,
            f"{sizes['train']:,} tokens to train on, {held}{sizes['test']:,} to report on{same}; perplexity "
            f"is that of {protocol['predicted']:,} tokens in {protocol['blocks']:,} blocks of "
            f"{protocol['block']}, {protocol['stride']} apart",
        )
        return self

    def check(self, recipe: Recipe, device: torch.device) -> None:
        """Refuse mirror images.

        Raises:
            UsageError: the teacher is to see them.
        """
        if recipe.distillation.weight and recipe.distillation.flip:
            raise UsageError("distillation.flip: no effect on language models; leave distillation.flip out")

    def training(self, context: RecipeContext, recipe: Recipe | None = None) -> Training:
        """Collect shuffled blocks, which are not augmented, and those that are held out, if any are."""
        validation, calibration = self.data.validation_batches(), self.data.training_batches()
        inputs, _ = next(iter(validation or calibration))
        return Training(
            batches=self.data.training_batches(),
            calibration=calibration,
            validation=validation,
            # The check keeps the outputs of several passes, in float64: scores of each token for a whole
            # vocabulary. One block has hundreds of tokens to compare.
            check_inputs=examples(inputs, 0, 1),
        )

    def evaluate(
        self,
        model: nn.Module,
        context: RunContext,
        *,
        choosing: bool = False,
        answers: list[Tensor] | None = None,
    ) -> Evaluation:
        """Measure perplexity."""
        batches = to_choose_on(self.data.validation_batches()) if choosing else self.test_batches()
        return perplexity(model, batches, context=context, task="validating" if choosing else "evaluating")

    def report(self, found: Evaluation) -> dict[str, Any]:
        """Describe an evaluation."""
        return {**found.to_dict(), **self.facts()}

    def test_batches(self) -> TextBlocks:
        """Return the blocks to report on."""
        return self.data.test_batches()

    def start(self) -> dict[str, Any]:
        """Describe the text: tokens by split."""
        tokens = {name: len(found) for name, found in self.data.tokens.items()}
        return {"tokens": tokens, "tested_on": self.data.tested_on}

    def facts(self) -> dict[str, Any]:
        """Describe how perplexity was measured."""
        return {"protocol": self.data.protocol}

    def compare(self, before: list[Tensor], after: list[Tensor]) -> None:
        """Return nothing: there are no classes."""


def tokenizer_folder(choice: NetworkChoice) -> Path:
    """Find the folder with the tokenizer of a network: that of its run, or that of its config.

    Args:
        choice: a run folder, a checkpoint, or ``hf:FOLDER``.

    Raises:
        UsageError: none is known.
    """
    if not is_checkpoint(choice.source):
        return _config_folder(ModelSpec.parse(choice.source))
    path = find_checkpoint(choice.source)
    if path.parent.name == CHECKPOINTS and (path.parents[1] / TOKENIZER).is_dir():
        return path.parents[1] / TOKENIZER
    spec = read_metadata(path).builder
    if spec is None:
        raise UsageError(
            f"{choice.source}: its tokenizer is not known; name its folder with data.text.tokenizer"
        )
    return _config_folder(spec)


def _config_folder(spec: ModelSpec) -> Path:
    origin, _, name = spec.name.partition(":")
    return config_file(origin, name).parent


def reading(network: Network, block: int, setting: str) -> Network:
    """Return a language model whose example inputs are blocks of ids, without a mask.

    Args:
        network: takes ``input_ids``.
        block: length of the blocks.
        setting: what the user lowers if the network reads fewer tokens.

    Raises:
        UsageError: it reads fewer tokens at once.
    """
    spec, config = network.spec, getattr(network.model, "config", None)
    most = getattr(config, "max_position_embeddings", None)
    if isinstance(most, int) and most < block:
        raise UsageError(
            f"{network.name} reads at most {most:,} tokens at once, not {block:,}; lower {setting}"
        )
    assert spec is not None
    spec = replace(spec, arguments={**spec.arguments, "length": block})
    inputs = spec.inputs
    assert isinstance(inputs, NamedInputs)
    return replace(network, spec=spec, inputs=NamedInputs({"input_ids": inputs.tensors["input_ids"]}))


def check_language_model(network: Network, largest_id: int) -> None:
    """Check that a network predicts each token from the tokens before it.

    Args:
        network: reads token ids.
        largest_id: that the tokenizer returns for the text.

    Raises:
        UsageError: it fails.
        DataError: it predicts something else, or has fewer tokens than the tokenizer.
    """
    ids = network.example()["input_ids"]
    other = ids.clone()
    other[:, -1] = torch.where(ids[:, -1] == ids[:, 0], ids[:, -1] - 1, ids[:, 0])
    with mode_of(network.model, training=False), torch.inference_mode():
        try:
            found, changed = (main_output(network.model(input_ids=each)) for each in (ids, other))
        except Exception as error:  # code of the user's
            raise UsageError(
                f"{network.name} fails on {ids.shape[1]} tokens ({type(error).__name__}: {first_line(error)})"
            ) from error
    if found.shape[:-1] != ids.shape:
        raise DataError(
            f"{network.name} returns scores of shape {tuple(found.shape)} for {len(ids)} blocks of "
            f"{ids.shape[1]} tokens; on text, only networks that predict each next token (such as "
            "LlamaForCausalLM) are used"
        )
    if not torch.allclose(found[:, :-1], changed[:, :-1], atol=1e-4 * float(found.abs().max())):
        raise DataError(
            f"{network.name} sees the tokens that it predicts; on text, only networks that predict each "
            "token from those before it (such as LlamaForCausalLM) are used"
        )
    if largest_id >= found.shape[-1]:
        raise DataError(
            f"the tokenizer returns the id {largest_id:,}, and {network.name} has {found.shape[-1]:,} "
            "tokens; name the folder of its own tokenizer with data.text.tokenizer"
        )
