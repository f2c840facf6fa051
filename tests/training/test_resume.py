"""A run that was stopped anywhere and resumed is the run that was left alone, to the last bit."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from o2o_smooth.agents import AGENTS, CQLConfig
from o2o_smooth.benchmarks import fork as forks
from o2o_smooth.envs import state as env_state
from o2o_smooth.errors import CheckpointError, ConfigError
from o2o_smooth.training import continued
from o2o_smooth.training.config import (
    AnchorConfig,
    AveragingConfig,
    CheckpointConfig,
    EvaluationConfig,
    HygieneConfig,
    SmoothingConfig,
)
from o2o_smooth.training.keeping import FOLDER, Keeper, read_checkpoint, serials
from o2o_smooth.training.population import run_population
from o2o_smooth.training.request import differing, read_request, rebuild
from o2o_smooth.training.resume import can_resume, found_run, resume
from o2o_smooth.training.run import run
from o2o_smooth.training.stopping import Interrupted
from tests.training.stopped_runs import StopAt, assert_same, dataset, finish, small, stop_at

__all__ = ["stop_at"]
PENDULUM = "Pendulum-v1"

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gate, classic control": (PENDULUM, "iql", {"smoothing": SmoothingConfig("performance_gate", ramp_steps=60)}),
    "a corridor, target mode": (
        "corridor-mixed-v0",
        "td3_bc",
        {"smoothing": SmoothingConfig("linear", ramp_steps=50, mode="target"), "overlap": "on", "buffer_size": 50},
    ),
    "signals, discarded data": (
        PENDULUM,
        "iql",
        {"smoothing": SmoothingConfig("kl_gate", ramp_steps=60, regime="discard"), "utd": 2.0},
    ),
    "calibrated critics": (
        PENDULUM,
        "cql",
        {
            "hyper": CQLConfig(hidden_dims=(8, 8), cql_actions=2, calibrated=True),
            "smoothing": SmoothingConfig("linear", ramp_steps=30, ramp_unit="updates", regime="mixed"),
        },
    ),
    "hygiene, effective weights": (
        PENDULUM,
        "iql",
        {
            "hygiene": HygieneConfig(
                warm_up_steps=10,
                rewarm_updates=20,
                critic_first_updates=5,
                reset_optimizer="critic",
                switch_temperature="interpolate",
            ),
            "anchors": AnchorConfig(anchor_kl=0.1, anchor_ewc=0.1, anchor_ewc_rows=32, anchor_l2=0.01, anchor_bc=0.1),
            "averaging": AveragingConfig(sfa_period=0.3, ema_decay=0.9),
            "smoothing": SmoothingConfig("linear", ramp_steps=60, weight_in="effective"),
        },
    ),
    "no pretraining": (
        PENDULUM,
        "sac",
        {"offline_updates": 0, "random_steps": 20, "smoothing": SmoothingConfig("jump"), "online_stream": 3},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_stopped_anywhere_and_resumed_is_the_same_run(case: str, tmp_path: Path, stop_at: type[StopAt]) -> None:
    task, agent, changes = CASES[case]
    data = None if changes.get("offline_updates") == 0 else dataset(tmp_path, task)
    changes.setdefault("evaluation", SHORT)
    left_alone = run(small(tmp_path / "left-alone", task, data, agent, **changes))
    looks = StopAt.looks
    rng = np.random.default_rng(len(case))
    for k, stop in enumerate(rng.integers(1, looks, 2)):
        out = tmp_path / f"stopped-{k}"
        stop_at.limit = int(stop)
        with pytest.raises(Interrupted):
            run(small(out, task, data, agent, **changes))
        assert json.loads((out / "manifest.json").read_text())["status"] == "interrupted"
        stop_at.limit = looks // 3  # and again, until it is through
        assert finish(out) <= 8
        assert_same(out, left_alone)


SHORT = EvaluationConfig(eval_episodes=1, switch_episodes=1, eval_envs=1, eval_every=40, offline_eval_every=10)


@pytest.mark.slow
def test_environments_in_processes_go_on_in_their_episodes(tmp_path: Path, stop_at: type[StopAt]) -> None:
    """And one way of stepping takes over from the other."""
    task = "D4RL/pointmaze/umaze-dense-v2"
    changes: dict[str, Any] = {"seeds": (3,), "evaluation": SHORT, "online_steps": 60}
    data = dataset(tmp_path, task)
    left_alone = run(small(tmp_path / "left-alone", task, data, **changes))
    stop_at.limit = StopAt.looks - 150
    out = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        run(small(out, task, data, vectorizer="async", overlap="on", **changes))
    stop_at.limit = 10**9
    resume(out)
    assert_same(out, left_alone)


@pytest.mark.slow
def test_a_population_goes_on_given_any_of_its_folders(tmp_path: Path, stop_at: type[StopAt]) -> None:
    data = dataset(tmp_path, PENDULUM)

    def arms(folder: Path) -> list[Any]:
        gate = SmoothingConfig("performance_gate", ramp_steps=50)
        return [
            small(folder / "a", PENDULUM, data, evaluation=SHORT),
            small(folder / "b", PENDULUM, data, evaluation=SHORT, smoothing=gate),
            small(folder / "c", PENDULUM, data, evaluation=SHORT, smoothing=SmoothingConfig("jump")),
        ]

    run_population(arms(tmp_path / "left-alone"), names=["a", "b", "c"])
    looks = StopAt.looks
    for k, stop in enumerate((looks // 6, 2 * looks // 3)):  # members are spread at the switch
        stop_at.limit = stop
        folder = tmp_path / f"stopped-{k}"
        with pytest.raises(Interrupted):
            run_population(arms(folder), names=["a", "b", "c"])
        folder = folder.rename(tmp_path / f"moved-{k}")
        assert all(can_resume(folder / name) for name in "abc")
        stop_at.limit = 10**9
        resume(folder / "bc"[k])
        for name in "abc":
            assert_same(folder / name, tmp_path / "left-alone" / name)
            assert not can_resume(folder / name)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped while it fine-tuned, with several checkpoints, and the same run left alone."""
    folder = tmp_path_factory.mktemp("both")
    data = dataset(folder, PENDULUM)
    often = CheckpointConfig(checkpoint_every=0.0, keep_checkpoints=3)
    changes: dict[str, Any] = {"evaluation": SHORT, "checkpoints": often, "seeds": (3,), "online_steps": 60}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(continued, "StopRequest", StopAt)
        patch.setattr(StopAt, "limit", 10**9)
        run(small(folder / "left-alone", PENDULUM, data, **changes))
        patch.setattr(StopAt, "limit", StopAt.looks - 210)
        with pytest.raises(Interrupted):
            run(small(folder / "stopped", PENDULUM, data, **changes))
    return folder


@pytest.fixture
def stopped(both: Path, tmp_path: Path) -> Path:
    """The stopped run, in a copy."""
    shutil.copytree(both, tmp_path / "both")
    return tmp_path / "both" / "stopped"


class Notes:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def update(self, name: str, done: int, total: int, remark: str = "") -> None:
        pass

    def note(self, text: str) -> None:
        self.texts.append(text)


@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "rows", "logs"])
def test_a_broken_checkpoint_gives_way_to_the_one_before_it(harm: str, stopped: Path) -> None:
    folder = stopped / FOLDER
    *_, before, newest = serials(folder)
    file = folder / f"{newest:06d}" / ("agent.safetensors" if harm in ("flip", "cut") else "state.json")
    if harm == "flip":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
    elif harm == "cut":
        file.write_bytes(file.read_bytes()[:-7])
    elif harm == "remove":
        file.unlink()
    elif harm == "rows":
        segments = read_checkpoint(folder / f"{newest:06d}").rows["segments"]
        (folder / "rows" / segments[-1]["file"]).unlink()
    else:  # what a power cut may do to files that nobody has brought to the disk
        end = read_checkpoint(folder / f"{before:06d}").state["outputs"][0]["positions"]["metrics"]
        with (stopped / "metrics.jsonl").open("rb+") as log:
            log.truncate(end)
    notes = Notes()
    resume(stopped, notes)
    warnings = [text for text in notes.texts if f"{newest:06d} is not used, the one before it is used" in text]
    unharmed = harm == "logs" and not warnings  # both checkpoints at one line of the log
    assert len(warnings) == 1 or unharmed
    assert_same(stopped, stopped.with_name("left-alone"))


def test_only_the_newest_checkpoints_and_their_rows_are_kept(stopped: Path) -> None:
    folder = stopped / FOLDER
    kept = serials(folder)
    assert len(kept) == 3
    assert kept == list(range(kept[0], kept[0] + 3))
    needed = {s["file"] for n in kept for s in read_checkpoint(folder / f"{n:06d}").rows["segments"]}
    assert {path.name for path in (folder / "rows").iterdir()} == needed


def test_all_checkpoints_broken_is_said_and_nothing_is_lost(stopped: Path) -> None:
    rows = (stopped / "evaluations.jsonl").read_bytes()
    for serial in serials(stopped / FOLDER):
        (stopped / FOLDER / f"{serial:06d}" / "checksums.json").unlink()
    with pytest.raises(CheckpointError, match="--overwrite"):
        resume(stopped)
    assert (stopped / "evaluations.jsonl").read_bytes() == rows


def test_another_version_of_the_format_is_refused_by_name(stopped: Path) -> None:
    file = stopped / FOLDER / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        resume(stopped)
    assert not can_resume(stopped)


def test_other_data_are_refused(stopped: Path) -> None:
    file = stopped / FOLDER / "run.json"
    content = json.loads(file.read_text())
    data = Path(content["runs"][0]["config"]["dataset"])
    with np.load(data) as archive:
        arrays: dict[str, Any] = dict(archive)
    arrays["rewards"] = arrays["rewards"] + 1
    other = stopped / "other.npz"
    np.savez(other, **arrays)
    content["runs"][0]["config"]["dataset"] = str(other)
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="other contents"):
        resume(stopped)


def test_two_processes_never_work_on_one_run(stopped: Path) -> None:
    other = Keeper(stopped / FOLDER, CheckpointConfig())
    other.lock()
    with pytest.raises(ConfigError, match="being worked on"):
        resume(stopped)
    other.unlock()
    resume(stopped)


def test_a_run_that_is_being_worked_on_is_not_replaced(stopped: Path) -> None:
    config = rebuild(json.loads((stopped / FOLDER / "run.json").read_text())["runs"][0]["config"])
    again = dataclasses.replace(config, out=str(stopped), overwrite=True)
    at_work = Keeper(stopped / FOLDER, CheckpointConfig())
    at_work.lock()
    before = sorted(stopped.rglob("*"))
    with pytest.raises(ConfigError, match=r"is being worked on \(process \d+"):
        run(again)
    assert sorted(stopped.rglob("*")) == before
    beside = stopped.parent / "beside"
    (beside / FOLDER).mkdir(parents=True)
    (beside / FOLDER / "run.json").write_text(json.dumps({"format": 1, "home": "../stopped"}))
    (beside / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match="is being worked on"):
        run(dataclasses.replace(again, out=str(beside)))
    at_work.unlock()
    run(dataclasses.replace(again, online_steps=0))


@pytest.mark.parametrize("changes", [{"checkpoints": CheckpointConfig(auto_resume=True)}, {"overwrite": True}])
def test_a_kill_while_a_tracker_is_opened_leaves_a_run_that_can_begin(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(tmp_path / "run", PENDULUM, None, "sac", offline_updates=0, smoothing=SmoothingConfig("jump"))
    config = dataclasses.replace(config, seeds=(3,), online_steps=10, evaluation=SHORT, **changes)

    def opened(out: Path, **options: Any) -> Any:
        (out / "wandb").mkdir(parents=True)
        (out / "wandb.json").write_text("{}")
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("o2o_smooth.training.output.open_sinks", opened)
        with pytest.raises(SystemExit):
            run(config)
    assert not (tmp_path / "run" / "manifest.json").exists()
    run(config)
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "completed"


def test_an_interrupted_fork_names_the_commands_to_go_on(stopped: Path) -> None:
    config = rebuild(json.loads((stopped / FOLDER / "run.json").read_text())["runs"][0]["config"])
    places = {"a": stopped, "b": stopped.parent / "left-alone", "c": stopped.parent / "absent"}
    notes = Notes()
    forks._say_how({name: dataclasses.replace(config, out=str(out)) for name, out in places.items()}, notes)
    assert notes.texts == [
        f"to go on with the arms: o2o-smooth resume {places['a']}",
        f"and when they are complete: o2o-smooth compare {places['a']} {places['b']}",
        "not begun: c",
    ]


def test_a_new_run_there_is_told_to_resume(stopped: Path) -> None:
    (config,) = read_request(stopped).configs
    with pytest.raises(ConfigError, match=f"o2o-smooth resume {stopped}"):
        run(dataclasses.replace(config, out=str(stopped)))


def test_auto_resume_starts_goes_on_or_does_nothing(stopped: Path) -> None:
    (config,) = read_request(stopped).configs
    asked = dataclasses.replace(config, out=str(stopped), checkpoints=CheckpointConfig(auto_resume=True))
    assert found_run(asked, stopped.with_name("nothing")) is None
    with pytest.raises(ConfigError, match=r"other settings \(utd\)"):
        run(dataclasses.replace(asked, utd=0.25))
    assert run(asked) == stopped
    assert_same(stopped, stopped.with_name("left-alone"))
    times = [path.stat().st_mtime_ns for path in sorted(stopped.rglob("*"))]
    assert run(asked) == stopped
    assert times == [path.stat().st_mtime_ns for path in sorted(stopped.rglob("*"))]
    with pytest.raises(ConfigError, match=r"complete run of other settings|other settings \(batch_size\)"):
        run(dataclasses.replace(asked, batch_size=4))


def test_a_run_without_a_checkpoint_starts_anew(stopped: Path) -> None:
    for serial in serials(stopped / FOLDER):
        shutil.rmtree(stopped / FOLDER / f"{serial:06d}")
    (stopped / ".manifest.json.77.tmp").write_text("{")  # what a kill leaves
    (stopped / "online" / ".o2o-smooth-x").mkdir(parents=True)
    notes = Notes()
    resume(stopped, notes)
    assert any("starts anew" in text for text in notes.texts)
    (stopped / "online").rmdir()  # and nothing in it
    assert_same(stopped, stopped.with_name("left-alone"))
    resume(stopped, notes)
    assert "is complete" in notes.texts[-1]


def test_a_kill_while_a_complete_run_cleans_up_leaves_nothing_for_good(stopped: Path) -> None:
    kept = stopped.with_name("kept")
    shutil.copytree(stopped / FOLDER, kept)
    resume(stopped)
    shutil.copytree(kept, stopped / FOLDER)  # before it began
    resume(stopped)
    kept.rename(stopped / f".{FOLDER}.gone.tmp")  # while files went
    resume(stopped)
    assert_same(stopped, stopped.with_name("left-alone"))


def test_where_nothing_was_begun_there_is_nothing_to_resume(tmp_path: Path) -> None:
    assert not can_resume(tmp_path)
    with pytest.raises(CheckpointError, match="nothing to resume"):
        resume(tmp_path)


def test_environments_without_a_state_begin_new_episodes(
    tmp_path: Path, stop_at: type[StopAt], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(env_state, "why_not", lambda envs: "it is a secret")
    data = dataset(tmp_path, PENDULUM)
    changes: dict[str, Any] = {"evaluation": SHORT, "seeds": (3,), "online_steps": 60, "save_online": True}
    stop_at.limit = 10**9
    run(small(tmp_path / "left-alone", PENDULUM, data, **changes))
    stop_at.limit = StopAt.looks - 210
    for name in ("a", "b"):
        with pytest.raises(Interrupted):
            run(small(tmp_path / name, PENDULUM, data, **changes))
    stop_at.limit = 10**9
    notes = Notes()
    resume(tmp_path / "a", notes)
    resume(tmp_path / "b")
    assert any("begin new episodes, the 2 that were running are cut short" in text for text in notes.texts)
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["resumed"][0]["episodes_cut"] == 2
    assert manifest["resumed_with_new_episodes"] == {"reason": "it is a secret", "times": 1}
    # Another run than the one that was left alone, but the same one every time.
    first, second = ((tmp_path / name / "evaluations.jsonl").read_bytes() for name in ("a", "b"))
    assert first == second != (tmp_path / "left-alone" / "evaluations.jsonl").read_bytes()


def test_settings_come_back_exactly(tmp_path: Path) -> None:
    for agent in AGENTS:
        hyper = AGENTS[agent].config_class.preset("mujoco")
        config = small(
            tmp_path, PENDULUM, None, agent, hyper=hyper, smoothing=SmoothingConfig("floor:0.2+jump", ramp_steps=7)
        )
        again = rebuild(json.loads(json.dumps(config.to_dict())))
        assert again == config
        assert differing(config, again.to_dict()) == []
    with pytest.raises(CheckpointError, match="does not know: surprise"):
        rebuild({**config.to_dict(), "surprise": 1})


@pytest.mark.parametrize("harm", ["deep", "large"])
def test_environments_whose_state_could_not_be_read_again_are_left_out(
    harm: str, tmp_path: Path, stop_at: type[StopAt], monkeypatch: pytest.MonkeyPatch
) -> None:
    capture = env_state.capture

    def burdened(envs: Any) -> Any:
        states, stop_at.limit = capture(envs), 0  # whoever looks next is to stop
        value: Any = "x" * 300_000
        for _ in range(70 if harm == "deep" else 0):
            value = [value[:1] if isinstance(value, str) else value]
        return [{**state, "burden": value} for state in states]

    monkeypatch.setattr(env_state, "capture", burdened)
    monkeypatch.setattr("o2o_smooth.training.keeping.LARGEST_STATE", 300_000)
    with pytest.raises(Interrupted):
        run(small(tmp_path / "run", PENDULUM, None, "sac", offline_updates=0, smoothing=SmoothingConfig("jump")))
    monkeypatch.undo()
    notes = Notes()
    resume(tmp_path / "run", notes)
    assert any("begin new episodes" in text for text in notes.texts)
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "completed"


def test_what_making_a_checkpoint_takes_counts_whoever_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = [100.0]
    monkeypatch.setattr("o2o_smooth.training.keeping.time.monotonic", lambda: moment[0])
    keeper = Keeper(tmp_path / "resume", CheckpointConfig(checkpoint_every=10.0))

    def due() -> bool:
        return keeper.due

    moment[0] = 111.0
    assert due()
    keeper.write({}, {}, begun=108.0)  # three seconds went into the state
    moment[0] = 111.0 + 149.0
    assert not due()
    moment[0] += 2.0
    assert due()
    keeper.put_off()
    assert not due()
