"""Stands in for Slurm's commands in tests: real scripts in real processes of this machine, states as of sacct.

python slurm_stand_in.py COMMAND ...     COMMAND: sbatch | srun | squeue | sacct | scancel | scontrol | supervise

SLURM_STAND_IN is its folder: a folder for each job with `script`, `options`, `state`, `pid`; `calls` has every command.
A file `held` keeps new jobs in the queue, `full` makes sbatch fail, `no-accounting` sacct; with `forgetful` squeue only
tells of live jobs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(os.environ["SLURM_STAND_IN"])
COMMANDS = ("sbatch", "srun", "squeue", "sacct", "scancel", "scontrol")


def install(folder: Path) -> None:
    """Put the commands into a folder for PATH."""
    folder.mkdir()
    for name in COMMANDS:
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).absolute()}" {name} "$@"\n')
        path.chmod(0o755)


def state(number: str) -> str:
    return (HERE / number / "state").read_text()


def set_state(number: str, new: str) -> None:
    temporary = HERE / number / f".state.{os.getpid()}"
    temporary.write_text(new)
    temporary.replace(HERE / number / "state")


def numbers() -> list[str]:
    return sorted((path.name for path in HERE.iterdir() if path.name.isdecimal()), key=int)


def options(number: str) -> dict[str, str]:
    read: dict[str, str] = json.loads((HERE / number / "options").read_text())
    return read


def signal_job(number: str, which: int) -> None:
    """To all processes of the job, as slurmstepd does; the batch shell itself only hears SIGKILL."""
    shell = int((HERE / number / "pid").read_text())
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"SLURM_JOB_ID={number}\0".encode() in path.read_bytes() + b"\0":
                pid = int(path.parent.name)
                if pid != shell or which == signal.SIGKILL:
                    os.kill(pid, which)


def sbatch(script: str) -> None:
    text = Path(script).read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.MULTILINE))
    asked = {name: value.strip("'") for name, value in asked.items()}
    if (HERE / "full").exists():
        sys.exit("sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: limit reached")
    if asked.get("partition") == "none":
        sys.exit("sbatch: error: invalid partition specified: none\nsbatch: error: Batch job submission failed")
    number = str(len(numbers()) + 1)
    (HERE / number).mkdir()
    (HERE / number / "script").write_text(text)
    (HERE / number / "options").write_text(json.dumps(asked))
    set_state(number, "PENDING")
    command = [sys.executable, __file__, "supervise", number]
    nothing = subprocess.DEVNULL
    subprocess.Popen(command, start_new_session=True, stdin=nothing, stdout=nothing, stderr=nothing)
    print(f"Submitted batch job {number}")


def supervise(number: str) -> None:
    """Run the script, again whenever it was requeued."""
    asked, restarts = options(number), 0
    output = Path(asked["output"].replace("%j", number))
    while state(number) in ("PENDING", "REQUEUED"):
        if (HERE / "held").exists():
            time.sleep(0.02)
            continue
        set_state(number, "RUNNING")
        environment = {
            **os.environ,
            "SLURM_JOB_ID": number,
            "SLURM_JOB_NODELIST": "node-[1]",
            "SLURM_NTASKS": "1",
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
            "SLURM_NODEID": "0",
            "SLURM_RESTART_COUNT": str(restarts),
        }
        if state(number) != "RUNNING":
            break
        with output.open("ab") as log:
            shell = subprocess.Popen(
                ["bash", str(HERE / number / "script")],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
            (HERE / number / "pid").write_text(str(shell.pid))
            code = shell.wait()
        if state(number) == "RUNNING":
            set_state(number, "COMPLETED" if code == 0 else "FAILED")
        restarts += 1


def srun(*arguments: str) -> None:
    rest = list(arguments)
    output = None
    while rest and rest[0].startswith("--"):
        option = rest.pop(0)
        if option in ("--output", "--error"):
            output = rest.pop(0)
    assert output is not None
    log = os.open(
        output.replace("%j", os.environ["SLURM_JOB_ID"]).replace("%t", "0"), os.O_WRONLY | os.O_CREAT | os.O_APPEND
    )
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.execvp(rest[0], rest)


def squeue(*arguments: str) -> None:
    name = arguments[arguments.index("--name") + 1] if "--name" in arguments else None
    layout = arguments[arguments.index("--format") + 1]
    forgets = (HERE / "forgetful").exists()  # as squeue does after MinJobAge
    for number in numbers():
        live = state(number) in ("PENDING", "REQUEUED", "RUNNING")
        if (live or not forgets) and name in (None, options(number)["job-name"]):
            told = HERE / number / "reason"
            reason = told.read_text() if told.exists() else "Resources" if state(number) == "PENDING" else "None"
            print(layout.replace("%i", number).replace("%T", state(number).split()[0]).replace("%r", reason))


def sacct(*arguments: str) -> None:
    if (HERE / "no-accounting").exists():
        sys.exit("Slurm accounting storage is disabled")
    wanted = arguments[arguments.index("-j") + 1].split(",")
    for number in wanted:
        if number in numbers():
            print(f"{number}|{state(number)}")


def scancel(number: str, *arguments: str) -> None:
    if arguments:
        signal_job(number, getattr(signal, arguments[1] if arguments[1].startswith("SIG") else f"SIG{arguments[1]}"))
        return
    was = state(number)
    if was in ("PENDING", "RUNNING", "REQUEUED"):
        set_state(number, "CANCELLED by 1000")
    if was == "RUNNING":
        signal_job(number, signal.SIGKILL)


def scontrol(verb: str, number: str) -> None:
    assert verb == "requeue"
    set_state(number, "REQUEUED")


def fail_node(number: str) -> None:
    """The node is gone, with all that was on it."""
    set_state(number, "NODE_FAIL")
    signal_job(number, signal.SIGKILL)


if __name__ == "__main__":
    with (HERE / "calls").open("a") as calls:
        calls.write(" ".join(sys.argv[1:]) + "\n")
    globals()[sys.argv[1]](*sys.argv[2:])
