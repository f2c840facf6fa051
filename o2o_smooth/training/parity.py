"""The parity check: before the first online update, evaluation and collection must mean the same by the same policy.

A drop at the switch is easily made by the code around the learner: an observation normaliser that one path applies and
the other does not, actions scaled twice, a reward map in two places, another time limit, an evaluation that explores.
So the policy at the switch walks both paths on the same seeds, through the very classes that the run uses, and every
observation, action, reward and flag must agree. The first that does not is named, with a guess at the cause that was
tried out.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from o2o_smooth.data.batch import FloatArray, Transitions
from o2o_smooth.data.buffer import ReplayBuffer
from o2o_smooth.data.normalize import RewardMap
from o2o_smooth.envs import Task
from o2o_smooth.errors import ParityError
from o2o_smooth.training.parity_policy import Frozen, Replay, check_policy
from o2o_smooth.training.parity_walks import INSTEAD, Disturbed, Paths, Walk, walk_collection, walk_evaluation

MOST_STEPS = 1000
"""Vector steps of a walk; it ends earlier once every environment has ended an episode."""
STILL_STEPS = 20  # of the walks that look for a cause
POOL_STEPS = 30
POOL_TOLERANCE = 1e-3
"""envpool computes the same dynamics with other roundings, so it is compared with gymnasium's environments from equal
starts, for some steps, and to this tolerance."""
OFFLINE_ROWS = 256
TRIES = 2  # where an environment fails on the way


@dataclass(frozen=True)
class Parity:
    """What the check found, where it found no disagreement."""

    outcome: str
    """`agree`; `not comparable` where the environment does not repeat itself on equal seeds, or fails; `skipped`."""
    steps: int = 0
    """Environment steps compared, all members together."""
    remark: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For the manifest, where a run of a population stands as if it had been alone: without the steps."""
        return {"outcome": self.outcome, "remark": self.remark}


@dataclass(frozen=True)
class Difference:
    """Where two walks part for the first time."""

    field: str
    step: int
    env: int
    element: int | None  # of an observation or action
    evaluated: float
    collected: float


def check_parity(
    paths: Paths, *, pool: bool = False, offline: tuple[ReplayBuffer, Transitions] | None = None
) -> Parity:
    """Compare both paths; moves no counter, random number or environment of the run.

    Args:
        paths: Both paths.
        pool: Whether the collection path steps envpool's environments.
        offline: The learner's offline rows and the data that they are made of.

    Raises:
        ParityError: They disagree; `culprit` and the text say in what.
    """
    for _ in range(TRIES):
        try:
            return _check(paths, pool, offline)
        except Disturbed as error:
            cause = str(error)
    remark = f"an environment of {paths.task.env_id} failed while both paths were walked, {TRIES} times ({cause})"
    return Parity("not comparable", remark=remark)


def _check(paths: Paths, pool: bool, offline: tuple[ReplayBuffer, Transitions] | None) -> Parity:
    agent = paths.agent
    if offline is not None:
        check_offline_rewards(*offline, paths.reward_map)
    if pool:
        paths = dataclasses.replace(paths, task=_from_equal_starts(paths.task))
    tolerance, most = (POOL_TOLERANCE, POOL_STEPS) if pool else (0.0, MOST_STEPS)
    frozen = Frozen(agent)
    evaluated = walk_evaluation(paths, agent.act, steps=most)
    frozen.require("evaluation")
    check_policy(agent, evaluated.obs.reshape(len(evaluated), agent.members, paths.lanes, -1))
    frozen.require("collection")
    replay = Replay(agent, evaluated, check=not pool)
    collected = walk_collection(paths, replay, steps=len(evaluated))
    frozen.require("collection")
    steps = evaluated.reward.size
    found = compare(evaluated, collected, paths.reward_map, tolerance)
    if found is None:
        if not pool:
            _require_returns(paths, evaluated, collected)
        return Parity("agree", steps)
    if found.field != "reward" and not pool:
        again = walk_evaluation(paths, agent.act, steps=found.step + 1)
        if compare(evaluated, again, None) is not None:
            remark = (
                f"{paths.task.env_id} does not repeat itself on equal seeds, so the paths cannot be compared step by "
                f"step; spaces, the policy's actions and the offline rows' rewards agree"
            )
            return Parity("not comparable", steps, remark)
    raise _error(paths, evaluated, collected, found, tolerance)


def _from_equal_starts(task: Task) -> Task:
    """The task with episodes that all begin in one state: envpool draws starts by generators of its own."""
    return dataclasses.replace(task, env_kwargs={**dict(task.env_kwargs), "reset_noise_scale": 0.0})


# The walks


def compare(
    evaluated: Walk, collected: Walk, reward_map: RewardMap | None, tolerance: float = 0.0
) -> Difference | None:
    """The first difference of two walks, or None; within one step in the order of cause and effect.

    Args:
        evaluated: With raw rewards.
        collected: With rewards as stored; as many steps, or fewer.
        reward_map: What lies between the two; None: nothing.
        tolerance: Relative and absolute.
    """
    n = len(collected)
    rewards = evaluated.reward[:n]
    pairs: list[tuple[str, NDArray[Any], NDArray[Any]]] = [
        ("observation", evaluated.obs[:n], collected.obs),
        ("action", evaluated.action[:n], collected.action),
        ("next observation", evaluated.successor[:n], collected.successor),
        ("terminated", evaluated.terminated[:n], collected.terminated),
        ("truncated", evaluated.truncated[:n], collected.truncated),
        ("reward", rewards if reward_map is None else reward_map(rewards), collected.reward),
    ]
    first: Difference | None = None
    for name, a, b in pairs:
        apart = a != b if tolerance == 0 else ~np.isclose(a, b, rtol=tolerance, atol=tolerance)
        if not apart.any():
            continue
        step, env, *rest = (int(i) for i in np.argwhere(apart)[0])
        if first is None or step < first.step:
            at = (step, env, *rest)
            first = Difference(name, step, env, rest[0] if rest else None, float(a[at]), float(b[at]))
    return first


def _require_returns(paths: Paths, evaluated: Walk, collected: Walk) -> None:
    """Both paths' own sums over an episode, which scores and adaptive rules are made of."""
    for env, (total, length) in evaluated.returns.items():
        other, steps = collected.returns.get(env, (float("nan"), 0))
        if length != steps or not np.isclose(total, other, rtol=1e-9, atol=1e-9):
            raise ParityError(
                "episode return",
                f"{_place(paths, env)}: the same episode has the return {total:g} over {length} steps in the "
                f"evaluation path and {other:g} over {steps} in the collection path{INSTEAD}",
            )


def _place(paths: Paths, env: int) -> str:
    member, lane = divmod(env, paths.lanes)
    return f"seed {paths.agent.seeds[member]}, environment {lane}"


def _error(paths: Paths, evaluated: Walk, collected: Walk, found: Difference, tolerance: float) -> ParityError:
    """The difference in words, with its cause as far as it can be told."""
    culprit, cause = _cause(paths, evaluated, collected, found, tolerance)
    element = "" if found.element is None else f" {found.element}"
    where = f"{_place(paths, found.env)}, step {found.step + 1}"
    values = f"{found.evaluated:.6g} in the evaluation path and {found.collected:.6g} in the collection path"
    return ParityError(culprit, f"{where}: {found.field}{element} is {values}; {cause}{INSTEAD}")


def _cause(paths: Paths, evaluated: Walk, collected: Walk, found: Difference, tolerance: float) -> tuple[str, str]:
    """A culprit, and what speaks against it."""
    step, env = found.step, found.env
    if found.field == "reward":
        return _reward_cause(paths.reward_map, float(evaluated.reward[step, env]), float(collected.reward[step, env]))
    if found.field == "truncated":
        path = "evaluation" if found.evaluated else "collection"
        return "time limit", f"the {path} path alone cuts the episode there: the time limits differ"
    if found.field == "terminated":
        path = "evaluation" if found.evaluated else "collection"
        return "termination", f"the {path} path alone ends the episode there"
    if found.field == "action":
        return "policy", "the policy does two things on one observation"
    if found.field == "observation":
        if step == 0:
            return "first observation", "already the first one: a wrapper or a normaliser works in one path alone"
        return "reset", "what follows the end of an episode differs: a wrapper keeps a state, or resets otherwise"
    if _agree_when_still(paths, tolerance):
        return "action scaling", (
            "the policy's action was the same, and with actions in the middle of their range both paths agree: one of "
            "them scales or clips actions"
        )
    return "dynamics", (
        "the action was the same, and without one the paths differ too: another environment, wrapper or setting"
    )


def _reward_cause(reward_map: RewardMap, raw: float, stored: float) -> tuple[str, str]:
    """What the collection path has made of a raw reward."""

    def mapped(*times: RewardMap) -> float:
        value = np.array([raw])
        for one in times:
            value = one(value).astype(np.float64)
        return float(value[0])

    known: list[tuple[str, tuple[RewardMap, ...]]] = [("is not applied", ()), ("is applied twice", (reward_map,) * 2)]
    for text, times in known:
        if reward_map != RewardMap() and np.isclose(stored, mapped(*times), rtol=1e-5, atol=1e-6):
            return "reward map", f"the reward map ({_text(reward_map)}) {text} in the collection path"
    undone = (stored - reward_map.shift) / reward_map.scale
    return "reward", f"before the reward map ({_text(reward_map)}) they are {raw:.6g} and {undone:.6g}"


def _text(reward_map: RewardMap) -> str:
    return f"* {reward_map.scale:g} + {reward_map.shift:g}"


def _agree_when_still(paths: Paths, tolerance: float) -> bool:
    """Whether the paths agree on actions in the middle of their range, which no scaling changes."""
    agent = paths.agent
    middle = ((agent.action_high + agent.action_low) / 2).astype(np.float32)

    def rest(obs: FloatArray) -> FloatArray:
        return np.broadcast_to(middle, (*obs.shape[:2], len(middle))).copy()

    evaluated = walk_evaluation(paths, rest, steps=STILL_STEPS)
    collected = walk_collection(paths, rest, steps=len(evaluated))
    return compare(evaluated, collected, paths.reward_map, tolerance) is None


# The offline rows


def check_offline_rewards(rows: ReplayBuffer, data: Transitions, reward_map: RewardMap) -> None:
    """Check that the learner's offline rows have the rewards that the collector's map makes of the data's.

    Raises:
        ParityError: They do not.
    """
    index = np.unique(np.linspace(0, len(rows) - 1, OFFLINE_ROWS).astype(np.int64))
    device_index = torch.from_numpy(np.tile(index, (rows.members, 1))).to(rows.device)
    stored = rows.gather(device_index).reward[0].double().cpu().numpy()
    index = rows.dataset_rows(torch.from_numpy(index).to(rows.device)).cpu().numpy()
    raw = np.asarray(data.reward[index], np.float64)
    expected = reward_map(raw).astype(np.float64)
    apart = ~np.isclose(stored, expected, rtol=1e-5, atol=1e-5)
    if apart.any():
        i = int(np.argmax(apart))
        culprit, cause = _reward_cause(reward_map, float(raw[i]), float(stored[i]))
        cause = cause.replace("the collection path", "the offline rows")
        raise ParityError(
            culprit,
            f"offline row {index[i]} has the reward {stored[i]:.6g} where the collector would store {expected[i]:.6g}; "
            f"{cause}{INSTEAD}",
        )
