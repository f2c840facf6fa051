"""Study folders as the runner leaves them, with curves that a test can reckon with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from o2o_smooth.stability.origin import score_block

Scores = Callable[[str, str, str, int], Sequence[float]]
"""From task, agent, arm and seed to the evaluations, the one at the switch first."""

ARMS: dict[str, dict[str, Any]] = {
    "jump": {"schedule": "jump"},
    "linear": {"schedule": "linear", "ramp_steps": 300},
    "linear (A/A)": {"schedule": "linear", "ramp_steps": 300, "online_stream": 1},
    "stay": {"schedule": "stay"},
}
STEPS = (0, 250, 500, 1000)


def make_run(
    folder: Path,
    *,
    task: str,
    agent: str,
    arm: str,
    seeds: Sequence[int],
    scores: Scores,
    settings: Mapping[str, Any],
    provenance: str | None = "generated",
    refs: bool = True,
    steps: Sequence[int] = STEPS,
    offline_updates: int = 1000,
    spread: float = 20.0,
) -> None:
    """A completed run folder; a point of score is 2 of return."""
    folder.mkdir(parents=True)
    about = {
        "id": task,
        "ref_random": 0.0 if refs else None,
        "ref_expert": 200.0 if refs else None,
        "ref_source": "measured" if refs else None,
    }
    data = {"id": f"data/{task}", "provenance": provenance, "return_mean": 90.0, "sha256": "0" * 64}
    smoothing = {"schedule": "linear", "ramp_steps": 300, "ramp_unit": "env_steps", "regime": "retain"}
    config: dict[str, Any] = {
        "smoothing": smoothing,
        "online_steps": steps[-1],
        "offline_updates": offline_updates,
        "seeds": list(seeds),
    }
    for key, value in settings.items():
        (smoothing if key in ("schedule", "ramp_steps", "regime") else config)[key] = value
    manifest = {
        "status": "completed",
        "task": about,
        "dataset": None if provenance is None else data,
        "score": score_block(about, None if provenance is None else data),
        "config": config,
        "agent": agent,
        "online": "sac",
        "hyper": {"calibrated": False},
        "seeds": list(seeds),
        "arm": arm,
        "population": {"members": len(seeds), "runs": 1},
        "device": "cpu",
        "threads": 1,
        "versions": {"o2o_smooth": "0.1.0", "torch": "2.13.0", "commit": "abc123"},
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:01:30+00:00",
        "wall_s": 70.0,  # it was away for a while
    }
    rows, metrics = [], []
    for seed in seeds:
        for k, (step, score) in enumerate(zip(steps, scores(task, agent, arm, seed), strict=True)):
            nan = score != score
            row: dict[str, Any] = {
                "phase": "online" if k else "switch",
                "env_steps": step,
                "updates": offline_updates + step,
                "seed": seed,
                "return_mean": None if nan else 2.0 * score,
                "return_std": spread,
                "episodes": 10,
                "provenance": provenance,
            }
            if refs:
                row["score"] = None if nan else float(score)
            rows.append(row)
        metrics += [
            {"phase": "online", "env_steps": s, "updates": offline_updates + s, "seed": seed, "time/updates_per_s": v}
            for s, v in ((250, 100.0), (500, 300.0), (1000, 200.0))
        ]
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    for name, lines in (("evaluations.jsonl", rows), ("metrics.jsonl", metrics)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def make_study(
    root: Path,
    scores: Scores,
    *,
    tasks: Sequence[str] = ("maze",),
    agents: Sequence[str] = ("iql",),
    arms: Mapping[str, Mapping[str, Any]] = ARMS,
    seeds: Sequence[int] = (0, 1, 2, 3),
    **run: Any,
) -> Path:
    """A study in which everything is done; returns its folder."""
    entries = []
    for task in tasks:
        for agent in agents:
            for arm, settings in arms.items():
                name = f"runs/{task}/{agent}/{arm.replace(' ', '-').replace('/', '')}"
                job = name.replace("/", "-")
                make_run(
                    root / name, task=task, agent=agent, arm=arm, seeds=seeds, scores=scores, settings=settings, **run
                )
                (root / "jobs" / job).mkdir(parents=True)
                (root / "jobs" / job / "done.json").write_text("{}", encoding="utf-8")
                entries.append(
                    {
                        "folder": name,
                        "task": task,
                        "agent": agent,
                        "arm": arm,
                        "settings": dict(settings),
                        "seeds": list(seeds),
                        "job": job,
                        "pretraining": f"{task}-{agent}",
                    }
                )
    write_plan(root, entries)
    return root


def write_plan(root: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    content = {
        "format": 1,
        "command": "o2o-smooth bench tiny --out study",
        "versions": {"o2o_smooth": "0.1.0", "torch": "2.13.0"},
        "commit": "abc123",
        "suite": "tiny",
        "protocol": {"offline_updates": 1000, "online_steps": 1000, "episodes": 10, "seeds": [0, 1, 2, 3]},
        "runs": list(entries),
    }
    (root / "study.json").write_text(json.dumps(content), encoding="utf-8")


def read_plan(root: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((root / "study.json").read_text(encoding="utf-8"))["runs"]
    return entries
