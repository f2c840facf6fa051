"""Files first, sinks after; what a sink got is read back from what it wrote."""

import builtins
import json
import math
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from o2o_smooth.errors import ConfigError, O2OError
from o2o_smooth.training.tracking import LocalFiles, Sink, Tracker, open_sinks
from o2o_smooth.training.tracking.scalars import SeedGroups


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


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


class Memory:
    """A sink that keeps what it gets, and fails on demand."""

    def __init__(self, fails_at: str = "") -> None:
        self.rows: list[tuple[str, Mapping[str, Any]]] = []
        self.status = ""
        self.fails_at = fails_at

    def log(self, kind: str, row: Mapping[str, Any]) -> None:
        if self.fails_at == "log":
            raise RuntimeError("no\nnetwork")
        self.rows.append((kind, row))

    def close(self, status: str) -> None:
        if self.fails_at == "close":
            raise RuntimeError("gone")
        self.status = status


# ---------------------------------------------------------------------------------------------------- local files


def test_rows_are_in_the_file_as_soon_as_they_are_logged(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path / "a" / "run")
    files.log("evaluation", {"seed": 0})
    files.log("metrics", {"seed": 1})
    assert lines(tmp_path / "a/run/evaluations.jsonl") == [{"seed": 0}]
    assert lines(tmp_path / "a/run/metrics.jsonl") == [{"seed": 1}]
    files.close("completed")


def test_numbers_of_numpy_and_torch_are_numbers_and_nan_is_null(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    files = LocalFiles(tmp_path)
    row = {
        "a": np.float32(0.5),
        "b": np.int64(3),
        "c": np.array([1.0, math.nan]),
        "d": math.inf,
        "e": np.float64(math.nan),
        "f": np.bool_(True),
        "g": torch.tensor(2.0),
        "h": tmp_path,
        "i": (1, {"j": -math.inf}),
        "k": None,
    }
    files.log("metrics", row)
    files.write_manifest(row)
    files.close("completed")
    expected = {
        "a": 0.5,
        "b": 3,
        "c": [1.0, None],
        "d": None,
        "e": None,
        "f": True,
        "g": 2.0,
        "h": str(tmp_path),
        "i": [1, {"j": None}],
        "k": None,
    }
    text = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == expected
    assert json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"), parse_constant=pytest.fail) == expected


def test_a_value_that_is_no_data_is_refused_and_nothing_of_its_row_is_written(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    with pytest.raises(O2OError, match="cannot be written to a run's files"):
        files.log("metrics", {"a": 1, "b": object()})
    with pytest.raises(O2OError, match="kind 'metric'"):
        files.log("metric", {"a": 1})
    files.close("failed")
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_a_run_that_goes_on_appends_after_its_last_whole_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"a": 1}\n{"a": 2')
    (tmp_path / "evaluations.jsonl").write_bytes(b'{"a"')
    files = LocalFiles(tmp_path)
    files.log("metrics", {"a": 3})
    files.log("evaluation", {"a": 4})
    files.close("completed")
    assert lines(tmp_path / "metrics.jsonl") == [{"a": 1}, {"a": 3}]
    assert lines(tmp_path / "evaluations.jsonl") == [{"a": 4}]


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace"])
def test_a_manifest_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    files = LocalFiles(tmp_path)
    files.write_manifest({"a": 1})

    def cut(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(step, cut)
    with pytest.raises(O2OError, match=r"manifest.json cannot be written.*No space left") as caught:
        files.write_manifest({"a": 2})
    assert isinstance(caught.value.__cause__, OSError)
    monkeypatch.undo()
    assert json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8")) == {"a": 1}
    assert not list(tmp_path.glob(".*"))
    files.close("failed")


def test_a_folder_that_cannot_be_made_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(O2OError, match=r"run folder .*file/run cannot be written"):
        LocalFiles(tmp_path / "file" / "run")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    files = LocalFiles(tmp_path)
    with pytest.raises(O2OError, match=r"metrics.jsonl cannot be written"):
        files.log("metrics", {"a": 1})
    files.close("failed")


# -------------------------------------------------------------------------------------------------------- tracker


@pytest.mark.parametrize("fails_at", ["log", "close"])
def test_a_sink_that_fails_is_dropped_with_one_line_and_the_rest_goes_on(tmp_path: Path, fails_at: str) -> None:
    bad, good, warnings = Memory(fails_at), Memory(), list[str]()
    tracker = Tracker(LocalFiles(tmp_path), [bad, good], warnings.append)
    tracker.evaluation({"seed": 0})
    tracker.metrics({"seed": 0})
    tracker.manifest({"done": True})
    tracker.close("completed")
    tracker.close("completed")
    assert len(warnings) == 1
    assert "Memory is dropped" in warnings[0]
    assert "\n" not in warnings[0]
    assert [kind for kind, _ in good.rows] == ["evaluation", "metrics"]
    assert good.status == "completed"
    assert lines(tmp_path / "evaluations.jsonl") == lines(tmp_path / "metrics.jsonl") == [{"seed": 0}]


def test_the_files_come_before_the_sinks(tmp_path: Path) -> None:
    seen = []

    class Looks(Memory):
        def log(self, kind: str, row: Mapping[str, Any]) -> None:
            seen.append(lines(tmp_path / "evaluations.jsonl"))

    tracker = Tracker(LocalFiles(tmp_path), [Looks()], pytest.fail)
    tracker.evaluation({"seed": 0})
    tracker.close("completed")
    assert seen == [[{"seed": 0}]]


def test_an_interrupt_is_no_failure_of_a_sink(tmp_path: Path) -> None:
    class Interrupted(Memory):
        def log(self, kind: str, row: Mapping[str, Any]) -> None:
            raise KeyboardInterrupt

    tracker = Tracker(LocalFiles(tmp_path), [Interrupted()], pytest.fail)
    with pytest.raises(KeyboardInterrupt):
        tracker.evaluation({"seed": 0})
    tracker.close("interrupted")


@pytest.mark.parametrize(("package", "extra"), [("wandb", "wandb"), ("torch.utils.tensorboard", "tensorboard")])
def test_a_sink_whose_package_is_missing_is_an_error_that_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    real: Callable[..., Any] = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=rf"pip install 'o2o_smooth\[{extra}\]'"):
        open_sinks(tmp_path / "run", name="a", config={}, seeds=[0], wandb=True, tensorboard=True, warn=pytest.fail)
    assert list(tmp_path.iterdir()) == []


def test_a_sink_that_cannot_be_opened_is_dropped_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Sink:
        raise OSError("no route to host")

    monkeypatch.setattr("o2o_smooth.training.tracking.wandb_sink.WandbSink.__init__", refuse)
    warnings: list[str] = []
    assert open_sinks(tmp_path, name="a", config={}, seeds=[0], wandb=True, warn=warnings.append) == []
    assert warnings == ["WandbSink is dropped, the run goes on with its local files: OSError: no route to host"]


# -------------------------------------------------------------------------------------------------------- scalars


def test_a_mean_waits_for_every_seed_and_stands_beside_each() -> None:
    groups = SeedGroups([0, 3])
    assert groups.add("metrics", {"phase": "online", "env_steps": 5, "updates": 9, "seed": 0, "critic/loss": 1.0}) == []
    (done,) = groups.add("metrics", {"phase": "online", "env_steps": 5, "updates": 9, "seed": 3, "critic/loss": 4.0})
    assert done.values == {"critic/loss": 2.5, "critic/loss/seed_0": 1.0, "critic/loss/seed_3": 4.0}
    assert (done.axis, done.step) == ("env_steps", 5)
    assert groups.flush() == []


def test_before_the_switch_the_axis_is_updates_and_the_names_are_others() -> None:
    groups = SeedGroups([0])
    (done,) = groups.add("evaluation", {"phase": "offline", "env_steps": 0, "updates": 9, "seed": 0, "score": 4.0})
    assert done.values == {"pretrain/eval/score": 4.0}
    assert (done.axis, done.step) == ("updates", 9)
    (done,) = groups.add("evaluation", {"phase": "switch", "env_steps": 0, "updates": 9, "seed": 0, "score": 4.0})
    assert done.values == {"eval/score": 4.0}
    assert (done.axis, done.step) == ("env_steps", 0)


def test_a_moment_that_lacks_a_seed_is_not_lost() -> None:
    groups = SeedGroups([0, 1])
    groups.add("metrics", {"env_steps": 1, "seed": 0, "a": 1.0})
    (late,) = groups.add("metrics", {"env_steps": 2, "seed": 0, "a": 2.0})
    assert (late.env_steps, late.values["a"]) == (1, 1.0)
    (last,) = groups.flush()
    assert (last.env_steps, last.values["a"]) == (2, 2.0)


def test_what_is_null_or_text_is_no_scalar_and_nan_stays_visible() -> None:
    groups = SeedGroups([0, 1])
    groups.add("metrics", {"seed": 0, "a": None, "b": "text", "c": math.inf, "d": 1})
    (done,) = groups.add("metrics", {"seed": 1, "a": None, "b": "text", "c": -math.inf, "d": np.float32(2)})
    assert done.values["d"] == 1.5
    assert math.isnan(done.values["c"])
    assert {name.split("/")[0] for name in done.values} == {"c", "d"}


# ------------------------------------------------------------------------------------------------- the real sinks


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


@pytest.fixture
def wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """W&B without network or account, at home in the test's folder; gives the run folder."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_API_KEY", "WANDB_DIR", "WANDB_RUN_ID", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    wandb.teardown()  # settings of an earlier test
    yield tmp_path / "run"
    wandb.teardown()


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of an offline run: a LevelDB log (blocks of 32 KiB, records in pieces) of protobuf messages."""
    from wandb.proto import wandb_internal_pb2 as messages

    data, block = file.read_bytes(), 32 * 1024
    assert data[:4] == b":W&B"
    at, piece = 7, b""
    while at + 7 <= len(data):
        if block - at % block < 7:  # too little for a header: padding
            at += block - at % block
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        piece += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = messages.Record()  # type: ignore[attr-defined]
            record.ParseFromString(piece)
            piece = b""
            yield record


def history(file: Path) -> list[dict[str, Any]]:
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in wandb_records(file)
        if record.WhichOneof("record_type") == "history"
    ]


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


def test_a_wandb_run_that_goes_on_keeps_its_id_and_every_row(wandb_offline: Path) -> None:
    drive_wandb(wandb_offline, RUN[:8], status="interrupted")
    drive_wandb(wandb_offline, RUN[6:])  # the last evaluation is made again: its step goes backwards
    files = sorted(wandb_offline.glob("wandb/offline-run-*/*.wandb"), key=lambda f: f.stat().st_mtime_ns)
    assert len({file.name for file in files}) == 1
    together = [entry for file in files for entry in history(file) if "eval/score" in entry]
    assert [entry["env_steps"] for entry in together] == [0, 250, 250, 500]
    exits = [r.exit.exit_code for file in files for r in wandb_records(file) if r.WhichOneof("record_type") == "exit"]
    assert exits == [1, 0]


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
