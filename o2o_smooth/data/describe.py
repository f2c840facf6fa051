"""A dataset in numbers and in a picture: how much it holds, how well its behaviour did, where it went."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from o2o_smooth.data.arrays import end_at_goal
from o2o_smooth.data.dataset import KINDS, Dataset
from o2o_smooth.envs.make import make_env
from o2o_smooth.envs.tasks import Task
from o2o_smooth.errors import O2OError
from o2o_smooth.files import written_whole

INK, GREY, BAR = "#222222", "#767676", "#0072B2"
_POINTS = 20_000  # dots of a coverage picture; more only hide each other


@dataclass(frozen=True)
class Summary:
    """What is worth knowing of a dataset before learning from it; returns are undiscounted and raw."""

    id: str
    provenance: str
    sha256: str
    transitions: int
    episodes: int
    terminated: int
    truncated: int
    obs_dim: int
    action_dim: int
    returns: NDArray[np.float64]  # (episodes,)
    lengths: NDArray[np.int64]  # (episodes,)
    scores: NDArray[np.float64] | None  # of episodes, where the task has reference scores
    at_goal: bool  # scores are of the episodes as they are when they end at the goal, which those recorded do not
    reward_range: tuple[float, float]
    action_range: tuple[float, float]

    def lines(self) -> list[tuple[str, str]]:
        """Names and values for people."""
        r, n = self.returns, self.lengths
        found = [
            ("provenance", KINDS[self.provenance]),
            ("transitions", f"{self.transitions:,}"),
            ("episodes", f"{self.episodes:,} ({self.terminated:,} terminated, {self.truncated:,} cut off)"),
            ("observation, action", f"{self.obs_dim} and {self.action_dim} wide"),
            ("episode length", f"mean {n.mean():,.1f}, median {np.median(n):,.0f}, {n.min():,} to {n.max():,}"),
            ("return", f"mean {r.mean():,.2f}, median {np.median(r):,.2f}, {r.min():,.2f} to {r.max():,.2f}"),
        ]
        if self.scores is not None:
            s = self.scores
            name = "score, to the goal" if self.at_goal else "score"
            found.append((name, f"mean {s.mean():.1f}, median {np.median(s):.1f}, {s.min():.1f} to {s.max():.1f}"))
        found += [
            ("reward", f"{self.reward_range[0]:.4g} to {self.reward_range[1]:.4g}"),
            ("action", f"{self.action_range[0]:.4g} to {self.action_range[1]:.4g}"),
            ("sha256", self.sha256),
        ]
        return found


def summarise(dataset: Dataset, task: Task | None = None) -> Summary:
    """Count and average."""
    t = dataset.transitions
    ends = t.episode_ends
    returns = t.episode_returns
    goal = None if task is None else task.goal_reward
    at_goal = goal is not None and float(returns.max()) > goal
    scored = end_at_goal(t, goal).episode_returns if at_goal and goal is not None else returns
    return Summary(
        id=dataset.id,
        provenance=dataset.provenance,
        sha256=dataset.sha256,
        transitions=len(t),
        episodes=len(ends),
        terminated=int(t.terminated[ends].sum()),
        truncated=int((~t.terminated[ends]).sum()),
        obs_dim=t.obs.shape[1],
        action_dim=t.action.shape[1],
        returns=returns,
        lengths=np.diff(ends, prepend=-1),
        scores=None if task is None else task.score(scored),
        at_goal=at_goal,
        reward_range=(float(t.reward.min()), float(t.reward.max())),
        action_range=(float(t.action.min()), float(t.action.max())),
    )


def draw(dataset: Dataset, summary: Summary, path: Path, task: Task | None = None) -> Path:
    """Draw returns, episode lengths and, of a maze, where the data went.

    Raises:
        O2OError: The picture cannot be written.
    """
    maze = None if task is None or task.domain not in ("pointmaze", "antmaze") else _maze(task)
    figure = Figure(figsize=(11.0 if maze is not None else 8.0, 3.8), layout=ConstrainedLayoutEngine(w_pad=0.12))
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3 if maze is not None else 2)
    plain = summary.scores is None or summary.at_goal
    values = summary.returns if summary.scores is None or plain else summary.scores
    unit = "return of an episode" if plain else "score of an episode  (0 random, 100 reference)"
    _histogram(panels[0], values, unit)
    _histogram(panels[1], summary.lengths.astype(np.float64), "steps of an episode")
    if maze is not None:
        _coverage(panels[2], dataset.transitions.obs, maze)
    figure.suptitle(
        f"{summary.id}   ({KINDS[summary.provenance]}; {summary.transitions:,} transitions, "
        f"{summary.episodes:,} episodes)",
        fontsize=10,
        color=INK,
        x=0.01,
        ha="left",
    )
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    return path


def _histogram(axes: Axes, values: NDArray[np.float64], label: str) -> None:
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5  # all the same: one bar
    axes.hist(values, bins=min(60, max(10, int(np.sqrt(len(values))))), range=(low, high), color=BAR)
    mean = float(values.mean())
    axes.axvline(mean, color=INK, linewidth=1.2, linestyle="--")
    axes.set_title(f"mean {mean:,.1f} (dashed)", fontsize=9, color=INK, loc="left")
    axes.set_xlabel(label, color=INK)
    axes.set_ylabel("episodes", color=INK)
    _plain(axes)


def _coverage(axes: Axes, obs: NDArray[np.float32], maze: Any) -> None:
    """Positions as dots over the walls; the maze tasks' observations begin with x and y."""
    scale = float(maze.maze_size_scaling)
    for row, cells in enumerate(maze.maze_map):
        for column, cell in enumerate(cells):
            if cell == 1:
                x, y = maze.cell_rowcol_to_xy(np.array([row, column]))
                axes.add_patch(Rectangle((x - scale / 2, y - scale / 2), scale, scale, color="#D9D9D9", linewidth=0))
    step = max(1, len(obs) // _POINTS)
    axes.scatter(obs[::step, 0], obs[::step, 1], s=1.0, color=BAR, alpha=0.35, linewidths=0)
    axes.set_aspect("equal")
    axes.autoscale_view()
    axes.set_title("positions", fontsize=9, color=INK, loc="left")
    _plain(axes)


def _plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=GREY)


def _maze(task: Task) -> Any:
    """The maze of a task; None where its package is not installed."""
    with contextlib.suppress(O2OError):
        env = make_env(task)
        try:
            return env.get_wrapper_attr("maze")
        finally:
            env.close()
    return None
