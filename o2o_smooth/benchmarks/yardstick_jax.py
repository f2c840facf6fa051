"""IQL, TD3+BC and CQL in plain JAX, as a yardstick: jit over a scan of many updates, with the sampling inside.

Runs wherever jax is installed, also without this package: `python speed_worker.py yardstick_jax.py`, or alone:

    python yardstick_jax.py iql          updates per second of IQL

The losses are those at the top of agents/iql.py, td3_bc.py and cql.py, with the same defaults: every component steps at
once from the same parameters, by Adam; TD3+BC's actor and targets move every second update. A test compares whole
updates with this package's agents.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

AGENTS = ("iql", "cql", "td3_bc")
CRITICS, CQL_ACTIONS = 2, 10
DISCOUNT, TAU, LEARNING_RATE, CQL_ACTOR_RATE = 0.99, 0.005, 3e-4, 1e-4
EXPECTILE, BETA, LARGEST_WEIGHT, ACTION_EDGE = 0.7, 3.0, 100.0, 0.02
BC_ALPHA, TARGET_NOISE, NOISE_CLIP = 2.5, 0.2, 0.5
CQL_WEIGHT = 5.0
ACTION_LIMIT = 1.0 - 1e-5
LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
UPDATES_PER_CALL = {"iql": 32, "cql": 2, "td3_bc": 32}  # even, for TD3+BC's delay

Params = dict[str, Any]
Batch = dict[str, Any]


def make(configuration: dict[str, Any]) -> Callable[[int], int]:
    """A learner for {agent, threads, hidden_dims, batch, rows, obs_dim, action_dim}; see speed_worker."""
    agent, batch_size = str(configuration["agent"]), int(configuration["batch"])
    if agent not in AGENTS:
        raise ValueError(f"the yardstick in JAX has no {agent}")
    _limit_threads(int(configuration["threads"]))
    import jax
    import jax.numpy as jnp

    if str(configuration.get("device", "cpu")) != "cpu" and jax.default_backend() == "cpu":
        raise ValueError("this jax has no GPU support")
    rows, obs_dim, action_dim = (int(configuration[key]) for key in ("rows", "obs_dim", "action_dim"))
    hidden = tuple(int(width) for width in configuration["hidden_dims"])
    key = jax.random.key(0)
    data = _random_rows(jax.random.fold_in(key, 1), rows, obs_dim, action_dim)
    state = init_state(agent, jax.random.fold_in(key, 2), obs_dim, action_dim, hidden)
    count = UPDATES_PER_CALL[agent]

    def one(state: Params, inputs: Any, *, delayed: bool) -> Params:
        draw, packed = inputs
        index_key, noise_key = jax.random.split(draw)
        index = jax.random.randint(index_key, (batch_size,), 0, rows)
        batch = _unpack(packed[index], obs_dim, action_dim)
        return update(agent, state, batch, draw_noise(agent, noise_key, batch_size, action_dim), move_actor=delayed)

    @partial(jax.jit, donate_argnums=0)
    def many(state: Params, draw: Any, packed: Any) -> Params:
        def two(state: Params, keys: Any) -> tuple[Params, None]:
            state = one(state, (keys[0], packed), delayed=agent != "td3_bc")
            return one(state, (keys[1], packed), delayed=True), None

        keys = jax.random.split(draw, (count // 2, 2))
        return jax.lax.scan(two, state, keys)[0]  # type: ignore[no-any-return]

    calls = 0

    def advance(n: int) -> int:
        nonlocal state, calls
        done = 0
        while done < n:
            state = many(state, jax.random.fold_in(key, 3 + calls), data)
            calls += 1
            done += count
        jax.block_until_ready(state)
        if not bool(jnp.isfinite(state["step"])):
            raise FloatingPointError("the yardstick in JAX diverged")
        return done

    return advance


def _limit_threads(threads: int) -> None:
    """XLA takes as many threads as it is allowed cores."""
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        if threads < len(allowed):
            os.sched_setaffinity(0, allowed[:threads])


def _random_rows(key: Any, rows: int, obs_dim: int, action_dim: int) -> Any:
    """Packed rows: obs, next_obs, action, reward, terminated."""
    import jax
    import jax.numpy as jnp

    k1, k2, k3 = jax.random.split(key, 3)
    normal = jax.random.normal(k1, (rows, 2 * obs_dim))
    action = jax.random.uniform(k2, (rows, action_dim), minval=-1.0, maxval=1.0)
    reward = jax.random.normal(k3, (rows, 1))
    ended = (jnp.arange(rows) % 1000 == 999).astype(jnp.float32)[:, None]
    return jnp.concatenate([normal, action, reward, ended], 1)


def _unpack(rows: Any, obs_dim: int, action_dim: int) -> Batch:
    end = 2 * obs_dim + action_dim
    return {
        "obs": rows[:, :obs_dim],
        "next_obs": rows[:, obs_dim : 2 * obs_dim],
        "action": rows[:, 2 * obs_dim : end].clip(-ACTION_LIMIT, ACTION_LIMIT),
        "reward": rows[:, end],
        "terminated": rows[:, end + 1],
    }


# Networks: a list of (weight (in, out), bias (out,)) each; critics are a list of networks


def init_state(agent: str, key: Any, obs_dim: int, action_dim: int, hidden: tuple[int, ...]) -> Params:
    """Parameters, targets, Adam's moments and counters."""
    import jax
    import jax.numpy as jnp

    def net(name: int, inputs: int, outputs: int) -> Any:
        sizes, layers = (inputs, *hidden, outputs), []
        for i in range(len(sizes) - 1):
            bound = 1.0 / math.sqrt(sizes[i])
            kw, kb = jax.random.split(jax.random.fold_in(key, 100 * name + i))
            weight = jax.random.uniform(kw, sizes[i : i + 2], minval=-bound, maxval=bound)
            layers.append((weight, jax.random.uniform(kb, (sizes[i + 1],), minval=-bound, maxval=bound)))
        return layers

    params: Params = {
        "actor": net(0, obs_dim, action_dim if agent == "td3_bc" else 2 * action_dim),
        "critic": [net(1 + e, obs_dim + action_dim, 1) for e in range(CRITICS)],
    }
    if agent == "iql":
        params["value"] = net(9, obs_dim, 1)
    if agent == "cql":
        params["temperature"] = jnp.zeros(())
    zeros = jax.tree.map(jnp.zeros_like, params)
    targets = {"critic": jax.tree.map(jnp.copy, params["critic"])}
    if agent == "td3_bc":
        targets["actor"] = jax.tree.map(jnp.copy, params["actor"])
    steps = {name: jnp.zeros(()) for name in params}
    return {
        "params": params,
        "targets": targets,
        "first": zeros,
        "second": jax.tree.map(jnp.copy, zeros),
        "steps": steps,
        "step": jnp.zeros(()),
    }


def draw_noise(agent: str, key: Any, batch: int, action_dim: int) -> Params:
    """What an update draws, by name."""
    import jax

    k = jax.random.split(key, 5)
    if agent == "td3_bc":
        return {"next": jax.random.normal(k[0], (batch, action_dim))}
    if agent == "cql":
        many = (CQL_ACTIONS, batch, action_dim)
        return {
            "next": jax.random.normal(k[0], (batch, action_dim)),
            "policy": jax.random.normal(k[1], (batch, action_dim)),
            "cql_uniform": jax.random.uniform(k[2], many, minval=-1.0, maxval=1.0),
            "cql_current": jax.random.normal(k[3], many),
            "cql_next": jax.random.normal(k[4], many),
        }
    return {}


def _mlp(layers: Any, x: Any) -> Any:
    import jax

    for i, (weight, bias) in enumerate(layers):
        x = x @ weight + bias
        if i < len(layers) - 1:
            x = jax.nn.relu(x)
    return x


def _q(critics: Any, obs: Any, action: Any) -> Any:
    """(E, ...) of states and actions with the same leading axes."""
    import jax.numpy as jnp

    x = jnp.concatenate([obs, action], -1)
    return jnp.stack([_mlp(critic, x)[..., 0] for critic in critics])


def _gaussian(layers: Any, obs: Any) -> tuple[Any, Any]:
    import jax.numpy as jnp

    mean, log_std = jnp.split(_mlp(layers, obs), 2, -1)
    return mean, log_std.clip(LOG_STD_MIN, LOG_STD_MAX)


def _log_prob(noise: Any, log_std: Any, pre_tanh: Any) -> Any:
    """Log density of tanh(mean + std noise); log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u))."""
    import jax

    normal = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
    return (normal - 2.0 * (math.log(2.0) - pre_tanh - jax.nn.softplus(-2.0 * pre_tanh))).sum(-1)


def _sample(mean: Any, log_std: Any, noise: Any) -> tuple[Any, Any]:
    """Actions (..., B, A) and log densities of given noise (..., B, A)."""
    import jax.numpy as jnp

    pre_tanh = mean + jnp.exp(log_std) * noise
    return jnp.tanh(pre_tanh), _log_prob(noise, log_std, pre_tanh)


# Losses


def iql_loss(params: Params, targets: Params, batch: Batch, noise: Params, *, move_actor: bool) -> Any:
    """Value, critic and actor loss of IQL, added up."""
    import jax
    import jax.numpy as jnp

    stop = jax.lax.stop_gradient
    target_q = _q(targets["critic"], batch["obs"], batch["action"]).min(0)
    v = _mlp(params["value"], batch["obs"])[:, 0]
    next_v = stop(_mlp(params["value"], batch["next_obs"])[:, 0])
    error = target_q - v
    value = (jnp.abs(EXPECTILE - (error < 0)) * error**2).mean()
    y = batch["reward"] + DISCOUNT * (1.0 - batch["terminated"]) * next_v
    critic = ((_q(params["critic"], batch["obs"], batch["action"]) - y) ** 2).mean(-1).sum()
    weight = jnp.minimum(jnp.exp(BETA * (target_q - stop(v))), LARGEST_WEIGHT)
    mean, log_std = _gaussian(params["actor"], batch["obs"])
    pre_tanh = jnp.arctanh(batch["action"].clip(ACTION_EDGE - 1.0, 1.0 - ACTION_EDGE))
    log_prob = _log_prob((pre_tanh - mean) * jnp.exp(-log_std), log_std, pre_tanh)
    return value + critic - (weight * log_prob).mean()


def td3_bc_loss(params: Params, targets: Params, batch: Batch, noise: Params, *, move_actor: bool) -> Any:
    """Critic and, every second update, actor loss of TD3+BC."""
    import jax
    import jax.numpy as jnp

    stop = jax.lax.stop_gradient
    smoothing = (TARGET_NOISE * noise["next"]).clip(-NOISE_CLIP, NOISE_CLIP)
    action = (jnp.tanh(_mlp(targets["actor"], batch["next_obs"])) + smoothing).clip(-1.0, 1.0)
    q_next = _q(targets["critic"], batch["next_obs"], action).min(0)
    y = batch["reward"] + DISCOUNT * (1.0 - batch["terminated"]) * q_next
    loss = ((_q(params["critic"], batch["obs"], batch["action"]) - y) ** 2).mean(-1).sum()
    if move_actor:
        policy = jnp.tanh(_mlp(params["actor"], batch["obs"]))
        q = _q(stop(params["critic"][:1]), batch["obs"], policy)[0]
        loss += -BC_ALPHA / jnp.abs(stop(q)).mean() * q.mean() + ((policy - batch["action"]) ** 2).mean()
    return loss


def cql_loss(params: Params, targets: Params, batch: Batch, noise: Params, *, move_actor: bool) -> Any:
    """Critic with the conservative penalty, actor and temperature loss of CQL."""
    import jax
    import jax.numpy as jnp

    stop = jax.lax.stop_gradient
    obs, n = batch["obs"], CQL_ACTIONS
    mean, log_std = _gaussian(params["actor"], obs)
    next_mean, next_log_std = stop(_gaussian(params["actor"], batch["next_obs"]))
    next_action, _ = _sample(next_mean, next_log_std, noise["next"])
    q_next = _q(targets["critic"], batch["next_obs"], next_action).min(0)
    y = batch["reward"] + DISCOUNT * (1.0 - batch["terminated"]) * stop(q_next)
    q = _q(params["critic"], obs, batch["action"])  # (E, B)
    current_action, log_current = _sample(stop(mean), stop(log_std), noise["cql_current"])
    following_action, log_following = _sample(next_mean, next_log_std, noise["cql_next"])
    log_uniform = jnp.full_like(log_current, -math.log(2.0) * batch["action"].shape[-1])
    actions = jnp.concatenate([noise["cql_uniform"], current_action, following_action])  # (3n, B, A)
    density = jnp.concatenate([log_uniform, log_current, log_following])
    wide = jnp.broadcast_to(obs, (3 * n, *obs.shape)).reshape(-1, obs.shape[-1])
    q_many = _q(params["critic"], wide, actions.reshape(-1, actions.shape[-1])).reshape(CRITICS, 3 * n, -1)
    gap = (jax.nn.logsumexp(q_many - density, axis=1) - q).mean(-1)
    critic = (((q - y) ** 2).mean(-1) + CQL_WEIGHT * gap).sum()
    action, log_prob = _sample(mean, log_std, noise["policy"])
    alpha = jnp.exp(params["temperature"])
    actor = (stop(alpha) * log_prob - _q(stop(params["critic"]), obs, action).min(0)).mean()
    temperature = alpha * stop(-log_prob + action.shape[-1]).mean()
    return critic + actor + temperature


LOSSES = {"iql": iql_loss, "td3_bc": td3_bc_loss, "cql": cql_loss}


def update(agent: str, state: Params, batch: Batch, noise: Params, *, move_actor: bool = True) -> Params:
    """One step of every component that moves, and of the targets."""
    import jax
    import jax.numpy as jnp

    moving = [name for name in state["params"] if name != "actor" or move_actor]
    gradients = jax.grad(LOSSES[agent])(state["params"], state["targets"], batch, noise, move_actor=move_actor)
    new = {key: dict(state[key]) for key in ("params", "targets", "first", "second", "steps")}
    for name in moving:
        rate = CQL_ACTOR_RATE if agent == "cql" and name == "actor" else LEARNING_RATE
        t = state["steps"][name] + 1.0
        first = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, state["first"][name], gradients[name])
        second = jax.tree.map(lambda m, g: BETA2 * m + (1 - BETA2) * g * g, state["second"][name], gradients[name])
        size, correction = rate / (1 - BETA1**t), jnp.sqrt(1 - BETA2**t)
        new["params"][name] = jax.tree.map(
            lambda p, m, v, size=size, correction=correction: p - size * m / (jnp.sqrt(v) / correction + EPS),
            state["params"][name],
            first,
            second,
        )
        new["first"][name], new["second"][name], new["steps"][name] = first, second, t
    if move_actor:
        online = {name: new["params"][name] for name in state["targets"]}
        new["targets"] = jax.tree.map(lambda t, p: (1 - TAU) * t + TAU * p, state["targets"], online)
    # Without a real dependence on the parameters nobody would notice if they were NaN.
    last = new["params"]["critic"][0][-1][1]
    return {**new, "step": state["step"] + 1.0 + 0.0 * last[0]}


def _alone(agent: str) -> None:
    widths = [256] * (3 if agent == "cql" else 2)
    sizes = {"hidden_dims": widths, "batch": 256, "rows": 100_000, "obs_dim": 17, "action_dim": 6}
    advance = make({"agent": agent, "threads": os.cpu_count() or 1, **sizes})
    advance(2)
    begin = time.perf_counter()
    done = advance(8 * UPDATES_PER_CALL[agent])
    print(f"{agent}: {done / (time.perf_counter() - begin):.1f} updates/s")


if __name__ == "__main__" and len(sys.argv) > 1 and sys.argv[1] in AGENTS:
    _alone(sys.argv[1])
