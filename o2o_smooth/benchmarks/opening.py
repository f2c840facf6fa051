"""Beginning a study, or going on with one, and making its results at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from o2o_smooth.benchmarks.cells import Cell
from o2o_smooth.benchmarks.plan import Plan, make_plan
from o2o_smooth.benchmarks.study import SUITE, Study, StudyError
from o2o_smooth.benchmarks.suite import Suite
from o2o_smooth.errors import ConfigError, O2OError
from o2o_smooth.files import written_whole
from o2o_smooth.training.manifest import now, versions


def open_study(
    out: Path, suite: Suite, cells: Sequence[Cell], command: str, *, workers: int | None = None
) -> tuple[Study, Plan]:
    """A study's folder with all that is wanted planned in it; nothing runs yet.

    Args:
        out: Its folder: new, empty, or that of a study, which then goes on or gets more runs.
        suite: Where the cells come from.
        cells: What is wanted.
        command: How it was asked for.
        workers: Jobs at a time to plan for.

    Returns:
        The study, and what was added to it.

    Raises:
        StudyError: The folder holds something else, or a run of the same name with other settings.
    """
    if out.exists() and not out.is_dir():
        raise StudyError(f"{out} is a file; choose another --out")
    study = Study(out)
    if study.exists:
        study = Study.read(out)
    elif out.is_dir() and any(path.name not in ("jobs", SUITE) for path in out.iterdir()):  # a first start, cut short
        raise StudyError(f"{out} is not empty and holds no study; choose another --out")
    plan = make_plan(suite, cells, workers=workers, study=study if study.exists else None)
    commands = study.content.get("commands", [])
    known = versions()
    if plan.jobs or plan.runs:
        study.add(plan.jobs, plan.runs)
        study.content = {
            "suite": suite.name,
            "description": suite.description,
            "command": command if not commands else study.content["command"],
            "commands": [*commands, command],
            "versions": known,
            "commit": known.get("commit"),
            "protocol": suite.protocol,
            "planned": [*study.content.get("planned", []), {"when": now(), "workers": plan.workers}],
        }
        with written_whole(out / SUITE) as temporary:
            temporary.write_text(suite.text, encoding="utf-8")
        study.write()
    return study, plan


def make_results(folder: Path, baseline: str | None = None) -> list[str]:
    """Write tables, plots and RESULTS.md of what is there; returns lines for people.

    Raises:
        ConfigError: There is no arm of the baseline's name.
    """
    from o2o_smooth.benchmarks.results import write_results

    try:
        write_results(folder, baseline=baseline)
    except O2OError as error:
        if baseline is not None and isinstance(error, ConfigError):
            raise
        return [f"no results: {' '.join(str(error).split())}"]
    found = []
    with contextlib.suppress(OSError):
        found = [f"{name}: {folder / file}" for name, file in _FILES if (folder / file).exists()]
    return found


_FILES = (("table", "RESULTS.md"), ("data", "results.csv"), ("plots", "plots"))
