"""How the cost of an update grows with batch, width, members, updates per step and rows in the buffer.

For every axis the cost is compared with the work it takes: FLOPs for batch, width and members, updates for UTD, and
nothing at all for rows in the buffer. Between two neighbouring points the cost grows as work^p; p above 1 is worse than
linear. A buffer adds no work, so its costs may only grow by what memory far away costs.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from o2o_smooth.benchmarks.speed_limit import useful_flops
from o2o_smooth.benchmarks.speed_own import agent_config
from o2o_smooth.benchmarks.speed_slices import Slices, SpeedError, Worker, build, interleave
from o2o_smooth.data.store import free_memory, row_width
from o2o_smooth.training.progress import ProgressSink

if TYPE_CHECKING:
    from o2o_smooth.benchmarks.speed import SpeedConfig

POINTS: dict[str, tuple[int, ...]] = {
    "batch": (64, 128, 256, 512, 1024, 2048, 4096),
    "width": (128, 256, 512, 1024),
    "members": (1, 2, 4, 8, 16, 32, 64),
    "utd": (1, 2, 5, 10, 20),
    "buffer": (10_000, 100_000, 1_000_000, 10_000_000),
}
QUICK_POINTS = 3
LARGEST_GFLOP = 150.0  # an update above this takes seconds on a few cores; left out on CPUs
WORSE = 1.15  # exponent from which growth is called worse than linear; less is within the ranges of short slices
UTD_UPDATES = 300  # of a run that is timed for one point of UTD


def growth(config: SpeedConfig, progress: ProgressSink) -> list[dict[str, Any]]:
    """Curves for every wanted axis, agent and precision.

    Returns:
        One mapping a curve: `axis, agent, precision, members, threads` and `points`, each with `value`, `cost_s` (of an
        update of all members; of an environment step with its updates for UTD), `lowest`, `highest`, `work` (relative),
        and `exponent` from the point before; `missing` names the points left out.
    """
    curves = []
    for axis in dict.fromkeys(config.grow):
        for agent in dict.fromkeys(config.agents):
            if axis == "utd":
                curves.append(_utd(config, agent, progress))
                continue
            curves += [_updates(config, axis, agent, precision, progress) for precision in config.precision]
    return [curve for curve in curves if curve["points"]]


def exponents(points: Sequence[Mapping[str, float]], *, constant: bool = False) -> list[float | None]:
    """How the cost grows from each point to the next: log cost ratio over log work ratio.

    Args:
        points: With `cost_s` and `work`, in ascending order.
        constant: The work does not grow: the log ratio of costs to that of `value` instead.

    Returns:
        One a point; None for the first.
    """
    key = "value" if constant else "work"
    found: list[float | None] = [None]
    for before, after in pairwise(points):
        found.append(math.log(after["cost_s"] / before["cost_s"]) / math.log(after[key] / before[key]))
    return found[: len(points)]


def _updates(config: SpeedConfig, axis: str, agent: str, precision: str, progress: ProgressSink) -> dict[str, Any]:
    """The cost of an update along an axis; all points are timed in turn."""
    threads, depth = max(config.thread_counts), config.depth[0] if config.depth else 3 if agent == "cql" else 2
    values = POINTS[axis][:QUICK_POINTS] if config.quick else POINTS[axis]
    curve: dict[str, Any] = {"axis": axis, "agent": agent, "precision": precision, "threads": threads}
    points: list[dict[str, Any]] = []
    missing: list[dict[str, Any]] = []
    timed: list[Slices] = []
    with ExitStack() as stack:
        worker = stack.enter_context(Worker("o2o_smooth.benchmarks.speed_own", threads=threads))
        for value in values:
            width = value if axis == "width" else config.width
            changed = {"batch": {"batch": value}, "buffer": {"rows": value}}.get(axis, {})
            members = value if axis == "members" else config.members[0]
            about = config.learner(
                agent,
                [width] * depth,
                precision=precision,
                members=members,
                threads=threads,
                compile=config.compile,
                **changed,
            )
            sizes = {name: about[name] for name in ("obs_dim", "action_dim", "batch", "members")}
            work = useful_flops(agent_config(agent, (width,) * depth), **sizes)
            reason = _too_much(work, int(about["rows"]), config)
            if reason is None:
                progress.update(f"{axis}, {agent} {precision}: build", len(timed) + 1, len(values))
                try:
                    timed.append(build(worker, str(value), about))
                except SpeedError as error:
                    reason = str(error)
            if reason is not None:
                missing.append({"value": value, "reason": reason})
                continue
            points.append({"value": value, "work": work})
        name = f"{axis}, {agent} {precision}: rounds"
        interleave(timed, **config.timing(), on_round=lambda done, total: progress.update(name, done, total))
        missing += [
            {"value": p["value"], "reason": s.failed}
            for p, s in zip(points, timed, strict=True)
            if s.failed is not None
        ]
        for point, slices in zip(points, timed, strict=True):
            if slices.failed is not None:
                continue
            found = slices.summary()
            point |= {
                "cost_s": 1.0 / found["updates_per_s"],
                "lowest": 1.0 / found["highest"],
                "highest": 1.0 / found["lowest"],
                "slices": found["slices"],
                "dropped": found["dropped"],
                "contended": found["contended"],
            }
    return _finish(
        {**curve, "members": config.members[0], "points": [p for p in points if "cost_s" in p], "missing": missing}
    )


def _too_much(work: float, rows: int, config: SpeedConfig) -> str | None:
    """Why a point is left out, if it is."""
    if work * 1e-9 > LARGEST_GFLOP and config.device == "cpu":
        return f"{work * 1e-9:.0f} GFLOP an update: too slow on a CPU for a benchmark of minutes"
    free, needed = free_memory(), 4 * rows * row_width(config.obs_dim, config.action_dim)
    if free is not None and needed > 0.5 * free and config.device == "cpu":
        return f"{needed / 2**30:.1f} GiB of rows, more than half of the free memory"
    return None


def _utd(config: SpeedConfig, agent: str, progress: ProgressSink) -> dict[str, Any]:
    """The cost of an environment step with its updates, in real runs; rounds in turn."""
    from o2o_smooth.benchmarks.speed_run import DATA_ROWS, default_task, measure_run, record_random, run_settings

    values = POINTS["utd"][:QUICK_POINTS] if config.quick else POINTS["utd"]
    task, threads = config.task or default_task(), max(config.thread_counts)
    updates = 60 if config.quick else UTD_UPDATES
    rounds = 1 if config.quick else min(3, config.rounds)
    costs: dict[int, list[float]] = {value: [] for value in values}
    contended: dict[int, list[bool]] = {value: [] for value in values}
    with tempfile.TemporaryDirectory() as folder:
        data = record_random(task, DATA_ROWS, Path(folder) / "random.npz")
        begin = time.perf_counter()
        for k in range(rounds):
            if k > 0 and time.perf_counter() - begin > config.timing()["limit_s"]:
                break
            for i, value in enumerate(values):
                progress.update(f"utd, {agent}: runs", k * len(values) + i, rounds * len(values))
                settings = run_settings(
                    task, agent, data, members=config.members[0], threads=threads, device=config.device, utd=value
                )
                steps = settings.update_after + max(10, updates // value)
                _, online = measure_run(settings, offline_updates=5, online_steps=steps, folder=Path(folder))
                busy = online["loop_s"] - online["seconds"]["evaluate"]
                costs[value].append(busy / (steps - settings.update_after))
                contended[value].append(bool(online["contended"]))
    ordered = []
    for value in values:
        clean = [cost for cost, disturbed in zip(costs[value], contended[value], strict=True) if not disturbed]
        kept = clean or costs[value]
        ordered.append(
            {
                "value": value,
                "work": float(value),
                "cost_s": median(kept),
                "lowest": min(kept),
                "highest": max(kept),
                "slices": len(kept),
                "dropped": len(costs[value]) - len(kept),
                "contended": not clean,
            }
        )
    about = {"axis": "utd", "agent": agent, "precision": "fp32", "threads": threads, "members": config.members[0]}
    return _finish({**about, "task": task, "points": ordered, "missing": []})


def _finish(curve: dict[str, Any]) -> dict[str, Any]:
    constant = curve["axis"] == "buffer"
    for point, exponent in zip(curve["points"], exponents(curve["points"], constant=constant), strict=True):
        point["exponent"] = exponent
    if constant:
        for point in curve["points"]:
            point["work"] = 1.0
    found = [p["exponent"] for p in curve["points"] if p["exponent"] is not None]
    curve["worst_exponent"] = max(found, default=None)
    curve["worse_than_linear"] = bool(found) and max(found) > WORSE
    return curve
