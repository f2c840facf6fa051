"""`o2o-smooth fork`, `probe` and `advise` as a user meets them, on a pretraining of a second."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from o2o_smooth.cli import main
from o2o_smooth.stability.curves import read_curves

SMALL = [
    *("--task", "Pendulum-v1", "--hidden-dims", "8", "8", "--batch-size", "16", "--offline-updates", "10"),
    *("--online-steps", "0", "--seeds", "3", "5", "--eval-episodes", "2", "--switch-episodes", "4", "--eval-envs", "2"),
]
SHORT = ["--online-steps", "80", "--eval-every", "40", "--population", "stack"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped at the switch."""
    rng, n = np.random.default_rng(0), 1000
    folder = tmp_path_factory.mktemp("base")
    np.savez(
        folder / "pendulum.npz",
        observations=rng.normal(size=(n, 3)).astype(np.float32),
        actions=rng.uniform(-2, 2, (n, 1)).astype(np.float32),
        rewards=rng.normal(size=n).astype(np.float32),
        next_observations=rng.normal(size=(n, 3)).astype(np.float32),
        terminated=np.zeros(n, bool),
        truncated=np.arange(n) % 200 == 199,
    )
    out = folder / "run"
    assert main(["run", *SMALL, "--dataset", str(folder / "pendulum.npz"), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def study(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fork of two arms."""
    out = tmp_path_factory.mktemp("fork") / "study"
    arms = ["--arm", "jump", "--arm=name=slow ramp,linear:40"]
    assert main(["fork", str(base), *arms, *SHORT, "--out", str(out)]) == 0
    return out


def test_a_fork_leaves_a_run_an_arm_a_table_and_a_picture(study: Path, base: Path) -> None:
    content = json.loads((study / "fork.json").read_text())
    assert content["checkpoint"] == str(base)
    assert content["arms"] == {"jump": "jump", "slow ramp": "slow-ramp"}
    assert (study / "stability.png").read_bytes().startswith(b"\x89PNG")
    page = (study / "RESULTS.md").read_text()
    assert "slow ramp" in page
    assert "Minus 'jump', seed by seed" in page
    for name, folder in content["arms"].items():
        manifest = json.loads((study / folder / "manifest.json").read_text())
        assert (manifest["arm"], manifest["status"]) == (name, "completed")
        assert manifest["advice"]["regime"] in ("policy better", "data better", "comparable")
        assert isinstance(manifest["advice"]["followed"], bool)
        assert [curve.arm for curve in read_curves(study / folder)] == [name, name]


def test_a_later_fork_adds_its_arms_and_the_controls(
    study: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.read_bytes() for p in study.rglob("evaluations.jsonl")}
    arms = ["--arm", "cosine:40,regime=mixed", "--controls"]
    assert main(["fork", str(base), *arms, *SHORT, "--out", str(study)]) == 0
    captured = capsys.readouterr()
    shown = " ".join(captured.out.split())
    names = [
        *("jump", "slow ramp", "cosine:40, regime=mixed", "stay", "jump, mixed batch", "jump to floor 0.2"),
        "cosine:40, regime=mixed (A/A)",
    ]
    content = json.loads((study / "fork.json").read_text())
    assert list(content["arms"]) == names
    assert content["controls"] == names[3:]
    assert len(content["commands"]) == 2
    page = (study / "RESULTS.md").read_text()
    assert all(name in page for name in names)
    assert "a difference like that between the two is chance" in shown
    assert "at the switch: " in captured.err
    assert {p: p.read_bytes() for p in before} == before  # what was there is as it was
    streams = {
        name: json.loads((study / folder / "manifest.json").read_text())["config"]["online_stream"]
        for name, folder in content["arms"].items()
    }
    assert [name for name, stream in streams.items() if stream] == [names[-1]]


def test_controls_that_are_there_are_not_run_again(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "x"), "--controls"]
    assert main(["fork", str(base), "--arm", "linear:20", *SHORT, *out]) == 0
    before = (tmp_path / "x" / "stay" / "evaluations.jsonl").stat().st_mtime_ns
    capsys.readouterr()
    assert main(["fork", str(base), "--arm", "linear:30", *SHORT, *out]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "controls that are there already: stay, jump, mixed batch, jump to floor 0.2" in told
    assert (tmp_path / "x" / "stay" / "evaluations.jsonl").stat().st_mtime_ns == before
    names = list(json.loads((tmp_path / "x" / "fork.json").read_text())["arms"])
    assert names[5:] == ["linear:30", "linear:30 (A/A)"]
    assert len(names) == 7


def test_compare_calls_arms_by_their_names(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(study / name) for name in ("jump", "slow-ramp")]
    assert main(["compare", *runs, "--out", str(tmp_path / "x.png")]) == 0
    assert "slow ramp" in capsys.readouterr().out


def test_a_ramp_that_ends_with_the_budget_is_warned_about(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = ["--arm", "linear:60", "--arm", "jump", "--arm", "name=late,jump,warm-up-steps=70"]
    arms += ["--arm", "name=one,jump,critic-schedule=linear:50", "--arm", "name=warm,linear:20,warm-up-steps=30"]
    assert main(["fork", str(base), *arms, *SHORT, "--out", str(tmp_path / "x")]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "warning: 'late' ends its warm-up at 70 of 80 steps" in told
    assert "warning: 'one' ends its ramp at 50 of 80 steps" in told
    assert "warning: 'warm' ends its ramp at 50 of 80 steps" in told
    assert "warning: 'linear:60' ends its ramp at 60 of 80 steps" in told
    assert "--online-steps 120" in told
    assert "'jump' ends" not in told


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--arm", "jump"], "fork needs a checkpoint first"),
        (["nowhere", "--arm", "jump"], "nowhere holds no checkpoint"),
        (["BASE"], "a fork needs at least one arm"),
        (["BASE", "--arm"], "--arm needs a value"),
        (["BASE", "--arm", "lineer:9"], "--arm 'lineer:9': schedule 'lineer:9': there is no curve 'lineer'"),
        (["BASE", "--arm", "jump", "--arm", "jump"], "two arms are called 'jump'"),
        (["BASE", "--arm", "jump", "--pretrained", "x"], "leave --pretrained out"),
        (["BASE", "--arm", "jump", "--online-steps", "0"], "leaves nothing to compare"),
        (["BASE", "--arm", "jump", "--population", "all"], "choose auto, stack or processes"),
        (["BASE", "--arm", "jump", "--controlls"], "unknown option --controlls"),
        (["BASE", "--arm", "jump", "--out", "STUDY"], "has the arm 'jump' already"),
        (["BASE", "--arm", "stay", "--out", "BASE"], "is not empty and holds no finished fork"),
        (["BASE", "--arm", "jump", "--out", "BASE/manifest.json"], "manifest.json is a file"),
        (["STUDY/jump/checkpoints/final", "--arm", "jump"], "is how a run ended, not its switch"),
        (["STUDY/jump", "--arm", "exponential:9", "--out", "STUDY"], "holds a fork of"),
        (["BASE", "--arm", "exponential:9", "--out", "STUDY", "--online-steps", "9"], "with online_steps = 80, these"),
    ],
)
def test_bad_input_to_a_fork_is_one_line(
    arguments: list[str], text: str, base: Path, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    files = sorted(study.rglob("*"))
    given = [word.replace("BASE", str(base)).replace("STUDY", str(study)) for word in arguments]
    assert main(["fork", *given]) == 2
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
    assert sorted(study.rglob("*")) == files


@pytest.mark.parametrize("command", ["fork", "probe", "advise"])
def test_help_teaches_by_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert main([command, "--help"]) == 0
    except SystemExit as stop:
        assert stop.code == 0
    shown = capsys.readouterr().out
    assert "examples:" in shown
    assert f"o2o-smooth {command} runs/" in shown


# Probe


def test_a_probe_says_whether_there_is_a_valley(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--points", "3", "--episodes", "3"]
    assert main(["probe", str(study / "jump"), *options]) == 0
    shown = capsys.readouterr().out
    assert "here is" in shown
    assert "valley" in shown
    content = json.loads((study / "jump" / "probe" / "probe.json").read_text())
    assert content["shares"] == [0.0, 0.5, 1.0]
    assert content["seeds"] == [3, 5]
    assert np.array(content["returns"]).shape == (3, 2, 3)
    assert np.mean(content["returns"][1]) == pytest.approx(np.mean(content["scores"][1]))
    assert (study / "jump" / "probe" / "probe.png").read_bytes().startswith(b"\x89PNG")
    assert main(["probe", str(study / "jump"), *options]) == 2
    assert "holds a probe already" in capsys.readouterr().err
    assert main(["probe", str(study / "jump"), *options, "--overwrite", "--seeds", "5"]) == 0
    again = json.loads((study / "jump" / "probe" / "probe.json").read_text())
    assert np.array_equal(np.array(again["returns"])[:, 0], np.array(content["returns"])[:, 1])  # the seed alone


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "probe takes a run folder or two checkpoints"),
        (["a", "b", "c"], "got 3"),
        (["nowhere"], "nowhere is neither a run folder nor a checkpoint folder"),
        (["BASE"], "has no final checkpoint: it stopped at the switch"),
        (["STUDY/jump/checkpoints/final", "--out", "x"], "is one checkpoint; give a second one"),
        (["STUDY/jump", "--points", "2", "--out", "x"], "points must be at least 3"),
        (["STUDY/jump", "--episodes", "1", "--out", "x"], "episodes must be at least 2"),
        (["STUDY/jump", "--seeds", "4", "--out", "x"], "seed 4 is not in both checkpoints; --seeds can be of 3 5"),
    ],
)
def test_bad_input_to_a_probe_is_one_line(
    arguments: list[str], text: str, base: Path, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    given = [word.replace("BASE", str(base)).replace("STUDY", str(study)) for word in arguments]
    assert main(["probe", *given]) == 2
    assert text in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# Advise


def test_advice_is_written_down_with_what_became_of_it(
    base: Path, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["advise", str(base), str(study / "jump")]) == 0
    shown = capsys.readouterr().out
    assert "rule of thumb: --schedule" in shown
    assert "next: o2o-smooth fork" in shown
    assert "the run went on" in shown
    before, after = (json.loads((run / "advice.json").read_text()) for run in (base, study / "jump"))
    manifest = json.loads((study / "jump" / "manifest.json").read_text())["advice"]
    assert manifest == {**before, "followed": manifest["followed"]}
    assert {name: after[name] for name in before} == before
    assert after["did"] == "--schedule jump --regime retain"
    assert set(after["outcome"]) == {"dip_depth", "dip_area", "final", "auc"}
    (curves,) = ({curve.arm: curve for curve in read_curves(study / "jump")},)
    assert curves["jump"].unit == "return"


def test_bad_input_to_advise_is_one_line(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, text in (
        (["nowhere"], "nowhere holds no checkpoint"),
        (["--all", "x"], "unknown option --all"),
        ([str(study / "jump" / "checkpoints" / "final")], "is how a run ended, not its switch"),
    ):
        assert main(["advise", *arguments]) == 2
        assert text in capsys.readouterr().err
