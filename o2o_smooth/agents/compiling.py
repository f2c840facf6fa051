"""torch.compile for a step, without what its first call wastes on a CPU.

Before it writes vector code, torch's compiler builds and loads a test program for every set of vector instructions
that the processor names: 5 to 10 of 19 seconds on two cores. Where the native kernels could be built, the C compiler
is known to keep up with the processor, and that is skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from o2o_smooth.kernels.cpu import unavailable


def compile_step(function: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile` for fixed shapes; everything is compiled in the first call."""
    compiled = torch.compile(function, dynamic=False)
    begun = False

    def step(*arguments: Any) -> Any:
        nonlocal begun
        if begun:
            return compiled(*arguments)
        with _trusting():
            result = compiled(*arguments)
        begun = True
        return result

    return step


def _trusting() -> AbstractContextManager[Any]:
    """Within it the compiler believes what the processor says of itself; a choice of the user's own stays."""
    from torch._inductor import config

    if unavailable() is not None or getattr(config.cpp, "vec_isa_ok", True) is not None:
        return nullcontext()
    patch: AbstractContextManager[Any] = config.patch({"cpp.vec_isa_ok": True})
    return patch
