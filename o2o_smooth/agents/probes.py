"""Looking at an agent without touching it: how far its policy has moved, how wrong its critics are, what its units do.

Every function gives one value per member, (M,), without gradient, and moves nothing: no parameter, no counter, no
random state. Rows come raw, as buffers serve them, and are encoded here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from o2o_smooth.agents.base import Agent
from o2o_smooth.agents.blending import gradients_of
from o2o_smooth.agents.heads import gaussian
from o2o_smooth.agents.networks import MLP, Actor
from o2o_smooth.data.batch import Batch
from o2o_smooth.errors import ConfigError
from o2o_smooth.smoothing.objective import COMPONENTS, Objective

Side = Literal["offline", "online"]
DORMANT = 0.025
"""A unit is dormant at or below this share of its layer's mean activity (Sokar et al. 2023, arXiv 2302.12902)."""


# The policy


class PolicySnapshot(NamedTuple):
    """An agent's policy as it was, with its own normaliser."""

    actor: Actor
    obs_mean: Tensor  # (O,)
    obs_std: Tensor  # (O,)

    @torch.no_grad()
    def output(self, obs: Tensor) -> Tensor:
        """The network's output for raw observations (M, n, O): (M, n, 2A) where stochastic, else (M, n, A)."""
        return self.actor.output((obs - self.obs_mean) / self.obs_std)


@torch.no_grad()
def policy_snapshot(agent: Agent) -> PolicySnapshot:
    """A copy of the agent's policy; later updates leave it alone."""
    networks = agent.networks
    actor = copy.deepcopy(networks.actor).requires_grad_(False)
    actor.net.depositing = False
    return PolicySnapshot(actor, networks.obs_mean.clone(), networks.obs_std.clone())


def snapshot_tensors(snapshot: PolicySnapshot) -> dict[str, Tensor]:
    """What a snapshot is made of, by name."""
    tensors = {f"actor.{name}": value for name, value in snapshot.actor.state_dict().items()}
    return {**tensors, "obs_mean": snapshot.obs_mean, "obs_std": snapshot.obs_std}


def snapshot_from(agent: Agent, tensors: Mapping[str, Tensor]) -> PolicySnapshot:
    """What `snapshot_tensors` gave, of an agent of the same kind.

    Raises:
        KeyError: A tensor is missing.
    """
    like = policy_snapshot(agent)
    own = {name: tensors[f"actor.{name}"].to(value) for name, value in like.actor.state_dict().items()}
    like.actor.load_state_dict(own)
    mean, std = (tensors[name].to(like.obs_mean) for name in ("obs_mean", "obs_std"))
    return PolicySnapshot(like.actor, mean, std)


@torch.no_grad()
def kl_from(snapshot: PolicySnapshot, agent: Agent, obs: Tensor) -> Tensor:
    """How far the policy has moved from a snapshot: KL(pi_now || pi_then) in nats, a mean over states, (M,).

    A deterministic actor has no density, and the value is then the squared distance of the actions, see
    `action_distance`; `kl_name` says which of the two it is.

    Args:
        snapshot: From `policy_snapshot` of the same agent, or of one of the same members.
        agent: The agent as it is.
        obs: Raw observations (M, n, O).
    """
    now = agent.networks.actor.output(agent.networks.encode_obs(obs))
    then = snapshot.output(obs)
    return gaussian_kl(now, then) if agent.networks.actor.stochastic else action_distance(now, then)


def kl_name(agent: Agent) -> str:
    """What `kl_from` measures of an agent: `kl`, or `action_distance` where the actor is deterministic."""
    return "kl" if agent.networks.actor.stochastic else "action_distance"


def gaussian_kl(now: Tensor, then: Tensor) -> Tensor:
    """KL divergence of two outputs of a Gaussian actor, (M, n, 2A) each: a sum over actions, a mean over states, (M,).

    It is that of the Gaussians before the tanh: a bijection of both leaves it as it is.
    """
    (mean, log_std), (mean_then, log_std_then) = gaussian(now), gaussian(then)
    precision = torch.exp(-2 * log_std_then)
    ratio = torch.exp(2 * (log_std - log_std_then))
    kl = log_std_then - log_std + 0.5 * (ratio + (mean - mean_then).square() * precision - 1)
    return kl.sum(-1).mean(-1)


def action_distance(now: Tensor, then: Tensor) -> Tensor:
    """Squared distance of the actions of two outputs of a deterministic actor, (M, n, A) each -> (M,).

    A sum over actions, a mean over states, in units of the action range's half width.
    """
    return (torch.tanh(now) - torch.tanh(then)).square().sum(-1).mean(-1)


# The critics


class _Drawn(Mapping[str, Tensor]):
    """Noise that is drawn when an objective reads it; at one `step` the numbers are the same at every call."""

    def __init__(self, agent: Agent, objective: Objective, rows: int, step: int = 0, *, prefix: str = "probe/") -> None:
        self.agent, self.rows, self.step, self.prefix = agent, rows, step, prefix
        self.normal, self.uniform = objective.normal_noise, objective.uniform_noise
        self._drawn: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._drawn:
            draws, label = self.agent.draws, f"{self.prefix}{name}"
            if name in self.normal:
                drawn = draws.normal(label, self.step, (self.normal[name], self.rows, self.agent.action_dim))
            else:
                drawn = draws.uniform(label, self.step, (self.uniform[name], self.rows, self.agent.action_dim))
            self._drawn[name] = drawn
        return self._drawn[name]

    def __iter__(self) -> Iterator[str]:
        return iter((*self.normal, *self.uniform))

    def __len__(self) -> int:
        return len(self.normal) + len(self.uniform)


@torch.no_grad()
def td_error(agent: Agent, batch: Batch, *, objective: Side = "online") -> Tensor:
    """Squared error of the critics against the TD target of one of the objectives, a mean over critics and rows, (M,).

    It is the error alone, without what else the objective's critic loss may hold (CQL's penalty). Draws in the target
    are the same at every call with equally many rows.

    Args:
        agent: The agent.
        batch: Raw rows (M, B, ...).
        objective: Whose target: the offline or the online objective's.

    Raises:
        ConfigError: There is no such objective.
    """
    if objective not in ("offline", "online"):
        raise ConfigError(f"objective must be offline or online, got {objective!r}")
    source: Objective = agent.offline if objective == "offline" else agent.online
    rows = agent.encode(batch)
    target = source.critic_target(rows, _Drawn(agent, source, rows.reward.shape[1]))  # (M, B)
    q = agent.networks.q(rows.obs, rows.action)  # (M, E, B)
    return (q - target[:, None]).square().mean((1, 2))


@torch.no_grad()
def q_values(agent: Agent, batch: Batch) -> Tensor:
    """Q of the rows' own actions, (M, E, B)."""
    rows = agent.encode(batch)
    return agent.networks.q(rows.obs, rows.action)


# The objectives


class Pull(NamedTuple):
    """What the two objectives want of one component, per member (M,); None of a side that does not know it."""

    offline: Tensor | None
    """Norm of the offline objective's gradient."""
    online: Tensor | None
    """Norm of the online objective's."""
    cosine: Tensor | None
    """Of the two, where both are there."""


def pulls(agent: Agent, source: Batch, target: Batch) -> dict[str, Pull]:
    """Gradient norms of both objectives for every component, those included that one of them alone has.

    Args:
        agent: The agent; nothing is stepped. Draws are those of its next update.
        source: The offline objective's rows, raw.
        target: The online objective's rows, raw.
    """
    parameters = agent.networks.component_parameters()
    gradients = []
    for objective, batch in ((agent.offline, source), (agent.online, target)):  # one after the other, to save memory
        rows = agent.encode(batch)
        noise = _Drawn(agent, objective, rows.reward.shape[1], agent.updates, prefix="")
        terms = objective.terms(rows, noise, frozenset(objective.components))
        gradients.append(gradients_of({name: term.loss for name, term in terms.items()}, parameters))
    offline, online = gradients
    found = {}
    for name in COMPONENTS:
        a, b = offline.get(name), online.get(name)
        if a is None and b is None:
            continue
        n_a, n_b = (None if g is None else _norms(g) for g in (a, b))
        cosine = None
        if a is not None and b is not None and n_a is not None and n_b is not None:
            norms = n_a * n_b
            cosine = torch.where(norms > 0, _dots(a, b) / torch.where(norms > 0, norms, 1.0), 0.0)
        found[name] = Pull(n_a, n_b, cosine)
    return found


def _dots(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Inner product over all parameters, per member, (M,), summed in float64."""
    return torch.stack([(x.double() * y.double()).reshape(len(x), -1).sum(1) for x, y in zip(a, b, strict=True)]).sum(0)


def _norms(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm over all parameters, per member, (M,), summed in float64."""
    parts = [torch.linalg.vector_norm(x.reshape(len(x), -1), dim=1, dtype=torch.float64) for x in tensors]
    return torch.stack(parts).square().sum(0).sqrt()


@torch.no_grad()
def moment_norms(agent: Agent) -> dict[str, tuple[Tensor, Tensor]]:
    """Euclidean norms of Adam's first and second moments of every component, (M,) each."""
    adam = agent.optimizer
    kinds = adam.first, adam.second
    first, second = ({name: _norms(own) for name, own in moments.items()} for moments in kinds)
    return {name: (first[name], second[name]) for name in first}


# The units


@torch.no_grad()
def hidden_activations(net: MLP, x: Tensor) -> list[Tensor]:
    """What the units of every hidden layer say, after the ReLU: (M, B, in) -> (M, E, B, width) each."""
    weights, biases, gains, shifts = net.parts
    h = x.unsqueeze(1)
    found = []
    for i in range(len(weights) - 1):
        h = torch.matmul(h, weights[i]) + biases[i]
        if net.layer_norm:
            h = F.layer_norm(h, h.shape[-1:]) * gains[i] + shifts[i]
        h = F.relu(h)
        found.append(h)
    return found


@torch.no_grad()
def activations(agent: Agent, batch: Batch) -> dict[str, list[Tensor]]:
    """`hidden_activations` of the actor, the critics and V, where there is one, on raw rows."""
    rows, networks = agent.encode(batch), agent.networks
    found = {
        "actor": hidden_activations(networks.actor.net, rows.obs),
        "critic": hidden_activations(networks.critic, torch.cat([rows.obs, rows.action], -1)),
    }
    if networks.value is not None:
        found["value"] = hidden_activations(networks.value, rows.obs)
    return found


def gram(features: Tensor) -> Tensor:
    """Centred inner products of rows, brought to norm 1: features (M, E, B, width) -> (M, E, B, B), float64.

    Zero where all rows are the same.
    """
    x = features.double()
    x = x - x.mean(-2, keepdim=True)
    k = x @ x.transpose(-1, -2)
    norm = k.square().sum((-2, -1), keepdim=True).sqrt()
    return torch.where(norm > 0, k / torch.where(norm > 0, norm, 1.0), 0.0)


def linear_cka(now: Tensor, then: Tensor) -> Tensor:
    """Linear CKA of two sets of features of the same rows, given by their `gram`: a mean over copies, (M,).

    1: the same up to rotation and scale; 0: nothing in common, or one of them says the same of all rows.

    Source: Kornblith et al. 2019 (arXiv 1905.00414), eq. 3 with a linear kernel.
    """
    return (now * then).sum((-2, -1)).mean(1)


def dormant_share(layers: list[Tensor], threshold: float = DORMANT) -> Tensor:
    """Share of hidden units whose mean activity is at most `threshold` of their layer's mean, (M,).

    Args:
        layers: From `hidden_activations`.
        threshold: tau in the source. A layer that is silent altogether is dormant altogether.

    Source: Sokar et al. 2023 (arXiv 2302.12902), definition 3.1.
    """
    dormant = []
    for layer in layers:
        activity = layer.abs().mean(-2)  # (M, E, width)
        dormant.append(activity <= threshold * activity.mean(-1, keepdim=True))
    return torch.cat(dormant, -1).flatten(1).double().mean(1)
