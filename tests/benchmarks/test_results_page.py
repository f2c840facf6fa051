"""The pages and pictures of a study: what stands on them, and that nothing planned is dropped in silence."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from o2o_smooth.benchmarks import results, results_pictures, results_rows
from o2o_smooth.benchmarks.results import NO_PARQUET, write_results
from o2o_smooth.benchmarks.results_boards import compare_groups
from o2o_smooth.benchmarks.results_pictures import PANELS, batches, file_name, short
from o2o_smooth.benchmarks.results_study import read_groups, read_study
from o2o_smooth.benchmarks.results_tables import code, escape, number, table
from o2o_smooth.benchmarks.results_words import opening
from o2o_smooth.errors import ConfigError, DataError
from o2o_smooth.stability import sheet
from o2o_smooth.stability.compared import METRICS
from o2o_smooth.training.config import default_config
from o2o_smooth.training.population import run_population
from tests.benchmarks.study_folders import ARMS, make_study, read_plan, write_plan

FEW_ARMS = {name: ARMS[name] for name in ("jump", "linear", "linear (A/A)")}


def scores(task: str, agent: str, arm: str, seed: int) -> list[float]:
    depth = {"jump": 30.0, "linear": 5.0, "linear (A/A)": 6.0}.get(arm, 0.0) * (1 + 0.1 * seed)
    if task == "calm":
        depth = 0.0
    return [50.0, 50.0 - depth, 50.0, 70.0 + seed + 5 * (arm != "jump")]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks with references and one without; one run failed."""
    root = make_study(tmp_path_factory.mktemp("study"), scores, tasks=("maze", "calm"), arms=FEW_ARMS, seeds=(0, 1, 2))
    failed = next(entry for entry in read_plan(root) if (entry["task"], entry["arm"]) == ("calm", "linear (A/A)"))
    (root / "jobs" / failed["job"] / "done.json").unlink()
    (root / "jobs" / failed["job"] / "failed.json").write_text(json.dumps({"error": "CUDA | out of memory"}))
    for path in (root / failed["folder"]).iterdir():
        path.unlink()
    (root / "plots").mkdir()
    (root / "plots" / "stale.png").write_bytes(b"of an arm that is gone")
    write_results(root, note=lambda _: None)
    return root


def page_of(root: Path) -> str:
    return (root / "RESULTS.md").read_text(encoding="utf-8")


def test_the_page_has_its_parts_in_order(study: Path) -> None:
    page = page_of(study)
    assert [line for line in page.splitlines() if line.startswith("#")] == [
        "# Results: tiny",
        "## Protocol",
        "## Over tasks",
        "### iql: 2 tasks (maze, calm; generated data)",
        "## Task by task",
        "### maze, iql",
        "### calm, iql",
        "## Published numbers",
        "## What did not finish",
        "## Price",
        "## What to keep in mind",
        "## How this was made",
    ]
    lines = page.splitlines()
    assert [line[:6] for line in lines[2:5]] == ["1. **W", "2. **W", "3. **W"]
    for told in (
        "`o2o-smooth bench tiny --out study`",
        "Commit: abc123",
        "torch 2.13.0",
        "**Offline data: generated.**",
        "Data marked generated",
        "8 or fewer",
    ):
        assert told in page


def test_what_failed_is_named_with_its_reason(study: Path) -> None:
    page = page_of(study)
    assert "| calm | iql   | linear (A/A) |   0-2 | failed" in page.replace("0-2   |", "  0-2 |")
    assert "CUDA \\| out of memory" in page
    assert "What 3 of 18 planned runs would have shown: 3 failed" in page
    assert "calm, iql: completed seeds are fewer than planned: linear (A/A) 0 of 3." in page
    assert "linear (A/A) is left out of the tables over tasks of iql: it has no completed run on calm" in page
    rows = (study / "results.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1 + 18
    assert sum(",failed," in row for row in rows) == 3


def test_every_table_is_whole_and_every_link_leads_somewhere(study: Path) -> None:
    for name in ("RESULTS.md", "leaderboards.md"):
        widths: set[int] = set()
        for line in (study / name).read_text(encoding="utf-8").splitlines():
            if line.startswith("|"):
                widths.add(len(re.split(r"(?<!\\)\|", line)))
                assert len(widths) == 1, line
            else:
                widths.clear()
    links = re.findall(r"\]\((?!http)([^)]+)\)", page_of(study))
    assert len([link for link in links if link.startswith("plots/")]) >= 10
    for link in links:
        assert (study / link).stat().st_size > 0, link
    assert not (study / "plots" / "stale.png").exists()
    for path in (study / "plots").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.name in page_of(study), path.name


def test_leaderboards_have_a_section_a_metric(study: Path) -> None:
    page = (study / "leaderboards.md").read_text(encoding="utf-8")
    heads = [line for line in page.splitlines() if line.startswith("## ")]
    assert heads == ["## Final", "## Dip", "## Dip area", "## Recovery", "## Regret", "## Late collapse"]
    dips = page.split("## Dip\n")[1].split("## Dip area")[0].split("### calm")[0]
    arms = [line.split("|")[1].strip() for line in dips.splitlines() if line.startswith("| ")][1:]
    assert arms == ["linear", "linear (A/A)", "jump (baseline)"]
    assert "-27.5" in dips  # 25 (1 + 0.1 seed), mean over seeds 0 to 2
    assert "3 of 3" in dips
    assert "better on all 3" in dips


def test_the_sentences_count_pairs_of_task_and_agent(study: Path) -> None:
    groups = read_groups(read_study(study))
    found, _ = compare_groups(groups)
    first, second, third = opening(found, groups)
    assert "dropped by more than noise on 1: maze / iql (3 of 3 seeds, by 33 points, 3 came back)" in first
    assert "it did not drop on 1 (calm / iql)" in first
    assert "linear (dip smaller on 1, within noise on 1; final score higher on 1, within noise on 1)" in second
    assert "stay (the offline objective for ever)" in third
    assert "--" not in third  # flags of another command


def test_a_dip_that_only_comes_later_is_called_postponed(tmp_path: Path) -> None:
    def later(task: str, agent: str, arm: str, seed: int) -> list[float]:
        if arm == "jump":
            return [50.0, 10.0 + seed, 40.0, 60.0]
        return [50.0, 45.0, 10.0 + seed, 60.0] if task == "maze" else [50.0, 5.0, 4.0, 60.0]

    root = make_study(tmp_path, later, tasks=("maze", "deep"), arms={k: ARMS[k] for k in ("jump", "linear")})
    groups = read_groups(read_study(root))
    found, _ = compare_groups(groups)
    _, second, _ = opening(found, groups)
    assert "linear (dip only postponed on 2; final score within noise on 2)" in second


def test_one_group_has_the_reports_sentences(tmp_path: Path) -> None:
    root = make_study(tmp_path, scores, arms=FEW_ARMS)
    groups = read_groups(read_study(root))
    found, _ = compare_groups(groups)
    first, second, _ = opening(found, groups)
    assert first.startswith("maze, iql: jump dropped on 4 of 4 seeds")
    assert second.startswith("Against jump: linear made the dip")


def test_every_arm_can_be_held_against_another_than_the_jump(tmp_path: Path) -> None:
    root = make_study(tmp_path, scores, tasks=("maze", "calm"), arms=FEW_ARMS)
    write_results(root, note=lambda _: None, baseline="linear")
    page = page_of(root)
    assert "| linear (baseline) |" in page and "| jump (baseline) |" not in page
    assert "**Dip**, minus linear" in page, [line for line in page.splitlines() if "minus" in line]
    rows = (root / "results.csv").read_text(encoding="utf-8").splitlines()
    column = rows[0].split(",").index("baseline")
    assert {row.split(",")[column] for row in rows[1:]} == {"linear"}
    before = page
    with pytest.raises(ConfigError, match="there is no arm 'liner' to be the baseline; did you mean 'linear'"):
        write_results(root, note=lambda _: None, baseline="liner")
    assert page_of(root) == before


def test_a_study_in_which_nothing_ran_says_so(tmp_path: Path) -> None:
    write_plan(
        tmp_path, [{"folder": "runs/a", "task": "m", "agent": "iql", "arm": "jump", "seeds": [0, 1], "job": "a"}]
    )
    write_results(tmp_path, note=lambda _: None)
    page = page_of(tmp_path)
    assert "no run is completed that could be compared" in page
    assert "What 2 of 2 planned runs would have shown: 2 missing" in page
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 3
    with pytest.raises(DataError, match="is not a study"):
        write_results(tmp_path / "nowhere")


def test_results_can_be_made_again_and_are_the_same(tmp_path: Path) -> None:
    root = make_study(tmp_path, scores, arms={"jump": ARMS["jump"]}, seeds=(0, 1))
    write_results(root, note=lambda _: None)
    before = {path.name: path.read_bytes() for path in root.glob("*.*")}
    write_results(root, note=lambda _: None)
    assert {path.name: path.read_bytes() for path in root.glob("*.*")} == before


def test_without_pyarrow_the_user_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results_rows, "has_parquet", lambda: False)
    monkeypatch.setattr(results, "has_parquet", lambda: False)
    root = make_study(tmp_path, scores, arms={"jump": ARMS["jump"]}, seeds=(0, 1))
    told: list[str] = []
    write_results(root, note=told.append)
    assert told == [NO_PARQUET]
    assert not (root / "results.parquet").exists()
    assert "results.parquet" not in page_of(root)


def test_the_protocol_tells_what_was_run_by_task(study: Path) -> None:
    """A task may have budgets of its own, and --scale shortens what the suite says."""
    protocol = page_of(study).split("## Protocol")[1].split("## ")[0]
    assert re.search(r"\| maze +\| +1,000 \| +1,000 \| +300 \| +4 \| +10 \|", protocol)
    assert protocol.count("| seeds ") == 1


def test_names_cannot_break_the_page_or_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: set[tuple[str, bool]] = set()

    def save(figure: Figure, path: Path) -> Path:
        drawn.update((text.get_text(), text.get_parse_math()) for text in figure.findobj(Text))
        return sheet.save(figure, path)

    monkeypatch.setattr(results_pictures, "save", save)
    arms: dict[str, dict[str, Any]] = {"jump": ARMS["jump"], "a|b <img> $x_1$ `c`": {"schedule": "linear"}}
    root = make_study(tmp_path, scores, arms=arms, seeds=(0, 1))
    write_results(root, note=lambda _: None)
    page = page_of(root)
    assert "<img>" not in page
    assert "a\\|b &lt;img&gt; \\$x\\_1\\$ \\`c\\`" in page
    named = [(text, maths) for text, maths in drawn if "x_1" in text]
    assert named and not any(maths or "\\$" in text for text, maths in named)


def test_cells() -> None:
    regret, steps = (next(m for m in METRICS if m.key == key) for key in ("regret", "dip_time_steps"))
    assert number(12.345) == "12.3"
    assert number(-0.04) == "0.0"
    assert number(-0.04, signed=True) == "+0.0"
    assert number(12.345, signed=True) == "+12.3"
    assert number(0.256, regret) == "0.26"
    assert number(2500.0, steps) == "2,500"
    assert number(None) == number(math.nan) == "-"
    assert number(-math.inf) == "-∞"
    assert escape("a\nb|c") == "a b\\|c"
    assert code("a ` b") == "`` a ` b ``"
    assert table(["A", "B"], [["x", "1.0"]]) == "| A   |   B |\n|-----|----:|\n| x   | 1.0 |"


def test_many_panels_are_spread_evenly_over_files() -> None:
    parts = [len(part) for part in batches(list(range(20)), PANELS)]  # type: ignore[arg-type]
    assert parts == [7, 7, 6]
    assert list(batches([], PANELS)) == []
    assert file_name("curves", "D4RL/pen/human-v2", "iql") == "curves-D4RL-pen-human-v2-iql"
    assert file_name("..", "/") == "x-x"
    assert short("antmaze-umaze-v2") == "antmaze-umaze-v2"
    assert len(short("x" * 80)) == 34


@pytest.mark.slow
def test_real_runs_become_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    plain = {
        "seeds": [0, 1],
        "threads": 1,
        "offline_updates": 60,
        "online_steps": 200,
        "hidden_dims": [8, 8],
        "batch_size": 16,
        "offline_eval_every": 0,
        "eval_episodes": 2,
        "save_online": False,
        "holdout": 0.0,
    }
    arms: dict[str, dict[str, Any]] = {"jump": {"schedule": "jump"}, "linear": {"schedule": "linear", "ramp_steps": 50}}
    configs = [
        default_config(
            "corridor-mixed-v0", "td3_bc", "corridor", {**plain, **own, "out": str(tmp_path / "study" / "runs" / arm)}
        )
        for arm, own in arms.items()
    ]
    run_population(configs, names=list(arms))
    entries = [
        {
            "folder": f"runs/{arm}",
            "task": "corridor-mixed-v0",
            "agent": "td3_bc",
            "arm": arm,
            "settings": own,
            "seeds": [0, 1],
            "job": "",
        }
        for arm, own in arms.items()
    ]
    root = tmp_path / "study"
    write_plan(root, entries)
    write_results(root, note=lambda _: None)
    groups = read_groups(read_study(root))
    (found,), _ = compare_groups(groups)
    rows = results_rows.run_rows(groups, {found.group.label: found.comparison})
    assert [(row["arm"], row["seed"], row["status"]) for row in rows] == [
        ("jump", 0, "completed"),
        ("jump", 1, "completed"),
        ("linear", 0, "completed"),
        ("linear", 1, "completed"),
    ]
    for row in rows:
        assert row["provenance"] == "generated"
        assert row["agent_name"] == "td3_bc"
        assert row["members"] == 4
        assert row["updates"] > 60
        assert row["updates_per_s"] > 0
        assert row["wall_s"] >= 0
        assert np.isfinite([row[key] for key in ("j0", "final", "dip_depth", "dip_area", "auc", "regret")]).all()
    assert rows[0]["j0"] == rows[2]["j0"]  # one pretraining
    page = page_of(root)
    assert "o2o-smooth/corridor/mixed-v0" in page.replace("\\", "")
    assert "### corridor-mixed-v0, td3\\_bc" in page
