"""Measuring what `memory` predicts with: `python -m o2o_smooth.training.memory --measure`; and whole runs, to compare.

Every number comes from a process of its own, which does one thing and says what its resident memory was before, after
and at its peak. On systems that do not tell these (only Linux does), nothing can be measured.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from o2o_smooth.agents import AGENTS
from o2o_smooth.data.buffer import ReplayBuffer
from o2o_smooth.data.extent import extent
from o2o_smooth.data.normalize import RewardMap
from o2o_smooth.data.room import own_memory, peak_memory
from o2o_smooth.data.store import row_width
from o2o_smooth.envs import find_task, make_env, make_vector_env
from o2o_smooth.errors import EnvError, O2OError
from o2o_smooth.kernels.build import SWITCH
from o2o_smooth.training import memory
from o2o_smooth.training.config import EvaluationConfig, RunConfig, SmoothingConfig
from o2o_smooth.training.learner import Learner
from o2o_smooth.training.memory import MIB, SIMULATORS, WORKSPACE, Shape

OBS_DIM, ACTION_DIM = 17, 6  # HalfCheetah's
TASKS = {
    "other": "Pendulum-v1",
    "mujoco": "halfcheetah-medium-v2",
    "pointmaze": "D4RL/pointmaze/large-v2",
    "antmaze": "antmaze-large-play-v2",
    "adroit": "hammer-human-v1",
    "kitchen": "kitchen-partial-v0",
}
SIZES = {
    "cql": ((1, 64), (1, 256), (1, 384), (4, 128), (1, 1024), (4, 256)),
    "": ((1, 1024), (1, 4096), (4, 256), (4, 1024), (4, 8192)),
}
"""(members, batch) of an objective in plain torch, or of all others: some with arrays on each side of
`MALLOC_THRESHOLD`."""


def child(kind: str, *, plain: bool = False, **arguments: Any) -> dict[str, Any]:
    """Have one of `KINDS` done in a process of its own, which with `plain` goes without the native kernels.

    Raises:
        O2OError: It failed; the text is its last line.
    """
    code = "import sys; from o2o_smooth.training.memory_measure import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, kind, json.dumps(arguments)]  # -c: no main module for workers to import
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"} | ({SWITCH: "0"} if plain else {})
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        words = done.stderr.strip().splitlines()
        raise O2OError(f"measuring {kind} failed: {words[-1] if words else f'signal {-done.returncode}'}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def resident() -> int:
    """Resident memory now.

    Raises:
        O2OError: This system does not tell it.
    """
    if (size := own_memory()) is None:
        raise O2OError("memory can be measured on Linux alone: this system does not tell a process what it holds")
    return size


def update(agent: str, members: int, batch_size: int, hidden_dims: list[int]) -> dict[str, Any]:
    """The peak of a few offline updates of an agent beyond what it and its rows hold."""
    shape = Shape(OBS_DIM, ACTION_DIM, "mujoco")
    cls = AGENTS[agent]
    hyper = cls.config_class(hidden_dims=tuple(hidden_dims))
    config: RunConfig[Any] = RunConfig(
        hyper=hyper, agent=agent, online="same", seeds=tuple(range(members)), batch_size=batch_size
    )
    obs_space, action_space = (gym.spaces.Box(-1.0, 1.0, (n,), np.float32) for n in (OBS_DIM, ACTION_DIM))
    learner = cls(obs_space, action_space, hyper, online="same", seeds=config.seeds)
    rows = np.random.default_rng(0).normal(0.0, 0.3, (1, 1000, row_width(OBS_DIM, ACTION_DIM))).astype(np.float32)
    offline_rows = ReplayBuffer(members, 1000, OBS_DIM, ACTION_DIM, shared=True)
    offline_rows.add(rows)
    updates = Learner(learner, batch_size=batch_size, offline_rows=offline_rows)
    learner.optimizer.zero_grad()
    before = resident()
    for _ in range(6):
        updates.offline_update()
    trained, _ = memory.parameters(config, shape)
    size, largest = memory.activations(agent, config, shape, members, native=memory.native_kernels())
    gradients = members * trained * memory.FLOAT
    return {"peak": (peak_memory() or 0) - before - gradients, "activations": size, "largest": largest}


def simulator(task: str, count: int) -> dict[str, Any]:
    """What environments hold: the first with its libraries, and each further one."""
    before = resident()
    env = make_env(find_task(task))
    env.reset(seed=0)
    first = resident() - before
    envs = make_vector_env(find_task(task), count)
    envs.reset(seed=list(range(count)))  # type: ignore[arg-type]  # one seed each
    for _ in range(5):
        envs.step(envs.action_space.sample())
    return {"first": first, "each": (resident() - before - first) // count}


def worker(task: str) -> dict[str, Any]:
    """What an environment's own process holds that nobody shares."""
    envs = make_vector_env(find_task(task), 1, vectorizer="async")
    envs.reset(seed=[0])  # type: ignore[arg-type]  # one seed each
    sizes = [_private(process.pid) for process in getattr(envs, "processes", [])]
    envs.close()
    return {"private": max(sizes)}


def saving(members: int, rows: int) -> dict[str, Any]:
    """The peak of keeping the online data, in sizes of a member's rows."""
    from o2o_smooth.training.online_data import write_online

    buffer = ReplayBuffer(members, rows, OBS_DIM, ACTION_DIM)
    fill(buffer)
    before = resident()
    with tempfile.TemporaryDirectory() as folder:
        write_online(Path(folder), buffer, range(members), num_envs=1, reward_map=RewardMap(), record={})
    size = rows * row_width(OBS_DIM, ACTION_DIM) * memory.FLOAT
    return {"factor": ((peak_memory() or 0) - before) / size}


def whole_run(
    task: str, agent: str, seeds: int, rows: int, dataset: str | None, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """A short real run whose online buffers were made for `rows` and filled: its peak, and what was predicted."""
    from o2o_smooth.training.run import run

    hyper = AGENTS[agent].config_class(**settings.get("hyper", {}))
    plain = {name: value for name, value in settings.items() if name != "hyper"}
    with tempfile.TemporaryDirectory() as folder:
        config: RunConfig[Any] = RunConfig(
            hyper=hyper,
            task=task,
            agent=agent,
            dataset=dataset,
            seeds=tuple(range(seeds)),
            offline_updates=0 if dataset is None else 10,
            online_steps=90,
            log_every=10,
            compile="off",
            smoothing=SmoothingConfig(
                **({"schedule": "jump", "regime": "discard"} if dataset is None else {"ramp_steps": 80})
            ),
            evaluation=EvaluationConfig(eval_episodes=2, switch_episodes=2, eval_envs=2, offline_eval_every=0),
            out=str(Path(folder) / "run"),
            **plain,
        )
        long = dataclasses.replace(config, online_steps=rows, buffer_size=rows)
        found = find_task(task)
        env = make_env(found)
        spaces: Any = (env.observation_space, env.action_space)
        env.close()
        shape = Shape(spaces[0].shape[0], spaces[1].shape[0], found.domain)
        data = None if dataset is None else extent(found, dataset)
        prediction = memory.predict(long, shape, data)
        with made_for(rows):
            run(config)
    parts = {part.name: part.host for part in prediction.parts}
    return {"peak": peak_memory(), "predicted": prediction.own, "parts": parts, "phase": prediction.phase}


@contextlib.contextmanager
def made_for(rows: int) -> Iterator[None]:
    """Members' own buffers are made with so many rows and filled at once, as after so many steps."""
    plain: Callable[..., None] = ReplayBuffer.__init__

    def made(buffer: ReplayBuffer, members: int, capacity: int, *args: Any, shared: bool = False, **rest: Any) -> None:
        plain(buffer, members, capacity if shared else rows, *args, shared=shared, **rest)
        if not shared:
            fill(buffer)

    ReplayBuffer.__init__ = made  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        ReplayBuffer.__init__ = plain  # type: ignore[method-assign]


def fill(buffer: ReplayBuffer) -> None:
    """Write every row of a buffer, the last as an episode's end."""
    width = row_width(buffer.obs_dim, buffer.action_dim)
    rows = np.full((buffer.members, min(10_000, buffer.capacity), width), 0.1, np.float32)
    rows[..., -3:] = 0.0  # flags
    for first in range(0, buffer.capacity, rows.shape[1]):
        buffer.add(rows[:, : buffer.capacity - first])


def _private(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    words = [line.split() for line in lines]
    return 1024 * sum(int(w[1]) for w in words if w[0] in ("Private_Clean:", "Private_Dirty:"))


KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "update": update,
    "simulator": simulator,
    "worker": worker,
    "saving": saving,
    "whole_run": whole_run,
}


def measure() -> Iterator[str]:
    """Measure the tables of `memory`, a line each: what stands there and what was found."""
    tiny = child("update", agent="sac", members=1, batch_size=8, hidden_dims=[256, 256])
    kernels = tiny["peak"] - tiny["activations"]
    yield f"KERNELS = {memory.KERNELS / MIB:.0f} MiB: found {kernels / MIB:.1f}"
    for name, space in WORKSPACE.items():
        for plain in (False, True):
            yield from _costs(name, space.plain if plain else space.native, kernels, plain=plain)
    for domain, task in TASKS.items():
        try:
            found, alone = child("simulator", task=task, count=12), child("worker", task=task)
        except (O2OError, EnvError) as error:
            yield f"SIMULATORS[{domain}]: not measured ({error})"
            continue
        table = SIMULATORS[domain]
        yield (
            f"SIMULATORS[{domain}] = first {table.first / MIB:.0f}, each {table.each / MIB:.2f} MiB: found "
            f"{found['first'] / MIB:.1f}, {found['each'] / MIB:.2f}; a process of its own {alone['private'] / MIB:.0f} "
            f"(predicted {(table.first + memory.WORKER) / MIB:.0f})"
        )
    for members, stands_at in ((1, memory.SAVING_ONE), (3, memory.SAVING_MORE)):
        factor = child("saving", members=members, rows=400_000)["factor"]
        yield f"SAVING of {members} = {stands_at}: found {factor:.2f}"


def _costs(name: str, stands: memory.Cost, kernels: int, *, plain: bool) -> Iterator[str]:
    ratios: dict[bool, list[float]] = {True: [], False: []}
    for members, batch_size in SIZES.get(name if plain else "", SIZES[""]):
        dims = [256] * (3 if name == "cql" else 2)
        sizes = {"members": members, "batch_size": batch_size, "hidden_dims": dims}
        found = child("update", plain=plain, agent=name, **sizes)
        if found["activations"] > 8 * MIB:  # below, the kernels' error weighs more
            ratio = (found["peak"] - kernels) / found["activations"]
            ratios[found["largest"] < memory.MALLOC_THRESHOLD].append(ratio)
    label = "plain" if plain else "native"
    for which, value, small in (("small", stands.small, True), ("large", stands.large, False)):
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios[small])
        yield f"WORKSPACE[{name}].{label}.{which} = {value}: found {max(ratios[small], default=0.0):.2f} of {each}"


def main(arguments: list[str]) -> int:
    """`--measure`, or one kind with its arguments as JSON."""
    if arguments[:1] == ["--measure"]:
        for line in measure():
            print(line, flush=True)
        return 0
    if len(arguments) != 2 or arguments[0] not in KINDS:
        print("usage: python -m o2o_smooth.training.memory --measure", file=sys.stderr)
        return 2
    print(json.dumps(KINDS[arguments[0]](**json.loads(arguments[1]))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
