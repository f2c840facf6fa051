"""D4RL's AntMaze files in gymnasium-robotics' frame: mirrored, moved, and the goal put beside the state.

Both lay the same map out, with 4 units a cell. D4RL (locomotion/maze_env.py) puts the reset cell at (0, 0) and lets y
grow with the row; gymnasium-robotics (maze_v4.py, `cell_rowcol_to_xy`) puts the centre of the map there and lets y fall
with the row. One is the mirror image of the other, and so are the ants: a turn to the left is one to the right. The
reflection y -> -y swaps the ant's legs; its table is read off gymnasium's ant.xml, and D4RL's has the same joints and
motors in the same order. The physics agree but for rounding, which a test checks in the simulator.

This changes the frame and nothing else. Actions keep their scale, and time is not resampled: D4RL's ant.xml has a time
step of 0.02 s, gymnasium's 0.01 s, at five to an action, so that D4RL's rows are 0.1 s apart and ours 0.05 s.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from o2o_smooth.envs.tasks import Task
from o2o_smooth.errors import DataError

_CELL = 4.0  # side of a cell, in D4RL's registrations and in gymnasium-robotics' AntMaze

# The ant has legs 1 (+x, +y), 2 (-x, +y), 3 (-x, -y) and 4 (+x, -y): the reflection swaps 1 with 4 and 2 with 3.
# A rotation about an axis a becomes one by the same angle about -(a reflected), as axes of rotation do. Hips turn about
# z, whose image is -z: they change sign. Ankles turn about (-1, 1, 0) in legs 1 and 3 and (1, 1, 0) in legs 2 and 4,
# each of which is the other's image: they keep it. The ranges fit: 30..70 degrees in legs 1 and 4, else -70..-30.
_JOINTS = (6, 7, 4, 5, 2, 3, 0, 1)  # of hip and ankle 1, 2, 3, 4: where the image's comes from
_MOTORS = (2, 3, 0, 1, 6, 7, 4, 5)  # of hip and ankle 4, 1, 2, 3: the actuators begin with leg 4
_LEGS = (-1, 1, -1, 1, -1, 1, -1, 1)

_OBS = np.array((0, 1, 2, 3, 4, *(5 + j for j in _JOINTS), 13, 14, 15, 16, 17, 18, *(19 + j for j in _JOINTS)))
_OBS_SIGNS = np.array(
    (
        1,  # z
        *(1, -1, 1, -1),  # quaternion w, x, y, z: only the turn about y keeps its sense
        *_LEGS,  # angles of the joints
        *(1, -1, 1),  # linear velocity
        *(-1, 1, -1),  # angular velocity in the torso's own frame, which is mirrored as well
        *_LEGS,  # velocities of the joints
    ),
    dtype=np.int8,  # so that the product keeps the dtype of the floats
)
_ACTION = np.array(_MOTORS)
_ACTION_SIGNS = np.array(_LEGS, dtype=np.int8)

Floats = TypeVar("Floats", NDArray[np.float32], NDArray[np.float64])
"""Rows of floats; what comes out has the dtype of what goes in."""


def mirror(obs: Floats) -> Floats:
    """Reflect the ant, y -> -y: observations without positions, (N, 27) to (N, 27). Its own inverse.

    Columns, as in gymnasium's Ant without x and y: z, quaternion (w, x, y, z), 8 joint angles (hip and ankle of legs 1
    to 4), linear velocity 3, angular velocity 3, 8 joint velocities.

    Raises:
        DataError: The shape does not fit.
    """
    _check("obs", obs, 27)
    return obs[:, _OBS] * _OBS_SIGNS


def mirror_actions(action: Floats) -> Floats:
    """Reflect the motors of the ant, y -> -y: (N, 8) to (N, 8), from D4RL to us and back. Its own inverse.

    Columns: hip and ankle of legs 4, 1, 2, 3, which is not the order of the joints.

    Raises:
        DataError: The shape does not fit.
    """
    _check("action", action, 8)
    return action[:, _ACTION] * _ACTION_SIGNS


def from_d4rl(task: Task, obs: Floats, goal: NDArray[np.floating[Any]]) -> Floats:
    """Give D4RL's observations as an AntMaze task has them; every row by itself.

    Args:
        task: Its map says where the frames lie.
        obs: (N, 29), positions and velocities of MuJoCo in D4RL's frame.
        goal: (N, 2), the goal of every row in D4RL's frame: `infos/goal` of the file.

    Returns:
        (N, 31): achieved goal 2, ant 27, desired goal 2; in the dtype of `obs`.

    Raises:
        DataError: The task has no map with a reset cell, or a shape does not fit.
    """
    _check("obs", obs, 29)
    _check_goal(goal, len(obs))
    origin_x, origin_y = _origin(task)
    out = np.empty((len(obs), 31), dtype=obs.dtype)
    out[:, 0] = origin_x + obs[:, 0]
    out[:, 1] = origin_y - obs[:, 1]
    out[:, 2:29] = mirror(obs[:, 2:])
    out[:, 29] = origin_x + goal[:, 0]
    out[:, 30] = origin_y - goal[:, 1]
    return out


def to_d4rl(task: Task, obs: Floats) -> tuple[Floats, Floats]:
    """Give a task's observations as D4RL has them: the inverse of `from_d4rl`, up to the rounding of positions.

    Args:
        task: Its map says where the frames lie.
        obs: (N, 31), as `from_d4rl` gives them.

    Returns:
        (N, 29) and (N, 2): positions and velocities of MuJoCo, and the goals, in D4RL's frame.

    Raises:
        DataError: The task has no map with a reset cell, or the shape does not fit.
    """
    _check("obs", obs, 31)
    origin_x, origin_y = _origin(task)
    out, goal = np.empty((len(obs), 29), dtype=obs.dtype), np.empty((len(obs), 2), dtype=obs.dtype)
    out[:, 0] = obs[:, 0] - origin_x
    out[:, 1] = origin_y - obs[:, 1]
    out[:, 2:] = mirror(obs[:, 2:29])
    goal[:, 0] = obs[:, 29] - origin_x
    goal[:, 1] = origin_y - obs[:, 30]
    return out, goal


def _origin(task: Task) -> tuple[float, float]:
    """Where D4RL's (0, 0) lies in our frame: the centre of the first reset cell, row by row, as D4RL looks for it."""
    maze = task.env_kwargs.get("maze_map", ())
    for i, row in enumerate(maze):
        for j, cell in enumerate(row):
            if cell == "r":
                return (j + 0.5 - len(maze[0]) / 2) * _CELL, (len(maze) / 2 - i - 0.5) * _CELL
    raise DataError(
        f"task {task.id} has no maze_map with a reset cell 'r', which is the origin of D4RL's frame: "
        f"name an AntMaze task (o2o-smooth tasks), or mark the cell in its env_kwargs"
    )


def _check(name: str, array: NDArray[Any], width: int) -> None:
    if array.ndim != 2 or array.shape[1] != width:
        raise DataError(
            f"{name} has shape {array.shape}, expected (rows, {width}): give whole rows of AntMaze's arrays"
        )
    if array.dtype not in (np.float32, np.float64):
        raise DataError(f"{name} has dtype {array.dtype}, expected float32 or float64: convert it first")


def _check_goal(goal: NDArray[Any], rows: int) -> None:
    if goal.shape != (rows, 2):
        raise DataError(f"goal has shape {goal.shape}, expected ({rows}, 2): give infos/goal of the rows of obs")
