"""Published numbers: facts with their sources, read from the data files in `references/`."""

from __future__ import annotations

import importlib.resources
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from o2o_smooth.errors import DataError

FORMAT = 1
"""The newest layout of a file that is understood."""

Spread = Literal[
    "population standard deviation over seeds", "standard deviation over seeds", "standard error", "not stated"
]
_SPREADS = ("population standard deviation over seeds", "standard deviation over seeds", "standard error", "not stated")
_CELL = re.compile(r"(-?\d+(?:\.\d+)?)(?: ± (\d+(?:\.\d+)?))?")
_PROTOCOL = ("provenance", "score", "seeds", "spread", "offline_updates", "online_steps", "switch", "note")


@dataclass(frozen=True)
class Source:
    """Where numbers are from, and how they were measured."""

    name: str
    """Short."""
    url: str
    """Where it can be looked up."""
    where: str
    """Which page, which table."""
    provenance: str
    """Of the offline data."""
    score: str
    """What the scores are: "normalised"."""
    seeds: int
    """Runs behind a number."""
    spread: Spread
    """What stands behind the ±."""
    offline_updates: int
    """Before the switch."""
    online_steps: int | None = None
    """After it; None where nothing was done online."""
    switch: str | None = None
    """The role of our arm that does what was done at the switch."""
    revision: str | None = None
    """Of a repository."""
    paper: str | None = None
    """Which describes it."""
    note: str = ""
    """What else a reader must know."""


@dataclass(frozen=True)
class Published:
    """One number."""

    task: str
    """Id of the task."""
    agent: str
    """Name of the algorithm."""
    metric: str
    """Column of the table of results that it belongs to."""
    mean: float
    """As printed."""
    spread: float | None
    """As printed; None where there is none."""
    text: str
    """The cell as printed."""
    source: Source
    """Where it is from."""
    differs: str = ""
    """Why the metric is not ours; empty where it is."""

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds with n - 1; None where it cannot be told."""
        n = self.source.seeds
        if self.spread is None or n < 2:
            return None
        factors = {
            "population standard deviation over seeds": math.sqrt(n / (n - 1)),
            "standard deviation over seeds": 1.0,
            "standard error": math.sqrt(n),
        }
        factor = factors.get(self.source.spread)
        return None if factor is None else factor * self.spread


def shipped() -> list[Path]:
    """The data files that come with the package, by name."""
    folder = Path(str(importlib.resources.files("o2o_smooth.benchmarks.references")))
    return sorted(folder.glob("*.toml"))


def read_published(files: Iterable[Path] | None = None) -> list[Published]:
    """All numbers of the files; of those that come with the package where None.

    Raises:
        DataError: A file is absent or broken; the text names the place.
    """
    return [number for path in (shipped() if files is None else files) for number in _read(path)]


def _read(path: Path) -> list[Published]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"published numbers {path} cannot be read: {error}") from None
    if content.get("format") != FORMAT:
        raise DataError(f"{path}: format is {content.get('format')!r}, this version reads {FORMAT}")
    source = _source(path, content)
    found = []
    for table in content.get("table", []):
        for key in ("metric", "agents", "rows"):
            if not table.get(key):
                raise DataError(f"{path}: a [[table]] lacks {key!r}")
        agents = table["agents"]
        for task, cells in table["rows"].items():
            if len(cells) != len(agents):
                raise DataError(f"{path}: {task} has {len(cells)} cells for {len(agents)} agents in {table['metric']}")
            for agent, cell in zip(agents, cells, strict=True):
                if cell != "-":
                    mean, spread = _cell(path, task, cell)
                    differs = table.get("differs", "")
                    found.append(Published(task, agent, table["metric"], mean, spread, cell, source, differs))
    if not found:
        raise DataError(f"{path} holds no numbers")
    return found


def _source(path: Path, content: Mapping[str, Any]) -> Source:
    about, protocol = dict(content.get("source", {})), dict(content.get("protocol", {}))
    if unknown := sorted(set(protocol) - set(_PROTOCOL)):
        raise DataError(f"{path}: [protocol] has no key {unknown[0]!r}; there are {', '.join(_PROTOCOL)}")
    try:
        source = Source(**about, **protocol)
    except TypeError as error:
        raise DataError(f"{path}: [source] and [protocol] do not fit: {error}") from None
    if source.spread not in _SPREADS:
        raise DataError(f"{path}: spread is {source.spread!r}, expected one of {', '.join(_SPREADS)}")
    if source.seeds < 1 or source.offline_updates < 0:
        raise DataError(f"{path}: seeds must be at least 1 and offline_updates not negative")
    return source


def _cell(path: Path, task: str, cell: str) -> tuple[float, float | None]:
    match = _CELL.fullmatch(cell.strip())
    if match is None:
        raise DataError(f"{path}: {task} has the cell {cell!r}, expected 'mean ± spread', 'mean' or '-'")
    return float(match[1]), None if match[2] is None else float(match[2])
