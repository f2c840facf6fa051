"""The command `o2o-smooth resume`."""

from __future__ import annotations

import sys
from pathlib import Path

from o2o_smooth.cli_options import take
from o2o_smooth.errors import O2OError

RESUME = """\
usage: o2o-smooth resume RUN [RUN ...] [--task MODULE:ID]

Go on with runs that were stopped: by Ctrl-C, SIGTERM, a kill, a crash or a power cut. A run goes on from its newest
checkpoint that is whole, and its evaluations.jsonl is the one of a run that was never stopped, to the last bit (on the
CPU; where an environment's state cannot be kept, it begins new episodes and says so). Settings, task and data are those
that it began with. A complete run is left as it is; one without a checkpoint yet starts anew.

RUN is a run's folder. Of runs that share a learner (o2o-smooth fork, demo) name any; all of them go on.

--task names the task once more where it is in a module of your own (MODULE:ID, or a TOML file that names one): a
folder that somebody else has made imports nothing by itself.

Checkpoints are written every few minutes and at the switch: o2o-smooth run --help, --checkpoint-every. For jobs that
are started again by a scheduler, o2o-smooth run --auto-resume starts a run, goes on with it, or does nothing, as it
stands. Exit codes: 0 complete, 75 stopped again by SIGTERM, 130 by Ctrl-C, 2 cannot be resumed (one line says why).
"""


def resume(arguments: list[str]) -> int:
    """Go on with runs; returns the exit code."""
    from o2o_smooth.training.progress import show_progress
    from o2o_smooth.training.resume import resume_all

    if not arguments or arguments[0] in ("-h", "--help"):
        print(RESUME, end="")
        return 0
    arguments, task = take(arguments, "--task")
    if wrong := [a for a in arguments if a.startswith("-")]:
        raise O2OError(f"unknown option {wrong[0]}; o2o-smooth resume --help shows how it goes")
    done: dict[Path, Path] = {}
    for argument in arguments:
        if Path(argument).resolve() in done:
            continue
        with show_progress() as progress:
            done |= {out.resolve(): out for out in resume_all(Path(argument), progress, task=task)}
    for out in done.values():
        print(f"run: {out}")
    return 0


def say_stopped(error: KeyboardInterrupt) -> int:
    """Tell how to go on after Ctrl-C or SIGTERM; returns the exit code."""
    from o2o_smooth.training.resume import resume_command
    from o2o_smooth.training.stopping import Interrupted

    if not isinstance(error, Interrupted):
        print("interrupted", file=sys.stderr)
        return 130
    if (command := resume_command(error.folder)) is not None:
        print(f"interrupted; go on with: {command}", file=sys.stderr)
    else:
        print(f"interrupted; {error.folder} keeps what was logged, and nothing to resume", file=sys.stderr)
    return error.exit_code
