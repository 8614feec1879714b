"""Train pruned language models with ``transformers.Trainer``.

Importing this module needs transformers and accelerate.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

from secateur.errors import UsageError
from secateur.integrations.pretrained import save_pretrained
from secateur.training.distillation import Teacher

FOLDER = "pretrained"
"""Folder in the output folder of the trainer that :class:`SavePruned` writes."""


class SavePruned(TrainerCallback):
    """Save the pruned network as a folder that ``from_pretrained`` loads, when the training ends.

    ``Trainer`` itself writes the config of the unpruned network, which describes other widths. The folder is
    ``pretrained`` in the output folder of the trainer, and contains the network that the trainer keeps: with
    ``load_best_model_at_end``, the best. Low-rank adapters of peft must be merged first, so a network with
    adapters is refused before it is trained.

    Args:
        tokenizer: saved beside the network, if given.
    """

    def __init__(self, tokenizer: Any = None) -> None:
        self.tokenizer = tokenizer

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Refuse a network that cannot be saved so.

        Raises:
            UsageError: the network has adapters, or is none of transformers.
        """
        if not hasattr(given["model"], "save_pretrained") or hasattr(given["model"], "merge_and_unload"):
            raise UsageError(
                f"SavePruned saves networks of transformers, not {type(given['model']).__name__}: with "
                "adapters of peft, leave the callback out, call merge_and_unload() after the training, then "
                "sec.save_pretrained(folder, merged)"
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Save the network, in the first process."""
        if state.is_world_process_zero:
            save_pretrained(Path(args.output_dir) / FOLDER, given["model"], self.tokenizer)


class DistillationTrainer(Trainer):
    """Train with the loss of the network and with the outputs of the unpruned network as a teacher.

    In evaluation, the loss is that of the network alone.

    Args:
        *args: of ``transformers.Trainer``.
        teacher: the unpruned network with its weight, temperature and divergence; ``dim=-1`` for language
            models. It must be on the device of the network that is trained.
        **kwargs: of ``transformers.Trainer``.
    """

    def __init__(self, *args: Any, teacher: Teacher, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher = teacher
        # The divergence is a mean over tokens, so the loss must be one too, and not a sum over several steps.
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Compute the loss of a batch with the teacher's part.

        Args:
            model: the network that is trained.
            inputs: named arguments, with ``labels``.
            return_outputs: return the outputs too.
            num_items_in_batch: not used.

        Returns:
            The loss, or the loss and the outputs.
        """
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if model.training:
            shown = {name: value for name, value in inputs.items() if name != "labels"}
            with self.teacher.teaching():
                loss = self.teacher.join(loss, outputs, shown)
        return (loss, outputs) if return_outputs else loss
