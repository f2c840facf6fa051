"""Whole runs with W&B and TensorBoard: nothing is missing, both say the same, and neither can stop a run."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from o2o_smooth.agents import IQLConfig
from o2o_smooth.stability import arm_table, null_dip_from_std, read_curves, stability_metrics
from o2o_smooth.stability.curves import Curve
from o2o_smooth.stability.report import Measured, measure
from o2o_smooth.training.config import EvaluationConfig, RunConfig, SmoothingConfig
from o2o_smooth.training.population import run_population
from o2o_smooth.training.progress import Silent
from o2o_smooth.training.run import run
from o2o_smooth.training.tracking import dashboard
from o2o_smooth.training.tracking.summary import FIELDS, stability_rows
from o2o_smooth.training.tracking.wandb_sink import WandbSink
from tests.training.wandb_files import history, offline_wandb, summary, wandb_records

KEY = "0123456789abcdef" * 2 + "01234567"
LOW, HIGH = -1200.0, -150.0  # returns of Pendulum that score 0 and 100
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Logged:
    """A run and what its sinks wrote."""

    out: Path
    config: RunConfig[Any]

    @property
    def wandb(self) -> Path:
        (file,) = self.out.glob("wandb/offline-run-*/*.wandb")
        return file

    def points(self) -> dict[str, list[tuple[int, float]]]:
        """Name -> (step on the axis that W&B was told, value)."""
        metrics = [r.metric for r in wandb_records(self.wandb) if r.WhichOneof("record_type") == "metric"]
        axes = {metric.name: metric.step_metric for metric in metrics}
        found: dict[str, list[tuple[int, float]]] = {}
        for row in history(self.wandb):
            for name, value in row.items():
                if not name.startswith("_") and name not in ("env_steps", "updates"):
                    found.setdefault(name, []).append((row[axes[name]], value))
        return found


class Notes(Silent):
    """Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def settings(folder: Path, out: Path, schedule: str = "linear", **changes: Any) -> RunConfig[Any]:
    """A run of seconds on a task with scores."""
    return RunConfig(
        hyper=IQLConfig(hidden_dims=(8, 8)),
        smoothing=SmoothingConfig(schedule, ramp_steps=400),
        evaluation=EvaluationConfig(eval_episodes=2, switch_episodes=4, eval_envs=2, eval_every=200),
        task=str(folder / "task.toml"),
        dataset=str(folder / "pendulum.npz"),
        out=str(out),
        **{
            "agent": "iql",
            "seeds": (3, 5),
            "offline_updates": 20,
            "online_steps": 600,
            "num_envs": 2,
            "batch_size": 16,
            "log_every": 50,
            "utd": 0.1,
            **changes,
        },
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up episodes, and a task that has scores."""
    rng, n = np.random.default_rng(0), 1000
    path = tmp_path_factory.mktemp("runs")
    np.savez(
        path / "pendulum.npz",
        observations=rng.normal(size=(n, 3)).astype(np.float32),
        actions=rng.uniform(-2, 2, (n, 1)).astype(np.float32),
        rewards=rng.normal(size=n).astype(np.float32),
        next_observations=rng.normal(size=(n, 3)).astype(np.float32),
        terminated=np.zeros(n, bool),
        truncated=np.arange(n) % 200 == 199,
    )
    (path / "task.toml").write_text(
        f'id = "scored-pendulum"\nenv_id = "Pendulum-v1"\nmax_episode_steps = 200\n'
        f'ref_random = {LOW}\nref_expert = {HIGH}\nref_source = "made up"\n'
    )
    return path


@pytest.fixture(scope="module")
def logged(folder: Path) -> Iterator[list[Logged]]:
    """Two runs that share a population, offline in W&B: a ramp, and the performance gate."""
    import wandb

    configs = [
        settings(folder, folder / name, schedule, wandb=True, tensorboard=True)
        for name, schedule in (("ramp", "linear"), ("gate", "performance_gate"))
    ]
    with offline_wandb(folder) as patch:
        patch.setenv("WANDB_API_KEY", KEY)
        outs = run_population(configs)
        wandb.teardown()  # `finish` returns some milliseconds before W&B's own process has written its file
        yield [Logged(out, config) for out, config in zip(outs, configs, strict=True)]


def rows(out: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / name).read_text(encoding="utf-8").splitlines()]


def test_an_offline_wandb_run_is_complete(logged: list[Logged]) -> None:
    """Every number of the files is in W&B's, by seed, at its own step; each run of a population has a W&B run."""
    for one in logged:
        points = one.points()
        for file, prefix in (("evaluations.jsonl", "eval/"), ("metrics.jsonl", "")):
            told = rows(one.out, file)
            assert {row["phase"] for row in told} >= {"offline", "online"}
            for row in told:
                offline = row["phase"] == "offline"
                step = row["updates"] if offline else row["env_steps"]
                for key, value in row.items():
                    if key in ("phase", "env_steps", "updates", "seed") or value is None or isinstance(value, str):
                        continue
                    name = f"{'pretrain/' if offline else ''}{prefix}{key}/seed_{row['seed']}"
                    assert (step, value) in points[name], name
    assert len({one.wandb.name for one in logged}) == 2


def test_every_stability_metric_is_in_the_summary_by_seed_and_as_a_mean(logged: list[Logged]) -> None:
    for one in logged:
        found, told = summary(one.wandb), rows(one.out, "evaluations.jsonl")
        by_seed: dict[int, Mapping[str, float | None]] = {}
        for seed in (3, 5):
            curve = [row for row in told if row["seed"] == seed and row["phase"] != "offline"]
            metrics = stability_metrics([row["env_steps"] for row in curve], [row["score"] for row in curve])
            spread = curve[0]["return_std"] * 100 / (HIGH - LOW)
            noise = null_dip_from_std(spread, evaluations=len(curve) - 1, episodes=2, switch_episodes=4)
            by_seed[seed] = {**{name: getattr(metrics, name) for name in FIELDS[:-1]}, "null_dip": noise}
            for name, value in by_seed[seed].items():
                assert found[f"stability/{name}/seed_{seed}"] == pytest.approx(value), name
        for name in FIELDS:
            values = [by_seed[seed][name] for seed in (3, 5)]
            known = [value for value in values if value is not None]
            assert found[f"stability/{name}"] == (pytest.approx(np.mean(known)) if len(known) == 2 else None)
        recovered = [by_seed[seed]["recovery_steps"] is not None for seed in (3, 5)]
        assert found["stability/recovered"] == np.mean(recovered)
        assert found["stability/budget"] == 600
        assert found["status"] == "completed"


def test_the_offline_twin_says_the_same_without_wandb(logged: list[Logged]) -> None:
    """`compare` reads the folder alone."""
    for one in logged:
        (row,) = arm_table({"it": read_curves(one.out)})
        found = summary(one.wandb)
        for mine, theirs in (("dip", "dip_depth"), ("dip_area", "dip_area"), ("j0", "j0"), ("final", "final")):
            assert found[f"stability/{theirs}"] == pytest.approx(row[mine])
        assert found["stability/null_dip"] == pytest.approx(row["null_dip"])


def test_tensorboard_has_the_same_names_steps_and_values(logged: list[Logged]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for one in logged:
        events = EventAccumulator(str(one.out / "tensorboard"), size_guidance={"scalars": 0})
        events.Reload()
        points = one.points()
        assert set(events.Tags()["scalars"]) == points.keys()
        for name, expected in points.items():
            theirs = [(event.step, event.value) for event in events.Scalars(name)]
            assert [step for step, _ in theirs] == [step for step, _ in expected], name
            assert [v for _, v in theirs] == pytest.approx([v for _, v in expected], rel=1e-6, nan_ok=True), name


def test_a_name_has_one_axis(logged: list[Logged]) -> None:
    for one in logged:
        for name, points in one.points().items():
            steps = [step for step, _ in points]
            assert steps == sorted(set(steps)), name
            assert name.startswith("pretrain/") == (steps[0] > 0 and max(steps) <= 20), name


@pytest.mark.parametrize("kind", ["workspace", "report"])
def test_every_panel_shows_what_is_really_logged(logged: list[Logged], kind: str) -> None:
    pytest.importorskip("wandb_workspaces")
    names = {name for one in logged for name in (*one.points(), "env_steps", "updates")}
    ends = {name for one in logged for name in summary(one.wandb)}
    spec = dashboard.spec(getattr(dashboard, kind)("team", "project"))
    found = list(panels(spec))
    assert len(found) == sum(len(section.charts) for section in dashboard.SECTIONS) > 20
    for panel in found:
        config = panel["config"]
        if panel["viewType"] == "Run History Line Plot":
            shown = config["metrics"] or [n for n in names if re.search(config["metricRegex"], n)]
            assert shown, config
            assert {*shown, config["xAxis"]} <= names, config
            assert config["xAxis"] == ("updates" if "pretrain/" in str(config) else "env_steps")
            assert config["smoothingType"] == "none"
            assert config["pointVisualizationMethod"] == "bucketing-gorilla"
        elif panel["viewType"] == "Bar Chart":
            assert config["metrics"]
            assert set(config["metrics"]) <= ends, config
        else:
            assert panel["viewType"] == "Scatter Plot"
            assert {config[axis].removeprefix("summary:") for axis in ("xAxis", "yAxis")} <= ends
    columns = re.findall(r'"summary:([^"]+)": true', json.dumps(spec))
    assert columns
    assert set(columns) <= ends


def panels(spec: Any) -> Iterator[dict[str, Any]]:
    """Every panel in a spec, wherever it stands."""
    if isinstance(spec, dict):
        if "viewType" in spec and "config" in spec:
            yield spec
        for value in spec.values():
            yield from panels(value)
    elif isinstance(spec, list):
        for value in spec:
            yield from panels(value)


def test_no_file_of_a_run_holds_the_key(logged: list[Logged], folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


@pytest.mark.parametrize("fails_at", ["__init__", "log", "close"])
def test_a_failing_wandb_never_stops_a_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    def down(self: WandbSink, *_: Any, **__: Any) -> None:
        raise ConnectionError("api.wandb.ai is down")

    config = settings(folder, tmp_path / "plain", online_steps=200)
    notes = Notes()
    with offline_wandb(tmp_path):
        monkeypatch.setattr(WandbSink, fails_at, down)
        out = run(replace(config, wandb=True, tensorboard=True, out=str(tmp_path / "with")), notes)
    warnings = [note for note in notes.notes if "WandbSink" in note]
    assert len(warnings) == 1
    assert "is dropped, the run goes on" in warnings[0]
    assert "api.wandb.ai is down" in warnings[0]
    plain = run(config)
    assert (out / "evaluations.jsonl").read_bytes() == (plain / "evaluations.jsonl").read_bytes()
    assert json.loads((out / "manifest.json").read_text())["status"] == "completed"
    assert list(out.glob("tensorboard/events*"))  # the other sink went on


def test_a_run_that_stops_at_the_switch_has_no_summary(folder: Path, tmp_path: Path) -> None:
    out = run(settings(folder, tmp_path / "x", online_steps=0, tensorboard=True))
    assert stability_rows(out, 20) == []


def test_returns_have_no_regret_and_a_diverged_seed_no_numbers(tmp_path: Path) -> None:
    lines = []
    for seed, values in ((0, [-100.0, -104.0, -90.0]), (1, [-100.0, None, -90.0])):
        for step, value in zip((0, 10, 20), values, strict=True):
            phase = "switch" if step == 0 else "online"
            row = {"phase": phase, "env_steps": step, "updates": step, "seed": seed, "return_mean": value}
            lines.append(json.dumps({**row, "return_std": 1.0, "episodes": 4, "score": None}))
    (tmp_path / "evaluations.jsonl").write_text("\n".join(lines) + "\n")
    good, bad = stability_rows(tmp_path, 7)
    assert good["regret"] is None
    assert good["dip_depth"] == 4.0
    assert good["recovery_steps"] == 0.0  # within 5 % of |J0|
    assert (good["env_steps"], good["updates"], good["seed"]) == (20, 7, 0)
    assert math.isfinite(good["null_dip"])
    assert all(bad[name] is None for name in (*FIELDS, "recovered", "budget"))


def test_the_summary_has_the_reports_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One way to measure: what the sinks log when a run ends is what its report says later."""
    lines: list[str] = []
    for step, score, std in ((0, 60.0, 9.0), (10, 20.0, 30.0), (20, 58.0, 1.0), (30, 61.0, 2.0)):
        row = {"phase": "online" if step else "switch", "env_steps": step, "updates": step, "seed": 0, "score": score}
        lines.append(json.dumps({**row, "return_mean": score, "return_std": std, "episodes": 8 if step else 16}))
    (tmp_path / "evaluations.jsonl").write_text("\n".join(lines) + "\n")
    measured = []

    def spy(curve: Curve) -> Measured:
        measured.append(measure(curve))
        return measured[-1]

    monkeypatch.setattr("o2o_smooth.training.tracking.summary.measure", spy)
    (summary,) = stability_rows(tmp_path, 7)
    (found,) = measured
    expected = {**vars(found.metrics), "null_dip": found.null_dip}
    assert {name: summary[name] for name in FIELDS} == {name: expected[name] for name in FIELDS}
    assert (summary["dip_depth"], summary["recovered"], summary["budget"]) == (40.0, 1.0, 30.0)
    assert summary["null_dip"] > 0.0
