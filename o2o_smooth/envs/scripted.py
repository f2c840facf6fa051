"""The waypoint controller that collects PointMaze data: breadth-first search on the maze, PD control, noise.

D4RL collected its Maze2D sets with such a controller; the settings here are our own (`BEHAVIOUR`, `REFERENCE`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from o2o_smooth.errors import EnvError

Cell = tuple[int, int]  # row and column in a maze


@dataclass(frozen=True)
class ControllerSettings:
    """`action = clip(clip(gain * (target - xy) - damping * velocity, +-limit) + noise * N(0, 1), +-1)`."""

    gain: float = 2.0
    """Pull towards the target."""
    damping: float = 1.0
    """Weight of the velocity."""
    limit: float = 0.3
    """Bound on the command before the noise is added."""
    noise: float = 0.5
    """Standard deviation of the Gaussian noise."""


BEHAVIOUR = ControllerSettings()
"""Weak and noisy: makes datasets with room above them."""
REFERENCE = ControllerSettings(gain=10.0, limit=1.0, noise=0.2)
"""Strong: its mean return is score 100."""


class WaypointController:
    """Leads points through a maze, cell by cell on a shortest path to the goal.

    Stateless but for a table made once: `waypoint[goal cell, cell]` is the centre of the next cell. Observations are
    those of the PointMaze tasks, (n, 6): x, y, their velocities, goal x, goal y.

    Raises:
        EnvError: `maze` is not a maze of gymnasium-robotics.
    """

    def __init__(self, maze: Any, settings: ControllerSettings = BEHAVIOUR) -> None:
        try:
            self._shape: Cell = (int(maze.map_length), int(maze.map_width))
            self._centre = np.array([maze.x_map_center, maze.y_map_center], dtype=np.float64)
            self._scaling = float(maze.maze_size_scaling)
            cells = [(r, c) for r, row in enumerate(maze.maze_map) for c, cell in enumerate(row) if cell != 1]
            centres = {cell: np.asarray(maze.cell_rowcol_to_xy(np.array(cell))) for cell in cells}
        except AttributeError as error:
            raise EnvError(f"the waypoint controller needs a maze of gymnasium-robotics, got {maze!r}") from error
        self.settings = settings
        self._waypoint, self._at_goal = self._table(cells, centres)

    def __call__(self, obs: NDArray[Any], rng: np.random.Generator) -> NDArray[np.float32]:
        """Choose actions, (n, 2) in [-1, 1], for observations (n, 6)."""
        s = self.settings
        obs = np.asarray(obs, dtype=np.float64)
        xy, velocity, goal = obs[:, :2], obs[:, 2:4], obs[:, 4:]
        cell, goal_cell = self.cell(xy), self.cell(goal)
        target = np.where(self._at_goal[goal_cell, cell, None], goal, self._waypoint[goal_cell, cell])
        command = (s.gain * (target - xy) - s.damping * velocity).clip(-s.limit, s.limit)
        action = command + s.noise * rng.standard_normal(command.shape)
        return np.asarray(action.clip(-1.0, 1.0), dtype=np.float32)

    def cell(self, xy: NDArray[np.float64]) -> NDArray[np.int64]:
        """Flat index of the cells that hold the points xy, (n, 2): row * columns + column."""
        rows, columns = self._shape
        column = np.floor((xy[:, 0] + self._centre[0]) / self._scaling).clip(0, columns - 1)
        row = np.floor((self._centre[1] - xy[:, 1]) / self._scaling).clip(0, rows - 1)
        return np.asarray(row * columns + column, dtype=np.int64)

    def _table(
        self, cells: list[Cell], centres: dict[Cell, NDArray[np.float64]]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Centre of the next cell, and where to head for the goal itself, for every pair of goal cell and cell."""
        rows, columns = self._shape
        waypoint = np.zeros((rows * columns, rows * columns, 2))
        at_goal = np.ones((rows * columns, rows * columns), dtype=np.bool_)  # also where no path is known
        for goal in cells:
            steps = steps_to(goal, cells)
            for cell in steps:
                if cell != goal:
                    follower = min((n for n in _neighbours(cell) if n in steps), key=steps.__getitem__)
                    pair = (goal[0] * columns + goal[1], cell[0] * columns + cell[1])
                    waypoint[pair], at_goal[pair] = centres[follower], False
        return waypoint, at_goal


def steps_to(goal: Cell, cells: list[Cell]) -> dict[Cell, int]:
    """Steps to `goal` from every cell that can reach it, breadth first."""
    free, found, queue = set(cells), {goal: 0}, deque([goal])
    while queue:
        cell = queue.popleft()
        for neighbour in _neighbours(cell):
            if neighbour in free and neighbour not in found:
                found[neighbour] = found[cell] + 1
                queue.append(neighbour)
    return found


def _neighbours(cell: Cell) -> tuple[Cell, ...]:
    row, column = cell
    return ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1))
