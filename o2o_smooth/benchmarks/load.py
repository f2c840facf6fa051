"""Does memory stay bounded: a whole run with many environments and members, its memory watched all the way.

    python -m o2o_smooth.benchmarks.load --envs 64 --members 16 --out runs/load

The steps are those that a learner of full width would take in an hour on this machine, measured in the first seconds;
they are then taken with small networks, since what could grow (episodes, logs, buffers, evaluations) grows by the step
and not by the hour. The ring of online rows is smaller than the steps, so that it wraps. The exit code is 1 where
memory has grown by more than the bound over the last half.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from o2o_smooth.agents import AGENTS
from o2o_smooth.data.room import own_memory
from o2o_smooth.errors import ConfigError, O2OError
from o2o_smooth.files import written_whole
from o2o_smooth.training.config import EvaluationConfig, RunConfig, SmoothingConfig, default_config
from o2o_smooth.training.progress import Silent
from o2o_smooth.training.run import run

MIB = 2**20
SAMPLES = 1000  # at most, over the whole run; halved when there are twice as many
ENOUGH = 20  # samples that a verdict needs


@dataclass(frozen=True)
class LoadConfig:
    """Options of the command."""

    out: str
    """Folder of the run; load.json goes there too."""
    envs: int = 64
    """Environments per member."""
    members: int = 16
    """Seeds, trained as one population."""
    hours: float = 1.0
    """How many hours of a full-width learner's steps."""
    env_steps: int | None = None
    """Environment steps per member; default: those of --hours, from a measurement."""
    task: str = "corridor-mixed-v0"
    """Task; the default's environments step in numpy, all at once."""
    agent: str = "td3"
    """td3 | sac: agents that need no data."""
    width: int = 16
    """Units in each hidden layer of the run."""
    full_width: int = 256
    """Units in each hidden layer of the measurement."""
    measure_s: float = 30.0
    """Seconds of the measurement."""
    batch_size: int = 64
    """Rows per update and member."""
    buffer_size: int = 65_536
    """Online rows kept per member: fewer than a third of the steps, so that the ring is full in the last half."""
    bound_mib: float = 16.0
    """Growth over the last half that is still taken for noise."""
    overwrite: bool = False
    """Replace a run in that folder."""

    def __post_init__(self) -> None:
        for name in ("envs", "members", "hours", "width", "full_width", "measure_s", "bound_mib"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")
        if self.env_steps is not None and self.env_steps < 1:
            raise ConfigError(f"env_steps must be at least 1, got {self.env_steps}")


class Watch(Silent):
    """Takes the memory of this process at even distances of a run's progress.

    Args:
        announce: Print a line every so many seconds; None: never.
    """

    def __init__(self, announce: float | None = None) -> None:
        self.samples: list[tuple[int, int]] = []  # env steps, bytes
        self._every = 1
        self._announce, self._said = announce, time.monotonic()

    def update(self, name: str, done: int, total: int, remark: str = "") -> None:
        """See `ProgressSink`."""
        if name != "online" or remark == "evaluating" or (self.samples and done < self.samples[-1][0] + self._every):
            return
        memory = own_memory()
        if memory is None:
            raise O2OError("the memory of this process is not told by this system; the load test needs Linux's /proc")
        self.samples.append((done, memory))
        if len(self.samples) > 2 * SAMPLES:  # a bounded number, as everything here
            self.samples = self.samples[::2]
            self._every = max(self._every, self.samples[-1][0] - self.samples[-2][0])
        if self._announce is not None and time.monotonic() - self._said >= self._announce:
            self._said = time.monotonic()
            print(f"  {done:,} of {total:,} env steps, {memory / MIB:.1f} MiB", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """See `ProgressSink`."""
        print(text, file=sys.stderr)


def growth(samples: Sequence[tuple[int, int]]) -> int:
    """Bytes by which memory grew over the last half: the last tenth's median less that of the tenth after the middle.

    Raises:
        O2OError: There are too few samples to say.
    """
    if len(samples) < ENOUGH:
        raise O2OError(f"{len(samples)} samples of memory are too few to tell growth; take more --env-steps")
    steps, memory = np.array(samples, dtype=np.int64).T
    share = steps / steps[-1]
    early = memory[(share >= 0.5) & (share < 0.6)]
    late = memory[share >= 0.9]
    if not (len(early) and len(late)):
        raise O2OError("the samples of memory do not cover the last half")
    return int(np.median(late) - np.median(early))


def load(config: LoadConfig, announce: float | None = None) -> dict[str, Any]:
    """Do the run and judge its memory.

    Args:
        config: The options.
        announce: See `Watch`.

    Returns:
        The options; `env_steps` per member, `transitions` of all members, `hour_rate` in env steps per member and
        second (None where it was not measured), `wall_s`, `mib_half`, `mib_end`, `mib_peak`, `growth_mib` over the last
        half, `bounded`.

    Raises:
        O2OError: A run that cannot be had, or too short to judge.
    """
    if config.agent not in AGENTS or AGENTS[config.agent].name not in ("td3", "sac"):
        raise ConfigError(f"agent must be td3 or sac, which need no data, got '{config.agent}'")
    rate = None if config.env_steps is not None else measure(config)
    steps = config.env_steps if rate is None else int(rate * 3600 * config.hours)
    assert steps is not None
    if 3 * config.buffer_size > steps:
        raise ConfigError(
            f"a ring of {config.buffer_size:,} rows would still be filling up in the last half of {steps:,} steps; "
            f"take --buffer-size {max(1, steps // 3):,} or less".replace(",", "")
        )
    watch = Watch(announce)
    begun = time.perf_counter()
    out = run(_config(config, steps), watch)
    grown = growth(watch.samples)
    half = [memory for at, memory in watch.samples if 2 * at >= steps]
    report = {
        **dataclasses.asdict(config),
        "env_steps": steps,
        "transitions": steps * config.members,
        "hour_rate": rate,
        "wall_s": time.perf_counter() - begun,
        "mib_half": half[0] / MIB,
        "mib_end": half[-1] / MIB,
        "mib_peak": max(memory for _, memory in watch.samples) / MIB,
        "growth_mib": grown / MIB,
        "bounded": grown <= config.bound_mib * MIB,
        "platform": platform.platform(),
        "samples": watch.samples,
    }
    with written_whole(out / "load.json") as path:
        path.write_text(json.dumps(report) + "\n", encoding="utf-8")
    return report


class _Enough(Exception):
    """The measurement is over."""


class _Clock(Silent):
    """Env steps per second of a run, after its first steps."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.begun: tuple[int, float] | None = None
        self.rate = 0.0

    def update(self, name: str, done: int, total: int, remark: str = "") -> None:
        """See `ProgressSink`."""
        now = time.perf_counter()
        if name != "online" or done < 20 * (total // 10**6):  # the first updates record what later ones repeat
            return
        if self.begun is None:
            self.begun = (done, now)
        elif now - self.begun[1] >= self.seconds:
            self.rate = (done - self.begun[0]) / (now - self.begun[1])
            raise _Enough


def measure(config: LoadConfig) -> float:
    """Env steps per member and second of a learner of full width; nothing of it is kept."""
    import tempfile

    clock = _Clock(config.measure_s)
    with tempfile.TemporaryDirectory(prefix="o2o-load-") as folder:
        wide = dataclasses.replace(config, width=config.full_width, out=str(Path(folder) / "run"))
        try:
            run(_config(wide, 10**6 * config.envs), clock)
        except _Enough:
            return clock.rate
    raise O2OError("the measurement ended before its time")


def _config(config: LoadConfig, steps: int) -> RunConfig[Any]:
    """Online alone, an update of all members each time that their environments step."""
    cls = AGENTS[config.agent].config_class
    base = default_config(config.task, config.agent, "other")
    return dataclasses.replace(
        base,
        hyper=cls(hidden_dims=(config.width, config.width)),
        smoothing=SmoothingConfig("jump", regime="discard"),
        evaluation=EvaluationConfig(eval_episodes=2, switch_episodes=2, eval_envs=2),
        task=config.task,
        seeds=tuple(range(config.members)),
        offline_updates=0,
        online_steps=steps,
        num_envs=config.envs,
        utd=1.0 / config.envs,
        batch_size=config.batch_size,
        update_after=config.batch_size,
        buffer_size=config.buffer_size,
        save_online=False,
        out=config.out,
        overwrite=config.overwrite,
    )


def main() -> int:
    """The command; prints what `load` returns as JSON."""
    import tyro

    config = tyro.cli(LoadConfig, prog="python -m o2o_smooth.benchmarks.load", description=__doc__)
    try:
        report = load(config, announce=30.0)
    except O2OError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({name: value for name, value in report.items() if name != "samples"}, indent=1))
    return 0 if report["bounded"] else 1


if __name__ == "__main__":
    sys.exit(main())
