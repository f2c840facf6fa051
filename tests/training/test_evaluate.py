from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from o2o_smooth.envs import Task, find_task
from o2o_smooth.envs.supervision import Fault
from o2o_smooth.errors import EnvError
from o2o_smooth.training.evaluate import Evaluation, Evaluator
from o2o_smooth.training.seeding import Stream, env_seeds, generator
from tests.envs.counting import counting_length, counting_task
from tests.envs.misbehaving import LENGTH, misbehaving

SEEDS, ENVS = (5, 9), 3
FIELDS = [
    "phase",
    "env_steps",
    "updates",
    "seed",
    "return_mean",
    "return_std",
    "episodes",
    "score",
    "length_mean",
    "success",
    "provenance",
]


def still(obs: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.zeros((*obs.shape[:2], 2), np.float32)


@pytest.fixture
def evaluator() -> Iterator[Evaluator]:
    made = Evaluator(counting_task(), SEEDS, envs=ENVS)
    yield made
    made.close()


def known_lengths(seed: int, index: int, quota: int) -> list[list[int]]:
    """Lengths of the first episodes of every environment of one member, by the counting environment's definition.

    Its tag is the reset's seed, which a float32 observation cannot hold but the float64 environment can.
    """
    return [[counting_length(tag, e) for e in range(quota)] for tag in env_seeds(seed, Stream.EVAL_ENV, ENVS, index)]


def test_every_environment_gives_the_same_number_of_episodes_and_they_are_exact(evaluator: Evaluator) -> None:
    evaluation = evaluator.run(still, episodes=12, index=3)
    for m, seed in enumerate(SEEDS):
        lengths = np.array(known_lengths(seed, 3, 4)).ravel()
        np.testing.assert_array_equal(evaluation.lengths[m], lengths)
        np.testing.assert_array_equal(evaluation.returns[m], lengths * (lengths + 1) / 2)
        success = np.tile(np.arange(4) % 3 == 0, ENVS)
        assert evaluation.success is not None
        np.testing.assert_array_equal(evaluation.success[m], success)


class TwoSpeedEnv(gym.Env[NDArray[np.float32], NDArray[Any]]):
    """Episodes of 2 steps where the first seed is even, of 40 where it is odd; the return is the length."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.length, self.t = 0, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        self.length = self.length if seed is None else 40 if seed % 2 else 2
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: NDArray[Any]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self.t += 1
        return np.zeros(1, np.float32), 1.0, self.t == self.length, False, {}


def two_speeds() -> Task:
    if "o2o-smooth-tests/TwoSpeed-v0" not in gym.registry:
        gym.register("o2o-smooth-tests/TwoSpeed-v0", entry_point="tests.training.test_evaluate:TwoSpeedEnv")
    return Task(id="two-speeds", env_id="o2o-smooth-tests/TwoSpeed-v0")


def test_short_episodes_are_not_over_represented() -> None:
    made = Evaluator(two_speeds(), (0,), envs=8)
    odd = np.array(env_seeds(0, Stream.EVAL_ENV, 8, 1)) % 2 == 1
    assert 0 < odd.sum() < 8
    evaluation = made.run(still, episodes=24, index=1)
    np.testing.assert_array_equal(evaluation.lengths[0], np.repeat(np.where(odd, 40, 2), 3))
    np.testing.assert_array_equal(evaluation.returns, evaluation.lengths)
    made.close()


def test_success_is_none_where_the_environment_reports_none() -> None:
    made = Evaluator(two_speeds(), (0,), envs=2)
    assert made.run(still, episodes=2, index=0).success is None
    made.close()


def test_episodes_round_up_to_a_whole_quota(evaluator: Evaluator) -> None:
    assert evaluator.run(still, episodes=4, index=0).returns.shape == (2, 6)
    assert evaluator.run(still, episodes=1, index=0).returns.shape == (2, 3)


def test_progress_counts_exactly_the_episodes_that_are_kept(evaluator: Evaluator) -> None:
    ended: list[int] = []
    evaluator.run(still, episodes=6, index=0, on_episode=ended.append)
    assert sum(ended) == 2 * 6


def test_policy_sees_members_apart(evaluator: Evaluator) -> None:
    shapes = set()

    def policy(obs: NDArray[np.float32]) -> NDArray[np.float32]:
        shapes.add((obs.shape, obs.dtype.name))
        return still(obs)

    evaluator.run(policy, episodes=3, index=0)
    assert shapes == {((2, ENVS, 3), "float32")}


def first_observations(seeds: tuple[int, ...], index: int) -> NDArray[np.float32]:
    """What a policy sees in the first step of an evaluation of a pendulum, (M, n, 3)."""
    seen: list[NDArray[np.float32]] = []

    def policy(obs: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.append(obs)
        return np.zeros((*obs.shape[:2], 1), np.float32)

    made = Evaluator(replace(find_task("Pendulum-v1"), max_episode_steps=2), seeds, envs=2)
    made.run(policy, episodes=2, index=index + 1)  # what came before must not matter
    seen.clear()
    made.run(policy, episodes=4, index=index)
    made.close()
    return np.stack([seen[0], seen[2]])  # first steps of the two episodes


def test_same_index_gives_the_same_episodes_and_another_index_others() -> None:
    first, again, other = (first_observations((0, 1), index) for index in (4, 4, 5))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any(axis=-1).all()


def test_members_episodes_do_not_depend_on_the_population() -> None:
    np.testing.assert_array_equal(first_observations((0, 1), 2)[:, 1:], first_observations((1,), 2))


@given(st.integers(0, 2**31), st.integers(0, 2 * 10**9))
@settings(derandomize=True)  # two 31-bit numbers may agree by chance
def test_evaluation_never_uses_training_seeds(seed: int, index: int) -> None:
    training = env_seeds(seed, Stream.TRAIN_ENV, 32)
    evaluation = env_seeds(seed, Stream.EVAL_ENV, 32, index)
    assert len({*training, *evaluation}) == 64
    assert all(0 <= s < 2**31 for s in (*training, *evaluation))


def test_evaluations_of_a_long_run_share_no_episode() -> None:
    indices = [*range(0, 100_000, 5000), *(10**9 + t for t in range(0, 100_000, 5000))]
    seeds = [s for seed in range(5) for index in indices for s in env_seeds(seed, Stream.EVAL_ENV, 10, index)]
    assert len(set(seeds)) == len(seeds) == 2000


def test_fewer_environments_use_the_first_seeds_of_more() -> None:
    assert env_seeds(3, Stream.EVAL_ENV, 4, 7) == env_seeds(3, Stream.EVAL_ENV, 9, 7)[:4]


def test_generators_of_streams_and_seeds_differ() -> None:
    draws = [
        generator(seed, stream).random()
        for seed in (0, 1)
        for stream in (Stream.RANDOM_ACTIONS, Stream.TRAIN_ENV, Stream.EVAL_ENV)
    ]
    assert len(set(draws)) == 6
    assert generator(0, Stream.RANDOM_ACTIONS).random() == draws[0]


def test_rows_have_exactly_the_fields_that_other_tools_read() -> None:
    evaluation = Evaluation(
        np.array([[1.0, 3.0], [10.0, 10.0]]), np.array([[4, 8], [5, 6]]), np.array([[True, False], [True, True]])
    )
    task = Task(id="x", env_id="x", ref_random=0.0, ref_expert=20.0)
    rows = evaluation.rows(task, phase="online", env_steps=250, updates=77, seeds=(5, 9), provenance="minari")
    assert [list(row) for row in rows] == [FIELDS] * 2
    assert list(rows[0].values()) == ["online", 250, 77, 5, 2.0, 1.0, 2, 10.0, 6.0, 0.5, "minari"]
    assert list(rows[1].values()) == ["online", 250, 77, 9, 10.0, 0.0, 2, 50.0, 5.5, 1.0, "minari"]
    assert all(type(value) in (str, int, float) for row in rows for value in row.values())


def test_score_and_success_are_null_where_there_is_none() -> None:
    (row,) = Evaluation(np.ones((1, 2)), np.ones((1, 2), np.int64), None).rows(
        Task(id="x", env_id="x"), phase="offline", env_steps=0, updates=1, seeds=(0,)
    )
    assert list(row) == FIELDS
    assert row["score"] is None
    assert row["success"] is None
    assert row["provenance"] is None


def test_an_environment_that_fails_plays_its_episodes_again(tmp_path: Path) -> None:
    """It fails in its second episode of three; the numbers are those of an evaluation in which nothing fails."""
    calm = Evaluator(misbehaving("nothing"), SEEDS, envs=ENVS)
    seed = env_seeds(SEEDS[1], Stream.EVAL_ENV, ENVS, 3)[2]
    task = misbehaving("raise", at=LENGTH + 3, marks=str(tmp_path), times=1, tag=seed, whole_life=True)
    faults: list[Fault] = []
    fragile = Evaluator(task, SEEDS, envs=ENVS, on_fault=faults.append)
    seen: list[list[float]] = [[], []]

    def act(k: int) -> Any:
        def policy(obs: NDArray[np.float32]) -> NDArray[np.float32]:
            seen[k].append(float(obs[1, 2, 0]))  # the number drawn for the episode
            return np.zeros((*obs.shape[:2], 1), np.float32)

        return policy

    found = [one.run(act(k), episodes=9, index=3) for k, one in enumerate((calm, fragile))]
    for name in ("returns", "lengths"):
        np.testing.assert_array_equal(getattr(found[0], name), getattr(found[1], name))
    assert [(fault.env, fault.repeated) for fault in faults] == [(5, True)]
    assert seen[1][LENGTH + 3 :][: 3 * LENGTH] == seen[0][: 3 * LENGTH]  # from the first episode on
    for one in (calm, fragile):
        one.close()


def test_an_evaluation_that_fails_again_is_an_error(tmp_path: Path) -> None:
    evaluator = Evaluator(misbehaving("raise", at=2), SEEDS, envs=1)
    with pytest.raises(EnvError, match=r"environment 0 of o2o-smooth-tests/Misbehaving-v0 failed twice .*joint broke"):
        evaluator.run(lambda obs: np.zeros((*obs.shape[:2], 1), np.float32), episodes=1, index=0)
    evaluator.close()


def test_one_failure_in_each_evaluation_is_borne(tmp_path: Path) -> None:
    task = misbehaving("raise", marks=str(tmp_path), times=1, tag=env_seeds(SEEDS[0], Stream.EVAL_ENV, 1, 0)[0])
    evaluator = Evaluator(task, SEEDS, envs=1)
    for index in (0, 1, 0):
        found = evaluator.run(lambda obs: np.zeros((*obs.shape[:2], 1), np.float32), episodes=1, index=index)
        assert found.lengths.tolist() == [[LENGTH], [LENGTH]]
        for mark in tmp_path.iterdir():
            mark.unlink()
    evaluator.close()
