"""Adam for a population: each member steps exactly as it would alone.

Members of one population may be at different places of their ramp, so a component may have a loss for some members and
none for others. A member without one must not move at all: neither its parameters, nor its moments, nor its bias
correction. While all members step together (the ordinary case) this is torch's fused Adam.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.adam import adam

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
Mask = NDArray[np.bool_]  # (M,)


class MemberAdam:
    """Adam over components of stacked parameters (M, ...).

    Args:
        components: Component -> its parameters.
        learning_rates: Component -> learning rate.

    Source: Kingma & Ba 2015 (arXiv 1412.6980), algorithm 1.
    """

    def __init__(self, components: Mapping[str, Sequence[nn.Parameter]], learning_rates: Mapping[str, float]) -> None:
        self.components = {name: list(parameters) for name, parameters in components.items()}
        self.learning_rates = {name: learning_rates[name] for name in components}
        self.first = {name: [torch.zeros_like(p) for p in ps] for name, ps in self.components.items()}
        self.second = {name: [torch.zeros_like(p) for p in ps] for name, ps in self.components.items()}
        members = {name: len(ps[0]) for name, ps in self.components.items()}
        self.steps: dict[str, NDArray[np.int64]] = {name: np.zeros(m, np.int64) for name, m in members.items()}
        # torch's fused kernel counts steps in a tensor beside each parameter; these follow `steps`.
        self._counters = {
            name: [torch.zeros((), dtype=torch.float32, device=p.device) for p in ps]
            for name, ps in self.components.items()
        }

    def zero_grad(self) -> None:
        """Forget all gradients; a parameter without one is not stepped."""
        for parameters in self.components.values():
            for parameter in parameters:
                parameter.grad = None

    @torch.no_grad()
    def step(self, active: Mapping[str, Mask]) -> None:
        """Step the named components, each for the members whose mask is set."""
        for name, mask in active.items():
            if not mask.any():
                continue
            steps = self.steps[name]
            if mask.all() and (steps == steps[0]).all():
                self._step_together(name, int(steps[0]))
            else:
                self._step_apart(name, mask)
            self.steps[name] = steps + mask

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
            lr=self.learning_rates[name],
            weight_decay=0.0,
            eps=EPS,
            maximize=False,
        )

    def _step_apart(self, name: str, mask: Mask) -> None:
        steps = np.maximum(self.steps[name] + mask, 1)
        for parameter, gradient, first, second in zip(
            self.components[name], self._gradients(name), self.first[name], self.second[name], strict=True
        ):

            def per_member(values: NDArray[np.float64], like: Tensor = parameter) -> Tensor:
                return torch.as_tensor(values, dtype=like.dtype, device=like.device).view(-1, *[1] * (like.dim() - 1))

            on = mask.astype(np.float64)
            first.lerp_(gradient, per_member((1 - BETA1) * on))
            second.lerp_(gradient.square(), per_member((1 - BETA2) * on))
            rate = per_member(self.learning_rates[name] * on / (1 - BETA1**steps))
            denominator = second.sqrt() / per_member(np.sqrt(1 - BETA2**steps)) + EPS
            parameter.sub_(rate * first / denominator)

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
