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
