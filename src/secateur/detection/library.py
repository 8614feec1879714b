"""Use ultralytics without its output, and without operators that an installation lacks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from secateur._torchvision import has_operators, torchvision
from secateur.integrations.libraries import library


@contextmanager
def ultralytics_in_use(*, quiet: bool = True) -> Iterator[Any]:
    """Provide ultralytics within a block.

    Where torchvision has no compiled operators, ultralytics suppresses boxes by its own function.

    Args:
        quiet: whether its log and its progress bars are switched off.

    Yields:
        The module ``ultralytics``.

    Raises:
        UsageError: it is not installed.
    """
    disabled, suppress = logging.root.manager.disable, torchvision.ops.nms
    if quiet:
        logging.disable(logging.WARNING)
    try:
        module = library("ultralytics")
        logger: logging.Logger = library("ultralytics.utils").LOGGER
        level = logger.level
        if quiet:
            logger.setLevel(logging.ERROR)  # progress bars follow it
        if not has_operators():
            torchvision.ops.nms = library("ultralytics.utils.nms").TorchNMS.nms
        try:
            yield module
        finally:
            logger.setLevel(level)
    finally:
        torchvision.ops.nms = suppress
        logging.disable(disabled)
