"""Names are shown as they are: rich reads `:100:` as an emoji and `[x]` as markup, and neither is meant."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import o2o_smooth
from o2o_smooth.training.progress import show_progress

NAMES = ("linear:100: seed 0", "td_gate:100:", "linear:100", "[bold]:rocket:")


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_names_in_progress_are_no_emoji_and_no_markup(name: str, terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=160, color_system=None)  # with emoji, as a caller's may
    with show_progress(console) as progress:
        progress.update(name, 1, 1, remark=f"of {name}")
        progress.note(f"note: {name}")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert f"note: {name}" in shown
    assert f"of {name}" in shown
    assert shown.count(name) >= 3
    assert "💯" not in shown
    assert "🚀" not in shown


def test_no_console_of_ours_makes_emoji_of_what_it_prints() -> None:
    root = Path(o2o_smooth.__file__).parent
    made = [(path, call) for path in root.rglob("*.py") for call in re.findall(r"\bConsole\(.*?\)", path.read_text())]
    assert len(made) > 10
    assert [(path, call) for path, call in made if "emoji=False" not in call] == []


def test_a_reader_that_goes_away_does_not_end_the_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "o2o_smooth", "run", "--task", "Pendulum-v1", "--agent", "sac", "--seeds", "0"]
    command += ["--offline-updates", "0", "--online-steps", "300", "--schedule", "jump", "--regime", "discard"]
    command += ["--hidden-dims", "8", "--eval-episodes", "1", "--switch-episodes", "1", "--no-audit", "--out", "run"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stderr is not None
        assert process.stderr.read(1)
        process.stderr.close()
        process.wait()
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert (process.returncode, manifest["status"]) == (0, "completed")
