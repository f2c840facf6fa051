"""The command `o2o-smooth fork`: one pretraining continued into any number of arms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from o2o_smooth.cli_options import command_line, take, take_every
from o2o_smooth.errors import O2OError

HELP = """\
usage: o2o-smooth fork CHECKPOINT --arm ARM [--arm ARM ...] [--controls] [--out DIR]
                       [--population auto|stack|processes] [OPTIONS OF o2o-smooth run, SHARED BY ALL ARMS]

Continue one pretraining into several arms, and say how they compare. CHECKPOINT is the folder of a run with offline
updates (o2o-smooth run ... --online-steps 0 stops at the switch), or its checkpoints/switch.

All arms see common random numbers: per seed the same environments, exploration noise, batches and evaluation episodes.
So they differ in what is compared, and differences are paired seed by seed.

an ARM is a schedule, settings, or both, with commas between them:
  jump                                 no smoothing
  linear:5000                          a ramp of 5000 environment steps
  linear:5000,regime=mixed             the same with both objectives on one batch of offline and online rows
  hold:1000+linear:4000                any schedule of o2o-smooth run --schedule
  name=gentle,schedule=linear:5000,offline-fraction=0.5,actor-lr=1e-4
                                       name=... is what tables call it; settings are the options of o2o-smooth run
What makes arms comparable (task, seeds, budget, evaluation, ...) is shared: give it once, as an option of the command.

--controls adds what every comparison needs, where it is not among the arms:
  stay                 the offline objective goes on: what happens without a switch
  jump, mixed batch    no smoothing, but offline rows in every batch: is it the data?
  jump to floor 0.2    no ramp, but a fifth of the offline objective is kept: is it the floor?
  NAME (A/A)           the first arm again with other random numbers: what does chance do?

--out DIR (default: the run's folder with -fork behind it) gets a run folder for each arm, whose manifest names it, and
RESULTS.md, stability.png and fork.json. A later fork of the same checkpoint into the same DIR adds its arms to them.
--overwrite runs arms again that are there.

Evaluate to at least twice the ramp: a ramp that only postpones a dip shows it after its end.

examples:
  o2o-smooth run --task D4RL/pointmaze/umaze-dense-v2 --agent iql --offline-updates 20000 --online-steps 0 \\
      --seeds 0 1 2 3 --out runs/base
  o2o-smooth fork runs/base --arm jump --arm linear:5000 --controls --online-steps 10000 --out runs/study
  o2o-smooth fork runs/base --arm "linear:5000,regime=mixed" --online-steps 10000 --out runs/study   # one more
  o2o-smooth compare runs/study/jump runs/study/linear-5000
  o2o-smooth run --help                # the options that arms and the command take
"""


def fork(arguments: list[str], parse_run: Callable[[Sequence[str]], Any]) -> int:
    """Fork a checkpoint into arms; returns the exit code.

    Raises:
        O2OError: Bad input.
    """
    if not arguments or any(argument in ("-h", "--help") for argument in arguments):
        print(HELP, end="")
        return 0
    if arguments[0].startswith("-"):
        raise O2OError("fork needs a checkpoint first: o2o-smooth fork CHECKPOINT --arm jump; --help shows how it goes")
    from rich.console import Console

    from o2o_smooth.benchmarks.fork import fork as fork_arms
    from o2o_smooth.benchmarks.fork import paired_table
    from o2o_smooth.benchmarks.placement import Population
    from o2o_smooth.envs import find_task
    from o2o_smooth.stability.report import rich_table
    from o2o_smooth.training.advice import advise, run_folder
    from o2o_smooth.training.checkpoint import read_record
    from o2o_smooth.training.forking import check_arms, find_switch, parse_arm, with_controls
    from o2o_smooth.training.progress import show_progress

    command = command_line("fork", arguments)
    checkpoint, rest = Path(arguments[0]), arguments[1:]
    if any(argument.partition("=")[0] == "--pretrained" for argument in rest):
        raise O2OError("fork's first argument is the checkpoint; leave --pretrained out")
    rest, texts = take_every(rest, "--arm")
    rest, out = take(rest, "--out")
    rest, population = take(rest, "--population")
    if population not in (None, *get_args(Population)):
        raise O2OError(f"--population {population}: choose auto, stack or processes")
    controls = "--controls" in rest
    rest = [argument for argument in rest if argument != "--controls"]
    switch = find_switch(checkpoint)
    if not texts:
        raise O2OError("a fork needs at least one arm: --arm jump --arm linear:5000; fork --help shows how it goes")
    base = parse_run(["--pretrained", arguments[0], *rest])
    if base.online_steps == 0:
        raise O2OError("--online-steps 0 leaves nothing to compare; give the arms a budget")
    arms = [parse_arm(text, base) for text in texts]
    check_arms(arms)
    if controls:
        arms = with_controls(arms, base)
    run = run_folder(switch) or checkpoint
    folder = Path(out) if out is not None else run.with_name(f"{run.name}-fork")
    record = read_record(switch)
    with show_progress() as progress:
        found = fork_arms(
            arms,
            folder,
            progress,
            title=f"{record.task}: {base.agent} → {base.online} at the switch",
            command=command,
            population=cast("Population", population or "auto"),
            opening=f"at the switch: {advise(record, find_task(base.task)).sentence()}",
        )
    console = Console(emoji=False)
    console.print(rich_table(found.rows))
    if found.paired:
        console.print(paired_table(found.paired))
    console.print(f"table:   {found.results}", highlight=False, soft_wrap=True, markup=False)
    console.print(f"picture: {found.picture}", highlight=False, soft_wrap=True, markup=False)
    return 0
