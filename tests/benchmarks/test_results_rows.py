"""The tidy tables: a row a planned seed, CSV and Parquet the same, prices from the logs."""

from __future__ import annotations

import csv
import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

from o2o_smooth.benchmarks import results_rows
from o2o_smooth.benchmarks.results_boards import compare_groups
from o2o_smooth.benchmarks.results_rows import CURVE_FIELDS, RUN_FIELDS, curve_rows, run_rows, write_table
from o2o_smooth.benchmarks.results_study import read_groups, read_study
from tests.benchmarks.study_folders import ARMS, make_study, read_plan


def scores(task: str, agent: str, arm: str, seed: int) -> list[float]:
    if (arm, seed) == ("stay", 3):
        return [50.0, math.nan, 50.0, 60.0]
    return [50.0, 20.0 + seed, 50.0, 60.0]


def rows_of(root: Path) -> list[dict[str, Any]]:
    groups = read_groups(read_study(root))
    found, _ = compare_groups(groups)
    return run_rows(groups, {one.group.label: one.comparison for one in found})


def test_a_row_has_what_the_curve_says(tmp_path: Path) -> None:
    root = make_study(tmp_path, scores)
    rows = rows_of(root)
    assert len(rows) == 16
    (row,) = [one for one in rows if (one["arm"], one["seed"]) == ("linear", 2)]
    # Hand-computed: 50 at 0, 22 at 250, 50 at 500, 60 at 1000.
    assert row["j0"] == 50.0
    assert row["dip_depth"] == 28.0
    assert row["dip_area"] == pytest.approx(28 * 500 / 2 / 1000)
    assert (row["dip_time_steps"], row["recovery_steps"], row["recovery_censored"]) == (250.0, 500.0, False)
    assert (row["late_collapse"], row["final"], row["worst_case"]) == (0.0, 60.0, 22.0)
    assert row["auc"] == pytest.approx((36 * 250 + 36 * 250 + 55 * 500) / 1000)
    assert row["regret"] == pytest.approx(1 - row["auc"] / 100)
    assert (row["windowed_forgetting"], row["windowed_plasticity"]) == (28.0, 38.0)
    assert row["dip_depth_relative"] == pytest.approx(28 / 50)
    assert row["null_dip"] > 0
    assert row["dropped"]
    assert (row["role"], row["baseline"], row["budget_steps"]) == ("smoothed", "jump", 1000.0)
    assert json.loads(row["settings"]) == ARMS["linear"]
    assert (row["provenance"], row["dataset"], row["behaviour"]) == ("generated", "data/maze", 45.0)
    assert (row["ref_random"], row["ref_expert"]) == (0.0, 200.0)
    assert (row["pretraining"], row["offline_updates"], row["online_steps"]) == ("maze-iql", 1000, 1000)
    assert (row["wall_s"], row["members"], row["updates_per_s"], row["updates"]) == (70.0, 4, 200.0, 2000)
    assert (row["status"], row["folder"], row["commit"]) == ("completed", "runs/maze/iql/linear", "abc123")
    assert json.loads(row["versions"])["torch"] == "2.13.0"


def test_a_seed_without_metrics_keeps_its_row_and_its_curve(tmp_path: Path) -> None:
    root = make_study(tmp_path, scores)
    (row,) = [one for one in rows_of(root) if (one["arm"], one["seed"]) == ("stay", 3)]
    assert (row["status"], row["reason"]) == ("broken", "the evaluation at step 250 is NaN")
    assert row["final"] is None
    assert row["wall_s"] == 70.0
    points = [one for one in curve_rows(read_groups(read_study(root))) if (one["arm"], one["seed"]) == ("stay", 3)]
    assert [(one["env_steps"], one["score"]) for one in points] == [(0, 50.0), (250, None), (500, 50.0), (1000, 60.0)]
    assert {one["status"] for one in points} == {"broken"}
    assert points[0]["spread"] == pytest.approx(10.0)  # 20 of return are 10 points
    assert (points[0]["episodes"], points[0]["unit"]) == (10, "score")


def test_a_log_that_is_cut_or_absent_costs_the_price_only(tmp_path: Path) -> None:
    root = make_study(tmp_path, scores)
    first, second = (root / entry["folder"] for entry in read_plan(root)[:2])
    log = first / "metrics.jsonl"
    log.write_text(log.read_text()[:-30])
    (second / "metrics.jsonl").unlink()
    rows = {(one["arm"], one["seed"]): one for one in rows_of(root)}
    assert rows["jump", 3]["updates_per_s"] == 200.0  # the median of 100 and 300
    assert rows["linear", 0]["updates_per_s"] is None
    assert rows["linear", 0]["updates"] == 2000  # which the evaluations tell, too
    assert rows["linear", 0]["status"] == "completed"


def test_csv_and_parquet_hold_the_same(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra bench")
    parquet = importlib.import_module("pyarrow.parquet")
    root = make_study(tmp_path / "study", scores)
    groups = read_groups(read_study(root))
    for name, fields, rows in (("r", RUN_FIELDS, rows_of(root)), ("c", CURVE_FIELDS, curve_rows(groups))):
        assert [path.suffix for path in write_table(tmp_path / name, fields, rows)] == [".csv", ".parquet"]
        with (tmp_path / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            written = list(csv.DictReader(file))
        table = parquet.read_table(tmp_path / f"{name}.parquet")
        assert table.column_names == [field.name for field in fields] == list(written[0])
        assert len(written) == table.num_rows == len(rows)
        for row, other, original in zip(written, table.to_pylist(), rows, strict=True):
            for field in fields:
                text, value = row[field.name], other[field.name]
                assert value == original[field.name]
                if value is None:
                    assert text == ""
                elif field.kind == "bool":
                    assert text == str(value).lower()
                else:
                    assert (float(text) if field.kind in ("int", "float") else text) == value


def test_without_pyarrow_there_is_no_stale_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r.parquet").write_bytes(b"of other rows")
    monkeypatch.setattr(results_rows, "has_parquet", lambda: False)
    assert write_table(tmp_path / "r", RUN_FIELDS[:2], [{"task": "a", "agent": "b"}]) == [tmp_path / "r.csv"]
    assert not (tmp_path / "r.parquet").exists()
    assert (tmp_path / "r.csv").read_text() == "task,agent\na,b\n"


def test_names_with_separators_survive_csv(tmp_path: Path) -> None:
    write_table(tmp_path / "r", RUN_FIELDS[:3], [{"task": 'a "b", c', "agent": "d\ne", "arm": None}])
    with (tmp_path / "r.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file))[1] == ['a "b", c', "d\ne", ""]
