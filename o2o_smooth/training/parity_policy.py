"""The policy's part of the parity check: that acting, evaluating and exploring are one policy that stays put."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from o2o_smooth.agents import Agent
from o2o_smooth.agents.mirror import explores_around_its_mode
from o2o_smooth.data.batch import FloatArray
from o2o_smooth.errors import ParityError
from o2o_smooth.training.parity_walks import INSTEAD, Walk

ACTION_TOLERANCE = 1e-4  # of the action range's half width: numpy, torch and a GPU round differently


class Frozen:
    """What must be the same before and after a walk: the normaliser, the action scaling, the policy's parameters.

    Args:
        agent: Whose.
    """

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self._before = self._look()

    def _look(self) -> dict[str, list[Tensor]]:
        networks = self.agent.networks
        return {
            "normaliser": [networks.obs_mean.clone(), networks.obs_std.clone()],
            "action scaling": [networks.action_center.clone(), networks.action_half.clone()],
            "policy": [p.detach().clone() for p in networks.actor.parameters()],
        }

    def require(self, path: str) -> None:
        """Compare with the beginning.

        Raises:
            ParityError: Something has moved.
        """
        for culprit, tensors in self._look().items():
            if not all(torch.equal(a, b) for a, b in zip(self._before[culprit], tensors, strict=True)):
                raise ParityError(
                    culprit, f"the {culprit} is not frozen: it moved while the {path} path acted{INSTEAD}"
                )


class Replay:
    """The policy in the collection path, whose actions are replaced by the evaluation's where they agree.

    Rounding would otherwise grow from step to step in a chaotic simulator.

    Args:
        agent: Who acts.
        evaluated: The evaluation's walk.
        check: Compare actions where the observations are equal.
    """

    def __init__(self, agent: Agent, evaluated: Walk, *, check: bool) -> None:
        self.agent, self.evaluated, self.check = agent, evaluated, check
        self._half = _half_width(agent)
        self._step = 0

    def __call__(self, obs: FloatArray) -> FloatArray:
        """Actions (M, n, A)."""
        k, self._step = self._step, self._step + 1
        recorded: FloatArray = self.evaluated.action[k].reshape(*obs.shape[:2], -1)
        if self.check and np.array_equal(obs.reshape(self.evaluated.obs[k].shape), self.evaluated.obs[k]):
            own = self.agent.act(obs)
            if _far(own, recorded, self._half) is not None:
                return own
        return recorded


def check_policy(agent: Agent, obs: FloatArray, *, most: int = 8) -> None:
    """Compare what `Agent.act` does with what its networks say, deterministic and exploring.

    Args:
        agent: The agent.
        obs: Observations (S, M, n, O).
        most: How many of the S to look at.

    Raises:
        ParityError: They differ.
    """
    for k in np.unique(np.linspace(0, len(obs) - 1, most).astype(int)).tolist():
        _check_deterministic(agent, obs[k])
        _check_exploring(agent, obs[k], k)


@torch.no_grad()
def _check_deterministic(agent: Agent, obs: FloatArray) -> None:
    half, acts = _half_width(agent), agent.act(obs)
    text = "the evaluation path's policy does two things on one observation: it explores, or keeps a state"
    _require("exploration", acts, agent.act(obs), half, text)
    networks, raw = agent.networks, _tensor(agent, obs)
    encoded = networks.encode_obs(raw)

    def action(obs: Tensor) -> NDArray[Any]:
        return _numpy(networks.decode_action(networks.actor.mode(obs)))

    expected = action(encoded)
    if _far(expected, acts, half) is None:
        return
    unit, twice = networks.actor.mode(encoded), networks.encode_obs(encoded)
    for culprit, text, other in (
        ("normaliser", "the policy acts on observations that are not normalised", action(raw)),
        ("normaliser", "the policy acts on observations that are normalised twice", action(twice)),
        ("action scaling", "the policy's actions are not brought to the action box", _numpy(unit)),
        (
            "action scaling",
            "the policy's actions are brought to the action box twice",
            _numpy(networks.decode_action(networks.decode_action(unit))),
        ),
    ):
        if _far(other, acts, half) is None:
            raise ParityError(culprit, f"{text}{INSTEAD}")
    _require("policy", expected, acts, half, "Agent.act does not do what the policy's network says")


@torch.no_grad()
def _check_exploring(agent: Agent, obs: FloatArray, step: int) -> None:
    networks, half = agent.networks, _half_width(agent)
    encoded = networks.encode_obs(_tensor(agent, obs))
    noise = agent.draws.normal("explore", step, (obs.shape[1], agent.action_dim))
    expected = _numpy(networks.decode_action(agent.online.explore(encoded, noise)))
    acts = agent.act(obs, deterministic=False, step=step)
    _require("exploration", expected, acts, half, "the collection path does not explore as its objective says")
    if explores_around_its_mode(agent.online):
        mode, still = networks.actor.mode(encoded), agent.online.explore(encoded, torch.zeros_like(noise))
        text = "without noise the exploring policy is another one than the policy that is evaluated"
        _require("exploration", _numpy(mode), _numpy(still), np.ones_like(half), text)


def _half_width(agent: Agent) -> NDArray[Any]:
    return np.asarray((agent.action_high - agent.action_low) / 2)


def _tensor(agent: Agent, obs: FloatArray) -> Tensor:
    return torch.as_tensor(obs, dtype=agent.dtype, device=agent.device)


def _numpy(action: Tensor) -> NDArray[Any]:
    return np.asarray(action.cpu().numpy())


def _far(a: NDArray[Any], b: NDArray[Any], half: NDArray[Any]) -> tuple[int, ...] | None:
    """The first action (..., A) that is another one, or None."""
    apart = ~(np.abs(a - b) <= ACTION_TOLERANCE * half)
    return tuple(int(i) for i in np.argwhere(apart)[0]) if apart.any() else None


def _require(culprit: str, a: NDArray[Any], b: NDArray[Any], half: NDArray[Any], text: str) -> None:
    at = _far(a, b, half)
    if at is not None:
        raise ParityError(culprit, f"{text} (action {at[-1]}: {a[at]:.6g} and {b[at]:.6g}){INSTEAD}")
