"""How much memory a run took."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

try:
    import resource
except ImportError:  # not on Windows
    resource = None


def footprint(states: Sequence[Mapping[str, Tensor]]) -> dict[str, int | None]:
    """Bytes: of the models' tensors, the most that this process has held since it began, and the most on its GPU.

    The last two are None where the system does not say.
    """
    tensors = [tensor for state in states for tensor in state.values()]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    peak = None if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    devices = {tensor.device for tensor in tensors if tensor.is_cuda}
    return {
        "models": sum(storages.values()),
        "process": None if peak is None else peak * (1 if sys.platform == "darwin" else 1024),
        "device": sum(torch.cuda.max_memory_allocated(device) for device in devices) if devices else None,
    }
