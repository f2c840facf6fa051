"""An agent of ours in a loop of yours: pretrain on arrays, then interact with a smoothed objective.

    python examples/own_loop.py

Pendulum, with data from a weak scripted policy; a minute on one core. Nothing of our trainer, environments or logger.
"""

import gymnasium as gym
import numpy as np

from o2o_smooth.agents import IQL, IQLConfig
from o2o_smooth.smoothing import SmoothingController

FIELDS = ("obs", "action", "reward", "next_obs", "terminated")
rng = np.random.default_rng(0)


def scripted(obs):
    """Pump energy into the pendulum, hold it when it is up; half of the time do something else."""
    x, y, speed = obs
    torque = -10 * y - 2 * speed if x > 0.8 else 2 * np.sign(speed)
    return np.clip([torque if rng.random() < 0.5 else rng.uniform(-2, 2)], -2, 2).astype(np.float32)


def rollout(env, policy, steps, rows):
    """Append `steps` transitions to `rows`; returns the mean return of the finished episodes."""
    returns, total = [], 0.0
    obs, _ = env.reset(seed=int(rng.integers(1 << 30)))
    for _ in range(steps):
        action = policy(obs)
        next_obs, reward, terminated, truncated, _ = env.step(action)
        rows.append((obs, action, float(reward) / 10, next_obs, float(terminated)))  # truncation still bootstraps
        obs, total = next_obs, total + float(reward)
        if terminated or truncated:
            returns.append(total)
            total = 0.0
            obs, _ = env.reset()
    return float(np.mean(returns)) if returns else float("nan")


def batch(rows, size=128):
    """A random batch as a dict of arrays."""
    picked = [rows[i] for i in rng.integers(len(rows), size=size)]
    return {name: np.array(column) for name, column in zip(FIELDS, zip(*picked, strict=True), strict=True)}


env = gym.make("Pendulum-v1")
offline, online = [], []
print("behaviour data:", round(rollout(env, scripted, 10000, offline)))

agent = IQL(env.observation_space, env.action_space, IQLConfig(hidden_dims=(64, 64)), online="sac")
for _ in range(3000):
    agent.update(batch(offline))
print("after offline: ", round(rollout(env, agent.act, 2000, [])))

smoothing = SmoothingController("linear:1500")
smoothing.start()
obs, _ = env.reset(seed=1)
for step in range(3000):
    action = agent.act(obs, deterministic=False)
    next_obs, reward, terminated, truncated, _ = env.step(action)
    online.append((obs, action, float(reward) / 10, next_obs, float(terminated)))
    obs = env.reset()[0] if terminated or truncated else next_obs
    smoothing.advance(env_steps=1)
    if step >= 100:
        agent.update(batch(offline), batch(online), mix=smoothing.mix())
print("after online:  ", round(rollout(env, agent.act, 2000, [])))
