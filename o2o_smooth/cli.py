"""The command `o2o-smooth`: run, resume, fork, bench, demo, compare, report, probe, advise, data, tasks and others."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import o2o_smooth
from o2o_smooth.cli_options import parse, peek, take
from o2o_smooth.errors import O2OError
from o2o_smooth.redaction import one_line

USAGE = """\
usage: o2o-smooth COMMAND [OPTIONS]

Offline-to-online reinforcement learning without the collapse at the switch.

commands:
  run      pretrain offline, switch, fine-tune online with a smoothed objective
  resume   go on with a run that was stopped or killed, as if it had not been
  fork     continue one pretraining into several ways to switch, side by side, with the controls of a comparison
  bench    whole studies: tasks x agents x arms x seeds, from a suite's file to tables and plots
  demo     the main job on a small task: four ways to switch, a table and a picture (minutes on two cores)
  compare  one table and one picture of finished runs
  report   what happened at the switch: a page, pictures and numbers, also of any other library's curves
  probe    score along the straight line between two checkpoints: is there a valley between before and after?
  advise   is the policy better than its data, or the data better; which settings fit that
  data     datasets: list, info, check, download, convert, make
  tasks    list the tasks that --task knows; tasks NAME shows one
  dashboard  the stability panels as a W&B workspace or report (extra: wandb)
  speed    how fast the learner is on this machine, beside the machine's limit and other libraries
  doctor   is this machine ready; with the options of run: how much memory will that run take

o2o-smooth COMMAND --help shows every option of a command.

examples:
  o2o-smooth run --task D4RL/pointmaze/umaze-v2 --agent iql --online sac --schedule linear --ramp-steps 5000 \\
      --seeds 0 1 2 --offline-updates 20000 --online-steps 20000 --num-envs 4 --out runs/x
  o2o-smooth run --pretrained runs/x --schedule jump --online-steps 20000 --out runs/x-jump
  o2o-smooth compare runs/x runs/x-jump
  o2o-smooth run --config study.toml
"""

COMPARE = """\
usage: o2o-smooth compare RUN [RUN ...] [--out FILE.png] [--mix-provenance]

One table and one picture of finished runs of one task, each under the name of its arm or folder; forks of one
checkpoint (o2o-smooth fork, or run --pretrained) make the fairest comparison. The picture goes to comparison.png
unless --out says otherwise.

Both show the mean return of the offline data beside the policies', and where the data come from: d4rl (D4RL's own
files), minari (Minari's, which are other sets than D4RL's), generated (made by a script) or own (yours). Runs that
learned from data of different provenance are refused, because their scores cannot be compared; --mix-provenance puts
them together all the same and marks each with its own. Runs without offline data may stand beside any.
"""

TASKS = """\
usage: o2o-smooth tasks [NAME]

List the tasks that --task knows, or show one whole: NAME is a D4RL id, a Minari id, the id of an environment, or
a TOML file with a row of your own:

    id = "my-hopper"                 # needed; the names are those of o2o_smooth.envs.Task
    env_id = "Hopper-v5"             # needed
    max_episode_steps = 500
    ref_random = -20.3               # score 0
    ref_expert = 3234.3              # score 100
    ref_source = "D4RL"
    dataset_ids = ["mine/hopper/medium-v0"]

--task FILE.toml uses it; files in the environment variable O2O_SMOOTH_TASKS ([[task]] tables) are always known.
"""

EPILOG = """\
Every option can stand in a TOML file given with --config; flags go first, then the file, then the agent's preset for
the task's domain. With --pretrained the defaults are those of the checkpoint. Names in the file are the flags' names,
at the top level or under their group: [hyper], [smoothing], [adaptive], [hygiene], [anchors], [averaging],
[evaluation], [switch], [checkpoints], [environments],
[faults].

The options of [hyper] are the agent's own: o2o-smooth run --agent cql --help shows CQL's (--calibrated, ...).

A run that was stopped or killed: o2o-smooth resume RUN."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 (failed), 2 (bad input, one line says so), 75 or 130 (interrupted)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands: dict[str, Callable[[list[str]], int]] = {
        "run": _run,
        "resume": _resume,
        "fork": _fork,
        "bench": _bench,
        "demo": _demo,
        "compare": _compare,
        "report": _report,
        "probe": _probe,
        "advise": _advise,
        "dashboard": _dashboard,
        "data": _data,
        "tasks": _tasks,
        "speed": _speed,
        "doctor": _doctor,
    }
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if arguments[0] == "--version":
        print(o2o_smooth.__version__)
        return 0
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # module:Id, with the module in the current folder
    command = commands.get(arguments[0])
    if command is None:
        close = difflib.get_close_matches(arguments[0], list(commands), n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        return _fail(f"there is no command '{arguments[0]}'{hint}; there are {', '.join(commands)}")
    try:
        return command(arguments[1:])
    except O2OError as error:
        return _fail(one_line(str(error)))
    except KeyboardInterrupt as error:
        from o2o_smooth.cli_resume import say_stopped

        return say_stopped(error)
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

    arguments, config_file = take(list(arguments), "--config")
    values: dict[str, Any] = {}
    if config_file is not None:
        values = read_toml(Path(config_file))
    chosen = {name: peek(arguments, f"--{name}") or values.get(name) for name in ("task", "agent", "pretrained")}
    base = _from_checkpoint(str(chosen["pretrained"]), chosen["task"]) if chosen["pretrained"] else None
    if base is not None:
        if chosen["agent"] not in (None, base.agent):
            raise O2OError(f"{chosen['pretrained']} holds an {base.agent} agent; leave --agent {chosen['agent']} out")
        default = apply_values(base, values, config_file or "")
    else:
        agent = str(chosen["agent"] or "iql")
        task = str(chosen["task"] or RunConfig.task)
        domain = find_task(task).domain if chosen["task"] or agent in AGENTS else "other"
        default = default_config(task, agent, domain, values, config_file or "")
    hyper = AGENTS[default.agent].config_class
    return parse(RunConfig[hyper], default, arguments, "o2o-smooth run", EPILOG)  # type: ignore[valid-type]


def _from_checkpoint(path: str, named: str | None) -> Any:
    """Defaults of a fork: what the checkpoint was made with. `named`: the task that the user names, if any."""
    from o2o_smooth.envs import find_task
    from o2o_smooth.training.checkpoint import find_checkpoint, load_checkpoint, named_by_path
    from o2o_smooth.training.config import RunConfig, apply_values
    from o2o_smooth.training.run_presets import run_preset

    agent, record = load_checkpoint(find_checkpoint(Path(path)))
    config = RunConfig(
        hyper=agent.config,
        task=record.task,
        agent=agent.name,
        online=agent.online_choice,
        dataset=None if record.dataset is None else record.dataset.get("source", record.dataset["id"]),
        provenance=None if record.dataset is None else record.dataset["provenance"],
        pretrained=path,
        seeds=agent.seeds,
        offline_updates=record.offline_updates,
        reward_scale=record.reward_scale,
        reward_shift=record.reward_shift,
    )
    where = str(record.settings.get("task") or record.task)  # a row of one's own is known by its file's path
    task = find_task(where, imports=named is not None and named_by_path(named) == where)
    values = run_preset(agent.name, task.domain) | {"offline_updates": record.offline_updates}
    values |= {name: value for name, value in record.settings.items() if value is not None}
    return apply_values(config, values, f"{path}: run.json")


def _run(arguments: list[str]) -> int:
    from o2o_smooth.training.progress import show_progress
    from o2o_smooth.training.run import run

    if not arguments:
        return _fail(
            "nothing says what to run: name a --task (o2o-smooth tasks lists them), a --pretrained run to go on from, "
            "or a --config FILE.toml; o2o-smooth run --help shows all options, o2o-smooth demo is a whole example"
        )
    config = parse_run(arguments)
    with show_progress() as progress:
        out = run(config, progress)
    _summary({config.smoothing.schedule: out})
    print(f"picture: {out / 'stability.png'}")
    print(f"run: {out}")
    return 0


def _resume(arguments: list[str]) -> int:
    from o2o_smooth.cli_resume import resume

    return resume(arguments)


def _summary(arms: dict[str, Path]) -> None:
    """The table of the arms that went online; one line about each that stopped at the switch."""
    from rich.console import Console

    from o2o_smooth.stability.report import arm_table, read_curves, rich_table, switch_line

    read = {name: read_curves(folder, arm=name) for name, folder in arms.items()}
    for curves in read.values():
        if curves and all(len(curve.env_steps) == 1 for curve in curves):
            print(switch_line(curves))
    online = {name: found for name, curves in read.items() if (found := [c for c in curves if len(c.env_steps) > 1])}
    if online:
        Console(emoji=False).print(rich_table(arm_table(online)))


def _demo(arguments: list[str]) -> int:
    from o2o_smooth.benchmarks.demo import DemoConfig, demo

    return demo(parse(DemoConfig, DemoConfig(), arguments, "o2o-smooth demo"))


def _compare(arguments: list[str]) -> int:
    from rich.console import Console

    from o2o_smooth.errors import DataError
    from o2o_smooth.stability.report import arm_table, rich_table
    from o2o_smooth.training.pictures import draw_arms, read_checked

    if not arguments or arguments[0] in ("-h", "--help"):
        print(COMPARE, end="")
        return 0
    rest, out = take(arguments, "--out")
    folders = [argument for argument in rest if argument != "--mix-provenance"]
    mix = len(folders) < len(rest)
    if wrong := [f for f in folders if f.startswith("-")]:
        return _fail(f"unknown option {wrong[0]}; o2o-smooth compare --help shows how it goes")
    if not folders:
        return _fail("compare needs at least one run folder; o2o-smooth compare --help shows how it goes")
    arms = {str(read_checked(Path(folder)).get("arm") or Path(folder).name): Path(folder) for folder in folders}
    if len(arms) < len(folders):  # arms of several forks: their folders may still tell them apart
        arms = {Path(folder).name: Path(folder) for folder in folders}
    if len(arms) < len(folders):
        return _fail("runs are told apart by the names of their folders; two of these have the same name")
    tasks = {name: read_checked(folder)["task"]["id"] for name, folder in arms.items()}
    if len(set(tasks.values())) > 1:
        raise DataError(f"runs of different tasks cannot share a table: {', '.join(sorted(set(tasks.values())))}")
    picture = Path(out or "comparison.png")
    if picture.suffix not in (".png", ".pdf", ".svg"):
        return _fail(f"--out {picture}: give a file that ends in .png, .pdf or .svg")
    curves = draw_arms(arms, picture, title=next(iter(tasks.values())), mix_provenance=mix)
    Console(emoji=False).print(rich_table(arm_table(curves, mix_provenance=mix)))
    print(f"picture: {picture}")
    return 0


def _report(arguments: list[str]) -> int:
    from o2o_smooth.cli_report import report

    return report(arguments)


def _data(arguments: list[str]) -> int:
    from o2o_smooth.cli_data import data

    return data(arguments)


def _dashboard(arguments: list[str]) -> int:
    from o2o_smooth.cli_dashboard import dashboard

    return dashboard(arguments)


def _speed(arguments: list[str]) -> int:
    from o2o_smooth.cli_speed import speed

    return speed(arguments)


def _fork(arguments: list[str]) -> int:
    from o2o_smooth.cli_fork import fork

    return fork(arguments, parse_run)


def _bench(arguments: list[str]) -> int:
    from o2o_smooth.cli_bench import bench

    return bench(arguments)


def _probe(arguments: list[str]) -> int:
    from o2o_smooth.cli_probe import probe

    return probe(arguments)


def _advise(arguments: list[str]) -> int:
    from o2o_smooth.cli_advise import advise

    return advise(arguments)


def _doctor(arguments: list[str]) -> int:
    from o2o_smooth.cli_doctor import doctor

    return doctor(arguments, parse_run)


def _tasks(arguments: list[str]) -> int:
    from rich.console import Console
    from rich.table import Table

    from o2o_smooth.envs import find_task, known_tasks

    if arguments and arguments[0] in ("-h", "--help"):
        print(TASKS, end="")
        return 0
    if len(arguments) > 1 or (arguments and arguments[0].startswith("-")):
        return _fail(f"o2o-smooth tasks takes one name at most, got {' '.join(arguments)}")
    if arguments:
        return _show_task(find_task(arguments[0]))
    if not sys.stdout.isatty():  # whole names, a line a task, for pipes
        for task in known_tasks():
            print("\t".join((task.id, task.env_id, ",".join(task.aliases), ",".join(task.dataset_ids))))
        return 0
    table = Table("task", "environment", "steps", "data", "score 0", "score 100")
    for column in table.columns:
        column.overflow = "fold"
    for task in known_tasks():
        refs = [f"{r:.1f}" if r is not None else "-" for r in (task.ref_random, task.ref_expert)]
        table.add_row(
            "\n".join((task.id, *task.aliases)),
            task.env_id,
            str(task.max_episode_steps),
            "\n".join(task.dataset_ids) or "-",
            *refs,
        )
    console = Console(markup=False, emoji=False)
    console.print(table)
    console.print(
        "Any other registered gymnasium environment with Box spaces works too, by its id; a row of your own by its "
        "TOML file. o2o-smooth tasks NAME shows one task whole."
    )
    return 0


def _show_task(task: Any) -> int:
    """Everything that a row says."""
    from o2o_smooth.agents import AGENTS
    from o2o_smooth.agents.config import published
    from o2o_smooth.data.hdf5 import published_name
    from o2o_smooth.data.installed import is_installed
    from o2o_smooth.training.run_presets import run_preset

    compat = {None: "none", "adroit": "D4RL's reward sign and end of the pen's episode", "kitchen": "D4RL's flat 60"}
    wrapper = compat[task.compat] if task.action_scale == 1 else f"actions x {task.action_scale:g}, for D4RL's gear"
    reward = f"reward * {task.reward_scale:g} + {task.reward_shift:g}"
    if task.goal_reward is not None:
        reward += f"; a reward of {task.goal_reward:g} ends the task"
    score = "none: returns are shown"
    if task.ref_random is not None:
        score = f"0 = {task.ref_random:g}, 100 = {task.ref_expert:g}  ({task.ref_source})"
    data = [f"{name}{' (installed)' if is_installed(name) else ''}" for name in task.dataset_ids]
    rows = {
        "environment": f"{task.env_id}, {task.max_episode_steps} steps at most",
        "arguments": ", ".join(f"{k}={v}" for k, v in task.env_kwargs.items() if k != "maze_map") or "none",
        "observation": "as the environment gives it" if task.obs_keys is None else " + ".join(task.obs_keys),
        "compatibility": wrapper,
        "reward for learning": reward,
        "score": score,
        "data": ", ".join(data) or "none of its own; name one with --dataset",
        "D4RL's file": published_name(task) or "does not fit",
        "other names": ", ".join(task.aliases) or "none",
    }
    for name in AGENTS:
        if settings := {**published(name, task.domain), **run_preset(name, task.domain)}:
            rows[f"preset of {name}"] = ", ".join(f"{k}={v}" for k, v in settings.items())
    print(task.id)
    for key, value in rows.items():
        print(f"  {key:<20} {value}")
    return 0
