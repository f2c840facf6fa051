"""Anchors: what holds parameters or policy to where they were at the switch, added to the gradients of a step.

    kl    c_t KL(pi_0 || pi_t) on online states          kickstarting: Schmitt et al. 2018, arXiv 1803.03835
    bc    c_t (-log pi_t(a|s)) on offline rows           Wolczyk et al. 2024, arXiv 2402.02868
    ewc   lambda / 2 sum_i F_i (theta_i - theta0_i)^2    Kirkpatrick et al. 2017, arXiv 1612.00796
    l2    lambda |theta - theta0|^2                      L2-SP: Li et al. 2018, arXiv 1802.01483

with c_t = max(c_min, c_0 d^t), t in updates since the switch (Wolczyk et al. 2024). F is the diagonal of the Fisher
information on offline rows. A deterministic actor has no density: there KL and -log pi are the squared error of the
action, a mean over its dimensions, and F is that of a unit Gaussian around the action. The same Gaussian stands for the
critics and V.

The gradient of ewc and l2 is written out, that of kl and bc is one more pass of the actor.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from o2o_smooth.smoothing.averaging import restore


class Network(Protocol):
    """A stack of networks."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Of (M, ...) each."""
        ...


class Policy(Protocol):
    """An actor; `agents.networks.Actor` is one."""

    stochastic: bool

    @property
    def net(self) -> Network:
        """Its network."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Of (M, ...) each."""
        ...

    def mode(self, obs: Tensor) -> Tensor:
        """Deterministic action, (M, B, A)."""
        ...

    def distribution(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean before the tanh and log standard deviation, (M, B, A) each."""
        ...

    def log_prob(self, obs: Tensor, action: Tensor, *, edge: float | Tensor = ...) -> Tensor:
        """Log density (M, B) of actions in [-1, 1]."""
        ...


class ActorCritic(Protocol):
    """An agent's networks; `agents.networks.Networks` are such."""

    @property
    def actor(self) -> Policy:
        """The policy."""
        ...

    @property
    def critic(self) -> Network:
        """The critics."""
        ...

    @property
    def value(self) -> Network | None:
        """V, where there is one."""
        ...


@dataclass(frozen=True)
class Decay:
    """c_t = max(floor, start * rate^t), t updates since the switch."""

    start: float = 0.0
    rate: float = 1.0
    floor: float = 0.0

    def __call__(self, t: int) -> float:
        """The coefficient after t updates."""
        return max(self.floor, self.start * math.pow(self.rate, t))

    @property
    def on(self) -> bool:
        """Whether it is ever more than zero."""
        return self.start > 0.0 or self.floor > 0.0


def gaussian_kl(mean0: Tensor, log_std0: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """KL(N_0 || N) of diagonal Gaussians, a sum over the last axis; tanh of both leaves it as it is."""
    variance0, variance = (2 * log_std0).exp(), (2 * log_std).exp()
    return (log_std - log_std0 + (variance0 + (mean0 - mean).square()) / (2 * variance) - 0.5).sum(-1)


def policy_distance(reference: Policy, actor: Policy, obs: Tensor) -> Tensor:
    """KL(reference || actor) at every state, (M, B); between deterministic actors the squared error of the action.

    Args:
        reference: Gets no gradient.
        actor: Gets it.
        obs: Encoded, (M, B, O).
    """
    if not actor.stochastic:
        with torch.no_grad():
            action = reference.mode(obs)
        return (actor.mode(obs) - action).square().mean(-1)
    with torch.no_grad():
        mean0, log_std0 = reference.distribution(obs)
    return gaussian_kl(mean0, log_std0, *actor.distribution(obs))


def cloning_loss(actor: Policy, obs: Tensor, action: Tensor, edge: float | Tensor) -> Tensor:
    """-log pi(a|s) of every row, (M, B), of actions in [-1, 1] clipped to +-(1 - edge); or the squared error."""
    if not actor.stochastic:
        return (actor.mode(obs) - action).square().mean(-1)
    return -actor.log_prob(obs, action, edge=edge)


# All of them


def networks_of(networks: ActorCritic, parts: str) -> dict[str, Network]:
    """The networks of `actor`, `critic` (the critics and V) or `all`, by component."""
    found: dict[str, Network] = {}
    if parts in ("actor", "all"):
        found["actor"] = networks.actor.net
    if parts in ("critic", "all"):
        found["critic"] = networks.critic
        if networks.value is not None:
            found["value"] = networks.value
    return found


class Anchors:
    """All anchors of one agent; made at the switch, where its networks are the reference.

    Args:
        networks: The agent's.
        kl: Coefficient of the kickstarting term.
        bc: Coefficient of the cloning term.
        ewc: lambda; `fisher` must be set before the first pull.
        l2: lambda.
        parts: What ewc and l2 hold: see `networks_of`.
        edge: See `cloning_loss`.
    """

    def __init__(
        self,
        networks: ActorCritic,
        *,
        kl: Decay | None = None,
        bc: Decay | None = None,
        ewc: float = 0.0,
        l2: float = 0.0,
        parts: str = "actor",
        edge: float | Tensor = 0.02,
    ) -> None:
        self.networks, self.kl, self.bc, self.ewc, self.l2, self.edge = (
            networks,
            kl or Decay(),
            bc or Decay(),
            ewc,
            l2,
            edge,
        )
        self.actor0 = deepcopy(networks.actor)
        for parameter in self.actor0.parameters():
            parameter.requires_grad_(False)
        held = networks_of(networks, parts) if ewc or l2 else {}
        self.held: dict[str, list[nn.Parameter]] = {name: list(net.parameters()) for name, net in held.items()}
        self.start = {name: [p.detach().clone() for p in ps] for name, ps in self.held.items()}
        self.fisher: dict[str, list[Tensor]] = {}
        """Component that is held -> Fisher information, a tensor per parameter."""

    @property
    def needs_online(self) -> bool:
        """Whether a pull needs online states."""
        return self.kl.on

    @property
    def needs_offline(self) -> bool:
        """Whether a pull needs offline rows."""
        return self.bc.on

    def pull(
        self,
        t: int,
        moving: Collection[str],
        *,
        online_obs: Tensor | None = None,
        offline_obs: Tensor | None = None,
        offline_action: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Add the anchors' gradients to `.grad` of the components that move.

        Args:
            t: Updates since the switch.
            moving: Components that the step moves; the others are left alone.
            online_obs: Encoded online states (M, B, O), where `needs_online`.
            offline_obs: Encoded states of offline rows, where `needs_offline`.
            offline_action: Their actions in [-1, 1].

        Returns:
            Metrics, detached, (M, ...).
        """
        info: dict[str, Tensor] = {}
        if "actor" in moving:
            actor = self.networks.actor
            losses = []
            if self.kl.on and online_obs is not None:
                distance = policy_distance(self.actor0, actor, online_obs)  # (M, B)
                losses.append(self._weighted("kl", self.kl(t), distance, info))
            if self.bc.on and offline_obs is not None and offline_action is not None:
                cloning = cloning_loss(actor, offline_obs, offline_action, self.edge)  # (M, B)
                losses.append(self._weighted("bc", self.bc(t), cloning, info))
            if losses:
                parameters = list(actor.parameters())
                found = torch.autograd.grad(sum(losses[1:], losses[0]), parameters)
                _add(parameters, found)
        for name in self.held:
            if name in moving:
                info |= self._hold(name)
        return info

    def _weighted(self, name: str, coefficient: float, values: Tensor, info: dict[str, Tensor]) -> Tensor:
        info[f"actor/anchor_{name}"] = values.detach()
        info[f"actor/anchor_{name}_coefficient"] = values.new_full((len(values),), coefficient)
        return coefficient * values.mean(-1).sum()

    @torch.no_grad()
    def _hold(self, name: str) -> dict[str, Tensor]:
        """Gradients and values of ewc and l2 for one component."""
        parameters, info = self.held[name], {}
        away = torch._foreach_sub([p.detach() for p in parameters], self.start[name])
        if self.l2:
            _add(parameters, torch._foreach_mul(away, 2.0 * self.l2))
            info[f"{name}/anchor_l2"] = self.l2 * _sums(torch._foreach_mul(away, away))
        if self.ewc:
            if name not in self.fisher:
                raise RuntimeError("ewc needs its Fisher information before the first pull")
            pulls = torch._foreach_mul(away, self.fisher[name])
            info[f"{name}/anchor_ewc"] = 0.5 * self.ewc * _sums(torch._foreach_mul(pulls, away))
            _add(parameters, torch._foreach_mul(pulls, self.ewc))
        return info

    def state_dict(self) -> dict[str, Tensor]:
        """The reference and the Fisher information, by name; each (M, ...)."""
        tensors = {f"actor0.{i}": p.detach() for i, p in enumerate(self.actor0.parameters())}
        for kind, values in (("start", self.start), ("fisher", self.fisher)):
            for name, own in values.items():
                tensors |= {f"{kind}.{name}.{i}": tensor for i, tensor in enumerate(own)}
        return tensors

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            ValueError: A tensor is missing or of another shape.
        """
        restore(list(self.actor0.parameters()), state, "actor0")
        for name, own in self.start.items():
            restore(own, state, f"start.{name}")
            if self.ewc:
                self.fisher[name] = [torch.empty_like(tensor) for tensor in own]
                restore(self.fisher[name], state, f"fisher.{name}")


def _add(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if parameter.grad is None:
            parameter.grad = gradient
        else:
            parameter.grad.add_(gradient)


def _sums(tensors: Sequence[Tensor]) -> Tensor:
    """Sum over all but members, (M,)."""
    return torch.stack([t.flatten(1).sum(1) for t in tensors]).sum(0)
