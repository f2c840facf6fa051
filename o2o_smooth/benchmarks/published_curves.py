"""Published learning curves: facts with their sources, read from pairs of data files in `references/curves/`.

`NAME.toml` says where the numbers are from and how they were measured, `NAME.csv` holds a row a run: task, agent, seed,
the file and commit that it was read from, and a column an evaluation, headed by when it was.
"""

from __future__ import annotations

import csv
import importlib.resources
import io
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from o2o_smooth.errors import DataError
from o2o_smooth.reading import MIB, Unreadable, read_text, read_toml

FORMAT = 1
"""The newest layout of a head that is understood."""
LARGEST_CSV = MIB
MOST_RUNS = 2000
"""Rows of one file."""
MOST_POINTS = 200
"""Evaluations of a run; a longer curve is to be thinned."""

Phase = Literal["offline", "online"]
Kind = Literal["normalised", "return"]

_PHASES = ("offline", "online")
_KINDS = ("normalised", "return")
_FIXED = ("task", "agent", "seed", "path", "commit")
_LARGEST = 1e30
_COUNT = re.compile(r"[1-9]\d{0,11}|0")
_VALUE = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d{1,2})?")
_COMMIT = re.compile(r"[0-9a-f]{7,40}")


@dataclass(frozen=True)
class CurveSource:
    """Where curves are from, and how they were measured."""

    name: str
    """Short."""
    url: str
    """Where it can be looked up."""
    where: str
    """Which files, and what stands in them."""
    licence: str
    """Of the source."""
    phase: Phase
    """Evaluations by updates before the switch, or by environment steps after it."""
    provenance: str
    """Of the offline data."""
    score: Kind
    """Normalised scores (0 random, 100 reference) or plain returns."""
    offline_updates: int
    """Before the switch."""
    grid: str
    """Which evaluations were kept."""
    online_steps: int | None = None
    """After the switch; None where nothing was done online."""
    switch: str | None = None
    """The role of our arm that does what was done at the switch; online curves have one."""
    budget_bound: str = ""
    """What makes the way depend on the whole budget; empty where a shorter run is the beginning of a longer one."""
    batch_size: int | None = None
    """Rows of an update; None where it is not known."""
    episodes: int | None = None
    """Of an evaluation; None where it is not known."""
    paper: str | None = None
    """Which describes the algorithm or the library."""
    note: str = ""
    """What else a reader must know."""


@dataclass(frozen=True)
class PublishedRun:
    """One run of a source."""

    seed: int
    """As the source has it."""
    path: str
    """The file in the source that it was read from."""
    commit: str
    """Of that file."""
    values: tuple[float, ...]
    """As printed there, one an evaluation."""


@dataclass(frozen=True)
class PublishedCurve:
    """All runs of one task and agent of a source."""

    task: str
    """Id of the task, as the source has it."""
    agent: str
    """Name of the algorithm."""
    at: tuple[int, ...]
    """Updates before the switch, or environment steps after it: rising."""
    runs: tuple[PublishedRun, ...]
    """One a seed."""
    source: CurveSource
    """Where it is from."""

    @property
    def family(self) -> str:
        """The task without the version of its data: a name that says what it is about, not that it is the same."""
        return family(self.task)


def family(task: str) -> str:
    """hopper-medium-v2 -> hopper-medium."""
    return re.sub(r"-v\d+$", "", task)


def shipped_curves() -> list[Path]:
    """The heads that come with the package, by name."""
    folder = Path(str(importlib.resources.files("o2o_smooth.benchmarks.references"))) / "curves"
    return sorted(folder.glob("*.toml"))


def read_published_curves(files: Iterable[Path] | None = None) -> list[PublishedCurve]:
    """All curves of the heads; of those that come with the package where None.

    Args:
        files: Heads, `NAME.toml`; the rows are in `NAME.csv` beside each.

    Raises:
        DataError: A file is absent or broken; the text names file, line and cure.
    """
    return [curve for path in (shipped_curves() if files is None else files) for curve in _read(Path(path))]


def _read(path: Path) -> list[PublishedCurve]:
    source = _head(path)
    data = path.with_suffix(".csv")
    try:
        rows = list(csv.reader(io.StringIO(read_text(data, LARGEST_CSV), newline=""), strict=True))
    except (OSError, Unreadable, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"published curves {data} cannot be read: {reason}; {path.name} needs it beside it") from None
    if not rows or not any(rows):
        raise DataError(f"{data} is empty: its first line must be {','.join(_FIXED)} and when evaluations were")
    at = _times(data, rows[0], source)
    found: dict[tuple[str, str], list[PublishedRun]] = {}
    seen: set[tuple[str, str, int]] = set()
    if len(rows) - 1 > MOST_RUNS:
        raise DataError(f"{data} has {len(rows) - 1:,} runs, more than {MOST_RUNS:,}: keep fewer seeds")
    for line, cells in enumerate(rows[1:], 2):
        task, agent, run = _row(f"{data}, line {line}", cells, at)
        if (task, agent, run.seed) in seen:
            raise DataError(f"{data}, line {line}: seed {run.seed} of {task}, {agent} is there twice; remove one")
        seen.add((task, agent, run.seed))
        found.setdefault((task, agent), []).append(run)
    if not found:
        raise DataError(f"{data} holds no runs: write a line a run under the first one")
    return [PublishedCurve(task, agent, at, tuple(runs), source) for (task, agent), runs in found.items()]


def _head(path: Path) -> CurveSource:
    try:
        content = read_toml(path)
    except (OSError, Unreadable) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"published curves {path} cannot be read: {reason}") from None
    if content.get("format") != FORMAT:
        raise DataError(f"{path}: format is {content.get('format')!r}, this version reads {FORMAT}")
    if unknown := sorted(set(content) - {"format", "source", "protocol"}):
        raise DataError(f"{path}: there is no key {unknown[0]!r}; there are format, [source] and [protocol]")
    about: dict[str, Any] = {}
    for name in ("source", "protocol"):
        if not isinstance(content.get(name), dict):
            raise DataError(f"{path} lacks the table [{name}]")
        about |= content[name]
    return _checked(path, about)


def _checked(path: Path, about: Mapping[str, Any]) -> CurveSource:
    known = {field.name: str(field.type) for field in fields(CurveSource)}
    for key, value in about.items():
        if key not in known:
            raise DataError(f"{path}: there is no key {key!r}; there are {', '.join(known)}")
        number = known[key].startswith("int")
        if not isinstance(value, int if number else str) or isinstance(value, bool):
            raise DataError(f"{path}: {key} is {value!r}, expected {'a whole number' if number else 'a text'}")
    try:
        source = CurveSource(**about)
    except TypeError as error:
        lacking = str(error).partition("argument")[2].lstrip("s: ")
        raise DataError(f"{path} lacks {lacking}; references/README.md says what the keys mean") from None
    for key, value, choices in (("phase", source.phase, _PHASES), ("score", source.score, _KINDS)):
        if value not in choices:
            raise DataError(f"{path}: {key} is {value!r}, expected one of {', '.join(choices)}")
    numbers = {"offline_updates": 0, "online_steps": 1, "batch_size": 1, "episodes": 1}
    for key, least in numbers.items():
        value = getattr(source, key)
        if value is not None and value < least:
            raise DataError(f"{path}: {key} is {value}, expected at least {least}")
    if source.phase == "online" and (source.switch is None or source.online_steps is None):
        raise DataError(f"{path}: an online curve needs online_steps, and the switch that our arm is to do as well")
    return source


def _times(path: Path, header: Sequence[str], source: CurveSource) -> tuple[int, ...]:
    """When the evaluations were, from the first line."""
    where = f"{path}, line 1"
    if tuple(header[: len(_FIXED)]) != _FIXED:
        raise DataError(f"{where}: the first columns must be {','.join(_FIXED)}, got {','.join(header)[:100]}")
    texts = header[len(_FIXED) :]
    if not texts or len(texts) > MOST_POINTS:
        raise DataError(f"{where}: {len(texts)} evaluations, expected 1 to {MOST_POINTS}; thin the curve")
    for text in texts:
        if _COUNT.fullmatch(text) is None:
            raise DataError(f"{where}: {text[:40]!r} is no count of updates or steps; write it as 50000")
    at = tuple(int(text) for text in texts)
    if any(a >= b for a, b in itertools.pairwise(at)):
        raise DataError(f"{where}: the evaluations must be in rising order, each once")
    last = source.offline_updates if source.phase == "offline" else source.online_steps
    if last is not None and at[-1] > last:
        raise DataError(f"{where}: an evaluation at {at[-1]:,} lies beyond the budget of {last:,} that the head states")
    return at


def _row(where: str, cells: Sequence[str], at: Sequence[int]) -> tuple[str, str, PublishedRun]:
    expected = len(_FIXED) + len(at)
    if len(cells) != expected:
        raise DataError(f"{where}: {len(cells)} cells, expected {expected} as in the first line")
    task, agent, seed, path, commit = cells[: len(_FIXED)]
    for name, text in (("task", task), ("agent", agent), ("path", path)):
        if not text or text != text.strip() or not text.isprintable():
            raise DataError(f"{where}: {name} is {text[:60]!r}, expected a plain name")
    if _COUNT.fullmatch(seed) is None:
        raise DataError(f"{where}: seed is {seed[:40]!r}, expected a whole number")
    if _COMMIT.fullmatch(commit) is None:
        raise DataError(f"{where}: commit is {commit[:60]!r}, expected 7 to 40 hexadecimal digits")
    values = []
    for when, text in zip(at, cells[len(_FIXED) :], strict=True):
        value = float(text) if _VALUE.fullmatch(text) else math.nan
        if not abs(value) < _LARGEST:
            raise DataError(f"{where}: {text[:40]!r} at {when:,} is no number; leave a run out that has none there")
        values.append(value)
    return task, agent, PublishedRun(int(seed), path, commit, tuple(values))
