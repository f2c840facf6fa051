"""Acting on the CPU without torch: numpy over the memory of the agent's own parameters.

For one observation torch spends its time on calls, not on numbers. The mirror holds views, not copies, so that it sees
every optimiser step; it looks where the parameters lie at each call, so that it also sees them replaced. Which way is
taken depends on shapes alone, never on time, so a run repeats itself.
"""

from __future__ import annotations

import functools
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from o2o_smooth.agents.heads import LOG_STD_MAX, LOG_STD_MIN

if TYPE_CHECKING:
    from o2o_smooth.agents.base import Agent
    from o2o_smooth.smoothing.objective import Objective

FloatArray = NDArray[np.float32]
MAX_PRODUCTS = 10 * 256 * 256
"""Multiplications in a member's largest layer up to which numpy is clearly the faster: measured on widths of 64 and
256, for 1 to 16 members. Beyond, numpy's BLAS would also begin to use threads of its own, beside the learner's."""
LAYER_NORM_EPSILON = np.float32(1e-5)  # torch's default


class Mirror:
    """An agent's policy in numpy, where it can be had.

    Args:
        agent: Float32 parameters on the CPU; `ready` says when they are not.
    """

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self._pointers: list[int] = []
        self._kept: list[Tensor] = []
        self._arrays: list[FloatArray] = []
        self._float32 = False
        self._per_layer = 2
        self._largest = 0  # products of one row in the largest layer

    def ready(self, rows: int, *, deterministic: bool) -> bool:
        """Whether the mirror takes so many observations per member; if so, `act` may be called next."""
        if self.agent.device.type != "cpu" or not (deterministic or _exploration(type(self.agent.online))):
            return False
        self._look()
        return self._float32 and rows * self._largest <= MAX_PRODUCTS

    def act(self, obs: FloatArray, noise: FloatArray | None) -> FloatArray:
        """Actions in environment units.

        Args:
            obs: Raw observations (M, n, O).
            noise: Standard normal (M, n, A) to explore with; None acts deterministically.

        Returns:
            (M, n, A).
        """
        mean, std, center, half, *layers = self._arrays
        x: FloatArray = (obs - mean) / std
        last = (len(layers) - 2) // self._per_layer
        for i in range(last):
            weight, bias, *norm = layers[i * self._per_layer : (i + 1) * self._per_layer]
            x = np.matmul(x, weight)
            x += bias
            if norm:
                _normalise(x, *norm)
            np.maximum(x, 0.0, out=x)
        x = np.matmul(x, layers[-2])
        x += layers[-1]
        stochastic = self.agent.networks.actor.stochastic
        head, log_std = np.split(x, 2, axis=-1) if stochastic else (x, None)
        if noise is None:
            unit = np.tanh(head)
        elif _exploration(type(self.agent.online)) == "sample":
            if log_std is None:
                raise ValueError("a deterministic actor has no density; build it with stochastic=True")
            unit = np.tanh(head + np.exp(np.clip(log_std, LOG_STD_MIN, LOG_STD_MAX)) * noise)
        else:
            scale = self.agent.online.config.exploration_noise  # type: ignore[attr-defined]
            scale = scale.numpy() if isinstance(scale, Tensor) else np.float32(scale)
            unit = np.clip(np.tanh(head) + scale * noise, -1.0, 1.0)
        return np.asarray(unit * half + center, dtype=np.float32)

    def _look(self) -> None:
        """Find the parameters again where any of them has moved."""
        networks = self.agent.networks
        net = networks.actor.net
        tensors = [networks.obs_mean, networks.obs_std, networks.action_center, networks.action_half]
        for layer in zip_longest(*net.parts):  # the last layer has no norm
            tensors += [part for part in layer if part is not None]
        pointers = [tensor.data_ptr() for tensor in tensors]
        if pointers == self._pointers:
            return
        self._pointers = pointers
        self._float32 = all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
        flat = [t.detach() if t.dim() == 1 else t.detach().squeeze(1) for t in tensors]
        self._arrays = [t.numpy() for t in flat] if self._float32 else []
        self._kept = flat  # so that none of the addresses comes back as something else
        self._per_layer = 4 if net.layer_norm else 2
        self._largest = max(weight.shape[-2] * weight.shape[-1] for weight in net.weights)


@functools.cache
def _exploration(objective: type[Objective]) -> str | None:
    """How objectives of a kind explore: `sample`, `additive`, or None where they do so in a way of their own."""
    from o2o_smooth.agents.iql import IQLObjective
    from o2o_smooth.agents.sac import SACObjective
    from o2o_smooth.agents.td3 import TD3Objective

    explore = objective.explore
    if explore in (SACObjective.explore, IQLObjective.explore):
        return "sample"
    return "additive" if explore is TD3Objective.explore else None


def explores_around_its_mode(objective: Objective) -> bool:
    """Whether an objective is known to explore by noise alone: without it, it acts as its policy's mode."""
    return _exploration(type(objective)) is not None


def _normalise(x: FloatArray, gain: FloatArray, shift: FloatArray) -> None:
    """LayerNorm over the last axis, in place."""
    x -= x.mean(-1, keepdims=True)
    x /= np.sqrt(np.square(x).mean(-1, keepdims=True) + LAYER_NORM_EPSILON)
    x *= gain
    x += shift
