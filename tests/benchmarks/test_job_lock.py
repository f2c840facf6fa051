"""Locks: one owner at a time, and none that is dead."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from o2o_smooth.benchmarks import job_lock
from o2o_smooth.benchmarks.job_lock import Lock, here


def _other(path: Path, **changes: Any) -> dict[str, Any]:
    """The lock of somebody on another machine."""
    content = {"id": "x", "node": "elsewhere", "here": "elsewhere", "pid": 1, "begun": "1", "beat": 3, **changes}
    path.write_text(json.dumps(content), encoding="utf-8")
    return content


def test_one_at_a_time(tmp_path: Path) -> None:
    first, second = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    assert first.acquire() and not second.acquire()
    assert second.owner() is not None and "process" in str(second.owner())
    first.release()
    assert second.owner() is None and second.acquire()
    second.release()
    assert list(tmp_path.iterdir()) == []


def test_of_many_that_ask_one_gets_it(tmp_path: Path) -> None:
    locks = [Lock(tmp_path / "lock") for _ in range(16)]
    got: list[Lock] = []
    threads = [
        threading.Thread(target=lambda lock=lock: got.append(lock) if lock.acquire() else None) for lock in locks
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    got[0].release()


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from o2o_smooth.benchmarks.job_lock import Lock;"
        "print(Lock(Path(sys.argv[1])).acquire(), flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"True\n"
        lock = Lock(tmp_path / "lock")
        assert not lock.acquire()
        process.kill()
    assert lock.acquire()
    lock.release()


def test_a_number_used_again_is_not_the_owner(tmp_path: Path) -> None:
    import os

    _other(tmp_path / "lock", here=here(), pid=os.getpid(), begun="0")  # this process's number, begun at another time
    lock = Lock(tmp_path / "lock")
    assert lock.owner() is None and lock.acquire()
    lock.release()


def test_elsewhere_only_silence_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    clock = [100.0]
    monkeypatch.setattr("o2o_smooth.benchmarks.job_lock.time.monotonic", lambda: clock[0])
    lock = Lock(path)
    for beat in range(3):  # alive: the number moves
        _other(path, beat=beat)
        assert not lock.acquire()
        clock[0] += job_lock.STALE_S - 1
    clock[0] += 2
    assert lock.acquire()
    assert json.loads(path.read_text(encoding="utf-8"))["node"] != "elsewhere"
    lock.release()


def test_a_fresh_lock_is_not_taken_for_the_stale_one_before_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    stale = _other(path, id="stale")
    fresh = _other(path, id="fresh")
    Lock(path)._remove(stale)
    assert json.loads(path.read_text(encoding="utf-8")) == fresh


def test_who_has_lost_the_lock_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_lock, "BEAT_S", 0.02)
    told = threading.Event()
    lock = Lock(tmp_path / "lock", lost=told.set)
    assert lock.acquire()
    time.sleep(0.1)
    assert json.loads((tmp_path / "lock").read_text(encoding="utf-8"))["beat"] > 0
    theirs = _other(tmp_path / "lock", beat=10**6)
    assert told.wait(10.0)
    lock.release()
    assert json.loads((tmp_path / "lock").read_text(encoding="utf-8")) == theirs  # not ours to remove


def test_waiting_ends_where_there_is_nothing_left_to_wait_for(tmp_path: Path) -> None:
    with Lock(tmp_path / "lock") as first:
        assert first.acquire()
        told: list[str] = []
        assert not Lock(tmp_path / "lock").wait(lambda: bool(told), told.append)
        assert len(told) == 1
