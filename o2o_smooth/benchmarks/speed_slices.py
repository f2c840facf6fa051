"""Interleaved timing: short slices of every configuration in turn, and which of them other processes spoiled.

Machines get slower and faster while one measures, so configurations are compared within rounds: each round times one
slice of each, and a configuration's figure is the median of its slices. A slice during which processes that are not
ours used the CPU is dropped; where too few are left, rounds are added, within limits.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Self

from o2o_smooth.errors import O2OError

OTHERS_SHARE = 0.1  # of one core: more than this of other processes during a slice spoils it
OTHERS_TICKS = 3  # the system counts CPU time in ticks; less than this is rounding


class SpeedError(O2OError):
    """A measurement that could not be made."""


class CpuWatch:
    """CPU time that other processes used, from what the machine spent and what our process tree did.

    Args:
        proc: The process file system; where it is absent (not Linux), nothing is known and nothing dropped.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self.proc = proc
        self.tick_s = 1.0 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.01
        self.works = self._machine() is not None

    def others(self) -> float | None:
        """CPU seconds of all others since boot (with what the hypervisor took); only differences mean something."""
        machine = self._machine()
        return None if machine is None else (machine - self._ours()) * self.tick_s

    def spoiled(self, before: float | None, after: float | None, wall_s: float) -> float | None:
        """Cores' worth of other processes between two readings; None where it is too little to matter."""
        if before is None or after is None or wall_s <= 0:
            return None
        used = after - before
        if used <= max(OTHERS_SHARE * wall_s, OTHERS_TICKS * self.tick_s):
            return None
        return used / wall_s

    def _machine(self) -> float | None:
        try:
            fields = (self.proc / "stat").read_text(encoding="ascii").split("\n", 1)[0].split()
        except OSError:
            return None
        if len(fields) < 5 or fields[0] != "cpu":
            return None
        values = [int(value) for value in fields[1:9]]
        busy = sum(values) - values[3] - (values[4] if len(values) > 4 else 0)  # without idle and iowait
        return float(busy) if busy > 0 else None

    def _ours(self) -> float:
        """Ticks of this process and its descendants, also of those that have ended."""
        used: dict[int, tuple[int, int]] = {}
        for folder in self.proc.iterdir():
            if folder.name.isdecimal():
                try:
                    text = (folder / "stat").read_text(encoding="utf-8", errors="replace")
                except OSError:  # it has just ended
                    continue
                values = text.rpartition(")")[2].split()
                used[int(folder.name)] = (int(values[1]), sum(int(value) for value in values[11:15]))
        tree, grown = {os.getpid()}, True
        while grown:
            more = {pid for pid, (parent, _) in used.items() if parent in tree} - tree
            tree |= more
            grown = bool(more)
        return float(sum(used[pid][1] for pid in tree if pid in used))


class Worker:
    """A process that serves slices; see `speed_worker`.

    Args:
        target: Module or file with `make`.
        threads: CPU threads it may use.
        python: Interpreter; default: this one.

    Raises:
        SpeedError: It did not start.
    """

    def __init__(self, target: str, *, threads: int, python: str = sys.executable) -> None:
        here = Path(__file__).parent
        command = [python, "-m", "o2o_smooth.benchmarks.speed_worker", target]
        if target.endswith(".py"):
            command = [python, str(here / "speed_worker.py"), str(here / target)]
        counts = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        self.target = target
        self._folder = tempfile.TemporaryDirectory()
        self._said = Path(self._folder.name) / "stderr"
        try:
            with self._said.open("wb") as stderr:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    env={**os.environ, **counts, "PYTHONWARNINGS": "ignore"},
                    text=True,
                )
        except OSError as error:
            self._folder.cleanup()
            raise SpeedError(f"{python} cannot be started: {error}") from error
        try:
            self.import_s = float(self._read()["import_s"])
        except BaseException:
            self.close()
            raise

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            SpeedError: The request failed, or the process ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # reading says why
        answer = self._read()
        if "error" in answer:
            raise SpeedError(str(answer["error"]))
        return answer

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            last = self._said.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise SpeedError(f"{self.target} ended with code {code}: {''.join(last) or 'it said nothing'}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@dataclass
class Slices:
    """The slices of one configuration."""

    name: str
    worker: Worker
    first_update_s: float
    rates: list[float] = field(default_factory=list)  # updates per second, one a slice
    others: list[float | None] = field(default_factory=list)  # cores' worth of other processes where it was too much
    failed: str | None = None  # why a slice broke; what came before it is not shown

    @property
    def clean(self) -> list[float]:
        """Rates of the slices that nobody spoiled."""
        return [rate for rate, other in zip(self.rates, self.others, strict=True) if other is None]

    @property
    def contended(self) -> bool:
        """Whether no slice was clean, so that the least spoiled ones have to do."""
        return not self.clean

    @property
    def kept(self) -> list[float]:
        """The clean rates, or those of the least spoiled third."""
        if self.clean:
            return self.clean
        ranked = sorted(zip(self.rates, self.others, strict=True), key=lambda pair: pair[1] or 0.0)
        return [rate for rate, _ in ranked[: -(-len(ranked) // 3)]]

    def summary(self) -> dict[str, Any]:
        """Median and range, with the number of slices kept and dropped."""
        kept = self.kept
        return {
            "updates_per_s": median(kept),
            "lowest": min(kept),
            "highest": max(kept),
            "slices": len(kept),
            "dropped": len(self.rates) - len(kept),
            "contended": self.contended,
            "first_update_s": self.first_update_s,
        }


def build(worker: Worker, name: str, configuration: Mapping[str, Any]) -> Slices:
    """Have a worker build a configuration.

    Raises:
        SpeedError: It cannot.
    """
    answer = worker.ask({"do": "build", "name": name, "configuration": dict(configuration)})
    return Slices(name, worker, float(answer["first_update_s"]))


def interleave(
    slices: Sequence[Slices],
    *,
    rounds: int,
    slice_s: float,
    limit_s: float,
    on_round: Callable[[int, int], None] = lambda done, total: None,
    watch: CpuWatch | None = None,
) -> None:
    """Time every configuration in turn until each has `rounds` clean slices, or has `failed`.

    Args:
        slices: What to time; the results are put there.
        rounds: Clean slices wanted of each.
        slice_s: Length of a slice.
        limit_s: No round begins after this, once each has one slice.
        on_round: Told the rounds done and wanted.
        watch: Who else uses the machine.
    """
    watch = watch or CpuWatch()
    begin = time.perf_counter()
    done = 0
    while waiting := [s for s in slices if s.failed is None and len(s.clean) < rounds]:
        if done > 0 and time.perf_counter() - begin > limit_s:
            break
        for s in waiting:
            before, started = watch.others(), time.perf_counter()
            try:
                answer = s.worker.ask({"do": "slice", "name": s.name, "seconds": slice_s})
            except SpeedError as error:
                s.failed = str(error)
                continue
            wall_s = time.perf_counter() - started
            s.rates.append(answer["updates"] / answer["seconds"])
            s.others.append(watch.spoiled(before, watch.others(), wall_s))
        done += 1
        on_round(done, max(done, rounds))
