"""Use ultralytics without its output, and without operators that an installation lacks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from secateur._torchvision import has_operators, torchvision
from secateur.integrations.libraries import library, quiet_logs


@contextmanager
def ultralytics_in_use() -> Iterator[Any]:
    """Provide ultralytics within a block, without its log and its progress bars.

    Where torchvision has no compiled operators, ultralytics suppresses boxes by its own function.

    Yields:
        The module ``ultralytics``.

    Raises:
        UsageError: it is not installed.
    """
    with quiet_logs(logging.WARNING):
        module = library("ultralytics")
        logger: logging.Logger = library("ultralytics.utils").LOGGER
        level, suppress = logger.level, torchvision.ops.nms
        logger.setLevel(logging.ERROR)  # progress bars follow it
        try:
            if not has_operators():
                torchvision.ops.nms = library("ultralytics.utils.nms").TorchNMS.nms
            yield module
        finally:
            torchvision.ops.nms = suppress
            logger.setLevel(level)
