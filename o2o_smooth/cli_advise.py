"""The command `o2o-smooth advise`: is the policy better than its data, and which settings fit that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from o2o_smooth.errors import O2OError

HELP = """\
usage: o2o-smooth advise RUN [RUN ...]

Compare the policy at the switch with the data it learned from, say which of three regimes the run is in, and which
settings fit. RUN is a run folder (o2o-smooth run ... --online-steps 0 stops at the switch) or its checkpoints/switch.

  policy better   its return is above the data's by more than a margin      --schedule performance_gate --regime retain
  data better     the data's mean return is above the policy's              --schedule linear --regime mixed
  comparable      neither can be shown                                      --schedule performance_gate --regime mixed
  (a policy within noise of the random one has nothing to lose: --schedule jump --regime mixed)

The comparison is a Welch test over episodes at 5 %, with a margin of 5 points of score (where the task has no
reference: 5 % of the larger return). That preserving the better of the two pays is a principle (arXiv 2510.01460, whose
predictions held in 45 of 63 settings); which settings do that best is a rule of thumb from a few small tasks. So the
advice is written down: into RUN/advice.json, where the run has gone on with what it did and how it ended, and by run
and fork into the manifest at the switch.

examples:
  o2o-smooth run --agent iql --offline-updates 20000 --online-steps 0 --out runs/base
  o2o-smooth advise runs/base
  o2o-smooth advise runs/study/jump runs/study/linear-5000    # was it followed, and what came of it
"""


def advise(arguments: list[str]) -> int:
    """Advise on runs; returns the exit code.

    Raises:
        O2OError: Bad input.
    """
    if not arguments or any(argument in ("-h", "--help") for argument in arguments):
        print(HELP, end="")
        return 0
    if wrong := [argument for argument in arguments if argument.startswith("-")]:
        raise O2OError(f"unknown option {wrong[0]}; o2o-smooth advise --help shows how it goes")
    for argument in arguments:
        _advise(Path(argument))
    return 0


def _advise(path: Path) -> None:
    from o2o_smooth.envs import Task, find_task
    from o2o_smooth.training.advice import advise as advise_on
    from o2o_smooth.training.advice import followed, outcome, run_folder, write_advice
    from o2o_smooth.training.checkpoint import read_record
    from o2o_smooth.training.forking import find_switch
    from o2o_smooth.training.pictures import read_checked

    switch = find_switch(path)
    record = read_record(switch)
    name = str(record.settings.get("task", record.task))
    # `module:Id` has no references, and to import the module for its time limit would run what a file names.
    task = Task(id=record.task, env_id=name) if ":" in name and not name.endswith(".toml") else find_task(name)
    advice = advise_on(record, task)
    print(f"{path}: {advice.sentence()}")
    if advice.preset is not None and advice.comparison is not None:
        print(f"  why: {advice.preset.why}")
        if len(set(advice.comparison.seeds)) > 1:
            each = [
                f"{row['seed']}: {regime}" for row, regime in zip(record.rows, advice.comparison.seeds, strict=True)
            ]
            print(f"  the seeds do not agree: {', '.join(each)}")
    run = run_folder(switch)
    if run is None:
        print("  not written down: the checkpoint belongs to no run folder")
        return
    content: dict[str, Any] = advice.to_dict()
    smoothing = read_checked(run)["config"]["smoothing"]
    if (ended := outcome(run)) is not None:
        content |= {"followed": followed(advice, smoothing), "did": _did(smoothing), "outcome": ended}
        verdict = {True: "as advised", False: "otherwise than advised", None: "without advice"}[content["followed"]]
        numbers = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in ended.items())
        print(f"  the run went on {verdict} ({_did(smoothing)}): {numbers}")
    elif advice.preset is not None:
        print(f"  next: o2o-smooth fork {run} --arm {_arm(advice.preset)} --arm jump --controls")
    print(f"  written down: {write_advice(run, content)}")


def _did(smoothing: dict[str, Any]) -> str:
    share = smoothing["offline_fraction"]
    rest = "" if share is None else f" --offline-fraction {share:g}"
    return f"--schedule {smoothing['schedule']} --regime {smoothing['regime']}{rest}"


def _arm(preset: Any) -> str:
    return f"{preset.schedule},regime={preset.regime}"
