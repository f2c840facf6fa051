"""Curves of any library: read as they are, and a bad file is named by line and column, with the cure."""

from pathlib import Path

import pytest

from o2o_smooth.errors import DataError
from o2o_smooth.stability.csv_curves import read_csv_curves

GOOD = """run,arm,seed,env_steps,score
a,jump,1,100,20
a,jump,1,0,50.5

a,jump,0,0,40
a,jump,0,250,1e1
b,linear,0,0,40
b,linear,0,250,39
"""


def write(tmp_path: Path, text: str, name: str = "curves.csv") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_lines_in_any_order_are_one_curve_a_run_arm_and_seed(tmp_path: Path) -> None:
    curves, unread = read_csv_curves(write(tmp_path, GOOD))
    assert unread == []
    assert [(c.run, c.arm, c.seed, c.env_steps.tolist(), c.scores.tolist()) for c in curves] == [
        ("a", "jump", 1, [0, 100], [50.5, 20]),
        ("a", "jump", 0, [0, 250], [40, 10]),
        ("b", "linear", 0, [0, 250], [40, 39]),
    ]
    assert all(c.spread is None and c.episodes is None and c.unit == "score" for c in curves)


def test_spread_and_episodes_are_read_and_other_columns_named(tmp_path: Path) -> None:
    text = "Seed;arm;run;note;score;env_steps;episodes;spread\n0;x;r;hello;5;0;40;2.5\n0;x;r;;4;10;20;2\n"
    (curve,), unread = read_csv_curves(write(tmp_path, text), unit="return")
    assert unread == ["note"]
    assert curve.unit == "return"
    assert curve.spread is not None and curve.spread.tolist() == [2.5, 2]
    assert curve.episodes is not None and curve.episodes.tolist() == [40, 20]


def test_one_missing_spread_is_a_curve_without(tmp_path: Path) -> None:
    text = "run,arm,seed,env_steps,score,spread,episodes\nr,x,0,0,5,2,40\nr,x,0,10,4,,20\n"
    (curve,), _ = read_csv_curves(write(tmp_path, text))
    assert curve.spread is None
    assert curve.episodes is not None


def test_a_file_as_excel_writes_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "excel.csv"
    path.write_bytes(("\ufeff" + GOOD.replace("\n", "\r\n")).encode())
    assert len(read_csv_curves(path)[0]) == 3


HEADER = "run,arm,seed,env_steps,score,spread,episodes\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "there is no column run .there is nothing.; the header must name run, arm, seed, env_steps, score"),
        ("run,arm,seed,env_step,score\n", "line 1: there is no column env_steps .*rename 'env_step' to env_steps"),
        ("run,arm,seed,env_steps,score,score\n", "line 1: column score is there twice; keep one"),
        (HEADER, "a header and nothing under it"),
        (HEADER + "r,x,0,0,5,1\n", "line 2: 6 values under 7 headers; quote values"),
        (HEADER + "r,x,0,0,five,1,2\n", "line 2, column score: 'five' is not a number; write it with a point"),
        (HEADER + "r,x,0,0,5,1,2\nr,x,0,9,nan,1,2\n", "line 3, column score: 'nan' is no score to reckon with; leave"),
        (HEADER + "r,,0,0,5,1,2\n", "line 2, column arm: '' is empty; name the arm"),
        (HEADER + "r,x,0.5,0,5,1,2\n", "line 2, column seed: '0.5' is not a whole number"),
        (HEADER + "r,x,0,-5,5,1,2\n", "line 2, column env_steps: '-5' is before the switch; count from the switch"),
        (HEADER + "r,x,0,0,5,-1,2\n", "line 2, column spread: '-1' is negative"),
        (HEADER + "r,x,0,0,5,1,0\n", "line 2, column episodes: '0' is not a number of episodes"),
        (HEADER + "r,x,0,0,5,1,2\nr,x,0,0,6,1,2\n", "line 3, column env_steps: .*seed 0 has 0 in line 2 already; keep"),
        (
            HEADER + "r,x,0,10,5,1,2\nr,x,0,20,6,1,2\n",
            "line 2, column env_steps: .*none at the switch; add .*env_steps 0",
        ),
        (HEADER + "r,x,0,0,5,1,2\n", "line 2, column env_steps: .*none after the switch; add its later evaluations"),
        (HEADER + 'r,x,0,0,5,1,"2\n', "line 2: .*; quote texts with double quotes"),
    ],
)
def test_a_bad_file_is_named_by_line_and_column_with_the_cure(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(DataError, match=rf"curves.csv.*{says}"):
        read_csv_curves(write(tmp_path, text))


def test_a_file_that_is_no_text_or_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00r\x00")
    with pytest.raises(DataError, match=r"x.csv cannot be read \(it is not text in UTF-8"):
        read_csv_curves(tmp_path / "x.csv")
    with pytest.raises(DataError, match=r"y.csv cannot be read \(No such file"):
        read_csv_curves(tmp_path / "y.csv")
