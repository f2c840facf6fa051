"""The commands `o2o-smooth data ...`: what there is, what is in it, whether it is sound, other forms, making some."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from o2o_smooth.cli_options import parse, peek, take
from o2o_smooth.errors import DataError, EnvError, O2OError

USAGE = """\
usage: o2o-smooth data COMMAND [OPTIONS]

Datasets: Minari ids, .hdf5 files in D4RL's layout, .npz files, folders of Minari datasets, and folders of finished runs
(what they collected online). X below is any of them.

commands:
  list                    what is installed in your Minari folder
  info X                  statistics and a picture: returns, episode lengths, coverage of a maze
  check X                 read all of it; exit code 0 if it is sound, 2 with one line if not
  download X              fetch a Minari id, or the data of a D4RL task
  convert X --to TARGET   TARGET: FILE.hdf5 (D4RL's layout, with checksums), FILE.npz, or a Minari id
  make                    roll out controllers, policies or agents; D4RL-like tiers; mixtures (see make --help)

options:
  --task TASK             of info, check and convert: the task whose layout and reference scores apply; default: what
                          the dataset itself tells
  --picture FILE.png      of info: where the picture goes; default: NAME.png here; --no-picture: none
  --overwrite             of convert: replace a file that is there

examples:
  o2o-smooth data check ~/.d4rl/datasets/hopper_medium-v2.hdf5
  o2o-smooth data info D4RL/door/human-v2
  o2o-smooth data convert D4RL/door/human-v2 --to door-human.hdf5
  o2o-smooth data make --task hopper-medium-replay-v2 --train-steps 300000
"""


MAKE = """\
examples:
  o2o-smooth data make --task D4RL/pointmaze/large-v2                        # the scripted controller
  o2o-smooth data make --task hopper-medium-replay-v2 --train-steps 300000   # a tier, from a SAC training of our own
  o2o-smooth data make --task Pendulum-v1 --policy runs/x --noise 0.1 --id mine/pendulum/noisy-v0
  o2o-smooth data make --task hopper-medium-v2 --mix mine/bad-v0=0.3 mine/good-v0=0.7 --id mine/hopper/mix-v0"""


def data(arguments: list[str]) -> int:
    """Run one of the data commands; returns the exit code."""
    commands: dict[str, Callable[[list[str]], int]] = {
        "list": _list,
        "info": _info,
        "check": _check,
        "download": _download,
        "convert": _convert,
        "make": _make,
    }
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    command = commands.get(arguments[0])
    if command is None:
        close = difflib.get_close_matches(arguments[0], list(commands), n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise O2OError(f"there is no command 'data {arguments[0]}'{hint}; there are {', '.join(commands)}")
    if arguments[0] != "make" and any(a in ("-h", "--help") for a in arguments):
        print(USAGE, end="")
        return 0
    return command(arguments[1:])


def _list(arguments: list[str]) -> int:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from o2o_smooth.data.convert import task_of
    from o2o_smooth.data.installed import installed_ids, minari_root
    from o2o_smooth.data.minari_sets import provenance_of, read_metadata

    if arguments:
        raise O2OError(f"o2o-smooth data list takes no '{arguments[0]}'")
    rows = []
    for dataset_id in installed_ids():
        try:
            metadata = read_metadata(minari_root() / dataset_id)
            steps, episodes = int(metadata["total_steps"]), int(metadata["total_episodes"])
            task = task_of(dataset_id)
        except (O2OError, KeyError, TypeError, ValueError):
            rows.append((dataset_id, "broken", "-", "-", f"o2o-smooth data check {dataset_id} says why"))
            continue
        provenance = provenance_of(dataset_id, metadata)
        rows.append((dataset_id, provenance, f"{steps:,}", f"{episodes:,}", "-" if task is None else task.id))
    if not sys.stdout.isatty():  # a line a set, for pipes
        for row in rows:
            print("\t".join(cell.replace(",", "") if cell[:1].isdigit() else cell for cell in row))
        return 0
    if not rows:
        print(f"nothing is installed in {minari_root()} (MINARI_DATASETS_PATH names another folder)")
        return 0
    table = Table("dataset", "provenance", "transitions", "episodes", "task", box=box.SIMPLE_HEAD)
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        table.add_row(*row)
    console = Console(markup=False, emoji=False)
    console.print(table)
    console.print(f"in {minari_root()}", highlight=False)
    return 0


def _info(arguments: list[str]) -> int:
    from rich.console import Console

    from o2o_smooth.data.describe import draw, summarise

    arguments, picture = take(arguments, "--picture")
    wanted = "--no-picture" not in arguments
    name, task, dataset = _read([a for a in arguments if a != "--no-picture"], "info")
    summary = summarise(dataset, task)
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(summary.id)
    lines = summary.lines()
    if task is not None:
        reference = "" if task.ref_source is None else f"; score: {task.ref_source}"
        lines.insert(1, ("task", f"{task.id}{reference}"))
    for key, value in lines:
        console.print(f"  {key:<20} {value}", soft_wrap=True)
    if (described := _described(name)) is not None:
        console.print(f"  {'description':<20} {described}", soft_wrap=True)
    if picture is not None and Path(picture).suffix != ".png":
        raise O2OError(f"--picture {picture}: give a file that ends in .png")
    if wanted:
        path = draw(dataset, summary, Path(picture or f"{_slug(name)}.png"), task)
        console.print(f"picture: {path}", soft_wrap=True)
    return 0


def _check(arguments: list[str]) -> int:
    from o2o_smooth.data.dataset import check_fits, clip_actions
    from o2o_smooth.envs import make_env

    _, task, dataset = _read(arguments, "check")
    fits = ""
    if task is not None:
        try:
            env = make_env(task)
        except EnvError as error:
            print(f"sound: {dataset.note}; not held against task {task.id}: {' '.join(str(error).split())}")
            return 0
        box: Any = env.action_space
        width: Any = env.observation_space
        env.close()
        check_fits(dataset, width.shape[0], box.shape[0])
        counted = clip_actions(dataset, box.low, box.high)
        fits = f"; fits task {task.id}; {counted.clipped:,} entries of actions at the border of the box or beyond"
        if counted.outside:
            fits += f"; WARNING: {counted.outside:,} rows have actions outside of it"
    print(f"sound: {dataset.note}{fits}")
    return 0


def _download(arguments: list[str]) -> int:
    from o2o_smooth.data.sources import fetch
    from o2o_smooth.training.progress import show_progress

    name = _one(arguments, "download")
    with show_progress() as progress:
        where = fetch(name, progress=progress.update, log=progress.note)
    print(f"installed: {where}")
    return 0


def _convert(arguments: list[str]) -> int:
    from o2o_smooth.data.convert import convert

    arguments, to = take(arguments, "--to")
    if to is None:
        raise O2OError("o2o-smooth data convert needs --to FILE.hdf5, --to FILE.npz or --to a Minari id")
    overwrite = "--overwrite" in arguments
    _, task, dataset = _read([a for a in arguments if a != "--overwrite"], "convert")
    where = convert(dataset, to, task=task, overwrite=overwrite)
    print(f"written: {where} ({len(dataset.transitions):,} transitions)")
    return 0


def _make(arguments: list[str]) -> int:
    from o2o_smooth.training.making import MakeConfig, default_make_config, make_data
    from o2o_smooth.training.progress import show_progress

    task = peek(arguments, "--task")
    default = MakeConfig() if task is None else default_make_config(task)
    config = parse(MakeConfig, default, arguments, "o2o-smooth data make", MAKE)
    try:
        with show_progress() as progress:
            made = make_data(config, progress)
    except KeyboardInterrupt:
        print("interrupted; a training goes on from its last round when the command is given again", file=sys.stderr)
        return 130
    print(f"made: {made}  (o2o-smooth data info {made})")
    return 0


def _read(arguments: list[str], command: str) -> tuple[str, Any, Any]:
    """Name, task and contents of the dataset that is asked for."""
    from o2o_smooth.data.convert import read_any, task_of
    from o2o_smooth.data.sources import announce
    from o2o_smooth.envs import find_task
    from o2o_smooth.training.progress import show_progress, when_slow

    arguments, named = take(arguments, "--task")
    name = _one(arguments, command)
    task = find_task(named) if named is not None else task_of(name)
    with show_progress() as progress:
        announce(Path(name), progress.note)
        report = when_slow(progress.update)
        dataset = read_any(name, task, progress=lambda done, total: report("reading", done, total))
    return name, task, dataset


def _one(arguments: list[str], command: str) -> str:
    unknown = [a for a in arguments if a.startswith("-")]
    if unknown:
        raise O2OError(f"unknown option {unknown[0]}; o2o-smooth data --help shows how it goes")
    if len(arguments) != 1:
        raise O2OError(f"o2o-smooth data {command} takes one dataset: a Minari id, a file or a folder")
    return arguments[0]


def _described(name: str) -> str | None:
    """What a Minari dataset says of itself."""
    from o2o_smooth.data.installed import minari_root
    from o2o_smooth.data.minari_sets import is_id, read_metadata

    folder = Path(name) if (Path(name) / "data").is_dir() else minari_root() / name
    if not is_id(name) and folder != Path(name):
        return None
    try:
        text = read_metadata(folder).get("description")
    except DataError:
        return None
    return " ".join(text.split()) if isinstance(text, str) else None


def _slug(name: str) -> str:
    text = Path(name).stem if Path(name).suffix in (".hdf5", ".h5", ".npz") else name
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in text).strip("-.")
