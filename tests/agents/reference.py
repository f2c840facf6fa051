"""The losses again, in plain float64 numpy with loops, written from the papers and not from our code.

A network's parameters are a dict of arrays as the agent's state dict has them, (M, E, in, out) for weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from o2o_smooth.agents import Agent
from o2o_smooth.data.batch import Batch

Array = NDArray[np.float64]
Params = dict[str, Array]


def parameters(agent: Agent) -> Params:
    """A copy of everything in the networks."""
    return {k: v.detach().numpy().astype(np.float64).copy() for k, v in agent.networks.state_dict().items()}


def mlp(p: Mapping[str, Array], net: str, m: int, e: int, x: Array, *, layer_norm: bool = False) -> Array:
    """One copy of one network on one input vector."""
    layers = sum(1 for k in p if k.startswith(f"{net}.weights."))
    for i in range(layers):
        x = x @ p[f"{net}.weights.{i}"][m, e] + p[f"{net}.biases.{i}"][m, e, 0]
        if i < layers - 1:
            if layer_norm:
                x = (x - x.mean()) / math.sqrt(x.var() + 1e-5)
                x = x * p[f"{net}.gains.{i}"][m, e, 0] + p[f"{net}.shifts.{i}"][m, e, 0]
            x = np.maximum(x, 0.0)
    return x


def q_values(p: Mapping[str, Array], net: str, m: int, obs: Array, action: Array, ln: bool) -> list[float]:
    """All critics of one member at one state and action."""
    copies = p[f"{net}.weights.0"].shape[1]
    return [float(mlp(p, net, m, e, np.concatenate([obs, action]), layer_norm=ln)[0]) for e in range(copies)]


def gaussian(p: Mapping[str, Array], m: int, obs: Array) -> tuple[Array, Array]:
    """Mean and deviation before the tanh."""
    mean, log_std = np.split(mlp(p, "actor.net", m, 0, obs), 2)
    return mean, np.exp(np.clip(log_std, -5.0, 2.0))


def log_density(mean: Array, std: Array, u: Array) -> float:
    """log pi(tanh(u)), with the change of variables written out naively."""
    total = 0.0
    for mu, s, x in zip(mean, std, u, strict=True):
        total += -0.5 * ((x - mu) / s) ** 2 - math.log(s) - 0.5 * math.log(2 * math.pi)
        total -= math.log(1.0 - math.tanh(x) ** 2)
    return total


def sample(p: Mapping[str, Array], m: int, obs: Array, noise: Array) -> tuple[Array, float]:
    """Reparametrised action and its log density."""
    mean, std = gaussian(p, m, obs)
    u = mean + std * noise
    return np.tanh(u), log_density(mean, std, u)


def rows(batch: Batch, m: int) -> list[dict[str, Any]]:
    """The rows of one member as plain numpy."""
    return [
        {name: getattr(batch, name)[m, i].numpy().astype(np.float64) for name in Batch._fields}
        for i in range(batch.obs.shape[1])
    ]


def logsumexp(values: list[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))


class Reference:
    """Losses of one member; `live` parameters are differentiated, `fixed` ones are what stop-gradients see."""

    def __init__(self, agent: Agent, batch: Batch, noise: Mapping[str, Any], *, ln: bool) -> None:
        self.c: Any = agent.config
        self.fixed = parameters(agent)
        self.batch = batch
        self.noise = {k: v.numpy().astype(np.float64) for k, v in noise.items()}
        self.ln = ln
        self.action_dim = batch.action.shape[-1]

    def loss(self, objective: str, component: str, m: int, live: Params) -> float:
        """One loss of one member."""
        method: Callable[[int, Params], float] = getattr(self, f"{objective}_{component}")
        return method(m, live)

    # IQL

    def _advantage(self, m: int, r: dict[str, Any]) -> float:
        q = min(q_values(self.fixed, "target_critic", m, r["obs"], r["action"], self.ln))
        return q - float(mlp(self.fixed, "value", m, 0, r["obs"], layer_norm=self.ln)[0])

    def iql_value(self, m: int, live: Params) -> float:
        losses = []
        for r in rows(self.batch, m):
            q = min(q_values(self.fixed, "target_critic", m, r["obs"], r["action"], self.ln))
            u = q - float(mlp(live, "value", m, 0, r["obs"], layer_norm=self.ln)[0])
            losses.append(abs(self.c.expectile - (1.0 if u < 0 else 0.0)) * u * u)
        return float(np.mean(losses))

    def iql_critic(self, m: int, live: Params) -> float:
        def target(r: dict[str, Any], i: int) -> float:
            v = float(mlp(self.fixed, "value", m, 0, r["next_obs"], layer_norm=self.ln)[0])
            return float(r["reward"] + self.c.discount * (1 - r["terminated"]) * v)

        return self._td(m, live, target)

    def iql_actor(self, m: int, live: Params) -> float:
        losses = []
        for r in rows(self.batch, m):
            weight = min(math.exp(self.c.beta * self._advantage(m, r)), 100.0)
            mean, std = gaussian(live, m, r["obs"])
            u = np.arctanh(np.clip(r["action"], -(1 - self.c.action_edge), 1 - self.c.action_edge))
            losses.append(-weight * log_density(mean, std, u))
        return float(np.mean(losses))

    # SAC

    def _td(self, m: int, live: Params, target: Callable[[dict[str, Any], int], float]) -> float:
        total = 0.0
        for i, r in enumerate(rows(self.batch, m)):
            y = target(r, i)
            total += sum((q - y) ** 2 for q in q_values(live, "critic", m, r["obs"], r["action"], self.ln))
        return total / self.batch.obs.shape[1]

    def _soft_target(self, m: int, r: dict[str, Any], i: int) -> float:
        action, log_prob = sample(self.fixed, m, r["next_obs"], self.noise["next"][m, 0, i])
        q = min(q_values(self.fixed, "target_critic", m, r["next_obs"], action, self.ln))
        if self.c.sac.backup_entropy:
            q -= math.exp(self.fixed["log_alpha"][m]) * log_prob
        return float(r["reward"] + self.c.discount * (1 - r["terminated"]) * q)

    def sac_critic(self, m: int, live: Params) -> float:
        return self._td(m, live, lambda r, i: self._soft_target(m, r, i))

    def sac_actor(self, m: int, live: Params) -> float:
        alpha = math.exp(self.fixed["log_alpha"][m])
        losses = []
        for i, r in enumerate(rows(self.batch, m)):
            action, log_prob = sample(live, m, r["obs"], self.noise["policy"][m, 0, i])
            losses.append(alpha * log_prob - min(q_values(self.fixed, "critic", m, r["obs"], action, self.ln)))
        return float(np.mean(losses))

    def sac_temperature(self, m: int, live: Params) -> float:
        losses = []
        for i, r in enumerate(rows(self.batch, m)):
            _, log_prob = sample(self.fixed, m, r["obs"], self.noise["policy"][m, 0, i])
            losses.append(math.exp(live["log_alpha"][m]) * (-log_prob + self.action_dim))
        return float(np.mean(losses))

    # CQL

    def cql_critic(self, m: int, live: Params) -> float:
        n = self.c.cql_actions
        copies = live["critic.weights.0"].shape[1]
        total = 0.0
        for e in range(copies):
            td, gap = 0.0, 0.0
            for i, r in enumerate(rows(self.batch, m)):
                q = q_values(live, "critic", m, r["obs"], r["action"], self.ln)[e]
                td += (q - self._cql_target(m, r, i)) ** 2
                values = []
                for k in range(n):
                    action = self.noise["cql_uniform"][m, k, i]
                    log_mu = self.action_dim * math.log(0.5)
                    values.append(q_values(live, "critic", m, r["obs"], action, self.ln)[e] - log_mu)
                for name, where in (("cql_current", "obs"), ("cql_next", "next_obs")):
                    for k in range(n):
                        action, log_mu = sample(self.fixed, m, r[where], self.noise[name][m, k, i])
                        pushed = q_values(live, "critic", m, r["obs"], action, self.ln)[e]
                        if self.c.calibrated:
                            pushed = max(pushed, float(r["mc_return"]))
                        values.append(pushed - log_mu)
                gap += logsumexp(values) - q
            b = self.batch.obs.shape[1]
            if self.c.cql_target_gap is None:
                total += td / b + self.c.cql_weight * gap / b
            else:
                # minimised by the critics and maximised by the multiplier; at the current point the two products cancel
                excess = self.c.cql_weight * (gap / b - self.c.cql_target_gap)
                fixed_excess = self._fixed_excess(m, e)
                total += td / b + math.exp(self.fixed["log_multiplier"][m]) * excess
                total -= math.exp(live["log_multiplier"][m]) * fixed_excess
        return total

    def _fixed_excess(self, m: int, e: int) -> float:
        gap = 0.0
        for i, r in enumerate(rows(self.batch, m)):
            values = []
            for k in range(self.c.cql_actions):
                action = self.noise["cql_uniform"][m, k, i]
                log_mu = self.action_dim * math.log(0.5)
                values.append(q_values(self.fixed, "critic", m, r["obs"], action, self.ln)[e] - log_mu)
            for name, where in (("cql_current", "obs"), ("cql_next", "next_obs")):
                for k in range(self.c.cql_actions):
                    action, log_mu = sample(self.fixed, m, r[where], self.noise[name][m, k, i])
                    values.append(q_values(self.fixed, "critic", m, r["obs"], action, self.ln)[e] - log_mu)
            gap += logsumexp(values) - q_values(self.fixed, "critic", m, r["obs"], r["action"], self.ln)[e]
        return float(self.c.cql_weight * (gap / self.batch.obs.shape[1] - self.c.cql_target_gap))

    def _cql_target(self, m: int, r: dict[str, Any], i: int) -> float:
        if not self.c.max_target_backup:
            return self._soft_target(m, r, i)
        best, best_log = -math.inf, 0.0
        for k in range(self.c.cql_actions):
            action, log_prob = sample(self.fixed, m, r["next_obs"], self.noise["next"][m, k, i])
            q = min(q_values(self.fixed, "target_critic", m, r["next_obs"], action, self.ln))
            if q > best:
                best, best_log = q, log_prob
        if self.c.sac.backup_entropy:
            best -= math.exp(self.fixed["log_alpha"][m]) * best_log
        return float(r["reward"] + self.c.discount * (1 - r["terminated"]) * best)

    cql_actor = sac_actor
    cql_temperature = sac_temperature

    # TD3 and TD3+BC

    def _policy(self, p: Mapping[str, Array], net: str, m: int, obs: Array) -> Array:
        out = mlp(p, net, m, 0, obs)
        return np.tanh(out[: self.action_dim])  # of a Gaussian head, the mean

    def td3_critic(self, m: int, live: Params) -> float:
        def target(r: dict[str, Any], i: int) -> float:
            noise = np.clip(
                self.c.td3.target_noise * self.noise["next"][m, 0, i], -self.c.td3.noise_clip, self.c.td3.noise_clip
            )
            action = np.clip(self._policy(self.fixed, "target_actor.net", m, r["next_obs"]) + noise, -1.0, 1.0)
            q = min(q_values(self.fixed, "target_critic", m, r["next_obs"], action, self.ln))
            return float(r["reward"] + self.c.discount * (1 - r["terminated"]) * q)

        return self._td(m, live, target)

    def _first_q(self, p: Mapping[str, Array], m: int) -> list[float]:
        return [
            q_values(self.fixed, "critic", m, r["obs"], self._policy(p, "actor.net", m, r["obs"]), self.ln)[0]
            for r in rows(self.batch, m)
        ]

    def td3_actor(self, m: int, live: Params) -> float:
        scale = 1.0
        if hasattr(self.c, "bc_alpha"):  # TD3+BC keeps its scale online
            scale = self.c.bc_alpha / float(np.mean(np.abs(self._first_q(self.fixed, m))))
        return -scale * float(np.mean(self._first_q(live, m)))

    td3_bc_critic = td3_critic

    def td3_bc_actor(self, m: int, live: Params) -> float:
        bc = [np.mean((self._policy(live, "actor.net", m, r["obs"]) - r["action"]) ** 2) for r in rows(self.batch, m)]
        return self.td3_actor(m, live) + float(np.mean(bc))
