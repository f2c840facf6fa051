"""Files first, sinks after, and what the sinks are told."""

import builtins
import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from o2o_smooth.errors import ConfigError, O2OError
from o2o_smooth.training.tracking import LocalFiles, Sink, Tracker, open_sinks
from o2o_smooth.training.tracking.scalars import SeedGroups


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


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
    with pytest.raises(O2OError, match=r"manifest.json cannot be written: the disk is full") as caught:
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


def test_a_summary_tells_a_mean_only_where_every_seed_has_a_number() -> None:
    groups = SeedGroups([0, 1])
    moment = {"phase": "online", "env_steps": 9, "updates": 9}
    groups.add("summary", {**moment, "seed": 0, "recovery_steps": 250.0, "recovered": 1.0, "regret": None})
    (done,) = groups.add("summary", {**moment, "seed": 1, "recovery_steps": None, "recovered": 0.0, "regret": None})
    assert done.values == {
        "stability/recovery_steps/seed_0": 250.0,
        "stability/recovered": 0.5,
        "stability/recovered/seed_0": 1.0,
        "stability/recovered/seed_1": 0.0,
    }
    assert set(done.unknown) == {
        "stability/recovery_steps",
        "stability/recovery_steps/seed_1",
        "stability/regret",
        "stability/regret/seed_0",
        "stability/regret/seed_1",
    }
    assert done.axis == "env_steps"


def test_what_the_offline_objective_logs_in_the_ramp_has_a_name_of_its_own() -> None:
    groups = SeedGroups([0])
    (before,) = groups.add("metrics", {"phase": "offline", "updates": 5, "seed": 0, "critic/loss": 1.0})
    (ramp,) = groups.add("metrics", {"phase": "online", "updates": 6, "seed": 0, "offline/critic/loss": 2.0})
    assert not before.values.keys() & ramp.values.keys()
