"""Copies between the CPU and the learner's device that wait for nothing but themselves.

An ordinary copy to or from a CUDA device waits for all that was queued there before; these go through pinned memory and
take their turn in the device's queue.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """An array on the device; on the CPU it shares the array's memory."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    # Pinned blocks come from torch's cache, which keeps one back until the copies from it are done.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def fetch(tensor: Tensor) -> Callable[[], NDArray[Any]]:
    """Begin to copy a tensor to the CPU; calling the result waits for it and gives the array."""
    if tensor.device.type != "cuda":
        array = tensor.numpy(force=True)
        return lambda: array
    host = tensor.detach().to("cpu", non_blocking=True)  # into pinned memory
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record(torch.cuda.current_stream(tensor.device))

    def result() -> NDArray[Any]:
        arrived.synchronize()
        return np.asarray(host.numpy())

    return result
