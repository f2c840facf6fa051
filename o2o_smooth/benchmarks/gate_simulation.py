"""How often the performance gate is wrong, and how soon it is right: simulated returns, no training.

    python -m o2o_smooth.benchmarks.gate_simulation --runs 100

Episodes of given length and noise come in while w moves. Either nothing ever changes, and every retreat is a false one;
or the mean return drops by a given share when w first reaches 0.5 and stays down, and the retreat should begin soon.
The gate's former rule is simulated beside it: a verdict every 250 steps on the mean of the last four episodes against
that of the first four, repeated until the next episode ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tyro

from o2o_smooth.files import written_whole
from o2o_smooth.smoothing import PerformanceGate, PerformanceGateConfig

RAMP = 5000  # N
PORTION = 50  # steps between two looks at the clock
BUDGET = 8 * RAMP
NOISE: dict[str, Callable[[np.random.Generator, float], float]] = {
    "Gaussian, 5 %": lambda rng, mean: float(rng.normal(mean, 0.05)),
    "Gaussian, 30 %": lambda rng, mean: float(rng.normal(mean, 0.3)),
    "Gaussian, 50 %": lambda rng, mean: float(rng.normal(mean, 0.5)),
    "success, 0.8": lambda rng, mean: float(rng.random() < 0.8 * mean),
    "success, 0.4": lambda rng, mean: float(rng.random() < 0.4 * mean),
}
"""Returns with mean 1 (success: with that rate) at the switch and 0 for the random policy; deviation relative to it."""


class Gate(Protocol):
    """What is simulated."""

    def observe_episodes(self, member: int, returns: Sequence[float]) -> None:
        """Episodes have ended."""

    def advance(self, t: float) -> None:
        """Time goes on."""

    def state(self) -> tuple[float, int]:
        """The weight and the verdict in force: -1, 0, 1."""
        ...


class NewGate(PerformanceGate):
    """The gate as it is."""

    def __init__(self) -> None:
        super().__init__(PerformanceGateConfig(ramp_steps=RAMP), random_return=0.0)

    def state(self) -> tuple[float, int]:
        """See `Gate`."""
        return float(self.progress[0]) / RAMP, self._own[0].verdict


class OldGate:
    """The gate as it was."""

    interval, episodes, share, back = 250, 4, 0.85, 2.0

    def __init__(self) -> None:
        self.first: list[float] = []
        self.recent: deque[float] = deque(maxlen=self.episodes)
        self.progress, self.decisions, self.verdict = 0.0, 0, 0

    def observe_episodes(self, member: int, returns: Sequence[float]) -> None:
        """See `Gate`."""
        self.first = [*self.first, *returns][: self.episodes]
        self.recent.extend(returns)

    def advance(self, t: float) -> None:
        """See `Gate`."""
        while self.decisions < t // self.interval:
            self.decisions += 1
            if len(self.first) == self.episodes:
                self.verdict = 1 if np.mean(self.recent) >= self.share * np.mean(self.first) else -1
                moved = self.interval * (1.0 if self.verdict > 0 else -self.back)
                self.progress = min(max(self.progress + moved, 0.0), RAMP)

    def state(self) -> tuple[float, int]:
        """See `Gate`."""
        return self.progress / RAMP, self.verdict


GATES: dict[str, Callable[[], Gate]] = {"old": OldGate, "new": NewGate}


@dataclass(frozen=True)
class Course:
    """What one simulated run came to; steps are infinite where it never happened."""

    retreating: float  # share of steps with a verdict to retreat
    full: float  # steps until w = 1
    onset: float  # step of the drop
    delay: float  # steps from the drop to the verdict to retreat
    beyond: float  # largest w from the drop to that verdict


def simulate(
    gate: Gate,
    draw: Callable[[np.random.Generator, float], float],
    length: int,
    rng: np.random.Generator,
    *,
    drop: float = 0.0,
    budget: int = BUDGET,
) -> Course:
    """One run.

    Args:
        gate: The rule.
        draw: An episode's return, given the mean over its steps.
        length: Steps per episode, a multiple of 50.
        rng: Randomness.
        drop: Share of the mean return that is lost when w first reaches 0.5; 0: nothing ever happens.
        budget: Steps.
    """
    retreating, full, onset, delay, beyond, total = 0, np.inf, np.inf, np.inf, 0.0, 0.0
    for t in range(PORTION, budget + 1, PORTION):
        total += 1.0 if t <= onset else 1.0 - drop
        gate.advance(t)
        w, verdict = gate.state()
        retreating += verdict < 0
        if w == 1.0:
            full = min(full, t)
        if drop and w >= 0.5 and np.isinf(onset):
            onset = t
        if t > onset:
            beyond = max(beyond, w)
            if verdict < 0:
                delay = t - onset
                break
        if t % length == 0:
            gate.observe_episodes(0, [draw(rng, total * PORTION / length)])
            total = 0.0
    return Course(retreating * PORTION / budget, full, onset, delay, beyond)


def row(
    gate: str, noise: str, length: int, *, runs: int, seed: int = 0, drops: Sequence[float] = (0.3, 0.6)
) -> dict[str, Any]:
    """One line of the table: `runs` courses of a kind without a drop, and as many with each."""

    def courses(drop: float) -> list[Course]:
        rng = np.random.default_rng([seed, length, round(100 * drop)])
        return [simulate(GATES[gate](), NOISE[noise], length, rng, drop=drop) for _ in range(runs)]

    calm = courses(0.0)
    found: dict[str, Any] = {
        "returns": noise,
        "episode": length,
        "gate": gate,
        "false retreat": float(np.mean([c.retreating for c in calm])),
        "steps to w = 1": float(np.median([c.full for c in calm])),
    }
    for drop in drops:
        fallen = [c for c in courses(drop) if np.isfinite(c.onset)]
        found[f"delay, {drop:.0%} drop"] = float(np.median([c.delay for c in fallen])) if fallen else np.inf
        found[f"largest w, {drop:.0%} drop"] = float(np.mean([c.beyond for c in fallen])) if fallen else np.nan
    return found


@dataclass(frozen=True)
class Simulation:
    """Simulate the performance gate, old rule and new, and print a table."""

    runs: int = 100
    """Runs per line and scenario."""
    lengths: tuple[int, ...] = (50, 250, 1000)
    """Steps per episode, multiples of 50."""
    seed: int = 0
    """Of the simulated returns."""
    out: Path | None = None
    """Also write the table to this file."""


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""

    def cell(name: str, value: Any) -> str:
        if not isinstance(value, float):
            return str(value)
        if name == "false retreat":
            return f"{value:.1%}"
        if name.startswith("largest"):
            return "-" if np.isnan(value) else f"{value:.2f}"
        return "not" if np.isinf(value) else f"{value:,.0f}"

    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([cell(n, r[n]) for n in names] for r in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    asked = tyro.cli(Simulation, args=arguments, description=__doc__)
    rows = []
    for noise in NOISE:
        for length in asked.lengths:
            rows += [row(gate, noise, length, runs=asked.runs, seed=asked.seed) for gate in GATES]
            print(table(rows).splitlines()[-2], table(rows).splitlines()[-1], sep="\n", flush=True)
    if asked.out is not None:
        with written_whole(asked.out) as part:
            part.write_text(table(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
