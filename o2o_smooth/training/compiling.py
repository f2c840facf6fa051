"""Whether torch.compile pays for a run.

`o2o-smooth speed --compile-break-even` measures it (docs/speed.md). On a CPU the native kernels already do in a few
calls what a compiled graph would, without the 10 seconds it takes to compile one: there is hardly a number of updates
after which compiling has paid. Where the kernels are missing, plain torch gains from it only where its work is heavy.
"""

from __future__ import annotations

from typing import Literal

import torch

from o2o_smooth.kernels.cpu import unavailable

CompileChoice = Literal["auto", "on", "off"]
BREAK_EVEN_WITHOUT_KERNELS = 50_000
"""Updates after which compiling has paid on a CPU without the native kernels."""


def decide(choice: CompileChoice, device: torch.device, updates: int) -> bool:
    """Whether to compile a run of so many updates.

    Args:
        choice: `on` and `off` are taken at their word.
        device: Where the learner is. On CUDA captured graphs take the launches away; compiling on top of them has not
            been measured and stays off unless asked for.
        updates: Offline and online updates together.
    """
    if choice != "auto":
        return choice == "on"
    return device.type == "cpu" and unavailable() is not None and updates >= BREAK_EVEN_WITHOUT_KERNELS
