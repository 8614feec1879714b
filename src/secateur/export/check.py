"""Read a written file back, run it, and compare it with the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.errors import VerificationError
from secateur.export.program import Exportable
from secateur.graph.checking.compare import largest_difference
from secateur.models import InputSpec
from secateur.runtimes import Runner

BATCHES = (1, 3, 8)
TOLERANCE = 1e-4  # files are run in float32
_TOLERANCES = {
    "float32": TOLERANCE,
    "float16": max(TOLERANCE, 16 * torch.finfo(torch.float16).eps),
    "bfloat16": max(TOLERANCE, 16 * torch.finfo(torch.bfloat16).eps),
    "int8": 0.5,
}
"""Largest relative difference by how weights are kept. With eight bits the check only finds broken files;
accuracy must be measured."""


@dataclass(frozen=True)
class FileCheck:
    """Record how the outputs of a file compare with those of its network.

    Attributes:
        runtime: what ran the file.
        max_error: largest absolute difference, relative to the largest output.
        tolerance: what counts as equal.
        batches: sizes of the batches that were tried.
        outputs: number of values that were compared.
        agreement: share of the examples whose largest output is the same; ``None`` if outputs are not scores.
        inputs: ``given``, or ``drawn`` as images of random pixels.

    >>> print(FileCheck("onnxruntime", 2e-7, 1e-4, (1, 3), 40, 1.0, "drawn"))
    read back and run by onnxruntime: equals the network (largest relative difference 2.0e-07, allowed \
1e-04; batches of 1 and 3, drawn inputs; same class for 100.0%)
    """

    runtime: str
    max_error: float
    tolerance: float
    batches: tuple[int, ...]
    outputs: int
    agreement: float | None
    inputs: str

    @property
    def ok(self) -> bool:
        """Return whether the file computes what the network computes."""
        return self.max_error <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values, for files."""
        return {"ok": self.ok, **asdict(self), "batches": list(self.batches)}

    def __str__(self) -> str:
        verdict = ("equals" if self.tolerance <= TOLERANCE else "is near") if self.ok else "DIFFERS FROM"
        sizes = " and ".join(filter(None, (", ".join(map(str, self.batches[:-1])), str(self.batches[-1]))))
        same = f"; same class for {self.agreement:.1%}" if self.agreement is not None else ""
        gap = f"largest relative difference {self.max_error:.1e}, allowed {self.tolerance:.0e}"
        return (
            f"read back and run by {self.runtime}: {verdict} the network ({gap}; "
            f"batches of {sizes}, {self.inputs} inputs{same})"
        )


def check_file(
    runner: Runner,
    exportable: Exportable,
    weights_as: str,
    inputs: Sequence[Tensor] | None,
    images: InputSpec | None,
) -> FileCheck:
    """Compare a file with its network on several batch sizes.

    Args:
        runner: the file, opened.
        exportable: the network.
        weights_as: how the file keeps weights.
        inputs: real inputs, the batch first in each; drawn if not given.
        images: normalisation of drawn inputs.

    Raises:
        VerificationError: the file computes something else, or cannot be run.
    """
    pool = tuple(inputs) if inputs is not None else drawn(exportable, images, max(BATCHES))
    have = min(item.shape[0] for item in pool)
    sizes = tuple(size for size in BATCHES if size <= have) or (have,)
    worst, outputs, same, judged = 0.0, 0, 0, 0
    for size in sizes:
        batch = tuple(item[:size] for item in pool)
        expected = exportable.expected(batch)
        try:
            found = runner(*batch)
        except Exception as error:
            raise VerificationError(
                f"the file was written, but {runner.runtime} cannot run it on a batch of {size}: "
                f"{' '.join(str(error).split())[:300]}"
            ) from error
        worst = max(worst, largest_difference(expected, found))
        outputs += sum(item.numel() for item in expected)
        if _are_scores(expected, size) and expected[0].shape == found[0].shape:
            same += int((expected[0].argmax(1) == found[0].argmax(1)).sum())
            judged += size
    return FileCheck(
        runtime=runner.runtime,
        max_error=worst,
        tolerance=_TOLERANCES[weights_as],
        batches=sizes,
        outputs=outputs,
        agreement=same / judged if judged else None,
        inputs="given" if inputs is not None else "drawn",
    )


def drawn(exportable: Exportable, images: InputSpec | None, count: int) -> tuple[Tensor, ...]:
    """Draw inputs in a realistic range: normalised random images, or values in the range of the examples.

    Args:
        exportable: the network.
        images: size and normalisation of its input, if that is an image.
        count: number of examples.
    """
    generator = torch.Generator().manual_seed(0)
    if images is not None and exportable.shapes == (tuple(images.size),):
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (images.mean, images.std))
        return ((torch.rand(count, *images.size, generator=generator) - mean) / std,)
    return tuple(_like(item, count, generator) for item in exportable.inputs)


def _like(item: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw examples with the range of the given ones; integers are repeated, since they may be indices."""
    if not item.is_floating_point():
        return item[torch.arange(count) % len(item)]
    noise = torch.randn(count, *item.shape[1:], generator=generator, dtype=item.dtype)
    spread = item.std() if item.numel() > 1 else torch.ones((), dtype=item.dtype)
    return noise * spread + item.mean()


def _are_scores(outputs: Sequence[Tensor], size: int) -> bool:
    return outputs[0].ndim == 2 and outputs[0].shape[0] == size and outputs[0].shape[1] > 1
