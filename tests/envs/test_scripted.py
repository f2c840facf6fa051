from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from o2o_smooth.envs import BEHAVIOUR, REFERENCE, ControllerSettings, WaypointController, find_task, make_vector_env
from o2o_smooth.envs.scripted import steps_to
from o2o_smooth.errors import EnvError

pytest.importorskip("gymnasium_robotics")

NOISELESS = ControllerSettings(gain=10.0, limit=1.0, noise=0.0)


@pytest.fixture(scope="module")
def envs() -> Iterator[Any]:
    envs = make_vector_env(find_task("D4RL/pointmaze/umaze-dense-v2"), 20)
    yield envs
    envs.close()


@pytest.fixture(scope="module")
def maze(envs: Any) -> Any:
    return envs.envs[0].unwrapped.maze


def returns(envs: Any, maze: Any, settings: ControllerSettings, seed: int) -> float:
    """Mean return of one episode in every environment."""
    controller, rng = WaypointController(maze, settings), np.random.default_rng(seed)
    obs, _ = envs.reset(seed=seed)
    total = np.zeros(envs.num_envs)
    for _ in range(300):
        obs, reward, *_ = envs.step(controller(obs, rng))
        total += reward
    return float(total.mean())


def test_cell_agrees_with_the_maze(maze: Any) -> None:
    controller = WaypointController(maze)
    points = np.random.default_rng(0).uniform(-2.4, 2.4, (200, 2))
    theirs = np.array([maze.cell_xy_to_rowcol(point) for point in points])
    np.testing.assert_array_equal(controller.cell(points), theirs[:, 0] * maze.map_width + theirs[:, 1])


def test_steps_are_those_of_the_shortest_path() -> None:
    corridor = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0)]
    assert steps_to((0, 0), corridor) == {cell: index for index, cell in enumerate(corridor)}
    assert (5, 5) not in steps_to((0, 0), [*corridor, (5, 5)])


def test_action_heads_for_the_next_cell_and_for_the_goal_in_its_cell(maze: Any) -> None:
    controller, rng = WaypointController(maze, NOISELESS), np.random.default_rng(0)
    start, corner = maze.cell_rowcol_to_xy(np.array([1, 1])), maze.cell_rowcol_to_xy(np.array([3, 1]))
    away = np.concatenate([start, [0, 0], corner])[None]  # the goal lies below, behind the wall: go right first
    np.testing.assert_allclose(controller(away, rng), [[1.0, 0.0]], atol=1e-6)
    near = np.concatenate([corner, [0.1, 0.0], corner + np.array([0.0, 0.05])])[None]
    np.testing.assert_allclose(controller(near, rng), [[-0.1, 0.5]], atol=1e-6)


def test_actions_are_bounded_float32_and_a_function_of_the_generator(maze: Any, envs: Any) -> None:
    controller = WaypointController(maze, BEHAVIOUR)
    obs, _ = envs.reset(seed=0)
    first, again, other = (controller(obs, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.dtype == np.float32
    assert first.shape == (20, 2)
    assert np.abs(first).max() <= 1.0
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_reference_controller_scores_100_and_behaviour_leaves_room(maze: Any, envs: Any) -> None:
    task = find_task("D4RL/pointmaze/umaze-dense-v2")
    reference, behaviour = (task.score(returns(envs, maze, settings, seed=7)) for settings in (REFERENCE, BEHAVIOUR))
    assert reference is not None
    assert behaviour is not None
    assert abs(reference - 100) < 10  # standard error with 20 episodes: 3
    assert 25 < behaviour < 90


def test_other_than_a_maze_is_refused() -> None:
    with pytest.raises(EnvError, match="needs a maze"):
        WaypointController(object())
