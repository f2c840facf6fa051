"""Adam for a population: each member steps exactly as it would alone, and target networks follow in the same pass.

Members of one population may be at different places of their ramp, so a component may have a loss for some members and
none for others. A member without one must not move at all: neither its parameters, nor its moments, nor its bias
correction. In float32 on the CPU this is one native pass over memory; elsewhere, while all members step together (the
ordinary case), torch's fused Adam. On a GPU nothing of it waits for the host (`DeviceAdam`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.adam import adam

from o2o_smooth.agents.device_adam import BETA1, BETA2, EPS, DeviceAdam, following
from o2o_smooth.kernels.cpu import AdamSlots, unavailable

Mask = NDArray[np.bool_]  # (M,)
Rates = float | NDArray[np.float64]  # one for all members, or (M,)


class MemberAdam:
    """Adam over components of stacked parameters (M, ...).

    Args:
        components: Component -> its parameters.
        learning_rates: Component -> learning rate, or one per member (M,).
        targets: Component -> the target network that follows its first parameters, where it has one.

    Source: Kingma & Ba 2015 (arXiv 1412.6980), algorithm 1.
    """

    def __init__(
        self,
        components: Mapping[str, Sequence[nn.Parameter]],
        learning_rates: Mapping[str, Rates],
        targets: Mapping[str, Sequence[Tensor]] | None = None,
    ) -> None:
        self.components = {name: list(parameters) for name, parameters in components.items()}
        self.members = {name: len(ps[0]) for name, ps in self.components.items()}
        self.learning_rates = {
            name: np.broadcast_to(np.asarray(learning_rates[name], np.float64), (m,))
            for name, m in self.members.items()
        }
        self.targets = {name: list(tensors) for name, tensors in (targets or {}).items()}
        self.first = {name: [torch.zeros_like(p) for p in ps] for name, ps in self.components.items()}
        self.second = {name: [torch.zeros_like(p) for p in ps] for name, ps in self.components.items()}
        self.steps: dict[str, NDArray[np.int64]] = {name: np.zeros(m, np.int64) for name, m in self.members.items()}
        # torch's fused kernel counts steps in a tensor beside each parameter; these follow `steps`.
        self._counters = {
            name: [torch.zeros((), dtype=torch.float32, device=p.device) for p in ps]
            for name, ps in self.components.items()
        }
        self.parameters = [p for ps in self.components.values() for p in ps]
        """Of all components, one after the other."""
        self._scales = {name: np.zeros((3, m), np.float32) for name, m in self.members.items()}
        self._slots: AdamSlots | None = None
        self.on_device = DeviceAdam(self)

    def zero_grad(self) -> None:
        """Forget all gradients; a parameter without one is not stepped."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, active: Mapping[str, Mask], *, moving: Mask | None = None, tau: Rates = 0.0) -> None:
        """Step the named components, each for the members whose mask is set; then move the target networks.

        Args:
            active: Component -> the members that step, (M,).
            moving: Members whose target networks take a Polyak step, target <- (1 - tau) target + tau online, after the
                step; default: none.
            tau: Rate of that step.
        """
        if self.on_device.device.type != "cpu":
            self._step_device(active, moving, tau)
            self.on_device.count(active)
            return
        if self._native():
            self._step_native(active, moving, tau)
        else:
            self._step_plain(active, moving, tau)
        for name, mask in active.items():
            self.steps[name] = self.steps[name] + mask

    def _native(self) -> bool:
        p = self.parameters[0]
        return p.dtype is torch.float32 and p.device.type == "cpu" and unavailable() is None

    def _step_native(self, active: Mapping[str, Mask], moving: Mask | None, tau: Rates) -> None:
        follow = -1.0 if moving is None else np.where(moving, tau, -1.0)
        for name, scale in self._scales.items():
            mask = active.get(name)
            if mask is None:
                scale[0], scale[1] = -1.0, 1.0
            elif len(mask) == 1:  # plain numbers: numpy's calls would be a noticeable part of a small step
                step = self.steps[name].item() + 1
                scale[0] = self.learning_rates[name].item() / (1 - BETA1**step) if mask.item() else -1.0
                scale[1] = math.sqrt(1 - BETA2**step)
            else:
                steps = self.steps[name] + 1
                np.copyto(scale[0], np.where(mask, self.learning_rates[name] / (1 - BETA1**steps), -1.0))
                np.copyto(scale[1], np.sqrt(1 - BETA2**steps))
            scale[2] = follow if name in self.targets else -1.0
        at = tuple([p.data_ptr() for p in self.parameters])
        if self._slots is None or self._slots.at != at:
            self._slots = self._make_slots()
        # A component that stays needs no gradients, but its slot may still have a target to move.
        gradients = [p.grad if name in active else None for name, ps in self.components.items() for p in ps]
        self._slots.step(gradients, (BETA1, BETA2), EPS)
        # The kernels write past autograd's eyes; a graph that still needs the old values must find out.
        torch.autograd.graph.increment_version(self.parameters)

    def _make_slots(self) -> AdamSlots:
        flat = {
            kind: [t for ts in tensors.values() for t in ts]
            for kind, tensors in (("1", self.first), ("2", self.second))
        }
        targets: list[Tensor | None] = []
        for name, ps in self.components.items():
            own: list[Tensor | None] = list(self.targets.get(name, []))
            targets += own + [None] * (len(ps) - len(own))
        scales = [self._scales[name] for name, ps in self.components.items() for _ in ps]
        return AdamSlots(self.parameters, flat["1"], flat["2"], targets, scales)

    def _step_device(self, active: Mapping[str, Mask], moving: Mask | None, tau: Rates) -> None:
        device = self.on_device
        device.upload()
        level = device.level()
        steppers = {name: mask for name, mask in active.items() if mask.any()}
        device.step(
            {name: self._gradients(name) for name in steppers},
            {name: device.constant(mask) for name, mask in steppers.items()},
            frozenset(name for name, mask in steppers.items() if name in level and mask.all()),
            following(moving),
            None if moving is None else device.constant(moving),
            tau,
        )

    def _step_plain(self, active: Mapping[str, Mask], moving: Mask | None, tau: Rates) -> None:
        for name, mask in active.items():
            if not mask.any():
                continue
            steps, rates = self.steps[name], self.learning_rates[name]
            if mask.all() and (steps == steps[0]).all() and (rates == rates[0]).all():
                self._step_together(name, int(steps[0]))
            else:
                self._step_apart(name, mask)
        if moving is None or not moving.any():
            return
        rate = np.where(moving, tau, 0.0)
        for name, targets in self.targets.items():
            online: list[Tensor] = list(self.components[name][: len(targets)])
            if (rate == rate[0]).all():
                torch._foreach_lerp_(targets, online, float(rate[0]))
                continue
            for target, towards in zip(targets, online, strict=True):
                target.lerp_(towards, _per_member(rate, target))

    def _gradients(self, name: str) -> list[Tensor]:
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in self.components[name]]

    def _step_together(self, name: str, steps: int) -> None:
        counters = self._counters[name]
        for counter in counters:
            counter.fill_(steps)
        adam(
            list(self.components[name]),
            self._gradients(name),
            self.first[name],
            self.second[name],
            [],
            counters,
            fused=True,
            amsgrad=False,
            beta1=BETA1,
            beta2=BETA2,
            lr=float(self.learning_rates[name][0]),
            weight_decay=0.0,
            eps=EPS,
            maximize=False,
        )

    def _step_apart(self, name: str, mask: Mask) -> None:
        steps = np.maximum(self.steps[name] + mask, 1)
        for parameter, gradient, first, second in zip(
            self.components[name], self._gradients(name), self.first[name], self.second[name], strict=True
        ):
            on = mask.astype(np.float64)
            first.lerp_(gradient, _per_member((1 - BETA1) * on, parameter))
            second.lerp_(gradient.square(), _per_member((1 - BETA2) * on, parameter))
            rate = _per_member(self.learning_rates[name] * on / (1 - BETA1**steps), parameter)
            denominator = second.sqrt() / _per_member(np.sqrt(1 - BETA2**steps), parameter) + EPS
            parameter.sub_(rate * first / denominator)

    @torch.no_grad()
    def reset(self, components: Iterable[str]) -> None:
        """Forget the moments and step counts of components, in place."""
        for name in components:
            for moment in (*self.first[name], *self.second[name]):
                moment.zero_()
            self.steps[name] = np.zeros_like(self.steps[name])

    def set_rates(self, rates: Mapping[str, Rates]) -> None:
        """Other learning rates from the next step on; captured graphs keep those that they were captured with."""
        for name, rate in rates.items():
            self.learning_rates[name] = np.broadcast_to(np.asarray(rate, np.float64), (self.members[name],))

    def state_tensors(self) -> dict[str, Tensor]:
        """Moments and step counts, by name."""
        tensors = {f"{name}.steps": torch.from_numpy(steps.copy()) for name, steps in self.steps.items()}
        for kind, moments in (("first", self.first), ("second", self.second)):
            for name, values in moments.items():
                tensors |= {f"{name}.{kind}.{i}": value for i, value in enumerate(values)}
        return tensors

    def load_state_tensors(self, tensors: Mapping[str, Tensor], fresh: Sequence[str] = ()) -> None:
        """Restore what `state_tensors` gave; the `fresh` components may be absent and then start anew.

        Raises:
            ValueError: A tensor is missing or of another shape.
        """
        for name in self.components:
            if f"{name}.steps" not in tensors:
                if name in fresh:
                    continue
                raise ValueError(f"the optimiser's state of {name} is missing")
            for kind, moments in (("first", self.first), ("second", self.second)):
                for i, moment in enumerate(moments[name]):
                    stored = tensors.get(f"{name}.{kind}.{i}")
                    if stored is None or stored.shape != moment.shape:
                        raise ValueError(f"the optimiser's {kind} moment {i} of {name} is missing or does not fit")
                    moment.copy_(stored)
            self.steps[name] = tensors[f"{name}.steps"].numpy().astype(np.int64)


def _per_member(values: NDArray[np.float64], like: Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=like.dtype, device=like.device).view(-1, *[1] * (like.dim() - 1))
