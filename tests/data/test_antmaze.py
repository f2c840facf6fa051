"""D4RL's AntMaze is the mirror image of gymnasium-robotics': the map, the ant and its motors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from o2o_smooth.data.antmaze import from_d4rl, mirror, mirror_actions, to_d4rl
from o2o_smooth.envs import Task, find_task, make_env
from o2o_smooth.errors import DataError

pytest.importorskip("gymnasium_robotics")

UMAZE, MEDIUM, LARGE = "antmaze-umaze-v2", "antmaze-medium-play-v2", "antmaze-large-play-v2"
MAZES = (UMAZE, MEDIUM, LARGE)
Doubles = NDArray[np.float64]

# Any one wrong sign or pair of columns is off by 0.8 or more after one step. Right ones were found to agree to 3e-13
# after 10 steps and to 2e-11 after 20, touching walls (mujoco 3.11): both see the same numbers in another order. 1e-6
# leaves room for other versions, whose solver may stop at its tolerance of 1e-8, and for contacts, which amplify.
SAME = 1e-6


def maze_map(task: Task) -> list[list[Any]]:
    return list(task.env_kwargs["maze_map"])


def cells(task: Task, kind: object) -> list[tuple[int, int]]:
    """Rows and columns of the cells of a kind."""
    return [(i, j) for i, row in enumerate(maze_map(task)) for j, cell in enumerate(row) if cell == kind]


def d4rl_xy(task: Task, cell: tuple[int, int]) -> tuple[float, float]:
    """Centre of a cell in D4RL's frame (locomotion/maze_env.py, `_rowcol_to_xy` and the position of a block)."""
    ((row, column),) = cells(task, "r")
    return 4.0 * (cell[1] - column), 4.0 * (cell[0] - row)


def d4rl_obs(xy: Any) -> NDArray[np.float32]:
    """Ants at rest at positions (N, 2): observations (N, 29)."""
    obs = np.zeros((len(xy), 29), np.float32)
    obs[:, :2] = xy
    obs[:, 2:4] = 0.75, 1.0
    return obs


def random_state(rng: np.random.Generator, xy: Any, speed: float) -> Doubles:
    """A state of the simulator, (29,): tilted, turned by any angle, low enough to touch the floor, and moving."""
    low = np.radians((-30, 30, -30, -70, -30, -70, -30, 30))  # joints within their ranges
    high = np.radians((30, 70, 30, -30, 30, -30, 30, 70))
    turn = rng.uniform(-np.pi, np.pi)
    quaternion = np.array((np.cos(turn / 2), *rng.normal(0, 0.2, 2), np.sin(turn / 2)))
    quaternion /= np.linalg.norm(quaternion)
    return np.concatenate([xy, [rng.uniform(0.35, 0.8)], quaternion, rng.uniform(low, high), rng.normal(0, speed, 14)])


def roll(
    env: Any, state: Doubles, actions: NDArray[np.float32], goal: Any = (0.0, 0.0)
) -> tuple[Doubles, NDArray[np.float32], int, int]:
    """Step from a state: the simulator's states (T, 29), observations (T, 31), touches of the floor and of walls."""
    env.reset(seed=0)  # also clears what the solver starts from
    env.unwrapped.goal = np.array(goal)
    data, model = env.unwrapped.data, env.unwrapped.model
    env.unwrapped.ant_env.set_state(state[:15], state[15:])
    states, observations, touched = [], [], []
    for action in actions:
        observations.append(env.step(action)[0])
        states.append(np.concatenate([data.qpos, data.qvel]))
        touched += [model.geom(geom).name for contact in data.contact for geom in contact.geom]
    walls = sum(name.startswith("block") for name in touched)
    return np.array(states), np.array(observations), touched.count("floor"), walls


def in_cell(states: Doubles, centre: Doubles) -> Doubles:
    """States mirrored about the line through a cell's centre."""
    xy = np.stack([states[:, 0], 2 * centre[1] - states[:, 1]], axis=1)
    return np.concatenate([xy, mirror(states[:, 2:])], axis=1)


def test_mirroring_twice_is_the_identity() -> None:
    rng = np.random.default_rng(0)
    obs, action = rng.normal(size=(50, 27)), rng.normal(size=(50, 8))
    assert not np.array_equal(mirror(obs), obs)
    assert not np.array_equal(mirror_actions(action), action)
    np.testing.assert_array_equal(mirror(mirror(obs)), obs)
    np.testing.assert_array_equal(mirror_actions(mirror_actions(action)), action)


def test_an_upright_ant_that_runs_ahead_is_its_own_image() -> None:
    """Fixes what physics leave open: the sign of the whole quaternion, and the ant's own symmetries."""
    ahead = d4rl_obs(np.zeros((1, 2)))[:, 2:]
    ahead[:, 13] = 2.0  # linear velocity along x
    np.testing.assert_array_equal(mirror(ahead), ahead)


def test_the_mirrored_ant_moves_as_the_mirror_image_in_the_simulator() -> None:
    env: Any = make_env(find_task(UMAZE))
    rng = np.random.default_rng(0)
    floor = 0
    for cell in ((1, 2), (3, 2)) * 15:
        centre = env.unwrapped.maze.cell_rowcol_to_xy(cell)
        state = random_state(rng, centre + rng.uniform(-0.3, 0.3, 2), speed=0.5)
        actions = rng.uniform(-1, 1, (10, 8)).astype(np.float32)
        states, _, touches, walls = roll(env, state, actions)
        image, _, _, image_walls = roll(env, in_cell(state[None], centre)[0], mirror_actions(actions))
        np.testing.assert_allclose(image, in_cell(states, centre), rtol=0, atol=SAME)
        assert walls == image_walls == 0  # they are another cell's, and not mirrored with this one
        floor += touches
    assert floor > 50  # the legs did push
    env.close()


@pytest.mark.parametrize("name", MAZES)
def test_a_trajectory_in_d4rls_maze_is_one_in_ours(name: str) -> None:
    """Walls included: with its rows turned over, gymnasium-robotics' maze is D4RL's but for the origin."""
    task = find_task(name)
    turned = replace(task, env_kwargs={**task.env_kwargs, "maze_map": maze_map(task)[::-1]})
    ours: Any = make_env(task)
    theirs: Any = make_env(turned)
    ((row, column),) = cells(turned, "r")
    start = theirs.unwrapped.maze.cell_rowcol_to_xy((row, column))
    goal = np.add(d4rl_xy(task, cells(task, "g")[0]), (0.7, 0.3))
    free = [cell for kind in (0, "r", "g") for cell in cells(turned, kind)]
    rng = np.random.default_rng(0)
    walls = 0
    for _ in range(30):
        centre = theirs.unwrapped.maze.cell_rowcol_to_xy(free[rng.integers(len(free))])
        state = random_state(rng, centre + rng.uniform(-1.4, 1.4, 2), speed=1.0)
        actions = rng.uniform(-1, 1, (10, 8)).astype(np.float32)
        states, _, _, touches = roll(theirs, state, actions)
        walls += touches
        recorded: Doubles = np.concatenate([state[None], states])
        recorded[:, :2] -= start  # now as D4RL's file has them
        wanted = from_d4rl(task, recorded, np.tile(goal, (11, 1)))
        found, observations, _, _ = roll(ours, wanted[0, :29], mirror_actions(actions), goal=wanted[0, 29:])
        np.testing.assert_allclose(found, wanted[1:, :29], rtol=0, atol=SAME)
        np.testing.assert_allclose(observations, wanted[1:], rtol=1e-6, atol=SAME)  # the layout, goal included
    assert walls >= 5
    ours.close()
    theirs.close()


@pytest.mark.parametrize(("name", "goal"), [(UMAZE, (0, 8)), (MEDIUM, (20, 20)), (LARGE, (32, 24))])
def test_d4rls_origin_lies_on_our_reset_cell_and_its_goal_on_ours(name: str, goal: tuple[float, float]) -> None:
    task = find_task(name)
    env: Any = make_env(task)
    found = from_d4rl(task, d4rl_obs([(0.0, 0.0), goal]), np.array([goal, goal], np.float32))
    reset_xy, goal_xy = (env.unwrapped.maze.cell_rowcol_to_xy(cells(task, kind)[0]) for kind in ("r", "g"))
    np.testing.assert_array_equal(found[:, :2], [reset_xy, goal_xy])
    np.testing.assert_array_equal(found[:, 29:], [goal_xy, goal_xy])
    env.close()


@pytest.mark.parametrize("name", MAZES)
def test_d4rls_walls_are_the_walls_of_our_simulator(name: str) -> None:
    task = find_task(name)
    env: Any = make_env(task)
    blocks = cells(task, 1)
    centres = np.array([d4rl_xy(task, cell) for cell in blocks], np.float32)
    found = from_d4rl(task, d4rl_obs(centres), centres)
    walls = [env.unwrapped.model.geom(f"block_{i}_{j}").pos[:2] for i, j in blocks]
    np.testing.assert_array_equal(found[:, :2], walls)
    corner = from_d4rl(task, d4rl_obs(centres + 1.9), centres)  # within the block, off its centre
    assert [tuple(env.unwrapped.maze.cell_xy_to_rowcol(xy)) for xy in corner[:, :2]] == blocks
    env.close()


def test_there_and_back_is_the_identity_but_for_the_rounding_of_positions() -> None:
    task = find_task(LARGE)
    rng = np.random.default_rng(0)
    obs = rng.normal(0, 8, (1000, 29)).astype(np.float32)
    goal = rng.uniform(0, 36, (1000, 2)).astype(np.float32)
    back, back_goal = to_d4rl(task, from_d4rl(task, obs, goal))
    np.testing.assert_array_equal(back[:, 2:], obs[:, 2:])
    rounding = float(np.spacing(np.float32(64.0)))  # two roundings of numbers below 64
    np.testing.assert_allclose(back[:, :2], obs[:, :2], rtol=0, atol=rounding)
    np.testing.assert_allclose(back_goal, goal, rtol=0, atol=rounding)
    task_obs = rng.normal(0, 8, (1000, 31)).astype(np.float32)
    again = from_d4rl(task, *to_d4rl(task, task_obs))
    np.testing.assert_array_equal(again[:, 2:29], task_obs[:, 2:29])
    np.testing.assert_allclose(again, task_obs, rtol=0, atol=rounding)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_chunks_give_what_the_whole_gives_in_the_dtype_that_came_in(dtype: Any) -> None:
    task = find_task(MEDIUM)
    rng = np.random.default_rng(0)
    obs, goal, action = (rng.normal(size=(10, width)).astype(dtype) for width in (29, 2, 8))
    whole = from_d4rl(task, obs, goal)
    chunks = [from_d4rl(task, obs[rows], goal[rows]) for rows in (slice(0, 4), slice(4, 10), slice(10, 10))]
    np.testing.assert_array_equal(np.concatenate(chunks), whole)
    kept = [whole, *chunks, *to_d4rl(task, whole), mirror(obs[:, 2:]), mirror_actions(action)]
    assert {array.dtype for array in kept} == {np.dtype(dtype)}


def zeros(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda task: mirror(zeros(3, 29)), r"obs has shape \(3, 29\), expected \(rows, 27\)"),
        (lambda task: mirror(zeros(27)), r"obs has shape \(27,\), expected \(rows, 27\)"),
        (lambda task: mirror_actions(zeros(3, 6)), r"action has shape \(3, 6\), expected \(rows, 8\)"),
        (lambda task: mirror_actions(np.zeros((3, 8), np.int64)), "action has dtype int64, expected float32"),  # type: ignore[type-var]
        (lambda task: from_d4rl(task, zeros(3, 27), zeros(3, 2)), r"obs has shape \(3, 27\), expected \(rows, 29\)"),
        (lambda task: from_d4rl(task, zeros(3, 29), zeros(2, 2)), r"goal has shape \(2, 2\), expected \(3, 2\)"),
        (lambda task: from_d4rl(task, zeros(3, 29), zeros(2)), r"goal has shape \(2,\), expected \(3, 2\)"),
        (lambda task: to_d4rl(task, zeros(3, 29)), r"obs has shape \(3, 29\), expected \(rows, 31\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_in_one_line(call: Any, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        call(find_task(UMAZE))
    assert "\n" not in str(caught.value)
    assert ": " in str(caught.value)  # the cure


@pytest.mark.parametrize("env_kwargs", [{}, {"maze_map": [[1, 1, 1], [1, "g", 1], [1, 1, 1]]}])
def test_a_task_without_a_reset_cell_is_refused_by_name(env_kwargs: dict[str, Any]) -> None:
    task = Task(id="no-start", env_id="AntMaze_UMaze-v4", env_kwargs=env_kwargs)
    with pytest.raises(DataError, match=r"task no-start has no maze_map with a reset cell 'r'.*: name an AntMaze task"):
        from_d4rl(task, zeros(3, 29), zeros(3, 2))
    with pytest.raises(DataError, match="no-start"):
        to_d4rl(task, zeros(3, 31))
