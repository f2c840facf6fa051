"""The command line as a user meets it: what help teaches, and one clear line with exit code 2 for bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from o2o_smooth.agents import CQLConfig, IQLConfig, TD3BCConfig
from o2o_smooth.cli import main, parse_run
from o2o_smooth.errors import O2OError

ISSUED = (
    "--task D4RL/pointmaze/umaze-v2 --agent {agent} --schedule linear --ramp-steps 5000 --regime retain --seeds 0 1 2 "
    "--offline-updates 20000 --online-steps 20000 --num-envs 4 --utd 1 --device cpu --out runs/x"
)


@pytest.mark.parametrize(("agent", "config"), [("iql", IQLConfig), ("cql", CQLConfig), ("td3_bc", TD3BCConfig)])
def test_the_short_flags_mean_what_they_say(agent: str, config: type) -> None:
    parsed = parse_run(ISSUED.format(agent=agent).split())
    assert parsed.task == "D4RL/pointmaze/umaze-v2"
    assert isinstance(parsed.hyper, config)
    assert (parsed.smoothing.schedule, parsed.smoothing.ramp_steps, parsed.smoothing.regime) == (
        "linear",
        5000,
        "retain",
    )
    assert parsed.seeds == (0, 1, 2)
    assert (parsed.offline_updates, parsed.online_steps, parsed.num_envs, parsed.utd) == (20000, 20000, 4, 1.0)
    assert (parsed.device, parsed.out) == ("cpu", "runs/x")


def test_flags_go_before_the_file_and_the_file_before_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text(
        'task = "antmaze-umaze-v2"\nagent = "iql"\nonline-steps = 77\nbeta = 4\n'
        '[smoothing]\nschedule = "cosine"\nramp_steps = 9\n[hyper.sac]\ninitial_temperature = 0.5\n'
    )
    parsed = parse_run(["--config", str(file), "--ramp-steps", "11"])
    assert parsed.hyper.expectile == 0.9  # the preset of AntMaze
    assert parsed.hyper.beta == 4.0
    assert parsed.hyper.sac.initial_temperature == 0.5
    assert parsed.online_steps == 77
    assert (parsed.smoothing.schedule, parsed.smoothing.ramp_steps) == ("cosine", 11)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["run", "--task", "hoper-medium-v2"], "hopper-medium-v2"),
        (["run", "--agent", "dqn"], "there is no agent 'dqn'; available: iql, cql, td3_bc, sac, td3"),
        (["run", "--agent", "td3_bc", "--online", "sac"], "offers td3, same"),
        (["run", "--schedul", "linear"], "unknown option --schedul (did you mean --schedule?)"),
        (["run", "--expectile", "1.5"], "expectile must lie in (0, 1], got 1.5"),
        (["run", "--agent", "cql", "--expectile", "0.7"], "unknown option --expectile"),
        (["run", "--schedule", "lineer"], "there is no curve 'lineer'"),
        (["run", "--ramp-steps", "many"], "--ramp-steps"),
        (["run", "--online-steps", "1e3"], "'1e3' is no whole number"),
        (["run", "--members", "4"], "unknown option --members; o2o-smooth run --help"),
        (["run", "--seeds", "1", "1"], "seeds must be distinct"),
        (["run", "--task", "CartPole-v1", "--offline-updates", "0"], "Discrete(2)"),
        (["run", "--pretrained", "nowhere"], "nowhere holds no checkpoint"),
        (["run", "--config", "nowhere.toml"], "nowhere.toml does not exist"),
        (["run", "--config"], "--config needs a value"),
        (["run", "--task", "Pendulum-v1", "--dataset", "nowhere.npz"], "nowhere.npz"),
        (["run", "--device", "tpu"], "device 'tpu'"),
        (["run"], "nothing says what to run: name a --task"),
        (["rnu"], "did you mean run?"),
        (["compare", "nowhere"], "nowhere is not a run folder"),
        (["compare", "a", "--oot", "b"], "unknown option --oot"),
        (["data", "info", "a.npz", "--picture", "b.jpg"], "no dataset file a.npz"),
        (["compare", "--mix-provenance"], "compare needs at least one run folder"),
        (["run", "--task", "Pendulum-v1", "--dataset", "a.hdf5"], "no dataset file a.hdf5"),
        (["run", "--task", "Pendulum-v1", "--dataset", "a.csv"], "there is no dataset a.csv"),
        (["tasks", "please", "two"], "takes one name at most"),
        (["tasks", "please"], "unknown task 'please'"),
        (["data", "lst"], "did you mean list?"),
        (["data", "check", "none.hdf5"], "no dataset file none.hdf5"),
        (["data", "check", "../../x-v0"], "there is no dataset"),
        (["data", "info"], "takes one dataset"),
        (["data", "info", "a", "--color"], "unknown option --color"),
        (["data", "convert", "a.npz"], "needs --to"),
        (["demo", "--online-steps", "0"], "online_steps must be at least 1"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(
    arguments: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert not captured.out
    assert not list(tmp_path.iterdir())  # nothing half-written


def test_unknown_key_in_a_config_file_is_named_with_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "study.toml"
    file.write_text("[smoothing]\nramp_step = 5\n")
    assert main(["run", "--config", str(file)]) == 2
    message = capsys.readouterr().err
    assert "study.toml: there is no setting 'ramp_step'; did you mean ramp_steps" in message
    file.write_text("seeds = [0,\n")
    assert main(["run", "--config", str(file)]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_absent_dataset_without_a_network_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setattr("o2o_smooth.data.download._hindrance", lambda: "there is no network")
    (tmp_path / "minari").mkdir()
    assert main(["run", "--task", "hopper-medium-v2", "--out", "x"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "mujoco/hopper/medium-v0 is not installed" in message
    assert not (tmp_path / "x").exists()


def test_help_teaches_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["run", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    flags = "--task --agent --schedule --ramp-steps --regime --weight-in --utd --expectile --eval-episodes --wandb"
    for word in f"{flags} --tensorboard --pretrained performance_gate --config".split():
        assert word in text
    assert main([]) == 0
    assert "examples:" in capsys.readouterr().out


def test_tasks_lists_what_a_task_can_be(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["tasks"]) == 0
    text = capsys.readouterr().out
    assert "D4RL/pointmaze/umaze-dense-v2" in text
    assert "hopper-medium-v2" in text


@pytest.mark.slow
def test_run_from_the_shell_with_a_config_file_and_a_fork(tmp_path: Path) -> None:
    """As a user does it: another folder, a config file, then a fork whose defaults are the checkpoint's."""
    n = 400
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "data.npz",
        observations=rng.normal(size=(n, 3)),
        actions=rng.uniform(-2, 2, (n, 1)),
        rewards=rng.normal(size=n),
        terminals=np.zeros(n, bool),
        timeouts=np.arange(n) % 100 == 99,
    )
    (tmp_path / "c.toml").write_text(
        'task = "Pendulum-v1"\ndataset = "data.npz"\nseeds = [1]\noffline_updates = 5\nonline_steps = 20\n'
        "hidden_dims = [8]\nbatch_size = 8\n[evaluation]\neval_episodes = 1\nswitch_episodes = 1\n"
    )
    env = {**os.environ, "COLUMNS": "100"}

    def shell(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "o2o_smooth", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    first = shell("run", "--config", "c.toml", "--out", "a")
    assert first.returncode == 0, first.stderr
    assert "picture: a/stability.png" in first.stdout
    assert "J0" in first.stdout
    fork = shell(
        "run", "--pretrained", "a", "--schedule", "jump", "--online-steps", "20", "--eval-episodes", "1", "--out", "b"
    )
    assert fork.returncode == 0, fork.stderr
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["task"]["id"] == "Pendulum-v1"
    assert manifest["seeds"] == [1]
    assert manifest["hyper"]["hidden_dims"] == [8]
    assert manifest["config"]["batch_size"] == 8
    assert manifest["config"]["evaluation"]["switch_episodes"] == 1  # inherited
    wrong = shell("run", "--pretrained", "a", "--agent", "cql", "--out", "c")
    assert wrong.returncode == 2
    assert "holds an iql agent" in wrong.stderr
    both = shell("compare", "a", "b", "--out", "both.png")
    assert both.returncode == 0, both.stderr
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")
    assert "secret" not in json.dumps(manifest).lower()


def _learned_from(provenance: str, folder: Path) -> str:
    """A finished run on data of some provenance."""
    folder.mkdir()
    task = {"id": "maze", "ref_random": 0.0, "ref_expert": 100.0, "ref_source": "measured"}
    smoothing = {"schedule": "jump", "regime": "retain", "ramp_steps": 1, "ramp_unit": "env_steps"}
    manifest = {
        "task": task,
        "dataset": {"id": f"{provenance}/maze", "provenance": provenance, "return_mean": 44.0},
        "agent": "iql",
        "online": "sac",
        "config": {"smoothing": smoothing, "online_steps": 500},
    }
    rows = [
        {"phase": phase, "env_steps": t, "updates": 1, "seed": 0, "return_mean": 50.0 - t / 50, "score": 50.0 - t / 50}
        for phase, t in (("switch", 0), ("online", 250), ("online", 500))
    ]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "metrics.jsonl").touch()
    return str(folder)


def test_compare_refuses_two_provenances_unless_asked_and_reports_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    runs = [_learned_from(provenance, tmp_path / provenance) for provenance in ("minari", "generated")]
    picture = tmp_path / "both.png"
    assert main(["compare", *runs, "--out", str(picture)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(
        "error: scores learned from minari data (minari) and from generated data (generated)"
    )
    assert "--mix-provenance" in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out
    assert not picture.exists()
    assert main(["compare", "--mix-provenance", *runs, "--out", str(picture)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "MIXED PROVENANCE (minari, generated)" in text
    assert "minari/maze (minari), mean score 44.0 (minari)" in text
    assert picture.is_file()
    assert main(["compare", runs[0], "--out", str(picture)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Offline data: minari/maze (minari), mean score 44.0." in text
    assert "MIXED" not in text


def test_help_of_compare_says_why_provenances_are_kept_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--help"]) == 0
    text = capsys.readouterr().out
    for word in ("--mix-provenance", "d4rl", "minari", "generated", "own"):
        assert word in text


def test_errors_of_a_fork_are_o2o_errors(tmp_path: Path) -> None:
    with pytest.raises(O2OError):
        parse_run(["--pretrained", str(tmp_path)])
