"""Use ultralytics without its output, its limit on time, and operators that an installation lacks."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from secateur._torchvision import has_operators, torchvision
from secateur.integrations.libraries import library, quiet_logs


@contextmanager
def ultralytics_in_use() -> Iterator[Any]:
    """Provide ultralytics within a block, without its log and its progress bars.

    Where torchvision has no compiled operators, ultralytics suppresses boxes by its own function. It leaves
    out the boxes of images for which there is no time, so mAP would depend on how busy the machine is; there
    is no such limit here.

    Yields:
        The module ``ultralytics``.

    Raises:
        UsageError: it is not installed.
    """
    with quiet_logs(logging.WARNING):
        module = library("ultralytics")
        logger: logging.Logger = library("ultralytics.utils").LOGGER
        level, suppress = logger.level, torchvision.ops.nms
        boxes: Any = library("ultralytics.utils.nms")
        limited = boxes.non_max_suppression
        logger.setLevel(logging.ERROR)  # progress bars follow it
        boxes.non_max_suppression = partial(limited, max_time_img=math.inf)
        try:
            if not has_operators():
                torchvision.ops.nms = boxes.TorchNMS.nms
            yield module
        finally:
            torchvision.ops.nms, boxes.non_max_suppression = suppress, limited
            logger.setLevel(level)


def is_ultralytics(network: nn.Module) -> bool:
    """Return whether a network is one of ultralytics, which is not imported for it.

    >>> is_ultralytics(nn.Linear(2, 2))
    False
    """
    tasks: Any = sys.modules.get("ultralytics.nn.tasks")
    return tasks is not None and isinstance(network, tasks.BaseModel)
