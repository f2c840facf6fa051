"""The command `o2o-smooth doctor`: is this machine ready, and how much memory will a run take."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from o2o_smooth.training.memory_check import Verdict

USAGE = """\
usage: o2o-smooth doctor [--json]
       o2o-smooth doctor [--json] RUN-OPTIONS

Without options of a run: what is installed and what to install for which use, what the processor and the GPU can do
(and whether bf16 pays), free memory and disk, the environment variables that count. Each line is ok, missing (nothing
that you need, perhaps), a warning, or broken; the exit code is 1 if something is broken, else 0. Keys are never shown.

With the options of a run, as o2o-smooth run takes them (--config FILE too): how much memory that run takes at its
peak, part by part, on the host and on the GPU; what can be had (the machine's free memory, the container's limit,
ulimit -v); and, where it is tight, which settings help most; and how much room on the disk it takes. Nothing is trained
and nothing is written. The exit code is 1 if the run does not fit into memory.

A run makes the same prediction when it starts, warns above 80 % and refuses what cannot fit, unless --no-memory-check.

  --json    the same for programs; bytes

examples:
  o2o-smooth doctor
  o2o-smooth doctor --task hopper-medium-v2 --agent cql --seeds 0 1 2 3 --buffer-size 1000000
  o2o-smooth doctor --config study.toml --json
"""
STYLES = {"ok": "green", "missing": "dim", "warning": "yellow", "broken": "bold red"}
MOMENTS = {
    ("loading", "updates", "saving"): "always",
    ("loading",): "reading the data",
    ("updates", "saving"): "learning and after",
    ("updates",): "learning",
    ("saving",): "at the end",
}


def doctor(arguments: list[str], parse_run: Callable[[Sequence[str]], Any]) -> int:
    """Run the command; returns the exit code.

    Args:
        arguments: What stands behind the command.
        parse_run: From the options of a run to its settings.

    Raises:
        O2OError: Bad options, or a task that is not installed.
    """
    if any(a in ("-h", "--help") for a in arguments):
        print(USAGE, end="")
        return 0
    as_json = "--json" in arguments
    rest = [a for a in arguments if a != "--json"]
    return _of_run(parse_run(rest), as_json=as_json) if rest else _of_machine(as_json=as_json)


def _of_machine(*, as_json: bool) -> int:
    from rich.console import Console
    from rich.text import Text

    from o2o_smooth.checkup import checkup

    checks = list(checkup())
    ok = all(check.status != "broken" for check in checks)
    if as_json:
        print(json.dumps({"ok": ok, "checks": [check.to_dict() for check in checks]}, indent=1))
        return 0 if ok else 1
    console = Console(highlight=False, markup=False, emoji=False)
    section = ""
    for check in checks:
        if check.section != section:
            section = check.section
            console.print(Text(section, style="bold"))
        line = Text(f"  {check.status:<8}", style=STYLES[check.status])
        line.append(f"{check.name:<20} ", style="")
        line.append(check.text, style="")
        console.print(line, soft_wrap=True)
    counts = {status: sum(check.status == status for check in checks) for status in ("warning", "broken")}
    told = ", ".join(
        f"{n} {status}" + ("s" if n > 1 and status == "warning" else "") for status, n in counts.items() if n
    )
    console.print(told or "all is well")
    return 0 if ok else 1


def _of_run(config: Any, *, as_json: bool) -> int:
    from o2o_smooth.data.extent import extent
    from o2o_smooth.data.room import free_disk
    from o2o_smooth.envs import find_task, make_env
    from o2o_smooth.errors import ConfigError
    from o2o_smooth.training.disk import disk_parts, sized
    from o2o_smooth.training.memory import Shape
    from o2o_smooth.training.memory_check import judge
    from o2o_smooth.training.prepare import default_out, needs_dataset

    if config.device.partition(":")[0] not in ("cpu", "cuda"):
        raise ConfigError(f"device '{config.device}' is not supported; use cpu, cuda or cuda:N")
    task = find_task(config.task)
    env = make_env(task)
    spaces: Any = (env.observation_space, env.action_space)
    env.close()
    shape = Shape(spaces[0].shape[0], spaces[1].shape[0], task.domain)
    data = extent(task, config.dataset) if needs_dataset(config) else None
    verdict = judge(config, shape, data)
    out = Path(config.out) if config.out is not None else default_out(config)
    disk, free = disk_parts(config, shape, len(config.seeds)), free_disk(out)
    if as_json:
        needed = {"needed": sum(part.size for part in disk), "free": free, "parts": [asdict(part) for part in disk]}
        print(json.dumps({**_plain(verdict), "disk": needed}, indent=1))
    else:
        _show(verdict, f"{task.id}, {config.agent}, {len(config.seeds)} seeds".replace("1 seeds", "1 seed"))
        parts = ", ".join(f"{part.name} {sized(part.size)}" for part in disk)
        there = "" if free is None else f"; {sized(free)} are free where {out} is"
        print(f"disk: about {sized(sum(part.size for part in disk))} ({parts}){there}")
    return 0 if verdict.fits else 1


def _show(verdict: Verdict, title: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from o2o_smooth.training.memory_check import gib

    prediction = verdict.prediction
    with_gpu = prediction.device > 0
    table = Table(box=box.SIMPLE_HEAD, title=f"predicted memory of {title}", title_justify="left")
    table.add_column("part", no_wrap=True)
    for name in ("host", "GPU") if with_gpu else ("host",):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("when", no_wrap=True)
    table.add_column("what", overflow="fold")
    for part in prediction.parts:
        sizes = [gib(part.host) if part.host else "-"] + (
            [gib(part.device) if part.device else "-"] if with_gpu else []
        )
        at_peak = prediction.phase in part.phases or part.device
        unknown = not part.host and not part.device
        style = "yellow" if unknown else "" if at_peak else "dim"
        table.add_row(part.name, *sizes, MOMENTS[part.phases], part.detail, style=style)
    table.add_section()
    peak = [gib(prediction.host)] + ([gib(prediction.device)] if with_gpu else [])
    remark = "" if prediction.dataset_known else "and the dataset"
    table.add_row("peak", *peak, MOMENTS[(prediction.phase,)], remark, style="bold")
    have = ["?" if verdict.host is None else gib(verdict.host)]
    have += [("?" if verdict.device is None else gib(verdict.device))] if with_gpu else []
    table.add_row("can be had", *have, "", verdict.limit)
    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120, emoji=False)
    console.print(table)
    if verdict.host is None:
        console.print("What can be had is not told by this system; compare for yourself.", markup=False)
        return
    style = "green" if not verdict.advice and verdict.fits else "yellow" if verdict.fits else "bold red"
    words = "fits" if verdict.fits else "does not fit"
    console.print(f"{words}: {verdict.share:.0%} of what can be had", style=style, markup=False)
    for advice in verdict.advice:
        enough = ", which is enough" if advice.fits else ""
        console.print(f"  {advice.flag}  saves {gib(advice.saves)}{enough}", markup=False, soft_wrap=True)
    if not verdict.fits and not verdict.advice:
        console.print(f"  {verdict.cures()}", markup=False)


def _plain(verdict: Verdict) -> dict[str, Any]:
    """For programs; bytes."""
    prediction = verdict.prediction
    return {
        "fits": verdict.fits,
        "share": verdict.share,
        "host": {
            "peak": prediction.host,
            "available": verdict.host,
            "limit": verdict.limit,
            "moment": prediction.phase,
        },
        "own_process": prediction.own,
        "device": {"peak": prediction.device, "available": verdict.device},
        "dataset_known": prediction.dataset_known,
        "parts": [
            {
                "name": part.name,
                "host": part.host,
                "device": part.device,
                "moments": list(part.phases),
                "other_processes": part.elsewhere,
                "detail": part.detail,
            }
            for part in prediction.parts
        ],
        "advice": [{"flag": a.flag, "saves": a.saves, "enough": a.fits} for a in verdict.advice],
    }
