"""What is on file of others' results: tables and curves, with their sources, without a study."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator, Sequence

import numpy as np

from o2o_smooth.benchmarks.published import Published, read_published
from o2o_smooth.benchmarks.published_curves import PublishedCurve, family, read_published_curves
from o2o_smooth.benchmarks.results_published import source_line
from o2o_smooth.benchmarks.results_published_curves import curve_source_line
from o2o_smooth.benchmarks.results_tables import number
from o2o_smooth.envs import find_task
from o2o_smooth.errors import ConfigError, EnvError

_WORDS = {"j0": "at the switch", "final": "final", "regret": "regret"}
_NAMES = 8  # that an error lists


def reference_lines(task: str | None = None, agent: str | None = None) -> Iterator[str]:
    """What is on file, in lines for a terminal: all sources and how much of them, or every number of a task.

    Args:
        task: A task; also its other versions are shown, each under its own name. None: an overview.
        agent: Only this one.

    Raises:
        ConfigError: There is nothing of this task or agent; the text names what is near.
        DataError: A file is broken.
    """
    numbers: Sequence[Published] = read_published()
    curves: Sequence[PublishedCurve] = read_published_curves()
    if agent is not None:
        _known("agent", agent, [one.agent for one in numbers] + [curve.agent for curve in curves])
        numbers = [one for one in numbers if one.agent == agent]
        curves = [curve for curve in curves if curve.agent == agent]
    if task is None:
        return _overview(numbers, curves)
    with contextlib.suppress(EnvError):  # another name of it, such as Minari's
        task = find_task(task).id
    _known("task", family(task), [family(one.task) for one in numbers] + [curve.family for curve in curves])
    mine = [one for one in numbers if family(one.task) == family(task)]
    return _of_task(task, mine, [curve for curve in curves if curve.family == family(task)])


def _known(what: str, name: str, names: Sequence[str]) -> None:
    every = sorted(dict.fromkeys(names))
    if name in every:
        return
    near = difflib.get_close_matches(name, every, n=_NAMES, cutoff=0.5) or every[:_NAMES]
    raise ConfigError(
        f"nothing published is on file for {what} {name!r}; near are {', '.join(near)} (o2o-smooth bench references)"
    )


def _overview(numbers: Sequence[Published], curves: Sequence[PublishedCurve]) -> Iterator[str]:
    for source in dict.fromkeys(one.source for one in numbers):
        own = [one for one in numbers if one.source == source]
        yield f"table: {source_line(source)}"
        yield f"  {len(own)} numbers; agents: {_names(o.agent for o in own)}; tasks: {_names(o.task for o in own)}"
    for origin in dict.fromkeys(curve.source for curve in curves):
        mine = [curve for curve in curves if curve.source == origin]
        yield f"curves: {curve_source_line(origin)}"
        for curve in mine:
            yield f"  {curve.task}, {curve.agent}: {_size(curve)}"
    yield "o2o-smooth bench references TASK shows every number of a task; docs/results.md says when they are tested"


def _of_task(task: str, numbers: Sequence[Published], curves: Sequence[PublishedCurve]) -> Iterator[str]:
    versions = {one.task for one in numbers} | {curve.task for curve in curves}
    if others := sorted(versions - {task}):
        yield f"{', '.join(others)}: other data than {task}, not comparable with it"
    for source in dict.fromkeys(one.source for one in numbers):
        yield f"table: {source_line(source)}"
        for one in numbers:
            if one.source == source:
                yield f"  {one.task}, {one.agent}, {_WORDS.get(one.metric, one.metric)}: {one.text}"
    for origin in dict.fromkeys(curve.source for curve in curves):
        yield f"curves: {curve_source_line(origin)}"
        for curve in (curve for curve in curves if curve.source == origin):
            yield from _curve(curve)


def _curve(curve: PublishedCurve) -> Iterator[str]:
    """Mean and range at every evaluation, as printed, and the files they were read from."""
    yield f"  {curve.task}, {curve.agent}: {_size(curve)}"
    values = np.array([run.values for run in curve.runs])
    for k, at in enumerate(curve.at):
        own = values[:, k]
        span = f" [{number(float(own.min()))}, {number(float(own.max()))}]" if len(own) > 1 else ""
        yield f"    at {at:>9,}: {number(float(own.mean()))}{span}"
    for run in curve.runs:
        yield f"    seed {run.seed}: {run.path} at {run.commit[:12]}"


def _size(curve: PublishedCurve) -> str:
    what = "updates" if curve.source.phase == "offline" else "online steps"
    runs = f"{len(curve.runs)} run{'s' if len(curve.runs) > 1 else ''}"
    return f"{runs}, {len(curve.at)} evaluations at {curve.at[0]:,} to {curve.at[-1]:,} {what}, {curve.source.score}"


def _names(names: Iterator[str]) -> str:
    return ", ".join(dict.fromkeys(names))
