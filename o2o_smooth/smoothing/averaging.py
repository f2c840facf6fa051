"""Averages of parameters: along a line (WiSE-FT), back towards the start (SFA), over time (EMA).

All of it works on lists of tensors with a members axis, (M, ...) each, and knows nothing of agents. Weights are one
number for all members or one per member.

    WiSE-FT   (1 - a) theta_0 + a theta_T after training, for several a        Wortsman et al. 2022, arXiv 2109.01903
    SFA       every p T steps, and at T: theta <- (1 - b) theta + b theta_0    Kleiman et al. 2025, arXiv 2501.05559
    EMA       after every step  mean <- d mean + (1 - d) theta; act with the mean, train theta
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Share = float | Sequence[float] | NDArray[np.float64]  # one for all members, or (M,)


@torch.no_grad()
def between(a: Tensor, b: Tensor, share: Share) -> Tensor:
    """(1 - share) a + share b, (M, ...); exactly `a` at 0 and exactly `b` at 1."""
    weight = np.asarray(share, np.float64)
    if weight.ndim == 0:
        return torch.lerp(a, b, float(weight))
    per_member = torch.as_tensor(weight, dtype=a.dtype, device=a.device)
    return torch.lerp(a, b, per_member.view(-1, *[1] * (a.dim() - 1)))


@torch.no_grad()
def pull_back(parameters: Sequence[Tensor], start: Sequence[Tensor], share: float) -> None:
    """In place: theta <- (1 - share) theta + share theta_0."""
    torch._foreach_lerp_(list(parameters), list(start), share)


class SFA:
    """Sequential fine-tuning with averaging: at regular steps part of the way back to the start.

    Args:
        parameters: (M, ...) each; they are moved in place.
        every: Steps between two pulls.
        share: b, the part of the way back.
        total: T; after so many steps there is a last pull.

    Source: Kleiman et al. 2025 (arXiv 2501.05559); the start is where the parameters were at the switch.
    """

    def __init__(self, parameters: Sequence[Tensor], *, every: int, share: float, total: int) -> None:
        self.parameters, self.every, self.share, self.total = list(parameters), every, share, total
        self.start = [p.detach().clone() for p in self.parameters]

    def due_in(self, steps: int) -> int:
        """Steps from `steps` to the next pull, at least one."""
        left = self.every - steps % self.every
        return min(left, self.total - steps) if steps < self.total else left

    def after(self, steps: int) -> bool:
        """After so many steps: pull where it is due; says whether it was."""
        if steps == 0 or (steps % self.every and steps != self.total):
            return False
        pull_back(self.parameters, self.start, self.share)
        return True

    def state_dict(self) -> dict[str, Tensor]:
        """The start, by name."""
        return {f"start.{i}": tensor for i, tensor in enumerate(self.start)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            ValueError: A tensor is missing or of another shape.
        """
        restore(self.start, state, "start")


class EMA:
    """A running mean of parameters, which can take their place for a while.

    Args:
        parameters: (M, ...) each; the mean starts where they are.
        decay: d, the part of the mean that stays at every step.
    """

    def __init__(self, parameters: Sequence[Tensor], *, decay: float) -> None:
        self.parameters, self.decay = list(parameters), decay
        self.mean = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """One step: mean <- decay mean + (1 - decay) theta."""
        torch._foreach_lerp_(self.mean, [p.detach() for p in self.parameters], 1.0 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it the parameters are the mean. Their own memory comes back at the end, so graphs of it stay right."""
        own: list[Any] = [p.data for p in self.parameters]
        try:
            for parameter, mean in zip(self.parameters, self.mean, strict=True):
                parameter.data = mean
            yield
        finally:
            for parameter, data in zip(self.parameters, own, strict=True):
                parameter.data = data

    def state_dict(self) -> dict[str, Tensor]:
        """The mean, by name."""
        return {f"mean.{i}": tensor for i, tensor in enumerate(self.mean)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            ValueError: A tensor is missing or of another shape.
        """
        restore(self.mean, state, "mean")


@torch.no_grad()
def restore(tensors: Sequence[Tensor], state: Mapping[str, Tensor], name: str) -> None:
    """Copy `name.0`, `name.1`, ... into tensors.

    Raises:
        ValueError: One is missing or of another shape.
    """
    for i, tensor in enumerate(tensors):
        stored = state.get(f"{name}.{i}")
        if stored is None or stored.shape != tensor.shape:
            raise ValueError(f"the tensor '{name}.{i}' is missing or of another shape")
    for i, tensor in enumerate(tensors):
        tensor.copy_(state[f"{name}.{i}"])
