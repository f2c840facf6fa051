"""The command `o2o-smooth`: run, demo, compare, tasks."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

import o2o_smooth
from o2o_smooth.errors import O2OError

USAGE = """\
usage: o2o-smooth COMMAND [OPTIONS]

Offline-to-online reinforcement learning without the collapse at the switch.

commands:
  run      pretrain offline, switch, fine-tune online with a smoothed objective
  demo     the main job on a small task: four ways to switch, a table and a picture (minutes on two cores)
  compare  one table and one picture of finished runs
  tasks    list the tasks that --task knows

o2o-smooth COMMAND --help shows every option of a command.

examples:
  o2o-smooth run --task D4RL/pointmaze/umaze-v2 --agent iql --online sac --schedule linear --ramp-steps 5000 \\
      --seeds 0 1 2 --offline-updates 20000 --online-steps 20000 --num-envs 4 --out runs/x
  o2o-smooth run --pretrained runs/x --schedule jump --online-steps 20000 --out runs/x-jump
  o2o-smooth compare runs/x runs/x-jump
  o2o-smooth run --config study.toml
"""

COMPARE = """\
usage: o2o-smooth compare RUN [RUN ...] [--out FILE.png]

One table and one picture of finished runs of one task, each under its folder's name; forks of one checkpoint
(o2o-smooth run --pretrained) make the fairest comparison. The picture goes to comparison.png unless --out says
otherwise.
"""

EPILOG = """\
Every option can stand in a TOML file given with --config; flags go first, then the file, then the agent's preset for
the task's domain. With --pretrained the defaults are those of the checkpoint. Names in the file are the flags' names,
at the top level or under their group: [hyper], [smoothing], [evaluation]."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 (interrupted or failed), 2 (bad input, one line says what)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands: dict[str, Callable[[list[str]], int]] = {"run": _run, "demo": _demo, "compare": _compare, "tasks": _tasks}
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if arguments[0] == "--version":
        print(o2o_smooth.__version__)
        return 0
    command = commands.get(arguments[0])
    if command is None:
        close = difflib.get_close_matches(arguments[0], list(commands), n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        return _fail(f"there is no command '{arguments[0]}'{hint}; there are {', '.join(commands)}")
    try:
        return command(arguments[1:])
    except O2OError as error:
        return _fail(" ".join(str(error).split()))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # somebody reads only the beginning, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _fail(text: str) -> int:
    print(f"error: {text}", file=sys.stderr)
    return 2


def parse_run(arguments: Sequence[str]) -> Any:
    """The settings that `o2o-smooth run ARGUMENTS` means.

    Raises:
        O2OError: Bad input.
        SystemExit: After --help.
    """
    from o2o_smooth.agents import AGENTS
    from o2o_smooth.envs import find_task
    from o2o_smooth.training.config import RunConfig, apply_values, default_config, read_toml

    arguments, config_file = _take(list(arguments), "--config")
    values: dict[str, Any] = {}
    if config_file is not None:
        values = read_toml(Path(config_file))
    chosen = {name: _peek(arguments, f"--{name}") or values.get(name) for name in ("task", "agent", "pretrained")}
    base = _from_checkpoint(str(chosen["pretrained"])) if chosen["pretrained"] else None
    if base is not None:
        if chosen["agent"] not in (None, base.agent):
            raise O2OError(f"{chosen['pretrained']} holds an {base.agent} agent; leave --agent {chosen['agent']} out")
        default = apply_values(base, values, config_file or "")
    else:
        agent = str(chosen["agent"] or "iql")
        task = str(chosen["task"] or RunConfig.task)
        if ":" in task:  # module:Id, with the module in the current folder
            sys.path.insert(0, str(Path.cwd()))
        domain = find_task(task).domain if chosen["task"] or agent in AGENTS else "other"
        default = default_config(task, agent, domain, values, config_file or "")
    hyper = AGENTS[default.agent].config_class
    return _tyro(RunConfig[hyper], default, arguments, "o2o-smooth run")  # type: ignore[valid-type]


def _from_checkpoint(path: str) -> Any:
    """Defaults of a fork: what the checkpoint was made with."""
    from o2o_smooth.training.checkpoint import find_checkpoint, load_checkpoint
    from o2o_smooth.training.config import RunConfig, apply_values

    agent, record = load_checkpoint(find_checkpoint(Path(path)))
    config = RunConfig(
        hyper=agent.config,
        task=record.task,
        agent=agent.name,
        online=agent.online_choice,
        dataset=None if record.dataset is None else record.dataset["id"],
        pretrained=path,
        seeds=agent.seeds,
        offline_updates=record.offline_updates,
        reward_scale=record.reward_scale,
        reward_shift=record.reward_shift,
    )
    values = {name: value for name, value in record.settings.items() if value is not None}
    return apply_values(config, values, f"{path}: run.json")


def _run(arguments: list[str]) -> int:
    from o2o_smooth.training.prepare import default_out
    from o2o_smooth.training.progress import show_progress
    from o2o_smooth.training.run import run

    config = parse_run(arguments)
    try:
        with show_progress() as progress:
            out = run(config, progress)
    except KeyboardInterrupt:
        kept = Path(config.out) if config.out else default_out(config)
        if (kept / "checkpoints" / "switch" / "run.json").is_file():
            print(
                f"interrupted; {kept} keeps the switch: o2o-smooth run --pretrained {kept} --out ...", file=sys.stderr
            )
            return 130
        raise
    _summary({config.smoothing.schedule: out})
    print(f"picture: {out / 'stability.png'}")
    print(f"run: {out}")
    return 0


def _summary(arms: dict[str, Path]) -> None:
    """The table of one or more arms, if they went online."""
    from rich.console import Console

    from o2o_smooth.stability.report import arm_table, read_curves, rich_table

    curves = {name: [c for c in read_curves(folder, arm=name) if len(c.env_steps) > 1] for name, folder in arms.items()}
    curves = {name: c for name, c in curves.items() if c}
    if curves:
        Console().print(rich_table(arm_table(curves)))


def _demo(arguments: list[str]) -> int:
    from o2o_smooth.benchmarks.demo import DemoConfig, demo

    return demo(_tyro(DemoConfig, DemoConfig(), arguments, "o2o-smooth demo"))


def _compare(arguments: list[str]) -> int:
    from rich.console import Console

    from o2o_smooth.errors import DataError
    from o2o_smooth.stability.report import arm_table, rich_table
    from o2o_smooth.training.pictures import draw_arms, read_manifest

    if not arguments or arguments[0] in ("-h", "--help"):
        print(COMPARE, end="")
        return 0
    folders, out = _take(arguments, "--out")
    if wrong := [f for f in folders if f.startswith("-")]:
        return _fail(f"unknown option {wrong[0]}; o2o-smooth compare --help shows how it goes")
    arms = {Path(folder).name: Path(folder) for folder in folders}
    if len(arms) < len(folders):
        return _fail("runs are told apart by the names of their folders; two of these have the same name")
    tasks = {name: read_manifest(folder)["task"]["id"] for name, folder in arms.items()}
    if len(set(tasks.values())) > 1:
        raise DataError(f"runs of different tasks cannot share a table: {', '.join(sorted(set(tasks.values())))}")
    picture = Path(out or "comparison.png")
    curves = draw_arms(arms, picture, title=next(iter(tasks.values())))
    Console().print(rich_table(arm_table(curves)))
    print(f"picture: {picture}")
    return 0


def _tasks(arguments: list[str]) -> int:
    from rich.console import Console
    from rich.table import Table

    from o2o_smooth.envs import known_tasks

    if arguments and arguments[0] in ("-h", "--help"):
        print("usage: o2o-smooth tasks\n\nList the tasks that --task knows, by any of their names.")
        return 0
    if arguments:
        return _fail(f"o2o-smooth tasks takes no '{arguments[0]}'")
    if not sys.stdout.isatty():  # whole names, a line a task, for pipes
        for task in known_tasks():
            print("\t".join((task.id, task.env_id, ",".join(task.aliases), ",".join(task.dataset_ids))))
        return 0
    table = Table("task", "environment", "data", "score 0", "score 100")
    for column in table.columns:
        column.overflow = "fold"
    for task in known_tasks():
        refs = [f"{r:.1f}" if r is not None else "-" for r in (task.ref_random, task.ref_expert)]
        table.add_row("\n".join((task.id, *task.aliases)), task.env_id, "\n".join(task.dataset_ids) or "-", *refs)
    console = Console()
    console.print(table)
    console.print("Any other registered gymnasium environment with Box spaces works too, by its id.")
    return 0


# Options


def _take(arguments: list[str], flag: str) -> tuple[list[str], str | None]:
    """Remove an option with its value."""
    rest, value, i = [], None, 0
    while i < len(arguments):
        if arguments[i] == flag:
            if i + 1 >= len(arguments):
                raise O2OError(f"{flag} needs a value")
            value, i = arguments[i + 1], i + 2
        elif arguments[i].startswith(f"{flag}="):
            value, i = arguments[i].partition("=")[2], i + 1
        else:
            rest.append(arguments[i])
            i += 1
    return rest, value


def _peek(arguments: list[str], flag: str) -> str | None:
    return _take(arguments, flag)[1] if flag in [a.partition("=")[0] for a in arguments] else None


def _tyro(kind: Any, default: Any, arguments: Sequence[str], prog: str) -> Any:
    """Parse with tyro; its boxed errors become one line.

    Raises:
        O2OError: Bad input.
    """
    captured = io.StringIO()
    help_wanted = any(a in ("-h", "--help") for a in arguments)
    try:
        with contextlib.redirect_stderr(captured):
            return tyro.cli(
                kind,
                prog=prog,
                args=list(arguments),
                default=default,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as stop:
        if help_wanted and stop.code in (0, None):
            print(EPILOG if prog.endswith("run") else "", end="\n")
            raise
        raise O2OError(_one_line(captured.getvalue(), prog, default)) from None


def _one_line(box: str, prog: str, default: Any) -> str:
    """The first paragraph of one of tyro's boxes."""
    paragraphs: list[list[str]] = [[]]
    for raw in box.splitlines():
        line = raw.strip("│|+ ╭╮╰╯")
        if re.search("[─-]{6}", line):
            paragraphs.append([])
        elif line:
            paragraphs[-1].append(line)
    filled = [" ".join(lines) for lines in paragraphs if lines] or ["bad options"]
    # Where the terminal has no box characters, the title is a paragraph of its own.
    titled = not box.lstrip().startswith("╭") and len(filled) > 1
    text = re.sub(r"\s+", " ", filled[1 if titled else 0]).rstrip(". ")
    text = re.sub(r"^Error parsing [A-Za-z_]+: ", "", text)  # a setting that its own check refused
    unknown = re.match(r"Unrecognized options: (\S+)", text)
    if unknown:
        close = difflib.get_close_matches(unknown[1].rstrip(","), _flags(default), n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        text = f"unknown option {unknown[1].rstrip(',')}{hint}"
    return f"{text}; {prog} --help shows every option"


def _flags(default: Any) -> list[str]:
    flags: list[str] = []
    for field in dataclasses.fields(default):
        inner = getattr(default, field.name)
        flags += _flags(inner) if dataclasses.is_dataclass(inner) else ["--" + field.name.replace("_", "-")]
    return flags
