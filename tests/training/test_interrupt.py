"""A real Ctrl-C during a real run: it ends soon, says so, and nothing of it lives on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

MARK = "O2O_SMOOTH_TEST_RUN"


def offspring(mark: str) -> list[str]:
    """Commands of the processes that still run and have inherited a mark; environments have groups of their own."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name, _, fields = (folder / "stat").read_text().rpartition(")")
            inherited = f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # it has just ended, or is somebody else's
            continue
        if inherited and fields.split()[0] != "Z":
            found.append(name)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads processes from /proc")
@pytest.mark.parametrize(
    ("number", "vectorizer", "overlap"),
    [(signal.SIGINT, "sync", "on"), (signal.SIGTERM, "async", "on"), (signal.SIGINT, "async", "off")],
)
def test_interrupted_run_leaves_no_process(number: int, vectorizer: str, overlap: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "o2o_smooth", "run", "--task", "Pendulum-v1", "--agent", "sac"]
    command += ["--offline-updates", "0", "--schedule", "jump", "--online-steps", "1000000", "--num-envs", "2"]
    command += ["--hidden-dims", "8", "8", "--eval-episodes", "1", "--switch-episodes", "1", "--log-every", "100"]
    command += ["--vectorizer", vectorizer, "--overlap", overlap, "--out", str(out)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", MARK: str(out)}
    process = subprocess.Popen(
        command,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests in the background of a shell inherit that the signal is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )
    metrics = out / "metrics.jsonl"
    try:
        while process.poll() is None and not (metrics.exists() and "online" in metrics.read_text()):
            time.sleep(0.1)
        assert process.poll() is None, process.communicate()
        assert len(offspring(str(out))) >= (3 if vectorizer == "async" else 1)
        os.killpg(process.pid, number)  # as a terminal does: to all of them at once
        _, errors = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == (75 if number == signal.SIGTERM else 130), errors
    assert f"interrupted; go on with: o2o-smooth resume {out}" in errors
    assert "Traceback" not in errors
    assert json.loads((out / "manifest.json").read_text())["status"] == "interrupted"
    assert list((out / "resume").glob("[0-9]*"))
    for _ in range(100):  # multiprocessing's own helpers end when they see that their parent has
        if not offspring(str(out)):
            return
        time.sleep(0.1)
    raise AssertionError(f"{offspring(str(out))} are left")
