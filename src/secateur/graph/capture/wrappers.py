"""Recognise wrappers: modules that hold a network and put a prefix before the names of its tensors."""

from __future__ import annotations

from torch import nn

from secateur.arguments import check_arguments
from secateur.errors import UsageError

# Named by text: importing the compiler, distributed training or Fabric takes seconds.
_WRAPPERS = {
    "torch.nn.parallel.data_parallel.DataParallel": ("module", "torch.nn.DataParallel"),
    "torch.nn.parallel.distributed.DistributedDataParallel": ("module", "DistributedDataParallel"),
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": ("", "FSDP"),
    "torch.distributed.fsdp._fully_shard._fully_shard.FSDPModule": ("", "fully_shard"),
    "torch._dynamo.eval_frame.OptimizedModule": ("_orig_mod", "torch.compile"),
    "torch.optim.swa_utils.AveragedModel": ("module", "AveragedModel"),
    "lightning_fabric.wrappers._FabricModule": ("module", "Fabric.setup"),
    "lightning.fabric.wrappers._FabricModule": ("module", "Fabric.setup"),
    "deepspeed.runtime.engine.DeepSpeedEngine": ("module", "DeepSpeed"),
}
COMPILED = "_orig_mod"
"""The name under which ``torch.compile`` keeps the module that it wraps."""


def refuse_wrapped(model: object, name: str = "model") -> None:
    """Refuse a network that is wrapped as a whole, and what is no network.

    A wrapper runs the same layers, but under other names: a plan, a score or a file that is made with it fits
    nothing but the wrapper. Wrapped submodules are no obstacle.

    Args:
        model: what the user gave as a network.
        name: of the argument, for the message.

    Raises:
        UsageError: it is a wrapper, or no network; the message says what to pass instead.

    >>> refuse_wrapped(nn.DataParallel(nn.Linear(2, 2)))
    Traceback (most recent call last):
    secateur.errors.UsageError: model is wrapped by torch.nn.DataParallel: pass model.module, and wrap ...
    """
    found = _wrapper(model)
    if found is None:
        check_arguments(**{name: model})
        return
    attribute, kind = found
    if not attribute:
        raise UsageError(
            f"{name} is sharded by {kind}, so no process has whole tensors: prune the plain network, "
            f"and apply {kind} to the result"
        )
    path, inner = f"{name}.{attribute}", getattr(model, attribute)
    while (deeper := _wrapper(inner)) is not None and deeper[0]:
        path, inner = f"{path}.{deeper[0]}", getattr(inner, deeper[0])
    raise UsageError(f"{name} is wrapped by {kind}: pass {path}, and wrap the result again if you need to")


def is_compiled(module: nn.Module) -> bool:
    """Return whether a module is what ``torch.compile`` returns for another one.

    >>> is_compiled(nn.Linear(2, 2))
    False
    """
    found = _wrapper(module)
    return found is not None and found[0] == COMPILED


def _wrapper(model: object) -> tuple[str, str] | None:
    """Find the attribute that holds the wrapped network, and the wrapper's name; ``None`` if not wrapped."""
    for kind in type(model).__mro__:
        found = _WRAPPERS.get(f"{kind.__module__}.{kind.__qualname__}")
        if found is not None:
            return found
    return None
