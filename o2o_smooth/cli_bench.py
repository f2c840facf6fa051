"""The command `o2o-smooth bench`: whole studies, tasks x agents x arms x seeds, with one command."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from o2o_smooth.cli_options import command_line, take
from o2o_smooth.errors import O2OError

HELP = """\
usage: o2o-smooth bench SUITE --out DIR [OPTIONS]
       o2o-smooth bench COMMAND ...

Run a study: all tasks x agents x arms x seeds of a suite, whose protocol stands in its file. SUITE is the name of a
shipped suite (bench list) or a TOML file (docs/bench.md). Arms of a task, agent and seed go on from one pretraining,
which is done once, also for later studies. DIR gets a run folder for each arm, results.parquet, results.csv, plots and
RESULTS.md. The same command goes on with a study that was stopped: what is done is skipped, what was broken off goes
on, what failed is told.

options:
  --out DIR               folder of the study
  --dry-run               show the plan: jobs, what is shared, updates, time, memory, disk
  --tasks A,B --agents A,B --arms A,B --seeds 0-3,7
                          only a part of the suite, by the names in it; names with commas: give the option several times
  --scale X               budgets, ramps and distances between evaluations times X, for trying out
  --device D              cpu or cuda instead of the suite's; the launcher chooses which GPU
  --workers N             jobs at a time (default: by the cores)
  --launcher local|ray|slurm, --launcher-option NAME=VALUE
                          where jobs run (default: processes of this machine)
  --cache DIR             folder of the cache of pretrainings (default: $O2O_SMOOTH_CACHE, else ~/.cache/o2o_smooth)
  --retries N             times that a lost job is started again (default: 3)

commands:
  status DIR              how a study stands, also while it runs
  logs DIR [JOB]          the end of a job's log; without JOB of all that failed
  rerun --failed DIR      run failed jobs again, and go on
  resume DIR              go on, without the suite
  results DIR [--baseline ARM]
                          make tables, plots and RESULTS.md again; every arm against this one (default: the jump)
  compare DIR [--tolerance POINTS] [--force]
                          hold the results against published numbers and curves (docs/results.md)
  references [TASK] [--agent NAME]
                          published numbers and curves on file, with their sources
  list                    shipped suites
  show NAME               a shipped suite's file, to start one of your own from
  sweep-export SUITE --out sweep.yaml
                          the suite's [sweep] as a file for wandb sweep

exit codes: 0 all done, 1 some jobs failed, 2 bad input, 130 interrupted

examples:
  o2o-smooth bench smoke --out studies/smoke
  o2o-smooth bench cpu-study --dry-run
  o2o-smooth bench cpu-study --out studies/try --tasks corridor-mixed-v0 --seeds 0-1 --scale 0.2
  o2o-smooth bench status studies/smoke
"""
TAIL = 30


def bench(arguments: list[str]) -> int:
    """Run a study or one of the commands about studies; returns the exit code.

    Raises:
        O2OError: Bad input.
    """
    if not arguments or any(argument in ("-h", "--help") for argument in arguments):
        print(HELP, end="")
        return 0
    commands: dict[str, Callable[[list[str]], int]] = {
        "status": _status,
        "logs": _logs,
        "rerun": _rerun,
        "resume": _resume,
        "results": _results,
        "compare": _compare,
        "references": _references,
        "list": _list,
        "show": _show,
        "sweep-export": _sweep_export,
    }
    if arguments[0] in commands:
        return commands[arguments[0]](arguments[1:])
    if arguments[0].startswith("-"):
        raise O2OError("bench needs a suite or a command first; o2o-smooth bench --help shows how it goes")
    return _run(arguments)


class _Options:
    """What a study is run with."""

    def __init__(self, arguments: list[str]) -> None:
        from o2o_smooth.benchmarks.runner import RETRIES

        rest, launcher = take(arguments, "--launcher")
        self.launcher = launcher or "local"
        rest, options = _take_all(rest, "--launcher-option")
        self.launcher_options: dict[str, str] = {}
        for text in options:
            name, equals, value = text.partition("=")
            if not equals or not name:
                raise O2OError(f"--launcher-option {text}: write NAME=VALUE")
            self.launcher_options[name] = value
        rest, self.workers = _number(rest, "--workers", None, 1)
        rest, retries = _number(rest, "--retries", RETRIES, 0)
        self.retries = RETRIES if retries is None else retries
        rest, cache = take(rest, "--cache")
        self.cache = None if cache is None else Path(cache)
        self.rest = rest

    def text(self) -> str:
        """The same options for a command that goes on."""
        parts = [] if self.launcher == "local" else ["--launcher", self.launcher]
        for name, value in self.launcher_options.items():
            parts += ["--launcher-option", f"{name}={value}"]
        parts += [] if self.workers is None else ["--workers", str(self.workers)]
        parts += [] if self.cache is None else ["--cache", str(self.cache)]
        return "".join(f" {shlex.quote(part)}" for part in parts)


def _run(arguments: list[str]) -> int:
    from o2o_smooth.benchmarks.cells import Filters, make_cells
    from o2o_smooth.benchmarks.opening import open_study
    from o2o_smooth.benchmarks.plan import make_plan
    from o2o_smooth.benchmarks.plan_text import plan_text
    from o2o_smooth.benchmarks.study import Study
    from o2o_smooth.benchmarks.suite import load_suite

    command = command_line("bench", arguments)
    options = _Options(arguments[1:])
    rest, out = take(options.rest, "--out")
    dry = "--dry-run" in rest
    rest = [argument for argument in rest if argument != "--dry-run"]
    chosen: dict[str, tuple[str, ...] | None] = {}
    suite = load_suite(arguments[0])
    for kind, entries in (("tasks", suite.tasks), ("agents", suite.agents), ("arms", suite.arms)):
        rest, texts = _take_all(rest, f"--{kind}")
        chosen[kind] = _names(texts, [entry.name for entry in entries]) if texts else None
    rest, seeds = take(rest, "--seeds")
    rest, scale = take(rest, "--scale")
    rest, device = take(rest, "--device")
    _nothing_left(rest, "bench SUITE")
    filters = Filters(
        chosen["tasks"],
        chosen["agents"],
        chosen["arms"],
        None if seeds is None else _seeds(seeds),
        1.0 if scale is None else _real(scale, "--scale"),
        device,
    )
    cells = make_cells(suite, filters)
    if dry:
        there = None if out is None or not Study(Path(out)).exists else Study.read(Path(out))
        print(plan_text(suite, make_plan(suite, cells, workers=options.workers, study=there), there), end="")
        return 0
    if out is None:
        raise O2OError(f"where to? o2o-smooth bench {arguments[0]} --out DIR (or --dry-run, to see the plan)")
    study, plan = open_study(Path(out), suite, cells, command, workers=options.workers)
    if plan.jobs:
        print(plan_text(suite, plan, None), end="")
    return _go(study, options)


def _go(study: Any, options: _Options) -> int:
    """Bring a study to its end, and make its results."""
    from o2o_smooth.benchmarks.opening import make_results
    from o2o_smooth.benchmarks.runner import Runner
    from o2o_smooth.benchmarks.study_view import duration, show_study

    launcher, workers = _launcher(options, max((job.cpus for job in study.jobs.values()), default=1))
    with show_study(study, workers) as view:
        ending = Runner(study, launcher, view, retries=options.retries, cache=options.cache).run()
    print(f"{len(ending.done)} of {len(study.jobs)} jobs done, in {duration(ending.seconds)}")
    for job, why in ending.failed.items():
        print(f"failed: {job}: {why}")
    for job, by in ending.blocked.items():
        print(f"blocked: {job}, by {by}")
    if ending.interrupted:
        print(f"interrupted; go on with: o2o-smooth bench resume {study.folder}{options.text()}")
        return 130
    if ending.failed:
        again = f"o2o-smooth bench rerun --failed {study.folder}{options.text()}"
        print(f"logs: o2o-smooth bench logs {study.folder}; again: {again}")
    for line in make_results(study.folder):
        print(line)
    return 1 if ending.failed else 0


def _launcher(options: _Options, cpus: int) -> tuple[Any, int]:
    """The launcher, and how many jobs of so many cores it is taken to run at a time."""
    from o2o_smooth.benchmarks.launchers import make_launcher
    from o2o_smooth.benchmarks.launchers.local import LocalLauncher
    from o2o_smooth.benchmarks.placement import cores

    if options.launcher == "local":
        if options.launcher_options:
            raise O2OError("--launcher-option is for ray and slurm; local processes take --workers")
        local = LocalLauncher()
        if options.workers is not None and options.workers * cpus < len(local.cores):
            local = LocalLauncher(cores=local.cores[: options.workers * cpus])
        return local, max(1, len(local.cores) // cpus)
    return make_launcher(options.launcher, options.launcher_options), options.workers or cores()


# About studies


def _status(arguments: list[str]) -> int:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from o2o_smooth.benchmarks.study import Study
    from o2o_smooth.benchmarks.study_view import status_lines

    study = Study.read(_folder(arguments, "status"))
    rows = status_lines(study)
    console = Console(emoji=False, markup=False, highlight=False)
    table = Table("job", "state", "done", "", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        table.add_row(*row)
    if console.is_terminal:
        console.print(table)
    else:
        for row in rows:
            print("\t".join(row))
    states = [row[1] for row in rows]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    print(f"{study.folder}: {len(rows)} jobs: {counts}")
    return 0


def _logs(arguments: list[str]) -> int:
    from o2o_smooth.benchmarks.study import Study, StudyError
    from o2o_smooth.benchmarks.study_view import log_tail

    arguments, lines = _number(arguments, "--lines", TAIL, 1)
    if not 1 <= len(arguments) <= 2:
        raise O2OError("o2o-smooth bench logs DIR [JOB] [--lines N]")
    study = Study.read(Path(arguments[0]))
    jobs = arguments[1:] or [job for job in study.jobs if study.progress(job).state == "failed"]
    if not jobs:
        print("no job has failed; o2o-smooth bench logs DIR JOB shows another one's log")
    for job in jobs:
        if job not in study.jobs:
            raise StudyError(f"{study.folder} has no job '{job}'; o2o-smooth bench status {study.folder} lists them")
        file = study.job_folder(job) / "log.txt"
        print(f"== {file}")
        print(log_tail(file, lines or TAIL))
        if (found := study.progress(job)).state == "failed":
            print(f"== failed: {found.detail}")
    return 0


def _rerun(arguments: list[str]) -> int:
    from o2o_smooth.benchmarks.runner import forget_failures
    from o2o_smooth.benchmarks.study import Study

    if "--failed" not in arguments:
        raise O2OError("o2o-smooth bench rerun --failed DIR runs what failed again, and goes on")
    options = _Options([argument for argument in arguments if argument != "--failed"])
    study = Study.read(_folder(options.rest, "rerun --failed"))
    jobs = forget_failures(study)
    print(f"again: {', '.join(jobs)}" if jobs else "no job has failed")
    return _go(study, options)


def _resume(arguments: list[str]) -> int:
    from o2o_smooth.benchmarks.study import Study

    options = _Options(arguments)
    return _go(Study.read(_folder(options.rest, "resume")), options)


def _results(arguments: list[str]) -> int:
    from o2o_smooth.benchmarks.opening import make_results
    from o2o_smooth.benchmarks.study import Study

    rest, baseline = take(arguments, "--baseline")
    study = Study.read(_folder(rest, "results"))
    for line in make_results(study.folder, baseline):
        print(line)
    return 0


def _compare(arguments: list[str]) -> int:
    from o2o_smooth.benchmarks.results import compare
    from o2o_smooth.benchmarks.results_compare import TOLERANCE

    force = "--force" in arguments
    rest, tolerance = take([argument for argument in arguments if argument != "--force"], "--tolerance")
    points = TOLERANCE if tolerance is None else _real(tolerance, "--tolerance")
    return compare(_folder(rest, "compare"), force=force, tolerance=points)


def _references(arguments: list[str]) -> int:
    from o2o_smooth.benchmarks.references_list import reference_lines

    rest, agent = take(arguments, "--agent")
    if len(rest) > 1 or any(argument.startswith("-") for argument in rest):
        raise O2OError("o2o-smooth bench references [TASK] [--agent NAME]")
    for line in reference_lines(rest[0] if rest else None, agent):
        print(line)
    return 0


def _list(arguments: list[str]) -> int:
    from o2o_smooth.benchmarks.suite import load_suite, shipped

    _nothing_left(arguments, "bench list")
    for name in shipped():
        suite = load_suite(name)
        size = f"{len(suite.tasks)} tasks, {len(suite.agents)} agents, {len(suite.arms)} arms, {len(suite.seeds)} seeds"
        print(f"{name:<16} {suite.description} ({size})")
    return 0


def _show(arguments: list[str]) -> int:
    from o2o_smooth.benchmarks.suite import find_suite

    if len(arguments) != 1:
        raise O2OError("o2o-smooth bench show NAME; o2o-smooth bench list has the names")
    print(find_suite(arguments[0]).read_text(encoding="utf-8"), end="")
    return 0


def _sweep_export(arguments: list[str]) -> int:
    from o2o_smooth.benchmarks.suite import load_suite
    from o2o_smooth.benchmarks.sweep_export import sweep_file
    from o2o_smooth.files import written_whole

    rest, out = take(arguments, "--out")
    rest, task = take(rest, "--task")
    rest, agent = take(rest, "--agent")
    if len(rest) != 1 or rest[0].startswith("-"):
        raise O2OError("o2o-smooth bench sweep-export SUITE --out sweep.yaml [--task NAME] [--agent NAME]")
    text = sweep_file(load_suite(rest[0]), task=task, agent=agent)
    with written_whole(Path(out or "sweep.yaml")) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"wandb sweep {out or 'sweep.yaml'}")
    return 0


# Options


def _folder(arguments: list[str], command: str) -> Path:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise O2OError(f"o2o-smooth bench {command} DIR: give the folder of one study")
    return Path(arguments[0])


def _nothing_left(arguments: list[str], command: str) -> None:
    if arguments:
        raise O2OError(f"{command} does not know '{arguments[0]}'; o2o-smooth bench --help shows how it goes")


def _take_all(arguments: list[str], flag: str) -> tuple[list[str], list[str]]:
    from o2o_smooth.cli_options import take_every

    return take_every(arguments, flag)


def _names(texts: list[str], known: list[str]) -> tuple[str, ...]:
    """Names with commas between them; a name may have commas itself where it is given alone."""
    found: list[str] = []
    for text in texts:
        found += [text] if text in known else [part.strip() for part in text.split(",") if part.strip()]
    return tuple(dict.fromkeys(found))


def _seeds(text: str) -> tuple[int, ...]:
    """Seeds as 0-3,7."""
    found: list[int] = []
    try:
        for part in text.replace(" ", ",").split(","):
            first, dash, last = part.partition("-")
            found += range(int(first), int(last) + 1) if dash else [int(first)]
    except ValueError:
        raise O2OError(f"--seeds {text}: write 0-3,7") from None
    return tuple(found)


def _real(text: str, flag: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise O2OError(f"{flag} {text}: expected a number") from None


def _number(arguments: list[str], flag: str, default: int | None, least: int) -> tuple[list[str], int | None]:
    rest, text = take(arguments, flag)
    if text is None:
        return rest, default
    try:
        value = int(text)
    except ValueError:
        raise O2OError(f"{flag} {text}: expected an integer") from None
    if value < least:
        raise O2OError(f"{flag} must be at least {least}, got {value}")
    return rest, value


__all__ = ["HELP", "bench"]
