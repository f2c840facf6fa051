"""The command `o2o-smooth report`: what happened at the switch, as a page, pictures and numbers."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from o2o_smooth.cli_options import command_line, take
from o2o_smooth.errors import ConfigError, O2OError

if TYPE_CHECKING:
    from rich.table import Table

    from o2o_smooth.stability.arms import Arm
    from o2o_smooth.stability.compared import Comparison
    from o2o_smooth.stability.signals import SignalLines

USAGE = """\
usage: o2o-smooth report [NAME=]RUN [[NAME=]RUN ...] [--curves FILE.csv] [--out DIR] [options]

Did it drop at the switch, how far, did it come back, and what did smoothing change? Writes report.html (one page that
needs nothing else), curves.png, dips.png, signals.png, audits.png and stability.json (a row a run) into DIR.

Runs are folders of o2o-smooth run, or a folder that holds several, as o2o-smooth fork leaves it; all of one task. One
that never went online is left out with a note. Those whose arm has one name are seeds of one arm. The name is the one
given before =, or the run's arm, or the folder's. Differences are paired by seed, so forks of one checkpoint make the
fairest comparison. Controls (stay, jump with a mixed batch, jump to a floor, an A/A pair: the same settings with
another --online-stream) are recognised by their settings; o2o-smooth fork ... --controls makes them.

  --curves FILE.csv    curves of any library: columns run, arm, seed, env_steps (0 at the switch), score; with
                       spread (standard deviation over an evaluation's episodes) and episodes there is a null dip.
                       Arms named stay, jump, "jump mixed", floor:0.2+jump and "NAME (A/A)" are taken as controls.
  --out DIR            where the report goes; default: report. An earlier report there is replaced
  --baseline ARM       what arms are compared with; default: the jump, or else the first arm
  --budget STEPS       online steps that count; default: as far as every curve goes
  --window STEPS       how long after the switch a minimum counts as the dip; default: the budget
  --ramp [ARM=]STEPS   length of the ramp of arms in the CSV file (repeat it for several arms); a verdict on a dip
                       needs evaluations to twice the ramp
  --interval METHOD    auto (sign_flip for up to 8 seeds, studentised above), studentised, sign_flip or bootstrap
                       (percentiles; too narrow for 8 seeds or fewer, and then it says so)
  --confidence SHARE   of the intervals; default: 0.95
  --random-score X     score of a random policy where it is not 0: no verdict is given within noise of it
  --unit UNIT          what the CSV file's scores are: score (0 random, 100 reference; the default) or return
  --title TEXT         of the page; default: the task, or the file's name
  --mix-provenance     put scores learned from data of different provenance together all the same, and say so

examples:
  o2o-smooth report runs/study --out reports/study                  # every run in that folder
  o2o-smooth report jump=runs/x-jump linear=runs/x --baseline jump
  o2o-smooth report --curves corl.csv --ramp 25000 --out reports/corl

What the numbers mean and how verdicts are reached: docs/report.md
"""

_VALUED = (
    "--curves",
    "--out",
    "--baseline",
    "--budget",
    "--window",
    "--ramp",
    "--interval",
    "--confidence",
    "--random-score",
    "--unit",
    "--title",
)


@dataclass(frozen=True)
class _Found:
    """What the report is made from."""

    arms: list[Arm]
    signals: Mapping[str, Mapping[str, SignalLines]]
    audits: Mapping[str, Mapping[str, SignalLines]]
    title: str
    sources: list[str]
    notes: list[str]
    add_controls: str | None


def report(arguments: list[str]) -> int:
    """Write a report; returns the exit code.

    Raises:
        O2OError: Bad input.
    """
    if not arguments or any(argument in ("-h", "--help") for argument in arguments):
        print(USAGE, end="")
        return 0
    command = command_line("report", arguments)
    rest, mix = [a for a in arguments if a != "--mix-provenance"], "--mix-provenance" in arguments
    ramps: list[str] = []
    values: dict[str, str | None] = {}
    for flag in _VALUED:
        rest, values[flag] = take(rest, flag) if flag != "--ramp" else (_take_all(rest, flag, ramps), None)
    _check_rest(rest, values)
    from rich.console import Console

    from o2o_smooth.stability.compared import Settings
    from o2o_smooth.stability.comparison import compare
    from o2o_smooth.stability.page import About, sentences
    from o2o_smooth.stability.report_files import check_free, write_report
    from o2o_smooth.stability.seen_together import seen_together
    from o2o_smooth.stability.statistics import Method
    from o2o_smooth.training.manifest import versions
    from o2o_smooth.training.pictures import describe_arms

    out = Path(values["--out"] or "report")
    check_free(out)
    found = _find(rest, values, ramps)
    settings = Settings(
        baseline=values["--baseline"],
        budget=_number("--budget", values["--budget"]),
        window=_number("--window", values["--window"]),
        method=cast("Method", _one_of("--interval", values["--interval"] or "auto", get_args(Method))),
        confidence=_number("--confidence", values["--confidence"]) or 0.95,
        random_score=_number("--random-score", values["--random-score"], positive=False),
        mix_provenance=mix,
        add_controls=found.add_controls,
    )
    comparison = compare(found.arms, settings)
    comparison = replace(comparison, seen=seen_together(comparison, found.audits))
    about = About(
        title=values["--title"] or found.title,
        subtitle=f"{describe_arms({c.arm.name: c.arm.curves for c in comparison.columns})}; "
        f"{comparison.budget:,.0f} online steps; baseline: {comparison.baseline.arm.name}",
        command=command,
        versions=versions(),
        sources=found.sources,
        notes=found.notes,
    )
    files = write_report(comparison, found.signals, out, about, found.audits)
    console = Console(emoji=False)
    _show(console, comparison, mix)
    for text in sentences(comparison):
        console.print(text, highlight=False, markup=False)
    for text in found.notes:
        console.print(f"note: {text}", highlight=False, markup=False)
    console.print(f"page: {files[-2]}", highlight=False, soft_wrap=True, markup=False)
    console.print(f"numbers: {files[-1]}", highlight=False, soft_wrap=True, markup=False)
    return 0


def _show(console: Any, comparison: Comparison, mix: bool) -> None:
    """The tables in the terminal."""
    from o2o_smooth.stability.report import arm_table, rich_table

    arms = {column.arm.name: column.arm.curves for column in comparison.columns}
    rows = arm_table(arms, budget=comparison.budget, window=comparison.window, mix_provenance=mix)
    console.print(rich_table(rows))
    if len(arms) > 1:
        console.print(effects_table(comparison))


def effects_table(comparison: Comparison) -> Table:
    """What the arms changed against the baseline, for a terminal of 80 columns."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from o2o_smooth.stability.verdict import word

    base = comparison.baseline
    note = (
        f"Minus {base.arm.name}, paired by seed: mean (better on k of n). A/A: how much two runs of the same settings "
        "differ; less is noise."
    )
    table = Table(caption=escape(note), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.caption_justify = "left"
    for i, header in enumerate(("Arm", "Dip", "A/A", "Says", "Final", "A/A", "Says")):
        table.add_column(header, justify="left" if i in (0, 3, 6) else "right", no_wrap=i > 0, overflow="fold")
    for column in comparison.columns[1:]:
        cells = [escape(column.arm.name)]
        for key, higher in (("dip_depth", False), ("final", True)):
            effect = column.effects[key]
            judged = higher or not (base.outcome.refusal or column.outcome.refusal)
            cells += [
                f"{effect.mean:+.1f} ({effect.up if higher else effect.down} of {effect.n})" if effect.n else "-",
                "-" if effect.aa is None else f"{effect.aa:.1f}",
                word(effect, higher_is_better=higher, judged=judged, brief=True),
            ]
        table.add_row(*cells)
    return table


def _find(rest: Sequence[str], values: Mapping[str, str | None], ramps: Sequence[str]) -> _Found:
    """Arms from run folders and from the CSV file."""
    from o2o_smooth.stability.arms import arms_by_name
    from o2o_smooth.stability.csv_curves import read_csv_curves

    arms: list[Arm] = []
    signals: Mapping[str, Mapping[str, SignalLines]] = {}
    audits: Mapping[str, Mapping[str, SignalLines]] = {}
    notes: list[str] = []
    title, add = "", None
    if rest:
        from o2o_smooth.training.report_runs import read_runs

        runs = read_runs([one for text in rest for one in _named(text)])
        arms, signals, audits, add = runs.arms, runs.signals, runs.audits, runs.add_controls
        notes += runs.notes
        manifest = next(iter(runs.manifests.values()))
        title = f"{manifest['task']['id']}: {manifest['agent']} → {manifest['online']} at the switch"
    if (file := values["--curves"]) is not None:
        unit = _one_of("--unit", values["--unit"] or "score", ("score", "return"))
        curves, unread = read_csv_curves(Path(file), unit=cast("Any", unit))
        if unread:
            notes.append(f"Columns of {file} that were not read: {', '.join(unread)}.")
        own = arms_by_name(curves)
        if twice := {arm.name for arm in own} & {arm.name for arm in arms}:
            raise O2OError(f"arm '{min(twice)}' is in {file} and among the runs: rename the run's with NAME=RUN")
        arms = [*arms, *own]
        title = title or Path(file).stem
        add = add or "o2o-smooth fork CHECKPOINT --arm ... --controls"
    arms = _with_ramps(arms, ramps)
    sources = [*rest, *([file] if file is not None else [])]
    return _Found(arms, signals, audits, title, sources, notes, add)


def _with_ramps(arms: Sequence[Arm], texts: Sequence[str]) -> list[Arm]:
    """The arms with the ramps that the command line tells; one without an arm's name is for all that have none."""
    lengths: dict[str | None, float] = {}
    names = [arm.name for arm in arms]
    for text in texts:
        name, equals, number = text.rpartition("=")
        if equals and name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
            raise ConfigError(f"--ramp {text}: there is no arm '{name}'; {hint}")
        lengths[name if equals else None] = cast("float", _number("--ramp", number))
    found = []
    for arm in arms:
        length = lengths.get(arm.name, lengths.get(None) if arm.ramp_steps is None else arm.ramp_steps)
        found.append(replace(arm, ramp_steps=length))
    return found


def _named(text: str) -> list[tuple[str | None, Path]]:
    """NAME=FOLDER, a folder alone, or one that holds run folders, as a fork leaves it."""
    name, equals, folder = text.partition("=")
    if equals and not Path(text).exists():
        if not name or not folder:
            raise O2OError(f"'{text}': write NAME=FOLDER")
        return [(name, Path(folder))]
    path = Path(text)
    if path.is_dir() and not (path / "manifest.json").exists():
        inside = sorted(manifest.parent for manifest in path.glob("*/manifest.json"))
        if inside:
            return [(None, one) for one in inside]
    return [(None, path)]


def _check_rest(rest: Sequence[str], values: Mapping[str, str | None]) -> None:
    if wrong := [argument for argument in rest if argument.startswith("-")]:
        close = difflib.get_close_matches(wrong[0].partition("=")[0], [*_VALUED, "--mix-provenance"], n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise O2OError(f"unknown option {wrong[0]}{hint}; o2o-smooth report --help shows every option")
    if not rest and values["--curves"] is None:
        raise O2OError("report needs run folders, or --curves FILE.csv; o2o-smooth report --help shows how it goes")


def _take_all(rest: list[str], flag: str, into: list[str]) -> list[str]:
    """Remove an option wherever it stands."""
    while any(argument == flag or argument.startswith(f"{flag}=") for argument in rest):
        at = next(i for i, a in enumerate(rest) if a == flag or a.startswith(f"{flag}="))
        width = 2 if rest[at] == flag else 1
        _, value = take(rest[at : at + width], flag)
        into.append(str(value))
        rest = rest[:at] + rest[at + width :]
    return rest


def _number(flag: str, text: str | None, *, positive: bool = True) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(f"{flag} {text}: give a number") from None
    if not math.isfinite(value) or (positive and value <= 0):
        raise ConfigError(f"{flag} {text}: give a {'positive' if positive else 'finite'} number")
    return value


def _one_of(flag: str, text: str, choices: Sequence[str]) -> str:
    if text not in choices:
        raise ConfigError(f"{flag} {text}: choose from {', '.join(choices)}")
    return text
