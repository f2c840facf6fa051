"""The exact state of a vector environment's environments: captured, kept, and given to new ones.

After `restore`, the same actions bring the same observations, rewards, ends and infos to the last bit, for the rest of
the running episode and all that follow. A state is a tree of what JSON knows, with numpy arrays among its leaves;
nothing in it can execute. It goes from one way of stepping (`sync`, `async`) to another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
from gymnasium.vector import VectorEnv

from o2o_smooth.envs import snapshot
from o2o_smooth.envs.corridor import CORRIDOR_ID, CorridorVectorEnv
from o2o_smooth.envs.inline import InlineVectorEnv
from o2o_smooth.envs.make import TaskEnv
from o2o_smooth.envs.pool import PoolVectorEnv
from o2o_smooth.envs.supervision import Gone
from o2o_smooth.envs.workers import WorkerVectorEnv
from o2o_smooth.errors import EnvError

FORMAT = 1
EnvState = dict[str, Any]
"""One environment's state: str keys; numbers, strings, bools, None, lists, dicts, numpy arrays. Numbers may be longer
than 64 bits (random generators)."""
Vector = VectorEnv[Any, Any, Any]


def why_not(envs: Vector) -> str | None:
    """Why the state of these environments cannot be captured exactly, for the user; None if it can.

    Ask after the first reset: what an environment holds may be complete only then.
    """
    if isinstance(envs, PoolVectorEnv):
        return "envpool does not give out its environments' state; use --vectorizer sync or async"
    try:
        capture(envs)
    except Gone:  # it will be made anew
        return None
    except EnvError as error:
        return str(error)
    return None


def capture(envs: Vector) -> list[EnvState]:
    """The states of all environments, which are left as they are; not in the middle of a step.

    Raises:
        Gone: The process of one has just ended; after the next step they can be.
        EnvError: They cannot be captured exactly; the text says why.
    """
    counts: list[Any] = [None] * envs.num_envs
    if isinstance(envs, CorridorVectorEnv):
        nodes = _capture_corridor(envs)
    elif isinstance(envs, InlineVectorEnv | WorkerVectorEnv):
        nodes = envs.ask(_encode)
        counts = [envs.supervisor.state(i) for i in range(envs.num_envs)]
    else:
        raise EnvError(f"the state of {type(envs).__name__} cannot be captured")
    return [{"format": FORMAT, "env": node, "restarts": count} for node, count in zip(nodes, counts, strict=True)]


def restore(envs: Vector, states: Sequence[EnvState]) -> None:
    """Bring environments of the same task, just made or already played, into captured states.

    Raises:
        EnvError: The states are of other environments, of another number of them, or broken. Then the environments are
            in no state in particular.
    """
    if len(states) != envs.num_envs:
        raise EnvError(f"{len(states)} states for {envs.num_envs} environments")
    given: Any
    for i, given in enumerate(states):
        if not isinstance(given, dict) or given.get("format") != FORMAT or not isinstance(given.get("env"), dict):
            raise EnvError(f"the state of environment {i} is broken, or of another version of this package")
        counts = given.get("restarts")
        kinds = (int, type(None))
        if counts is not None and not (
            isinstance(counts, dict) and type(counts.get("restarts")) is int and type(counts.get("seed", "")) in kinds
        ):
            raise EnvError(f"the state of environment {i} is broken: restarts is {counts!r}")
    nodes = [state["env"] for state in states]
    if isinstance(envs, CorridorVectorEnv):
        _restore_corridor(envs, nodes)
    elif isinstance(envs, InlineVectorEnv | WorkerVectorEnv):
        envs.ask(_decode, [(node,) for node in nodes])
        for i, state in enumerate(states):
            if state.get("restarts") is not None:
                envs.supervisor.set_state(i, state["restarts"])
    else:
        raise EnvError(f"{type(envs).__name__} cannot be brought into a state")


def _encode(env: Any) -> dict[str, Any]:
    return snapshot.encode(env)


def _decode(env: Any, node: dict[str, Any]) -> None:
    snapshot.decode(node, env)


def _single_corridor(envs: CorridorVectorEnv) -> TaskEnv:
    """One Corridor as the other vectorizers step it."""
    return TaskEnv(gym.make(CORRIDOR_ID, max_episode_steps=envs.time_limit, disable_env_checker=True))


def _capture_corridor(envs: CorridorVectorEnv) -> list[dict[str, Any]]:
    single = _single_corridor(envs)
    single.reset(seed=0)
    bare, limit = _corridor_parts(single)
    nodes = []
    for state, steps, generator in envs.lanes():
        bare._state, bare._np_random, bare._np_random_seed = state, generator, -1
        limit._elapsed_steps = steps
        nodes.append(snapshot.encode(single))
    return nodes


def _restore_corridor(envs: CorridorVectorEnv, nodes: Sequence[dict[str, Any]]) -> None:
    lanes = []
    single = _single_corridor(envs)
    bare, limit = _corridor_parts(single)
    for node in nodes:
        snapshot.decode(node, single)
        lanes.append((bare._state, limit._elapsed_steps or 0, bare._np_random))
    envs.set_lanes(lanes)


def _corridor_parts(single: TaskEnv) -> tuple[Any, Any]:
    """The Corridor itself, and the wrapper that counts its steps."""
    limit: Any = single
    while not isinstance(limit, gym.wrappers.TimeLimit):
        limit = limit.env
    return single.unwrapped, limit
