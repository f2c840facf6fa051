"""Published curves and studies beside them, that tests can reckon with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.study_folders import make_study

TASK = "maze-v2"
HEAD = """\
format = 1
[source]
name = "A library"
url = "https://example.org/library"
where = "logs/"
licence = "MIT"
[protocol]
phase = "{phase}"
provenance = "generated"
score = "{score}"
offline_updates = 1000
{more}
grid = "all of them"
"""
THEIRS = {1: (10.0, 30.0, 50.0), 2: (12.0, 32.0, 52.0), 3: (8.0, 28.0, 48.0)}
"""By seed: scores at 250, 500 and 1000 updates."""


def make_curves(
    folder: Path,
    *,
    runs: Mapping[int, Sequence[float]] = THEIRS,
    at: Sequence[int] = (250, 500, 1000),
    task: str = TASK,
    agent: str = "iql",
    phase: str = "offline",
    score: str = "normalised",
    more: str = "",
) -> Path:
    """A pair of data files; returns the head."""
    folder.mkdir(parents=True, exist_ok=True)
    head = folder / "library.toml"
    if phase == "online":
        more += '\nonline_steps = 1000\nswitch = "stay"'
    head.write_text(HEAD.format(phase=phase, score=score, more=more), encoding="utf-8")
    lines = [",".join(["task", "agent", "seed", "path", "commit", *map(str, at)])]
    for seed, values in runs.items():
        lines.append(",".join([task, agent, str(seed), f"logs/{seed}.csv", "abcdef0123", *map(str, values)]))
    head.with_suffix(".csv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return head


def make_study_before(
    root: Path,
    before: Callable[[int], Mapping[int, float]],
    *,
    last: Callable[[int], float] = lambda seed: 50.0 + 2 * (seed - 1),
    seeds: Sequence[int] = (0, 1, 2),
    shared: bool = True,
    **study: Any,
) -> Path:
    """A study whose arms go on from one pretraining.

    Args:
        root: Its folder.
        before: By seed, the scores before the switch at which updates (of 1000); a point of score is 2 of return.
        last: By seed, the score at the switch.
        seeds: The seeds.
        shared: Whether the pretraining was a job of its own; else each arm's folder has its evaluations.
        study: As for `make_study`.
    """
    settings: dict[str, Any] = {"tasks": (TASK,), "agents": ("iql",), **study}
    make_study(root, lambda _t, _a, _m, seed: [last(seed), 40.0, 45.0, 60.0 + seed], seeds=seeds, **settings)
    path = root / "study.json"
    plan = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        {
            "phase": "offline", "env_steps": 0, "updates": at, "seed": seed, "return_mean": 2.0 * score,
            "return_std": 1.0, "episodes": 10, "score": score, "provenance": "generated",
        }
        for seed in seeds
        for at, score in before(seed).items()
    ]  # fmt: skip
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if shared:
        run = root / "jobs" / "pretrain-1" / "run"
        run.mkdir(parents=True)
        shutil.copy(root / plan["runs"][0]["folder"] / "manifest.json", run)
        (run / "evaluations.jsonl").write_text(text, encoding="utf-8")
        plan["jobs"] = [{"id": "pretrain-1", "kind": "pretrain"}] + [
            {"id": one["job"], "kind": "arms", "needs": ["pretrain-1"]} for one in plan["runs"]
        ]
        path.write_text(json.dumps(plan), encoding="utf-8")
    else:
        for one in plan["runs"]:
            log = root / one["folder"] / "evaluations.jsonl"
            log.write_text(text + log.read_text(encoding="utf-8"), encoding="utf-8")
    return root
