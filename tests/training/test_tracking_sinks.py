"""The real sinks: what they got is read back from what they wrote."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from o2o_smooth.training.tracking import LocalFiles, Tracker, open_sinks
from tests.training.wandb_files import history, offline_wandb, wandb_records


def evaluation(phase: str, env_steps: int, updates: int, seed: int, score: float | None) -> dict[str, Any]:
    return {
        "phase": phase,
        "env_steps": env_steps,
        "updates": updates,
        "seed": seed,
        "return_mean": 2.0 * (score or 0.0),
        "return_std": 1.0,
        "episodes": 10,
        "score": score,
        "length_mean": 50.0,
        "success": None,
    }


RUN = [
    evaluation(phase, env_steps, updates, seed, 10.0 * seed + env_steps / 100 + updates / 1000)
    for phase, env_steps, updates in [
        ("offline", 0, 500),
        ("offline", 0, 1000),
        ("switch", 0, 1000),
        ("online", 250, 1250),
        ("online", 500, 1500),
    ]
    for seed in (0, 3)
]


def drive_wandb(run_dir: Path, rows: list[dict[str, Any]], status: str = "completed") -> None:
    """`drive`, and wait for W&B's own process: `finish` returns some milliseconds before its file is whole."""
    import wandb

    drive(run_dir, rows, status, wandb=True)
    wandb.teardown()


def drive(
    run_dir: Path,
    rows: list[dict[str, Any]],
    status: str = "completed",
    *,
    wandb: bool = False,
    tensorboard: bool = False,
) -> None:
    """A run that logs its rows, with sinks that must not fail."""
    sinks = open_sinks(
        run_dir,
        name="a run",
        config={"lr": 3e-4},
        seeds=[0, 3],
        wandb=wandb,
        tensorboard=tensorboard,
        warn=pytest.fail,
    )
    assert sinks
    tracker = Tracker(LocalFiles(run_dir), sinks, pytest.fail)
    for row in rows:
        tracker.evaluation(row)
    for seed in (0, 3):
        tracker.metrics({"phase": "online", "env_steps": 500, "updates": 1500, "seed": seed, "critic/loss": 1.0 + seed})
    tracker.close(status)


def test_tensorboard_holds_every_evaluation_on_its_own_axis(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    drive(tmp_path, RUN, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()

    def points(tag: str) -> list[tuple[int, Any]]:
        return [(event.step, pytest.approx(event.value)) for event in events.Scalars(tag)]

    for prefix, phases in (("pretrain/", {"offline"}), ("", {"switch", "online"})):
        for seed in (0, 3):
            mine = [row for row in RUN if row["phase"] in phases and row["seed"] == seed]
            axis = "updates" if prefix else "env_steps"
            assert points(f"{prefix}eval/score/seed_{seed}") == [(row[axis], row["score"]) for row in mine]
            assert points(f"{prefix}eval/return_mean/seed_{seed}") == [(row[axis], row["return_mean"]) for row in mine]
    assert points("eval/score") == [(0, 16.0), (250, 18.75), (500, 21.5)]
    assert points("critic/loss") == [(500, 2.5)]
    assert not [tag for tag in events.Tags()["scalars"] if "success" in tag]


def test_a_moment_that_lacks_a_seed_is_written_at_the_end(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (sink,) = open_sinks(tmp_path, name="a", config={}, seeds=[0, 3], tensorboard=True, warn=pytest.fail)
    sink.log("evaluation", RUN[-1])
    sink.close("failed")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("eval/score/seed_3")] == [500]


@pytest.fixture
def wandb_offline(tmp_path: Path) -> Iterator[Path]:
    """W&B at home in the test's folder; gives the run folder."""
    with offline_wandb(tmp_path):
        yield tmp_path / "run"


def test_an_offline_wandb_run_holds_every_evaluation(wandb_offline: Path) -> None:
    drive_wandb(wandb_offline, RUN)
    (file,) = wandb_offline.glob("wandb/offline-run-*/*.wandb")
    logged = history(file)
    for row in RUN:
        offline = row["phase"] == "offline"
        name = f"{'pretrain/' if offline else ''}eval/score"
        (point,) = (
            entry
            for entry in logged
            if (entry["env_steps"], entry["updates"]) == (row["env_steps"], row["updates"]) and name in entry
        )
        assert point[f"{name}/seed_{row['seed']}"] == row["score"]
    assert [entry["eval/score"] for entry in logged if "eval/score" in entry] == [16.0, 18.75, 21.5]
    assert [entry["critic/loss"] for entry in logged if "critic/loss" in entry] == [2.5]


def test_wandb_draws_each_metric_against_our_step(wandb_offline: Path) -> None:
    drive_wandb(wandb_offline, RUN)
    (file,) = wandb_offline.glob("wandb/offline-run-*/*.wandb")
    metrics = [r.metric for r in wandb_records(file) if r.WhichOneof("record_type") == "metric"]
    steps = {metric.name: metric.step_metric for metric in metrics}
    assert steps["eval/score"] == steps["eval/score/seed_3"] == steps["critic/loss"] == "env_steps"
    assert steps["pretrain/eval/score"] == steps["pretrain/eval/score/seed_0"] == "updates"
    names = {key for entry in history(file) for key in entry if not key.startswith("_")} - {"env_steps", "updates"}
    assert names <= steps.keys()
    assert not any(metric.glob_name for metric in metrics)


@pytest.mark.parametrize("ended", ["interrupted", "killed"])
def test_a_wandb_run_that_goes_on_keeps_its_id_and_every_row(wandb_offline: Path, ended: str) -> None:
    import wandb

    if ended == "interrupted":
        drive_wandb(wandb_offline, RUN[:8], status=ended)
    else:  # nobody closes the sink: what is kept must be enough
        (sink,) = open_sinks(wandb_offline, name="a run", config={}, seeds=[0, 3], wandb=True, warn=pytest.fail)
        for row in RUN[:8]:
            sink.log("evaluation", row)
        wandb.teardown()
    drive_wandb(wandb_offline, RUN[6:])  # the last evaluation is made again: our step goes backwards
    files = sorted(wandb_offline.glob("wandb/offline-run-*/*.wandb"), key=lambda f: f.stat().st_mtime_ns)
    assert len(files) == 2
    assert len({file.name for file in files}) == 1
    rows = [entry for file in files for entry in history(file)]
    assert [row["env_steps"] for row in rows if "eval/score" in row] == [0, 250, 250, 500]
    # W&B's own step: a row that does not rise is dropped when the files are synced under their one id.
    own = [row["_step"] for row in rows]
    assert own == sorted(set(own))
    exits = [r.exit.exit_code for file in files for r in wandb_records(file) if r.WhichOneof("record_type") == "exit"]
    assert exits[-1] == 0


def test_a_run_that_goes_on_begins_past_what_the_server_knows(
    wandb_offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setattr(wandb.Run, "step", property(lambda self: 77))  # its answer to resume="allow"
    drive_wandb(wandb_offline, RUN)
    (file,) = wandb_offline.glob("wandb/offline-run-*/*.wandb")
    assert [row["_step"] for row in history(file)] == [77, 78, 79, 80, 81, 82]


def test_more_rows_than_were_reserved_at_first_are_still_past_for_the_next_time(
    wandb_offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from o2o_smooth.training.tracking import wandb_sink

    monkeypatch.setattr(wandb_sink, "_RESERVED", 2)
    (sink,) = open_sinks(wandb_offline, name="a", config={}, seeds=[0, 3], wandb=True, warn=pytest.fail)
    for logged, row in enumerate(RUN):
        sink.log("evaluation", row)
        assert json.loads((wandb_offline / "wandb.json").read_text())["next_step"] >= (logged + 1) // 2
    sink.close("completed")
    assert json.loads((wandb_offline / "wandb.json").read_text())["next_step"] == len(RUN) // 2


def test_a_dead_network_at_the_end_of_a_run_is_given_up(wandb_offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    told: list[Any] = []
    real = wandb.init

    def init(**kwargs: Any) -> Any:
        told.append(kwargs["settings"])
        return real(**kwargs)

    monkeypatch.setattr(wandb, "init", init)
    drive_wandb(wandb_offline, RUN)
    assert 0 < told[0].finish_timeout <= 600  # 0, W&B's own default, waits for ever
    assert told[0].finish_timeout_raises  # so that the sink's failure is told


def test_wandb_writes_under_the_run_folder_and_no_key(
    wandb_offline: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key = "0123456789abcdef" * 2 + "01234567"
    monkeypatch.setenv("WANDB_API_KEY", key)
    drive_wandb(wandb_offline, RUN)
    home = tmp_path / "home"
    outside = [p for p in tmp_path.rglob("*") if p.is_file() and not p.is_relative_to(wandb_offline)]
    assert [p for p in outside if not p.is_relative_to(home / ".cache" / "wandb" / "logs")] == []
    assert [p for p in tmp_path.rglob("*") if p.is_file() and key.encode() in p.read_bytes()] == []
