"""The command `o2o-smooth speed` at sizes of milliseconds, and what it makes of its measurements."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from o2o_smooth.benchmarks import speed as benchmark
from o2o_smooth.benchmarks import speed_growth
from o2o_smooth.benchmarks.speed import (
    SpeedConfig,
    break_even,
    configurations,
    installed_peers,
    measure,
    peak_gflops,
    speed,
    write_text,
)
from o2o_smooth.benchmarks.speed_growth import exponents
from o2o_smooth.benchmarks.speed_machine import cores, machine
from o2o_smooth.benchmarks.speed_picture import draw
from o2o_smooth.benchmarks.speed_report import into_document, markdown, number, ratios, report
from o2o_smooth.cli import main
from o2o_smooth.errors import ConfigError, O2OError

TINY = ["--width", "8", "--batch", "4", "--rows", "50", "--threads", "1", "--rounds", "1", "--slice-s", "0.001"]
ISSUED = ("agent", "precision", "members", "threads", "width", "batch", "updates_per_s", "limit_updates_per_s")


@pytest.fixture(autouse=True)
def small_matmuls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "MATMUL_SIZES", (32, 64))


def tiny(**settings: Any) -> SpeedConfig:
    sizes: dict[str, Any] = {"width": 8, "batch": 4, "rows": 50, "threads": (1,), "rounds": 1, "slice_s": 1e-3}
    return SpeedConfig(**{**sizes, "limit_s": 0.0, "peers": False, "run": False, "picture": None, **settings})


def test_every_combination_is_timed_once() -> None:
    config = SpeedConfig(
        agents=("iql", "cql", "iql"), precision=("fp32", "bf16"), members=(1, 4), threads=(1, 2), depth=()
    )
    found = [(c["agent"], c["precision"], c["members"], c["threads"]) for c in configurations(config)]
    assert len(found) == len(set(found)) == 2 * 2 * 2 * 2
    depths = {c["agent"]: len(c["hidden_dims"]) for c in configurations(config)}
    assert depths == {"iql": 2, "cql": 3}
    both = SpeedConfig(agents=("iql",), precision=("fp32",), members=(1,), depth=(2, 3))
    assert [c["hidden_dims"] for c in configurations(both)] == [[256] * 2, [256] * 3]
    assert both.thread_counts == (cores(),)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"agents": ()}, "--agents needs at least one value"),
        ({"members": (1, 0)}, "--members must be at least 1, got 1 0"),
        ({"obs_dim": 0}, "--obs-dim must be at least 1, got 0"),
        ({"slice_s": 0.0}, r"--slice-s must lie in \(0, 60\], got 0.0"),
        ({"picture": "x.bmp"}, "ends in .png, .pdf or .svg"),
        ({"json": "/no/such/folder/x.json"}, "the folder /no/such/folder does not exist"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        SpeedConfig(**settings)


def test_rows_hold_rates_beside_their_limit() -> None:
    result = measure(tiny(agents=("td3_bc",), precision=("fp32", "bf16"), members=(1, 3)))
    rows = result["rows"]
    assert [(r["precision"], r["members"]) for r in rows if r["precision"] == "fp32"] == [("fp32", 1), ("fp32", 3)]
    for row in rows:
        assert all(row[key] is not None for key in ISSUED)
        assert (row["width"], row["batch"], row["threads"], row["agent"]) == (8, 4, 1, "td3_bc")
        assert row["share_of_limit"] == pytest.approx(row["updates_per_s"] / row["limit_updates_per_s"])
        assert row["member_updates_per_s"] == pytest.approx(row["members"] * row["updates_per_s"])
        assert row["lowest"] <= row["updates_per_s"] <= row["highest"]
    one, three = rows[:2]
    assert one["limit_updates_per_s"] == pytest.approx(3 * three["limit_updates_per_s"])
    # Where the agents have no bf16 there is a reason instead of a row.
    found = {r["precision"] for r in rows} | {m["precision"] for m in result["missing"] if m["reason"]}
    assert found == {"fp32", "bf16"}
    assert {(p["precision"], p["threads"]) for p in result["peaks"]} == {("fp32", 1), ("bf16", 1)}
    assert result["peers"] == []


def test_the_peak_is_that_of_the_faster_matmul() -> None:
    def matmul(size: int, rate: float, precision: str = "fp32") -> dict[str, Any]:
        return {"kind": "matmul", "precision": precision, "threads": 2, "size": size, "updates_per_s": rate}

    peaks = peak_gflops([matmul(100, 50.0), matmul(200, 10.0), matmul(100, 70.0, "bf16"), {"kind": "update"}])
    assert peaks == {
        ("fp32", 2): pytest.approx(2 * 200**3 * 10 * 1e-9),
        ("bf16", 2): pytest.approx(2 * 100**3 * 70 * 1e-9),
    }


def test_compiling_pays_when_its_start_is_earned_back() -> None:
    def row(compile_: str, rate: float, first: float, **rest: Any) -> dict[str, Any]:
        base = {"agent": "iql", "precision": "fp32", "members": 1, "threads": 2, "depth": 2, "width": 256}
        return {**base, "compile": compile_, "updates_per_s": rate, "first_update_s": first, "contended": False, **rest}

    rows = [
        row("off", 100.0, 0.5),
        row("on", 200.0, 10.5),
        row("off", 9.0, 0.1, agent="cql"),
        row("on", 8.0, 9.0, agent="cql"),
    ]
    iql, cql = break_even(rows)
    assert (iql["agent"], iql["updates"], iql["costs_s"]) == ("iql", 2000, 10.0)  # 5 ms an update against 10 s
    assert (cql["agent"], cql["updates"]) == ("cql", None)
    shown = _shown(
        {
            "rows": [],
            "peers": [],
            "peaks": [],
            "missing": [],
            "absent_peers": [],
            "import_s": {},
            "slices": {"filter": False},
            "break_even": [iql, cql],
        }
    )
    assert "2,000" in shown
    assert "never" in shown
    both = configurations(SpeedConfig(agents=("iql",), precision=("fp32",), members=(1,), compile_break_even=True))
    assert [c["compile"] for c in both] == ["off", "on"]


def test_a_peer_is_compared_with_equal_work_alone() -> None:
    def row(implementation: str, rate: float, **rest: Any) -> dict[str, Any]:
        base = {"agent": "iql", "threads": 2, "hidden_dims": [256, 256], "batch": 256, "contended": False}
        return {**base, "implementation": implementation, "member_updates_per_s": rate, **rest}

    assert ratios(row("o2o_smooth", 100.0), [row("d3rlpy", 5.0, contended=True)]) == {}
    peers = [row("d3rlpy", 50.0), row("d3rlpy", 9.0, agent="cql"), row("jax", 40.0, threads=1), row("jax", 200.0)]
    assert ratios(row("o2o_smooth", 100.0), peers) == {"d3rlpy": 2.0, "jax": 0.5}


def test_peers_are_looked_for_in_the_python_that_is_named(tmp_path: Path) -> None:
    assert installed_peers(sys.executable) == installed_peers(None)
    with pytest.raises(ConfigError, match="no Python that runs"):
        installed_peers(str(tmp_path / "python"))


@pytest.mark.parametrize("python", [None, sys.executable])
def test_peers_are_timed_beside_ours(python: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = tmp_path / "peer.py"
    peer.write_text(
        "def make(configuration):\n"
        "    if configuration['agent'] == 'cql': raise ValueError('no cql here')\n"
        "    assert configuration['precision'] == 'fp32' and configuration['members'] == 1\n"
        "    return lambda n: sum(range(100_000)) and n\n"
    )
    monkeypatch.setattr(benchmark, "PEERS", {"json": str(peer), "not_installed_at_all": "x.py"})
    config = tiny(agents=("iql", "cql", "sac"), precision=("fp32",), members=(2,), peers=True, peers_python=python)
    result = measure(config)
    (found,) = result["peers"]
    assert (found["implementation"], found["agent"], found["members"]) == ("json", "iql", 1)
    own = next(r for r in result["rows"] if r["agent"] == "iql")
    assert ratios({**own, "contended": False}, [{**found, "contended": False}])["json"] == pytest.approx(
        2 * own["updates_per_s"] / found["updates_per_s"]
    )
    assert [(m["implementation"], m["agent"], m["reason"]) for m in result["missing"]] == [
        ("json", "cql", "ValueError: no cql here")
    ]
    assert result["absent_peers"] == ["not_installed_at_all"]


def test_load_is_measured_on_request() -> None:
    settings: dict[str, Any] = {"agents": ("td3_bc",), "task": "Pendulum-v1", "online": True, "quick": True}
    before = torch.get_num_threads()
    try:
        result = speed(tiny(**settings), "o2o-smooth speed --online --quick")
    finally:
        torch.set_num_threads(before)
    online = result["online"]
    assert (online["members"], online["num_envs"], online["utd"]) == (16, 4, 4.0)
    assert 0 < online["learner_share"] <= 1
    assert online["env_steps_per_s"] > 0
    assert "learner share" in _shown(result)


def test_the_command_writes_numbers_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers, picture, tables = tmp_path / "speed.json", tmp_path / "speed.png", tmp_path / "speed.md"
    files = ["--json", str(numbers), "--picture", str(picture), "--markdown", str(tables)]
    options = ["--agents", "iql", "--precision", "fp32", "--members", "1", "--limit-s", "0", "--no-run", "--no-peers"]
    assert main(["speed", *options, *TINY, *files]) == 0
    shown = capsys.readouterr().out
    assert "Updates per second" in shown
    assert "iql" in shown
    assert picture.read_bytes().startswith(b"\x89PNG")
    result = json.loads(numbers.read_text())
    assert result["rows"][0]["agent"] == "iql"
    assert set(ISSUED) <= set(result["rows"][0])
    assert result["command"].startswith("o2o-smooth speed --agents iql")
    assert result["machine"]["cores"] == cores()
    assert result["machine"]["versions"]["torch"]
    assert tables.read_text() == markdown(result)
    assert "| iql | 2x8 | fp32 | 1 | 1 |" in tables.read_text()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["speed", "--agents", "dqn"], "dqn"),
        (["speed", "--agent", "iql"], "did you mean --agents?"),
        (["speed", "--threads", "0"], "--threads must be at least 1, got 0"),
    ],
)
def test_bad_options_are_one_line(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert text in error


def test_numbers_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "taken.json").mkdir()
    with pytest.raises(O2OError, match="cannot write"):
        write_text("{}", tmp_path / "taken.json")


def test_growth_compares_cost_with_work() -> None:
    points = [
        {"value": 1, "work": 1.0, "cost_s": 1.0},
        {"value": 2, "work": 4.0, "cost_s": 4.0},
        {"value": 4, "work": 16.0, "cost_s": 32.0},
    ]
    assert exponents(points) == [None, pytest.approx(1.0), pytest.approx(1.5)]
    assert exponents(points, constant=True) == [None, pytest.approx(2.0), pytest.approx(3.0)]
    assert exponents([]) == []


@pytest.mark.slow
def test_growth_is_timed_drawn_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(speed_growth.POINTS, "batch", (2, 4, 10**9))
    monkeypatch.setitem(speed_growth.POINTS, "buffer", (20, 10**12))
    config = tiny(agents=("td3_bc",), precision=("fp32",), grow=("batch", "buffer"))
    result = speed(config, "o2o-smooth speed --grow batch buffer")
    batch, buffer = result["growth"]
    assert [p["value"] for p in batch["points"]] == [2, 4]
    assert batch["points"][1]["work"] == 2 * batch["points"][0]["work"]
    assert batch["missing"][0]["value"] == 10**9
    assert "GFLOP an update" in batch["missing"][0]["reason"]
    assert [p["value"] for p in buffer["points"]] == [20]
    assert "of the free memory" in buffer["missing"][0]["reason"]
    picture = tmp_path / "growth.png"
    assert draw(result, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert not draw({"rows": []}, tmp_path / "nothing.png")
    shown = _shown(result)
    assert "cost by batch" in shown
    assert "1,000,000,000: " in shown


def test_growth_with_updates_per_step_is_timed_in_real_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(speed_growth.POINTS, "utd", (1, 3))
    config = tiny(agents=("td3_bc",), grow=("utd",), task="Pendulum-v1", quick=True)
    (curve,) = speed(config, "o2o-smooth speed --grow utd")["growth"]
    assert curve["task"] == "Pendulum-v1"
    assert [p["value"] for p in curve["points"]] == [1, 3]
    assert all(0 < p["lowest"] <= p["cost_s"] <= p["highest"] for p in curve["points"])
    assert "ms an env step" in _shown({"growth": [curve]})


def test_a_report_says_what_was_dropped_and_what_is_missing() -> None:
    row = {
        "implementation": "o2o_smooth",
        "agent": "iql",
        "precision": "fp32",
        "members": 1,
        "threads": 2,
        "hidden_dims": [256, 256],
        "depth": 2,
        "width": 256,
        "batch": 256,
        "updates_per_s": 300.0,
        "member_updates_per_s": 300.0,
        "lowest": 290.0,
        "highest": 310.0,
        "limit_updates_per_s": 600.0,
        "share_of_limit": 0.5,
        "contended": True,
        "compile": "off",
        "first_update_s": 0.1,
    }
    result = {
        "rows": [row],
        "peers": [{**row, "implementation": "d3rlpy", "updates_per_s": 100.0, "member_updates_per_s": 100.0}],
        "peaks": [{"precision": "fp32", "threads": 2, "gflops": 320.0}],
        "missing": [{"implementation": "o2o_smooth", "agent": "iql", "precision": "bf16", "reason": "no such units"}],
        "slices": {"kept": 7, "dropped": 3, "filter": True},
        "absent_peers": ["jax"],
        "import_s": {"2": 1.5},
    }
    shown = " ".join(_shown(result).split())
    for text in (
        "300~",
        "3.00~",
        "50%",
        "3 of 10 slices dropped",
        "no slice was undisturbed",
        "iql bf16: no such units",
        "not installed: jax",
    ):
        assert text in shown


def test_tables_go_between_a_documents_marks() -> None:
    document = "# Mine\n<!-- o2o-smooth speed: growth -->\nold\n<!-- end -->\nrest\n"
    grown: dict[str, Any] = {"growth": []}
    once = into_document("new\n", grown, document)
    assert once == "# Mine\n<!-- o2o-smooth speed: growth -->\n\nnew\n\n<!-- end -->\nrest\n"
    assert into_document("new\n", grown, once) == once
    assert into_document("new\n", {"rows": []}, document) == "new\n"  # no marks of that kind


def test_numbers_are_short() -> None:
    assert [number(x) for x in (None, 0.01234, 5.678, 99.94, 1234.5)] == ["-", "0.0123", "5.68", "99.9", "1,234"]


def test_the_machine_is_named() -> None:
    found = machine()
    assert found["cpu"]
    assert found["cores"] >= 1


def _shown(result: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(report(result))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
