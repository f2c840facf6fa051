"""How a study stands, for people: a live display in a terminal, plain lines elsewhere, the rows of `bench status`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from o2o_smooth.benchmarks.runner import Standing
from o2o_smooth.benchmarks.study import Study

PLAIN_EVERY_S = 30.0
_LOOK_S = 1.0  # between two looks at what workers write
_ROWS = 24  # running jobs that are shown


@dataclass(frozen=True)
class Pace:
    """How fast a study is."""

    share: float
    """Of the predicted work that is done."""
    left_s: float | None
    """Seconds to go on the workers that are at work now; None where nothing tells."""
    updates_per_s: float
    """Of all jobs that run, members counted."""


def pace(standings: Mapping[str, Standing], states: Mapping[str, Mapping[str, Any]], workers: int) -> Pace:
    """Reckon a study's pace from what was predicted and what was seen.

    Args:
        standings: The jobs.
        states: What running jobs write in state.json.
        workers: Jobs at a time.
    """
    seen = [(s.seconds, s.job.predicted_s) for s in standings.values() if s.state == "done" and s.seconds > 0]
    total = done = left = rate = 0.0
    for s in standings.values():
        state = states.get(s.job.id, {}) if s.state == "running" else {}
        fraction, before = float(state.get("fraction", 0.0)), float(state.get("resumed_at", 0.0))
        elapsed = float(state.get("seconds", 0.0))
        if s.state == "running" and elapsed > 5.0 and fraction - before > 0.02:
            seen.append((elapsed, s.job.predicted_s * (fraction - before)))
            rate += s.job.updates * (fraction - before) / elapsed
        if s.state in ("blocked", "failed"):
            continue
        part = 1.0 if s.state == "done" else fraction
        total += s.job.predicted_s
        done += part * s.job.predicted_s
        left += (1.0 - part) * s.job.predicted_s
    predicted = sum(p for _, p in seen)
    factor = sum(t for t, _ in seen) / predicted if predicted > 0 else None
    return Pace(done / total if total else 1.0, None if factor is None else left * factor / max(1, workers), rate)


def duration(seconds: float) -> str:
    """Seconds for people: 45 s, 12 min, 3.4 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def headline(standings: Mapping[str, Standing], found: Pace) -> str:
    """Counts, share, rate and time to go in a line."""
    counts = {
        state: sum(s.state == state for s in standings.values())
        for state in ("done", "running", "waiting", "failed", "blocked")
    }
    parts = [f"{counts['done']} of {len(standings)} jobs done"]
    parts += [f"{count} {state}" for state, count in counts.items() if count and state != "done"]
    if found.updates_per_s:
        parts.append(f"{found.updates_per_s:,.0f} updates/s")
    if found.left_s is not None and counts["running"] + counts["waiting"]:
        parts.append(f"about {duration(found.left_s)} to go")
    return ", ".join(parts)


@dataclass
class StudyView:
    """What a view needs to know of a study.

    Args:
        study: The study.
        workers: Jobs at a time.
    """

    study: Study
    workers: int
    states: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    _looked: float = -1e9

    def look(self, standings: Mapping[str, Standing]) -> bool:
        """Read what running jobs write; False where that was just done."""
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return False
        self._looked = now
        for name, standing in standings.items():
            if standing.state == "running":
                self.states[name] = self.study.progress(name).content
        return True

    def pace(self, standings: Mapping[str, Standing]) -> Pace:
        """See `pace`."""
        return pace(standings, self.states, self.workers)


@dataclass
class PlainView(StudyView):
    """Lines, for logs and pipes."""

    console: Console = field(default_factory=lambda: Console(stderr=True, emoji=False))
    _told: float = -1e9

    def begin(self, standings: Mapping[str, Standing]) -> None:
        """See `View`."""
        self.event(headline(standings, self.pace(standings)))
        self._told = time.monotonic()

    def event(self, text: str) -> None:
        """See `View`."""
        moment = time.strftime("%H:%M:%S")
        self.console.print(f"{moment} {text}", highlight=False, markup=False, soft_wrap=True)

    def refresh(self, standings: Mapping[str, Standing]) -> None:
        """See `View`."""
        if time.monotonic() - self._told >= PLAIN_EVERY_S and self.look(standings):
            self._told = time.monotonic()
            self.event(headline(standings, self.pace(standings)))


@dataclass
class LiveView(StudyView):
    """A table that renews itself, with what happens above it."""

    live: Live = field(default_factory=Live)

    def begin(self, standings: Mapping[str, Standing]) -> None:
        """See `View`."""
        self._looked = -1e9
        self.refresh(standings)

    def event(self, text: str) -> None:
        """See `View`."""
        if text.startswith(("started:", "done:")):
            return  # the table shows it
        self.live.console.print(Text(f"{time.strftime('%H:%M:%S')} {text}"), highlight=False)

    def refresh(self, standings: Mapping[str, Standing]) -> None:
        """See `View`."""
        if self.look(standings):
            self.live.update(live_table(self.study, standings, self.states, self.pace(standings)))


def live_table(
    study: Study, standings: Mapping[str, Standing], states: Mapping[str, Mapping[str, Any]], found: Pace
) -> RenderableType:
    """What runs where and how far it is, and what has failed."""
    width = 24
    filled = round(width * found.share)
    head = Text.assemble((str(study.folder), "bold"), "  ", ("━" * filled, "green"), ("━" * (width - filled), "dim"))
    head.append(f" {found.share:.0%}\n{headline(standings, found)}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("job", overflow="fold", ratio=3)
    table.add_column("where", overflow="fold", ratio=2)
    table.add_column("done", justify="right", no_wrap=True)
    table.add_column("updates/s", justify="right", no_wrap=True)
    table.add_column("now", overflow="fold", ratio=2)
    running = [s for s in standings.values() if s.state == "running"]
    for standing in running[:_ROWS]:
        table.add_row(*map(Text, _cells(standing, states.get(standing.job.id, {}))))
    failed = [Text(f"failed: {s.job.id}: {s.detail}", "red") for s in standings.values() if s.state == "failed"]
    return Group(head, table if running else Text(""), *failed[-5:])


def _cells(standing: Standing, state: Mapping[str, Any]) -> tuple[str, ...]:
    fraction, seconds = float(state.get("fraction", 0.0)), float(state.get("seconds", 0.0))
    made = (fraction - float(state.get("resumed_at", 0.0))) * standing.job.updates
    rate = f"{made / seconds:,.0f}" if seconds > 2 and made > 0 else ""
    return standing.job.title or standing.job.id, standing.where, f"{fraction:.0%}", rate, _now(state)


def _now(state: Mapping[str, Any]) -> str:
    """What a job does at the moment: of its tasks the last one that is not done."""
    tasks = state.get("tasks", {})
    going = [(name, task) for name, task in tasks.items() if task[0] < task[1]] or list(tasks.items())
    if not going:
        return "begins"
    name, (done, total, remark) = going[-1]
    return f"{name} {done:,}" + (f"/{total:,}" if total else "") + (f" {remark}" if remark else "")


@contextmanager
def show_study(study: Study, workers: int, console: Console | None = None) -> Iterator[PlainView | LiveView]:
    """A view for the length of a `with` block, on standard error."""
    console = console or Console(stderr=True, emoji=False)
    if not console.is_terminal:
        yield PlainView(study, workers, console=console)
        return
    with Live(console=console, refresh_per_second=4) as live:
        yield LiveView(study, workers, live=live)


def status_lines(study: Study) -> list[tuple[str, str, str, str]]:
    """For each job: its id, its state, how much is done, and a remark."""
    blocked = study.blocked()
    rows = []
    for job in study.ordered():
        found = study.progress(job.id)
        share = f"{float(found.content.get('fraction', 0.0)):.0%}" if found.state in ("running", "broken") else ""
        remark = found.detail
        if found.state == "running":
            remark = f"{_now(found.content)} ({found.detail})"
        elif found.state == "done":
            remark = duration(float(found.content.get("wall_s", 0.0)))
        elif found.state == "broken":
            remark = "broken off; goes on with the study"
        state: str = found.state
        if job.id in blocked and state != "failed":
            state, remark = "blocked", f"by {blocked[job.id]}"
        rows.append((job.id, state, share, remark))
    return rows


def log_tail(file: Path, lines: int) -> str:
    """The end of a log."""
    try:
        with file.open("rb") as handle:
            handle.seek(0, 2)
            size = handle.tell()
            handle.seek(max(0, size - 400 * lines))
            text = handle.read().decode("utf-8", errors="replace")
    except OSError:
        return "(no log)"
    return "\n".join(text.splitlines()[-lines:])
