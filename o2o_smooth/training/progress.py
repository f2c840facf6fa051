"""Showing how far long work has come: a live display in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TextIO, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PLAIN_EVERY_S = 15.0


class ProgressSink(Protocol):
    """Where progress goes: named tasks with a total, a position and a remark."""

    def update(self, name: str, done: int, total: int, remark: str = "") -> None:
        """Report that `done` of `total` units of a task are finished; a total of 0 is not known."""
        ...

    def note(self, text: str) -> None:
        """Say something worth a line of its own."""
        ...


class Silent:
    """Shows nothing."""

    def update(self, name: str, done: int, total: int, remark: str = "") -> None:
        """See `ProgressSink`."""

    def note(self, text: str) -> None:
        """See `ProgressSink`."""


PATIENCE_S = 2.0


def when_slow(update: Callable[[str, int, int], None]) -> Callable[[str, int, int], None]:
    """The same reports, but none of work that is done in a moment."""
    begun: dict[str, float] = {}

    def report(name: str, done: int, total: int) -> None:
        if time.monotonic() - begun.setdefault(name, time.monotonic()) >= PATIENCE_S:
            update(name, done, total)

    return report


@dataclass
class Live:
    """Bars in a terminal."""

    progress: Progress
    _tasks: dict[str, TaskID] = field(default_factory=dict)

    def update(self, name: str, done: int, total: int, remark: str = "") -> None:
        """See `ProgressSink`."""
        if name not in self._tasks:
            self._tasks[name] = self.progress.add_task(name, total=total or None, remark="")
        self.progress.update(self._tasks[name], completed=done, total=total or None, remark=remark)

    def note(self, text: str) -> None:
        """See `ProgressSink`."""
        self.progress.console.print(text, highlight=False, markup=False, emoji=False)


@dataclass
class Plain:
    """A line now and then, for logs and pipes."""

    console: Console
    _last: dict[str, float] = field(default_factory=dict)

    def update(self, name: str, done: int, total: int, remark: str = "") -> None:
        """See `ProgressSink`."""
        now = time.monotonic()
        if (done < total or not total) and now - self._last.get(name, 0.0) < PLAIN_EVERY_S:
            return
        if total and done >= total and self._last.get(name) == float("inf"):
            return
        self._last[name] = float("inf") if total and done >= total else now
        self.note(f"{name}: {done:,}" + (f"/{total:,}" if total else "") + (f"  {remark}" if remark else ""))

    def note(self, text: str) -> None:
        """See `ProgressSink`."""
        self.console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)


class Lossy:
    """A stream whose reader may go away (a closed terminal, `| head`), after which what is written is lost.

    Progress is no reason to lose a run.

    Args:
        stream: Where it goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, if somebody reads."""
        with contextlib.suppress(OSError, ValueError):  # gone, or closed
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, if somebody reads."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def show_progress(console: Console | None = None) -> Iterator[ProgressSink]:
    """A display for the length of a `with` block, on standard error."""
    stream = cast("TextIO", Lossy(sys.stderr))
    console = console or Console(file=stream, emoji=False)
    if not console.is_terminal:
        yield Plain(console)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[remark]}", markup=False),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        yield Live(progress)
