"""Kill a run at random moments, resume it, and compare it with one that was left alone.

    python -m o2o_smooth.benchmarks.kill_trials --trials 200 --out trials

A trial is a small run that is killed (SIGKILL) one to three times and then left to end. A kill comes at a moment drawn
uniformly over the time from a process's first file to the run's end; or in the middle of a checkpoint: while its
folder still has its temporary name; or right behind a write to a log. The same command starts and resumes
(`--auto-resume`). A trial passes if evaluations.jsonl and audit.jsonl are the undisturbed run's to the last byte,
metrics.jsonl but for its speeds, every resume used the newest checkpoint there was, none was found broken, and nothing
half-written is left.

Processes are forked from one that has imported everything: what is killed is a run, and not the start of Python.
`--cold` starts a fresh Python each time.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from o2o_smooth.cli_options import parse
from o2o_smooth.envs import find_task, make_env
from o2o_smooth.errors import ConfigError
from o2o_smooth.files import written_whole
from o2o_smooth.training.keeping import FOLDER, serials

Moment = Literal["any", "checkpoint", "log"]
MOMENTS: tuple[Moment, ...] = ("any", "checkpoint", "log")
SHARES = (0.5, 0.3, 0.2)  # of the kills
POLL_S = 0.0002
ROWS = 1000  # of the dataset
COLUMNS = ("observations", "actions", "rewards", "next_observations", "terminated", "truncated")
PATIENCE_S = 600.0

RUN = (
    *("run", "--agent", "td3_bc", "--hidden-dims", "16", "16", "--seeds", "1", "2", "--offline-updates", "200"),
    *("--online-steps", "240", "--num-envs", "2", "--batch-size", "16", "--log-every", "10", "--utd", "0.5"),
    *("--eval-episodes", "2", "--switch-episodes", "2", "--eval-envs", "2", "--eval-every", "60"),
    *("--schedule", "linear", "--ramp-steps", "120", "--auto-resume"),
)


@dataclass(frozen=True)
class TrialsConfig:
    """How often a run is killed, and where."""

    trials: int = 200
    """Runs that are killed and resumed."""
    out: str = "kill-trials"
    """Folder for the runs and the outcome (trials.json)."""
    seed: int = 0
    """Of the moments."""
    task: str = "corridor-mixed-v0"
    """The task; its environments' state must be one that can be kept."""
    vectorizer: Literal["sync", "async"] = "sync"
    """How environments step."""
    checkpoint_every: float = 0.05
    """Seconds between checkpoints."""
    cold: bool = False
    """Start a fresh Python for every process."""

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ConfigError(f"trials must be at least 1, got {self.trials}")


@dataclass
class Trial:
    """One run and what became of it."""

    number: int
    kills: list[dict[str, Any]] = field(default_factory=list)
    resumed: list[int | None] = field(default_factory=list)
    """Checkpoints that its resumes used, as the manifest has them."""
    faults: list[str] = field(default_factory=list)
    """Empty where it passed."""


class Process:
    """A run in a process of its own.

    Args:
        arguments: Of the command line.
        log: Takes what it prints.
        cold: See `TrialsConfig`.
    """

    def __init__(self, arguments: list[str], log: Path, *, cold: bool) -> None:
        self._popen: subprocess.Popen[bytes] | None = None
        with log.open("ab") as printed:
            if cold:
                command = [sys.executable, "-m", "o2o_smooth", *arguments]
                self._popen = subprocess.Popen(command, stdout=printed, stderr=printed, start_new_session=True)
                self.pid = self._popen.pid
                return
            self.pid = os.fork()
            if self.pid == 0:
                _run_here(arguments, printed.fileno())

    def poll(self) -> int | None:
        """Its exit code, below 0 a signal's; None while it runs."""
        if self._popen is not None:
            return self._popen.poll()
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return None if pid == 0 else os.waitstatus_to_exitcode(status)

    def kill(self) -> None:
        """SIGKILL to it and all that it has started; gone when this returns."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if self._popen is not None:
            self._popen.wait()
        else:
            os.waitpid(self.pid, 0)


def _run_here(arguments: list[str], printed: int) -> None:
    """Be the child."""
    code = 1
    try:
        os.setsid()
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        from o2o_smooth.cli import main

        code = main(arguments)
    finally:
        os._exit(code)


def trials(config: TrialsConfig) -> dict[str, Any]:
    """Do all trials; gives the outcome, which is also written to trials.json.

    Raises:
        ConfigError: The undisturbed run does not end well.
    """
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(config.seed)
    left_alone = out / "left-alone"
    if not _data(out).exists():
        _play(config.task, _data(out), np.random.default_rng(config.seed))
    length = _undisturbed(config, left_alone)
    done: list[Trial] = []
    outcome: dict[str, Any] = {}
    begun = time.monotonic()
    for number in range(config.trials):
        trial = _trial(config, number, rng, length, out)
        _compare(trial, left_alone, out / f"trial-{number:04d}")
        done.append(trial)
        if (number + 1) % 10 == 0 or number + 1 == config.trials:
            bad = sum(bool(t.faults) for t in done)
            print(f"{number + 1} of {config.trials} trials, {bad} with a fault", flush=True)
            outcome = _outcome(config, done, time.monotonic() - begun)
            with written_whole(out / "trials.json") as file:
                file.write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")
    return outcome


def _data(out: Path) -> Path:
    return out / "data.npz"


def _play(task_id: str, file: Path, rng: np.random.Generator) -> None:
    """A small dataset that is read at once: what a random policy does."""
    env = make_env(find_task(task_id))
    rows: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    obs, _ = env.reset(seed=0)
    for _ in range(ROWS):
        space = env.action_space
        assert isinstance(space, gym.spaces.Box)
        action = rng.uniform(space.low, space.high).astype(np.float32)
        successor, reward, terminated, truncated, _ = env.step(action)
        for name, value in zip(COLUMNS, (obs, action, reward, successor, terminated, truncated), strict=True):
            rows[name].append(value)
        obs = env.reset()[0] if terminated or truncated else successor
    rows["truncated"][-1] = not rows["terminated"][-1]
    env.close()
    with written_whole(file) as temporary:
        arrays: dict[str, Any] = {name: np.array(values) for name, values in rows.items()}
        np.savez(temporary, **arrays)


def _arguments(config: TrialsConfig, out: Path) -> list[str]:
    own = ["--task", config.task, "--vectorizer", config.vectorizer, "--out", str(out)]
    own += ["--dataset", str(_data(out.parent))]
    return [*RUN, *own, "--checkpoint-every", str(config.checkpoint_every)]


def _undisturbed(config: TrialsConfig, out: Path) -> float:
    """The run that others are compared with; gives its seconds from its first file to its end."""
    log = out.with_suffix(".log")
    process = Process(_arguments(config, out), log, cold=config.cold)
    first = None
    while (code := process.poll()) is None:
        if first is None and (out / FOLDER).exists():
            first = time.monotonic()
        time.sleep(POLL_S)
    if code != 0 or first is None:
        raise ConfigError(f"the undisturbed run ended with exit code {code}: {log.read_text()[-500:]}")
    return time.monotonic() - first


def _trial(config: TrialsConfig, number: int, rng: np.random.Generator, length: float, out: Path) -> Trial:
    trial, folder = Trial(number), out / f"trial-{number:04d}"
    log = out / f"trial-{number:04d}.log"
    for _ in range(int(rng.integers(1, 4))):
        moment = MOMENTS[int(rng.choice(len(MOMENTS), p=SHARES))]
        after = float(rng.uniform(0.0, length))
        process = Process(_arguments(config, folder), log, cold=config.cold)
        ended = _kill(process, folder, moment, after)
        if ended is not None:
            if ended != 0:
                trial.faults.append(f"exit code {ended}")
            break
        have = serials(folder / FOLDER)
        trial.kills.append({"moment": moment, "after_s": after, "newest": have[-1] if have else None})
    process = Process(_arguments(config, folder), log, cold=config.cold)
    begun = time.monotonic()
    while (code := process.poll()) is None and time.monotonic() - begun < PATIENCE_S:
        time.sleep(0.005)
    if code is None:
        process.kill()
    if code != 0:
        trial.faults.append(f"exit code {code} in the end")
    return trial


def _kill(process: Process, folder: Path, moment: Moment, after: float) -> int | None:
    """Kill a process at a moment; gives its exit code where it ended before, else None."""
    first, size = None, 0
    while True:
        code = process.poll()
        if code is not None:
            return code
        now = time.monotonic()
        if first is None and (folder / FOLDER).exists():
            first = now
        if first is not None and now - first >= after:
            if moment == "any":
                break
            if moment == "checkpoint" and _writing(folder / FOLDER):
                break
            logged = sum(_size(folder / name) for name in ("metrics.jsonl", "evaluations.jsonl", "audit.jsonl"))
            if moment == "log" and size and logged > size:
                break
            size = logged
        time.sleep(POLL_S)
    process.kill()
    return None


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _writing(folder: Path) -> bool:
    """Whether a checkpoint or its rows still have their temporary names."""
    with contextlib.suppress(OSError):
        names = [path.name for place in (folder, folder / "rows") for path in place.iterdir()]
        return any(name.startswith(".") and ".tmp" in name for name in names)
    return False


def _compare(trial: Trial, left_alone: Path, folder: Path) -> None:
    """Note what differs from the undisturbed run."""
    try:
        for name in ("evaluations.jsonl", "audit.jsonl"):
            if (folder / name).read_bytes() != (left_alone / name).read_bytes():
                trial.faults.append(f"{name} differs")
        if _without_speed(folder) != _without_speed(left_alone):
            trial.faults.append("metrics.jsonl differs")
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        trial.faults.append(f"{type(error).__name__}: {error}")
        return
    if manifest["status"] != "completed":
        trial.faults.append(f"status {manifest['status']}")
    trial.resumed = [entry["checkpoint"] for entry in manifest.get("resumed", [])]
    newest = [kill["newest"] for kill in trial.kills]
    if any(used not in newest for used in trial.resumed):
        trial.faults.append(f"resumed from {trial.resumed}, where {newest} were the newest")
    if "is not used" in folder.with_suffix(".log").read_text(encoding="utf-8"):
        trial.faults.append("a broken checkpoint")
    usual = {path.relative_to(left_alone) for path in left_alone.rglob("*")}
    if odd := {path.relative_to(folder) for path in folder.rglob("*")} ^ usual:
        trial.faults.append(f"other files: {', '.join(sorted(map(str, odd)))}")


def _without_speed(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [
        {key: value for key, value in json.loads(line).items() if not key.startswith("time/")}
        for line in text.splitlines()
    ]


def _outcome(config: TrialsConfig, done: list[Trial], seconds: float) -> dict[str, Any]:
    kills = [kill for trial in done for kill in trial.kills]
    return {
        "format": 1,
        "task": config.task,
        "vectorizer": config.vectorizer,
        "seed": config.seed,
        "trials": len(done),
        "passed": sum(not trial.faults for trial in done),
        "kills": len(kills),
        "kills_at": dict(Counter(kill["moment"] for kill in kills)),
        "resumed_from_checkpoint": sum(used is not None for trial in done for used in trial.resumed),
        "started_anew": sum(used is None for trial in done for used in trial.resumed),
        "seconds": seconds,
        "faults": {trial.number: trial.faults for trial in done if trial.faults},
        "each": [{"kills": trial.kills, "resumed": trial.resumed} for trial in done],
    }


def main() -> int:
    """The command; exit code 1 where a trial has a fault."""
    import torch

    # Before the first fork: what a child would have to import, and no thread that it would miss.
    torch.set_num_threads(1)
    import torch._dynamo  # what torch itself imports at the first update

    import o2o_smooth.cli
    import o2o_smooth.training.pictures
    import o2o_smooth.training.run  # noqa: F401

    outcome = trials(parse(TrialsConfig, TrialsConfig(), sys.argv[1:], "python -m o2o_smooth.benchmarks.kill_trials"))
    for name in ("trials", "passed", "kills", "kills_at", "resumed_from_checkpoint", "started_anew"):
        print(f"{name:<26}{outcome[name]}")
    for number, faults in outcome["faults"].items():
        print(f"trial {number}: {'; '.join(faults)}")
    return 0 if outcome["passed"] == outcome["trials"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
