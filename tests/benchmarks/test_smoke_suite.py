"""The shipped suite `smoke`, on its quicker task and with small budgets: what a newcomer's first command does."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path

import pytest

from o2o_smooth.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="a keeper forks")]


def test_the_smoke_suite_makes_its_data_its_runs_and_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    out = tmp_path / "smoke"
    small = ["--tasks", "corridor-mixed-v0", "--agents", "td3_bc", "--scale", "0.05"]
    assert main(["bench", "smoke", "--out", str(out), "--cache", str(tmp_path / "cache"), *small]) == 0
    assert f"table: {out / 'RESULTS.md'}" in capsys.readouterr().out
    rows = list(csv.DictReader((out / "results.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 3 * 2 and {row["status"] for row in rows} == {"completed"}
    assert {row["provenance"] for row in rows} == {"generated"}
    page = (out / "RESULTS.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\((plots/[^)]+)\)", page))
    assert linked == {f"plots/{path.name}" for path in (out / "plots").iterdir()} and linked
    assert "every planned run is completed" in page and "--scale 0.05" in page
    assert main(["bench", "status", str(out)]) == 0
    assert re.search(r": ([0-9]+) jobs: \1 done\n", capsys.readouterr().out)
