"""What a CUDA graph does, on the CPU: every operation is recorded with its tensors and repeated on the same memory.

Whatever the host decided while recording stays as it was, and whatever it would read from the device is an error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from o2o_smooth.training.launch import Work

SYNCHRONISING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations that wait for the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in SYNCHRONISING:
            raise RuntimeError(f"{name} makes the host wait for the device")
        return func(*args, **(kwargs or {}))


class _Record(Watch):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ == "lift_fresh":
            raise RuntimeError("a tensor made of host memory would stay as it was at the capture")
        out = super().__torch_dispatch__(func, types, args, kwargs)
        self.operations.append((func, args, kwargs, _tensors(out)))
        return out


class Recorder:
    """A `Capture` of the CPU."""

    def __init__(self) -> None:
        self.recorded = self.warmed_up = 0

    def warm_up(self, work: Work) -> None:
        self.warmed_up += 1
        work()

    def __call__(self, work: Work) -> Work:
        self.recorded += 1
        with _Record() as record:
            work()
        ran = True  # unlike a graph, which is recorded without being run: that was the first launch

        def launch() -> None:
            nonlocal ran
            if not ran:
                replay(record.operations)
            ran = False

        return launch


def replay(operations: list[tuple[Any, Any, Any, list[Tensor]]]) -> None:
    """Repeat recorded operations; what they made anew is made again in the memory that it had."""
    with torch.no_grad():
        for func, args, kwargs, recorded in operations:
            made = _tensors(func(*args, **kwargs))
            memory = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
            for old, new in zip(recorded, made, strict=True):
                if old.untyped_storage().data_ptr() not in memory:
                    old.copy_(new)
