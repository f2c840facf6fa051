"""Whatever numbers were logged on the way are drawn; a broken line is named."""

import json
from pathlib import Path

import numpy as np
import pytest

from o2o_smooth.errors import DataError
from o2o_smooth.stability.signals import distinct, mean_line, read_signals


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_numeric_columns_are_signals_by_seed_and_rising(tmp_path: Path) -> None:
    rows: list[object] = [
        {"env_steps": 4, "updates": 9, "seed": 1, "switch/kl": 0.4, "note": "x", "ok": None},
        {"env_steps": 1, "updates": 3, "seed": 1, "switch/kl": 0.1},
        {"env_steps": 1, "updates": 3, "seed": 0, "switch/kl": 0.2, "td": 5},
        {"env_steps": 4, "updates": 9, "seed": 1, "switch/kl": 0.5},
        {"env_steps": 2, "seed": 0, "switch/kl": float("nan")},
        {"env_steps": 0, "seed": 0, "phase": "offline", "switch/kl": 99.0},
    ]
    found = read_signals(write(tmp_path / "audit.jsonl", rows), ())
    assert set(found) == {"switch/kl", "td"}
    assert {seed: (x.tolist(), y.tolist()) for seed, (x, y) in found["switch/kl"].items()} == {
        0: ([1], [0.2]),
        1: ([1, 4], [0.1, 0.5]),
    }
    assert set(read_signals(tmp_path / "audit.jsonl", ("td",))) == {"td"}


ONE_STEP: list[object] = [
    {"env_steps": step, "updates": 200 + since, "seed": 3, "switch/updates": since, "switch/kl": float(since)}
    for step, since in ((68, 0), (68, 1), (68, 2), (68, 4), (72, 8), (80, 16))
]
"""Four environments: the first updates fall on one step."""


def test_audits_of_one_environment_step_are_all_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "audit.jsonl", [*ONE_STEP, ONE_STEP[2]])
    x, y = read_signals(path, (), against="updates")["switch/kl"][3]
    assert x.tolist() == y.tolist() == [0, 1, 2, 4, 8, 16]
    steps = read_signals(path, (), against="updates")["env_steps"][3]
    assert steps[1].tolist() == [68, 68, 68, 68, 72, 80]
    x, y = read_signals(path, ())["switch/kl"][3]
    assert y.tolist() == [0, 1, 2, 4, 8, 16]
    assert np.all(np.diff(x) > 0)
    assert x[3:].tolist() == [68, 72, 80]
    assert x[0] > 67


def test_updates_count_from_the_switch_with_or_without_their_column(tmp_path: Path) -> None:
    bare: list[object] = [{"env_steps": s, "updates": 50 + s, "seed": 0, "x": 1.0 * s} for s in (0, 3, 3, 9)]
    found = read_signals(
        write(tmp_path / "a.jsonl", [*bare, {"env_steps": 9, "seed": 0, "x": 7.0}]), (), against="updates"
    )
    assert found["x"][0][0].tolist() == [0, 3, 9]  # and what does not tell its updates has no place there
    late: list[object] = [{"env_steps": 5, "updates": 60, "seed": 0, "switch/updates": 10, "x": 2.0}]
    assert read_signals(write(tmp_path / "b.jsonl", late), (), against="updates")["x"][0][0].tolist() == [10]


def test_several_updates_a_step_lie_between_the_step_before_and_their_own(tmp_path: Path) -> None:
    rows: list[object] = [
        {"env_steps": s, "updates": u, "seed": 0, "x": u} for s, u in ((1, 4), (2, 6), (2, 7), (2, 8))
    ]
    x, _ = read_signals(write(tmp_path / "a.jsonl", rows), ())["x"][0]
    assert x.tolist() == [1, 1.5, 1.75, 2]


def test_no_file_is_no_signal_and_a_torn_end_is_left_out(tmp_path: Path) -> None:
    assert read_signals(tmp_path / "audit.jsonl", ()) == {}
    path = write(tmp_path / "a.jsonl", [{"env_steps": 1, "seed": 0, "x": 1.0}])
    path.write_text(path.read_text() + '{"env_steps": 2, "se', encoding="utf-8")
    assert read_signals(path, ())["x"][0][0].tolist() == [1]


@pytest.mark.parametrize("line", ["{", "[1]", '{"seed": 0, "x": 1}', '{"env_steps": "a", "seed": 0}'])
def test_a_broken_line_is_named_with_the_cure(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "audit.jsonl", [{"env_steps": 1, "seed": 0, "x": 1.0}])
    path.write_text(path.read_text() + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"audit.jsonl, line 2 is not a row of numbers .*delete the line"):
        read_signals(path, ())


def test_signals_that_say_nothing_or_the_same_are_left_out() -> None:
    def line(*values: float) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        return {0: (np.arange(float(len(values))), np.array(values))}

    signals = {
        "actor": {"a": line(0, 1), "b": line(1, 1)},
        "critic": {"a": line(0, 1), "b": line(1, 1)},
        "zero": {"a": line(0, 0)},
        "other": {"a": line(0, 1)},
    }
    assert list(distinct(signals)) == ["actor", "other"]


def test_the_mean_of_seeds_goes_where_all_go() -> None:
    lines = {0: (np.array([0.0, 10]), np.array([0.0, 10])), 1: (np.array([5.0, 20]), np.array([1.0, 1]))}
    steps, mean = mean_line(lines)
    assert steps.tolist() == [5, 10]
    assert mean.tolist() == [3, 5.5]
