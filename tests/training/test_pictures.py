"""From run folders to pictures and words: every score beside the data it was learned from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from o2o_smooth.agents import AGENTS
from o2o_smooth.cli import _summary
from o2o_smooth.errors import DataError
from o2o_smooth.stability.origin import score_block
from o2o_smooth.stability.report import read_curves
from o2o_smooth.training import pictures
from o2o_smooth.training.config import EvaluationConfig, RunConfig, SmoothingConfig
from o2o_smooth.training.pictures import draw_arms, draw_run
from o2o_smooth.training.run import run


def fake_run(folder: Path, provenance: str | None, dataset: str = "maze", seeds: int = 2, online: int = 4) -> Path:
    """A run folder as a run leaves it; offline data, where there are any, have a score of 45."""
    folder.mkdir(parents=True)
    task = {"id": "maze", "ref_random": 0.0, "ref_expert": 200.0, "ref_source": "measured"}
    data = None if provenance is None else {"id": dataset, "provenance": provenance, "return_mean": 90.0}
    smoothing = {"schedule": "linear", "ramp_steps": 500, "ramp_unit": "env_steps", "regime": "retain"}
    manifest = {
        "task": task,
        "dataset": data,
        "score": score_block(task, data),
        "config": {"smoothing": smoothing, "online_steps": 1000},
        "agent": "iql",
        "online": "sac",
        "seeds": list(range(seeds)),
    }
    points = [("offline", 0, 500, 20), ("switch", 0, 1000, 55)]
    points += [("online", 250 * (i + 1), 1000, 30 + 10 * i) for i in range(online)]
    rows = [
        {
            "phase": phase,
            "env_steps": steps,
            "updates": updates,
            "seed": seed,
            "return_mean": 2.0 * (score + 4 * seed),
            "return_std": 20.0,
            "episodes": 10,
            "score": float(score + 4 * seed),
            "provenance": provenance,
        }
        for phase, steps, updates, score in points
        for seed in range(seeds)
    ]
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    weights = [{"phase": "online", "env_steps": s, "smoothing/actor_weight": min(1, s / 500)} for s in (0, 500, 1000)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in weights), encoding="utf-8")
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The subtitles of the pictures that are drawn in a test."""
    subtitles: list[str] = []

    def spy(name: str) -> None:
        original = getattr(pictures, name)

        def draw(*args: Any, **settings: Any) -> Path:
            subtitles.append(settings["subtitle"])
            path: Path = original(*args, **settings)
            return path

        monkeypatch.setattr(pictures, name, draw)

    spy("plot_run")
    spy("plot_switch")
    return subtitles


def test_a_runs_picture_names_its_data_and_their_provenance(tmp_path: Path, drawn: list[str]) -> None:
    draw_run(fake_run(tmp_path / "a", "generated", "o2o-smooth/maze-v0"))
    draw_run(fake_run(tmp_path / "b", None, seeds=1))
    draw_run(fake_run(tmp_path / "c", "own", "my.npz", online=0))  # pretraining alone
    assert drawn == [
        "2 seeds; data: o2o-smooth/maze-v0 (generated)",
        "1 seed; no offline data",
        "2 seeds; data: my.npz (own)",
    ]


def test_a_comparison_names_the_data_of_every_arm(tmp_path: Path, drawn: list[str]) -> None:
    same = {name: fake_run(tmp_path / name, "own", "x.npz") for name in ("jump", "linear")}
    assert list(draw_arms(same, tmp_path / "a.png", title="maze")) == ["jump", "linear"]
    other = {
        **same,
        "gate": fake_run(tmp_path / "gate", "own", "y.npz", seeds=4),
        "sac": fake_run(tmp_path / "s", None),
    }
    draw_arms(other, tmp_path / "b.png", title="maze")
    assert drawn == [
        "2 seeds; data: x.npz (own)",
        "2 to 4 seeds; data: x.npz (own) for jump, linear; y.npz (own) for gate; none for sac",
    ]


def test_a_comparison_across_provenances_is_drawn_only_when_asked(tmp_path: Path) -> None:
    arms = {"a": fake_run(tmp_path / "a", "minari"), "b": fake_run(tmp_path / "b", "d4rl")}
    with pytest.raises(DataError, match=r"from minari data \(a\) and from d4rl data \(b\)"):
        draw_arms(arms, tmp_path / "new" / "a.png", title="maze")
    assert not (tmp_path / "new").exists()
    draw_arms(arms, tmp_path / "new" / "a.png", title="maze", mix_provenance=True)
    assert (tmp_path / "new" / "a.png").is_file()


def test_the_summary_of_a_run_reports_the_data_beside_the_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _summary({"linear": fake_run(tmp_path / "a", "generated")})
    assert "Offline data: maze (generated), mean score 45.0." in capsys.readouterr().out
    _summary({"linear": fake_run(tmp_path / "b", "generated", online=0)})
    assert capsys.readouterr().out == "score at the switch 57.0 ± 2.8 (2 seeds); offline data 45.0 (generated)\n"


# Whole runs


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining of a second, on made-up Pendulum data whose episodes return -100 and -300."""
    folder = tmp_path_factory.mktemp("base")
    rng = np.random.default_rng(0)
    states = rng.normal(size=(2, 201, 3))
    np.savez(
        folder / "pendulum.npz",
        observations=states[:, :-1].reshape(400, 3),
        actions=rng.uniform(-2, 2, (400, 1)),
        rewards=np.repeat([-0.5, -1.5], 200),
        next_observations=states[:, 1:].reshape(400, 3),
        terminated=np.zeros(400, bool),
        truncated=np.arange(400) % 200 == 199,
    )
    return run(config(folder / "base", dataset=str(folder / "pendulum.npz"), offline_updates=4, online_steps=0))


def config(out: Path, agent: str = "iql", **settings: Any) -> RunConfig[Any]:
    return RunConfig(
        hyper=AGENTS[agent].config_class(hidden_dims=(8,)),
        smoothing=SmoothingConfig("jump", regime="discard"),
        evaluation=EvaluationConfig(eval_episodes=1, switch_episodes=1, eval_every=50),
        task="Pendulum-v1",
        agent=agent,
        batch_size=8,
        out=str(out),
        **settings,
    )


def test_manifest_and_every_row_tell_where_the_score_comes_from(base: Path) -> None:
    manifest = json.loads((base / "manifest.json").read_text())
    assert manifest["score"] == {
        "provenance": "own",
        "references": {"random": None, "expert": None, "source": None},
        "behaviour_return": -200.0,
        "behaviour_score": None,
    }
    rows = [json.loads(line) for line in (base / "evaluations.jsonl").read_text().splitlines()]
    assert {row["phase"] for row in rows} == {"offline", "switch"}
    assert {row["provenance"] for row in rows} == {"own"}


def test_a_fork_that_reads_no_offline_data_keeps_the_provenance_of_its_pretraining(base: Path, tmp_path: Path) -> None:
    fork = run(config(tmp_path / "fork", pretrained=str(base), online_steps=50))
    (curve,) = read_curves(fork)
    assert (curve.provenance, curve.behaviour) == ("own", -200.0)
    assert curve.dataset is not None
    assert curve.dataset.endswith("pendulum.npz")
    rows = [json.loads(line) for line in (fork / "evaluations.jsonl").read_text().splitlines()]
    assert {(row["phase"], row["provenance"]) for row in rows} == {("switch", "own"), ("online", "own")}


def test_an_agent_that_learned_online_alone_has_no_provenance(tmp_path: Path) -> None:
    out = run(config(tmp_path / "sac", "sac", offline_updates=0, online_steps=50))
    (curve,) = read_curves(out)
    assert (curve.provenance, curve.dataset, curve.behaviour) == (None, None, None)
    assert json.loads((out / "manifest.json").read_text())["score"]["provenance"] is None


def test_progress_shows_the_datas_return_beside_the_policys(base: Path, tmp_path: Path) -> None:
    remarks: list[str] = []

    class Listener:
        def update(self, name: str, done: int, total: int, remark: str = "") -> None:
            remarks.append(remark)

        def note(self, text: str) -> None:
            pass

    run(config(tmp_path / "alone", pretrained=str(base), online_steps=50), Listener())
    assert remarks[-1].startswith("return -")
    assert remarks[-1].endswith(" (data -200.0)")
    run(config(tmp_path / "arm", pretrained=str(base), online_steps=50), Listener(), name="an arm")
    assert "data" not in remarks[-1]  # beside an arm's name there is no room for it
