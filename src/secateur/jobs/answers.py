"""Compare the answers of two networks on the same images: by class, and image by image."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from secateur.data.dataset import Split

_CLASSES, _CONFUSIONS, _IMAGES = 5, 3, 24
"""Classes whose confusions are listed, confusions of each, and images that are shown."""

_SIDE = 96  # pixels of the shown images


def compare_answers(split: Split, classes: Sequence[str], before: Tensor, after: Tensor) -> dict[str, Any]:
    """Compare the answers of a network before and after pruning.

    Args:
        split: the images, with their classes.
        classes: names of the classes.
        before: class indices that the network answered before, shape (N,).
        after: class indices that it answers after.

    Returns:
        Plain values:

        - ``classes``: for each class its ``name``, the number of ``examples``, the share that is right
          ``before`` and ``after``, and the ``change``;
        - ``confusions``: for the classes that lost most, which ``other`` class is answered how often;
        - ``changed``: how many images are right only before (``lost``) or only after (``gained``);
        - ``images``: some of these, with their ``file``, their ``class``, both answers, and a small
          ``jpeg`` in base64.
    """
    targets = split.targets
    right = {"before": before == targets, "after": after == targets}
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(classes):
        here = targets == number
        shares = {side: found[here].double().mean().item() for side, found in right.items()}
        change = shares["after"] - shares["before"]
        rows.append({"name": name, "examples": int(here.sum()), **shares, "change": change})
    lost, gained = (
        (right[one] & ~right[other]).nonzero().flatten().tolist()
        for one, other in (("before", "after"), ("after", "before"))
    )
    losing = sorted(range(len(rows)), key=lambda number: rows[number]["change"])
    confusions = [
        entry
        for number in losing[:_CLASSES]
        if rows[number]["change"] < 0
        for entry in _confusions(number, classes, before[targets == number], after[targets == number])
    ]
    shown = [*lost[: _IMAGES * 2 // 3], *gained[: _IMAGES // 3]]
    return {
        "classes": rows,
        "confusions": confusions,
        "changed": {"lost": len(lost), "gained": len(gained)},
        "images": [
            {
                "file": split.files[index] if split.files else f"image {index}",
                "class": classes[int(targets[index])],
                "before": classes[int(before[index])],
                "after": classes[int(after[index])],
                "jpeg": _jpeg(split.images[index]),
            }
            for index in shown
        ],
    }


def losses_line(found: dict[str, Any]) -> str | None:
    """Format which classes lost accuracy, in one line; ``None`` if none did.

    Args:
        found: the result of :func:`compare_answers`.

    >>> rows = [{"name": "cats", "examples": 100, "before": 0.93, "after": 0.9, "change": -0.03}]
    >>> losses_line({"classes": rows, "changed": {"lost": 5, "gained": 2}})
    'by class: cats 93.00% to 90.00%; 5 images are wrong now that were right, 2 the other way'
    """
    losing = [row for row in found["classes"] if row["change"] < 0]
    losing.sort(key=lambda row: float(row["change"]))
    if not losing:
        return None
    names = ", ".join(f"{row['name']} {row['before']:.2%} to {row['after']:.2%}" for row in losing[:3])
    more = f" and {len(losing) - 3} more classes lost accuracy" if len(losing) > 3 else ""
    changed = found["changed"]
    return (
        f"by class: {names}{more}; {changed['lost']:,} images are wrong now that were right, "
        f"{changed['gained']:,} the other way"
    )


def _confusions(number: int, classes: Sequence[str], before: Tensor, after: Tensor) -> list[dict[str, Any]]:
    """List the classes that are answered wrongly more often than before, for the images of one class."""
    counts = [torch.bincount(answers, minlength=len(classes)) for answers in (before, after)]
    more = counts[1] - counts[0]
    more[number] = 0
    return [
        {
            "class": classes[number],
            "other": classes[other],
            "before": int(counts[0][other]),
            "after": int(counts[1][other]),
        }
        for other in more.argsort(descending=True, stable=True)[:_CONFUSIONS].tolist()
        if more[other] > 0
    ]


def _jpeg(pixels: Tensor) -> str:
    """Encode an image, uint8 of shape (C, h, w), as a small JPEG in base64."""
    array = pixels[0].numpy() if pixels.shape[0] == 1 else pixels.permute(1, 2, 0).numpy()
    image = Image.fromarray(array)
    scale = _SIDE / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR
    file = io.BytesIO()
    image.resize((size[0], size[1]), how).save(file, "JPEG", quality=80)
    return base64.b64encode(file.getvalue()).decode()
