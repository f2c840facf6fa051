"""Adam with all that it depends on in the device's memory, so that a captured graph can repeat it.

It works on the parameters, moments and targets of a `MemberAdam`, whose host-side step counts stay the truth: they are
brought up to the device where they differ (`upload`) and counted on after the step (`count`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from o2o_smooth.data.transfer import to_device

if TYPE_CHECKING:
    from o2o_smooth.agents.optimizer import Mask, MemberAdam, Rates

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
Together = frozenset[str]  # components whose members all step, after equally many steps and at one rate
Following = Literal["all", "some", "none"]  # which members' target networks move


class DeviceAdam:
    """The step of a `MemberAdam` on the device.

    Args:
        adam: Whose parameters step.
    """

    def __init__(self, adam: MemberAdam) -> None:
        self.adam = adam
        self.device = next(iter(adam.components.values()))[0].device
        # float32, as torch's fused kernel wants them; exact up to 16 million.
        self._steps = {name: torch.zeros(m, device=self.device) for name, m in adam.members.items()}
        self._uploaded: dict[str, NDArray[np.int64]] = {}
        self._constants: dict[bytes, Tensor] = {}

    def upload(self) -> None:
        """Bring the step counts to the device where they differ; nothing to do after `count`."""
        for name, steps in self.adam.steps.items():
            if self._uploaded.get(name) is not steps:
                self._steps[name].copy_(to_device(steps.astype(np.float32), self.device), non_blocking=True)
                self._uploaded[name] = steps

    def count(self, active: Mapping[str, Mask]) -> None:
        """Count a step on the host, as `step` did on the device."""
        for name, mask in active.items():
            current = self._uploaded.get(name) is self.adam.steps[name]
            self.adam.steps[name] = self.adam.steps[name] + mask
            if current:
                self._uploaded[name] = self.adam.steps[name]

    def level(self) -> set[str]:
        """Components whose members have made equally many steps and have one rate."""
        adam = self.adam
        return {
            name
            for name, steps in adam.steps.items()
            if (steps == steps[0]).all() and (adam.learning_rates[name] == adam.learning_rates[name][0]).all()
        }

    @torch.no_grad()
    def step(
        self,
        gradients: Mapping[str, Sequence[Tensor]],
        masks: Mapping[str, Tensor],
        together: Together,
        following: Following = "none",
        moving: Tensor | None = None,
        tau: Rates = 0.0,
    ) -> None:
        """Step the components that have gradients, then move the target networks.

        Args:
            gradients: Component -> the gradients of its parameters.
            masks: Component -> 1 for every member that steps and 0 for the others, (M,); not for those in `together`.
            together: Which components take the same step for all members: one fused kernel.
            following: Whether target networks move.
            moving: 1 for every member whose target networks move and 0 for the others, (M,), where only some do.
            tau: Rate of that move.
        """
        for name, own in gradients.items():
            if name in together:
                self._together(name, own)
            else:
                self._apart(name, own, masks[name])
        if following == "none":
            return
        rates = np.broadcast_to(np.asarray(tau, np.float64), (len(next(iter(self._steps.values()))),))
        same = following == "all" and bool((rates == rates[0]).all())
        for name, targets in self.adam.targets.items():
            online: list[Tensor] = list(self.adam.components[name][: len(targets)])
            if same:
                torch._foreach_lerp_(targets, online, float(rates[0]))
                continue
            rate = self.constant(rates)
            rate = rate if moving is None else rate * moving
            torch._foreach_lerp_(targets, online, [_like(rate, target) for target in targets])

    def _together(self, name: str, own: Sequence[Tensor]) -> None:
        adam, steps = self.adam, self._steps[name]
        steps.add_(1.0)
        # The fused kernel wants gradients to lie exactly as the parameters do.
        gradients = [
            g if g.stride() == p.stride() else torch.empty_like(p).copy_(g)
            for g, p in zip(own, adam.components[name], strict=True)
        ]
        torch._fused_adam_(
            list(adam.components[name]),
            gradients,
            adam.first[name],
            adam.second[name],
            [],
            [steps[0]] * len(gradients),
            lr=float(adam.learning_rates[name][0]),
            beta1=BETA1,
            beta2=BETA2,
            weight_decay=0.0,
            eps=EPS,
            amsgrad=False,
            maximize=False,
        )

    def _apart(self, name: str, gradients: Sequence[Tensor], mask: Tensor) -> None:
        adam = self.adam
        steps = self._steps[name].add_(mask).double().clamp(min=1.0)
        on = mask.double()
        rate = self.constant(adam.learning_rates[name]) * on / (1 - BETA1**steps)
        root = (1 - BETA2**steps).sqrt()
        first, second = adam.first[name], adam.second[name]
        parameters: list[Tensor] = list(adam.components[name])
        torch._foreach_lerp_(first, list(gradients), [_like((1 - BETA1) * on, p) for p in parameters])
        squares = torch._foreach_mul(list(gradients), list(gradients))
        torch._foreach_lerp_(second, squares, [_like((1 - BETA2) * on, p) for p in parameters])
        denominators = torch._foreach_sqrt(second)
        torch._foreach_div_(denominators, [_like(root, p) for p in parameters])
        torch._foreach_add_(denominators, EPS)
        moves = torch._foreach_mul(first, [_like(rate, p) for p in parameters])
        torch._foreach_div_(moves, denominators)
        torch._foreach_sub_(parameters, moves)

    def constant(self, values: NDArray[np.float64] | Mask) -> Tensor:
        """Numbers or a mask of the members as a float64 tensor (M,), made once."""
        numbers = np.array(values, np.float64)
        key = numbers.tobytes()
        if key not in self._constants:
            self._constants[key] = to_device(numbers, self.device)
        return self._constants[key]


def following(moving: Mask | None) -> Following:
    """Which members' target networks move, by a mask (M,)."""
    if moving is None or not moving.any():
        return "none"
    return "all" if moving.all() else "some"


def _like(values: Tensor, like: Tensor) -> Tensor:
    """Numbers of the members (M,), to broadcast over a parameter."""
    return values.to(like.dtype).view(-1, *[1] * (like.dim() - 1))
