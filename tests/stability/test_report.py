"""From run folders to curves, and from curves to the table."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich.console

from o2o_smooth.errors import DataError, O2OError
from o2o_smooth.stability.metrics import null_dip_from_std
from o2o_smooth.stability.report import (
    Curve,
    arm_table,
    read_curves,
    read_pretraining,
    render_table,
    rich_table,
    table_note,
)


def row(phase: str, env_steps: int, seed: int, value: float | None, **more: Any) -> dict[str, Any]:
    """An evaluation whose score is (return - 100) / 2."""
    return {
        "phase": phase,
        "env_steps": env_steps,
        "updates": 1000 + env_steps,
        "seed": seed,
        "return_mean": None if value is None else 100 + 2 * value,
        "return_std": 20.0,
        "episodes": 10,
        "score": value,
        "length_mean": 50.0,
        "success": None,
        **more,
    }


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return folder


def test_curves_start_at_the_switch_and_leave_pretraining_out(tmp_path: Path) -> None:
    run = write(
        tmp_path / "jump",
        [
            row("offline", 0, 0, 5.0, updates=500),
            row("offline", 0, 1, 6.0, updates=500),
            row("switch", 0, 1, 51.0),
            row("switch", 0, 0, 50.0),
            row("online", 250, 0, 20.0),
            row("online", 250, 1, 21.0),
        ],
    )
    curves = read_curves(run)
    assert [(c.run, c.arm, c.seed, c.unit) for c in curves] == [
        ("jump", "jump", 0, "score"),
        ("jump", "jump", 1, "score"),
    ]
    assert curves[0].env_steps.tolist() == [0, 250]
    assert curves[0].scores.tolist() == [50, 20]
    assert curves[1].scores.tolist() == [51, 21]
    assert curves[0].episodes is not None
    assert curves[0].episodes.tolist() == [10, 10]
    pretraining = read_pretraining(run)
    assert [(p.seed, p.updates.tolist(), p.scores.tolist()) for p in pretraining] == [(0, [500], [5]), (1, [500], [6])]


def test_spread_is_brought_from_returns_to_points(tmp_path: Path) -> None:
    (curve,) = read_curves(write(tmp_path, [row("switch", 0, 0, 50.0), row("online", 10, 0, 20.0)]))
    assert curve.spread is not None
    np.testing.assert_allclose(curve.spread, [10, 10])  # 20 units of return are 10 points here


def test_one_missing_score_puts_the_whole_run_in_returns(tmp_path: Path) -> None:
    run = write(tmp_path, [row("switch", 0, 0, 50.0), row("online", 10, 0, 20.0, score=None)])
    (curve,) = read_curves(run)
    assert curve.unit == "return"
    assert curve.scores.tolist() == [200, 140]
    assert curve.spread is not None
    assert curve.spread.tolist() == [20, 20]


def test_an_evaluation_that_came_to_nan_is_not_a_missing_reference(tmp_path: Path) -> None:
    run = write(tmp_path, [row("switch", 0, 0, 50.0), row("online", 10, 0, None), row("online", 20, 0, 10.0)])
    (curve,) = read_curves(run)
    assert curve.unit == "score"
    assert np.isnan(curve.scores).tolist() == [False, True, False]
    with pytest.raises(DataError, match=r"arm 'a', seed 0: scores\[1\] is NaN"):
        arm_table({"a": [curve]})


def test_a_resumed_run_counts_an_evaluation_once_as_last_written(tmp_path: Path) -> None:
    run = write(
        tmp_path,
        [row("switch", 0, 0, 50.0), row("online", 20, 0, 1.0), row("online", 10, 0, 2.0), row("online", 20, 0, 3.0)],
    )
    (curve,) = read_curves(run)
    assert curve.env_steps.tolist() == [0, 10, 20]
    assert curve.scores.tolist() == [50, 2, 3]


def test_a_torn_last_line_is_left_out_and_a_broken_one_is_named(tmp_path: Path) -> None:
    run = write(tmp_path, [row("switch", 0, 0, 50.0), row("online", 10, 0, 20.0)])
    file = run / "evaluations.jsonl"
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole + '{"phase": "onl', encoding="utf-8")
    assert read_curves(run)[0].scores.tolist() == [50, 20]
    file.write_text(whole + '{"phase": "onl\n', encoding="utf-8")
    with pytest.raises(O2OError, match=r"evaluations.jsonl, line 3 is not an evaluation"):
        read_curves(run)


def test_the_arm_is_the_argument_or_the_manifests_or_the_folders(tmp_path: Path) -> None:
    run = write(tmp_path / "run7", [row("switch", 0, 0, 50.0)])
    assert read_curves(run)[0].arm == "run7"
    (run / "manifest.json").write_text('{"arm": "linear"}', encoding="utf-8")
    assert read_curves(run)[0].arm == "linear"
    assert read_curves(run, "mine")[0].arm == "mine"


def test_no_switch_yet_is_no_curve_and_a_lost_switch_is_an_error(tmp_path: Path) -> None:
    assert read_curves(write(tmp_path / "a", [row("offline", 0, 0, 5.0)])) == []
    with pytest.raises(O2OError, match="seed 3 has no evaluation at the switch"):
        read_curves(write(tmp_path / "b", [row("online", 10, 3, 5.0)]))


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(O2OError, match=r"is .* a run folder"):
        read_curves(tmp_path)


def curve(seed: int, scores: list[float], **more: Any) -> Curve:
    return Curve("r", "a", seed, np.arange(0.0, 100.0 * len(scores), 100.0), np.array(scores, dtype=float), **more)


def test_a_row_of_the_table_is_what_it_says() -> None:
    fell_and_rose = curve(0, [50, 10, 30, 50, 50])
    fell = curve(1, [60, 60, 20, 20, 20])
    wobbled = curve(2, [40, 33, 41, 45, 50])
    (found,) = arm_table({"jump": [fell_and_rose, fell, wobbled]})
    assert found["arm"] == "jump"
    assert found["n"] == 3
    assert found["j0"] == 50
    assert found["dip"] == pytest.approx((40 + 40 + 7) / 3)
    assert found["dip_time"] == 100
    assert found["final"] == 40
    assert found["dropped"] == 2
    assert found["recovered"] == 1
    assert found["null_dip"] is None
    assert found["dip_area"] == pytest.approx(np.mean([(20 + 30 + 10) / 4, (20 + 40 + 40) / 4, (3.5 + 3.0625) / 4]))
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(("low", "dropped"), [(41.9, 1), (42.0, 0), (42.1, 0)])
def test_a_drop_exceeds_the_noise_by_eight_points(low: float, dropped: int) -> None:
    assert arm_table({"a": [curve(0, [50, low])]})[0]["dropped"] == dropped


def test_a_drop_exceeds_the_null_dip_too() -> None:
    falls = curve(0, [50, 38])
    assert arm_table({"a": [falls]}, null_dips={"a": 3.0})[0]["dropped"] == 1
    assert arm_table({"a": [falls]}, null_dips={"a": 5.0})[0]["dropped"] == 0


def test_null_dip_is_estimated_from_the_spread_at_the_switch() -> None:
    spread, episodes = np.array([18.0, 1.0, 1.0, 1.0]), np.array([100, 20, 20, 20])
    (found,) = arm_table({"a": [curve(0, [50, 50, 50, 50], spread=spread, episodes=episodes)]})
    assert found["null_dip"] == null_dip_from_std(18.0, evaluations=3, episodes=20, switch_episodes=100)
    (shorter,) = arm_table({"a": [curve(0, [50, 50, 50, 50], spread=spread, episodes=episodes)]}, budget=100)
    assert shorter["null_dip"] < found["null_dip"]


def test_in_returns_a_point_is_a_percent_of_j0() -> None:
    (found,) = arm_table({"a": [curve(0, [2000, 1900], unit="return"), curve(1, [2000, 1800], unit="return")]})
    assert found["dropped"] == 1
    assert "8 % of |J0|" in table_note([found])


def test_scores_and_returns_never_share_a_table() -> None:
    with pytest.raises(DataError, match="cannot share a table"):
        arm_table({"a": [curve(0, [50, 40])], "b": [curve(0, [50, 40], unit="return")]})


def test_an_arm_without_curves_is_named() -> None:
    with pytest.raises(DataError, match="arm 'b' has no curves"):
        arm_table({"a": [curve(0, [50, 40])], "b": []})


def test_markdown_columns_line_up_and_keep_the_order_of_arms() -> None:
    arms = {"z, the longer name": [curve(0, [50, 10, 5])], "a": [curve(0, [50, 55, 60])]}
    rows = arm_table(arms, null_dips={"z, the longer name": 3.0, "a": 3.0})
    lines = render_table(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["z, the longer name", "a"]
    assert "1 of 1" in lines[2]
    unknown = render_table(arm_table({"b": [curve(0, [50, 10, 5])]})).splitlines()[2]
    assert "of 1" not in unknown  # without an estimate of the noise there is no verdict
    assert "0 of 1" in lines[3]
    assert all(line.count("|") == lines[0].count("|") for line in lines)


def test_the_demos_table_fits_a_terminal_of_80_columns_unbroken() -> None:
    spread, episodes = np.full(3, 18.0), np.full(3, 20)
    names = ("jump", "jump, mixed batch", "linear", "performance gate")
    arms = {name: [curve(s, [56, 4, 58], spread=spread, episodes=episodes) for s in range(16)] for name in names}
    out = io.StringIO()
    rich.console.Console(file=out, width=80).print(rich_table(arm_table(arms), title="At the switch"))
    for name in names:
        (line,) = (line for line in out.getvalue().splitlines() if line.strip().startswith(name + "  "))
        assert "16 of 16" in line
