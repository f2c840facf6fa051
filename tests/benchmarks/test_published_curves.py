"""Published learning curves: facts as printed, read by a strict reader that says what is wrong and where."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from o2o_smooth.benchmarks.published import read_published, shipped
from o2o_smooth.benchmarks.published_curves import (
    LARGEST_CSV,
    PublishedCurve,
    family,
    read_published_curves,
    shipped_curves,
)
from o2o_smooth.cli import main
from o2o_smooth.envs import find_task
from o2o_smooth.errors import DataError
from tests.benchmarks.curve_cases import make_curves


def find(task: str, agent: str) -> PublishedCurve:
    (one,) = [curve for curve in read_published_curves() if (curve.task, curve.agent) == (task, agent)]
    return one


def test_what_is_shipped_stands_as_in_the_sources() -> None:
    curves = read_published_curves()
    assert {path.stem for path in shipped_curves()} == {"d3rlpy-finetuning", "d3rlpy-offline", "iql-official"}
    assert len(curves) == 9
    assert sum(len(curve.runs) for curve in curves) == 21
    hopper = find("hopper-medium-v0", "iql")
    assert hopper.at == (5000, *range(50_000, 500_001, 50_000))
    assert hopper.runs[2].values == (26.8, 31.7, 76.5, 32.4, 31.0, 30.9, 31.2, 30.9, 31.4, 31.5, 31.8)
    assert find("halfcheetah-medium-v0", "td3_bc").runs[0].values[-1] == 5015.092778842807
    online = find("antmaze-large-play-v0", "iql")
    assert (online.source.phase, online.source.switch, online.runs[0].values[1]) == ("online", "stay", 0.1)


def test_every_curve_has_a_source_and_its_file_is_of_its_task_and_seed() -> None:
    agents = {"iql": "iql", "cql": "CQL", "td3_bc": "TD3PlusBC"}
    for curve in read_published_curves():
        source = curve.source
        assert source.url.startswith("https://")
        assert source.where and source.licence and source.provenance == "d4rl" and source.batch_size == 256
        for run in curve.runs:
            assert f"{curve.task}_{run.seed}" in run.path
            assert agents[curve.agent].lower() in run.path.lower()
            assert re.fullmatch(r"[0-9a-f]{40}", run.commit)
            largest = 110.0 if source.score == "normalised" else 6000.0 if "cheetah" in curve.task else 1.0
            assert all(-5.0 <= value <= largest for value in run.values)


def test_the_first_sets_of_d4rl_are_not_the_tasks_of_the_table() -> None:
    # They share name and environment with ours, and nothing else: a curve of theirs may never pass for one of ours.
    known = {one.task for one in read_published()}
    for curve in read_published_curves():
        assert curve.task.endswith("-v0") and curve.task not in known
        assert find_task(f"{curve.family}-v2").id != curve.task


def test_tables_and_curves_do_not_mix() -> None:
    assert not {path.name for path in shipped()} & {path.name for path in shipped_curves()}
    assert family("hopper-medium-v2") == family("hopper-medium-v0") == "hopper-medium"
    assert family("D4RL/pointmaze/umaze-v2") == "D4RL/pointmaze/umaze"
    assert family("hopper-medium-expert-v2") != family("hopper-medium-v2")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("task,agent", "agent,task", "line 1: the first columns must be task,agent,seed,path,commit"),
        (",500,", ",5e2,", "line 1: '5e2' is no count"),
        (",500,", ",100,", "line 1: the evaluations must be in rising order"),
        (",1000\n", ",1001\n", "line 1: an evaluation at 1,001 lies beyond the budget of 1,000"),
        ("10.0,30.0", "10.0", "line 2: 7 cells, expected 8"),
        ("12.0", "nan", "line 3: 'nan' at 250 is no number"),
        ("12.0", "1e99", "line 3: '1e99' at 250 is no number"),
        ("12.0", "", "line 3: '' at 250 is no number"),
        ("12.0", "1_2", "line 3: '1_2' at 250 is no number"),
        ("iql,2,", "iql,1,", "line 3: seed 1 of maze-v2, iql is there twice"),
        ("iql,3,", "iql,x,", "line 4: seed is 'x'"),
        ("abcdef0123,8.0", "HEAD,8.0", "line 4: commit is 'HEAD'"),
        ("logs/3.csv", " ", "line 4: path is ' '"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    head = make_curves(tmp_path)
    data = head.with_suffix(".csv")
    text = data.read_text(encoding="utf-8")
    assert old in text
    data.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read_published_curves([head])
    assert str(data) in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("format = 1", "format = 2", "format is 2"),
        ("[protocol]", "[table]", "no key 'table'"),
        ('licence = "MIT"', "", "lacks"),
        ('licence = "MIT"', "licence = 3", "licence is 3, expected a text"),
        ("offline_updates = 1000", 'offline_updates = "1M"', "offline_updates is '1M', expected a whole number"),
        ("offline_updates = 1000", "offline_updates = -1", "offline_updates is -1"),
        ("offline_updates = 1000", "offline_updates = true", "expected a whole number"),
        ("offline_updates = 1000", "offline_updates = 1000\nbudget = 3", "no key 'budget'"),
        ('phase = "offline"', 'phase = "late"', "phase is 'late', expected one of offline, online"),
        ('phase = "offline"', 'phase = "online"', "an online curve needs online_steps"),
        ('score = "normalised"', 'score = "points"', "score is 'points'"),
        ("[source]", "[source", "cannot be read"),
        ("[source]", "[[source]]", "lacks the table [source]"),
    ],
)
def test_a_broken_head_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    head = make_curves(tmp_path)
    text = head.read_text(encoding="utf-8")
    assert old in text
    head.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read_published_curves([head])
    assert str(head) in str(caught.value)


def _remove(data: Path) -> None:
    data.unlink()


def _empty(data: Path) -> None:
    data.write_text("", encoding="utf-8")


def _no_rows(data: Path) -> None:
    data.write_text(data.read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")


def _huge(data: Path) -> None:
    data.write_bytes(b"x" * (LARGEST_CSV + 1))


def _binary(data: Path) -> None:
    data.write_bytes(b"task,agent\xff\n")


def _open_quote(data: Path) -> None:
    data.write_text(data.read_text(encoding="utf-8") + '"maze', encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_remove, "cannot be read: No such file"),
        (_empty, "is empty"),
        (_no_rows, "holds no runs"),
        (_huge, "more than the"),
        (_binary, "not text in UTF-8"),
        (_open_quote, "cannot be read"),
    ],
)
def test_rows_that_are_absent_or_no_text_are_refused(
    tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    head = make_curves(tmp_path)
    change(head.with_suffix(".csv"))
    with pytest.raises(DataError, match=message):
        read_published_curves([head])


def test_the_command_lists_sources_and_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "references"]) == 0
    out = capsys.readouterr().out
    for name in ("CORL, fine-tuning", "CORL, offline", "d3rlpy, offline", "d3rlpy, fine-tuning"):
        assert name in out
    assert "hopper-medium-v0, iql: 3 runs, 11 evaluations at 5,000 to 500,000 updates, normalised" in out

    assert main(["bench", "references", "hopper-medium-v2", "--agent", "iql"]) == 0
    out = capsys.readouterr().out
    assert "hopper-medium-v0: other data than hopper-medium-v2, not comparable with it" in out
    assert "hopper-medium-v2, iql, at the switch: 67.53 ± 3.78" in out
    assert "at   100,000: 46.5 [31.5, 76.5]" in out
    assert "seed 3: baselines/iql/hopper-medium-v0_3.txt at b3bbea38c3cf" in out
    assert "cql" not in out

    assert main(["bench", "references", "mujoco/hopper/medium-v0", "--agent", "iql"]) == 0
    assert capsys.readouterr().out == out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hoppr-medium-v2"], "nothing published is on file for task 'hoppr-medium'; near are hopper-medium"),
        (["--agent", "icl"], "for agent 'icl'; near are iql"),
        (["a", "b"], "bench references [TASK]"),
        (["--all"], "bench references [TASK]"),
    ],
)
def test_what_is_not_on_file_is_an_error(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "references", *arguments]) == 2
    assert message in capsys.readouterr().err
