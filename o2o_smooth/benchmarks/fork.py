"""One pretraining continued into several arms: their runs side by side, a table, paired differences and a picture."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from o2o_smooth.benchmarks.arms import run_arms
from o2o_smooth.benchmarks.placement import Population
from o2o_smooth.errors import ConfigError
from o2o_smooth.files import written_whole
from o2o_smooth.reading import check_inside, read_json
from o2o_smooth.smoothing.rules import rule_name
from o2o_smooth.stability.curves import Curve
from o2o_smooth.stability.intervals import PairedDifference, paired_difference
from o2o_smooth.stability.metrics import stability_metrics
from o2o_smooth.stability.report import arm_table, render_table, table_note
from o2o_smooth.training.config import RunConfig
from o2o_smooth.training.forking import AGAIN, ForkArm, check_arms
from o2o_smooth.training.manifest import versions
from o2o_smooth.training.pictures import draw_arms, read_checked
from o2o_smooth.training.prepare import check_out
from o2o_smooth.training.progress import ProgressSink
from o2o_smooth.training.ramps import ramp_length
from o2o_smooth.training.resume import can_resume

if TYPE_CHECKING:
    from rich.table import Table

_CONFIDENCE = 0.95
FORK, RESULTS, PICTURE = "fork.json", "RESULTS.md", "stability.png"


@dataclass(frozen=True)
class Forked:
    """What a fork left behind."""

    out: Path
    """Its folder."""
    folders: Mapping[str, Path]
    """The arms' run folders, by name."""
    rows: Sequence[Mapping[str, Any]]
    """Of the table, see `arm_table`."""
    paired: Sequence[Mapping[str, Any]]
    """Paired differences, see `paired_rows`."""

    @property
    def picture(self) -> Path:
        """All curves around the switch."""
        return self.out / PICTURE

    @property
    def results(self) -> Path:
        """The tables as a page, with command and versions."""
        return self.out / RESULTS


def fork(
    arms: Sequence[ForkArm],
    out: Path,
    progress: ProgressSink,
    *,
    title: str,
    command: str,
    population: Population = "auto",
    heading: str | None = None,
    join: bool = True,
    opening: str = "",
) -> Forked:
    """Run the arms of a comparison from their common checkpoint, and say how they compare.

    A folder that holds a fork of the same checkpoint takes further arms: random numbers are common to all, whenever
    they are run, so the table and the picture are of all.

    Args:
        arms: The arms; their `pretrained` is the checkpoint.
        out: Each arm gets a run folder under it; beside them fork.json, RESULTS.md and stability.png.
        progress: Where progress goes.
        title: Of the picture.
        command: How to do it again, for the page.
        population: As in `run_arms`.
        heading: Of the page; default: the title.
        join: Whether `out` must be empty or hold a fork to join; where not, other things may be there.
        opening: What to say before the first arm begins, when everything has been looked at.

    Raises:
        O2OError: Arms that cannot be told apart, folders that are taken, or what an arm raised.
    """
    check_arms(arms)
    earlier = _earlier(arms, out) if join else _Earlier()
    there = [arm.name for arm in arms if arm.control and arm.name in earlier.folders]
    arms = [arm for arm in arms if arm.name not in there]
    configs = {arm.name: replace(arm.config, out=str(out / arm.folder)) for arm in arms}
    for config in configs.values():  # all of them before the first is trained
        check_out(Path(str(config.out)), config)
    if opening:
        progress.note(opening)
    if there:
        progress.note(f"controls that are there already: {', '.join(there)}")
    for arm in arms:
        _warn_of_ramp(arm, progress)
    try:
        folders = {**earlier.folders, **run_arms(configs, progress, population=population)}
    except KeyboardInterrupt:
        _say_how(configs, progress)
        raise
    commands = [*earlier.commands, command]
    controls = [*earlier.controls, *(arm.name for arm in arms if arm.control)]
    curves = draw_arms(folders, out / PICTURE, title=title)
    rows, paired = arm_table(curves), paired_rows(curves)
    _write(out / FORK, _record(arms, folders, out, commands, controls))
    _write(out / RESULTS, _page(folders, rows, paired, heading or title, commands))
    return Forked(out, folders, rows, paired)


def _say_how(configs: Mapping[str, RunConfig[Any]], progress: ProgressSink) -> None:
    """Tell how to go on with arms that were interrupted, which may be in populations and processes of their own."""
    outs = {name: Path(str(config.out)) for name, config in configs.items()}
    begun = [str(out) for out in outs.values() if can_resume(out)]
    if begun:
        every = [str(out) for out in outs.values() if out.exists()]
        progress.note(f"to go on with the arms: {shlex.join(['o2o-smooth', 'resume', *begun])}")
        progress.note(f"and when they are complete: {shlex.join(['o2o-smooth', 'compare', *every])}")
    if absent := [name for name, out in outs.items() if not out.exists()]:
        progress.note(f"not begun: {', '.join(absent)}")


@dataclass(frozen=True)
class _Earlier:
    """What a fork of the same checkpoint has left in the folder, but for arms that are run again."""

    folders: Mapping[str, Path] = field(default_factory=dict)
    controls: Sequence[str] = ()
    commands: Sequence[str] = ()


def _earlier(arms: Sequence[ForkArm], out: Path) -> _Earlier:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; choose another --out")
    if not out.is_dir() or not any(out.iterdir()):
        return _Earlier()
    file, config = out / FORK, arms[0].config
    if not file.is_file():
        if config.overwrite:
            return _Earlier()
        raise ConfigError(
            f"{out} is not empty and holds no finished fork; choose another --out, or --overwrite to replace its arms"
        )
    try:
        content = read_json(file, root=out)
        checkpoint, found = (
            content["checkpoint"],
            {name: _inside(out, folder) for name, folder in content["arms"].items()},
        )
        controls, commands = list(content["controls"]), list(content["commands"])
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"{file} is broken ({error!r}); choose another --out") from None
    if checkpoint != _checkpoint(config):
        raise ConfigError(
            f"{out} holds a fork of {checkpoint}, this is one of {_checkpoint(config)}; choose another --out"
        )
    taken = [arm.name for arm in arms if (out / arm.folder).exists()]
    taken = [name for name in taken if name not in found or name not in {a.name for a in arms if a.control}]
    if taken and not config.overwrite:
        raise ConfigError(
            f"{out} has the arm '{taken[0]}' already; leave it out, give it another name=..., choose another --out, or "
            f"--overwrite to run it again"
        )
    again = {arm.folder for arm in arms if config.overwrite or not arm.control}
    kept = {name: path for name, path in found.items() if path.name not in again}
    for path in kept.values():
        _check_shared(config, path)
    return _Earlier(kept, [name for name in controls if name in kept], commands)


def _inside(out: Path, folder: Any) -> Path:
    """An arm's folder in the fork's, as it is written in `fork.json`."""
    if not isinstance(folder, str) or Path(folder).name != folder or folder in ("", "..", "."):
        raise ValueError(f"the arm's folder {str(folder)[:40]!r} does not lie in it")
    check_inside(out / folder, out)
    return out / folder


def _check_shared(config: RunConfig[Any], run_dir: Path) -> None:
    """Refuse arms that an arm which is there cannot be compared with."""
    mine, other = json.loads(json.dumps(config.to_dict())), read_checked(run_dir)["config"]
    for name in ("online_steps", "num_envs", "evaluation"):
        if mine[name] != other[name]:
            raise ConfigError(
                f"{run_dir} was run with {name} = {other[name]}, these arms have {mine[name]}; give them the same, or "
                f"choose another --out"
            )


def _checkpoint(config: RunConfig[Any]) -> str:
    return str(Path(str(config.pretrained)).resolve())


def _record(
    arms: Sequence[ForkArm], folders: Mapping[str, Path], out: Path, commands: Sequence[str], controls: Sequence[str]
) -> str:
    content = {
        "checkpoint": _checkpoint(arms[0].config),
        "commands": list(commands),
        "arms": {name: str(path.relative_to(out)) for name, path in folders.items()},
        "controls": list(controls),
        "versions": versions(),
    }
    return json.dumps(content, indent=1) + "\n"


def _warn_of_ramp(arm: ForkArm, progress: ProgressSink) -> None:
    """A dip that a ramp only postpones comes at its end: say where nobody would see it."""
    config = arm.config
    end = ramp_length(config.to_dict())
    if end is not None and config.online_steps < 2 * end:
        if end > config.hygiene.warm_up_steps:
            what = f"ends its {'' if rule_name(config.smoothing.schedule) is None else 'shortest '}ramp"
        else:
            what = "ends its warm-up"
        progress.note(
            f"warning: '{arm.name}' {what} at {end:,.0f} of {config.online_steps:,} steps; a dip that is only "
            f"postponed shows after it. Go on to twice that (--online-steps {math.ceil(2 * end)}) before you believe it"
        )


def paired_rows(curves: Mapping[str, Sequence[Curve]]) -> list[dict[str, Any]]:
    """Every arm minus the first, over the seeds that both have.

    Keys: `arm`, `against`, `n`; `dip`, `dip_area`, `final`: the `PairedDifference`, whose `better` counts the seeds on
    which the arm does better than the first; None where the two share no seed.
    """
    found = {
        arm: {curve.seed: stability_metrics(curve.env_steps, curve.scores) for curve in mine}
        for arm, mine in curves.items()
    }
    first, *others = found
    rows = []
    for arm in others:
        seeds = [seed for seed in found[first] if seed in found[arm]]
        row: dict[str, Any] = {"arm": arm, "against": first, "n": len(seeds)}
        for name, of_curve in (("dip", "dip_depth"), ("dip_area", "dip_area"), ("final", "final")):
            own, other = ([getattr(found[which][s], of_curve) for s in seeds] for which in (arm, first))
            row[name] = (
                paired_difference(own, other, confidence=_CONFIDENCE, higher_is_better=name == "final")
                if seeds
                else None
            )
        rows.append(row)
    return rows


_HEADERS = ("Arm minus the first", "Dip", "Dip area", "Final", "Smaller dip")


def _paired_cells(row: Mapping[str, Any], between: str = " ") -> tuple[str, ...]:
    """A row as text, `between` a mean and its interval."""

    def amount(found: PairedDifference | None) -> str:
        if found is None:
            return "-"
        if found.n == 1:
            return f"{found.mean:+.1f}"
        low, high = (f"{end:+.1f}" if math.isfinite(end) else "no bound" for end in (found.low, found.high))
        return f"{found.mean:+.1f}{between}[{low}, {high}]"

    values = (amount(row[name]) for name in ("dip", "dip_area", "final"))
    return str(row["arm"]), *values, f"{row['dip'].better if row['dip'] else 0} of {row['n']}"


def paired_note(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the columns mean, and what chance alone does where an A/A pair tells."""
    note = f"Minus '{rows[0]['against']}', seed by seed: mean over seeds"
    found = [row[name] for row in rows for name in ("dip", "dip_area", "final") if row["n"] > 1]
    if found:
        holds = min(one.confidence for one in found)
        few = "" if holds >= _CONFIDENCE else ": so few seeds allow no more"
        note += f" [{100 * min(holds, _CONFIDENCE):.4g} % interval{few}]"
    note += "."
    again = next((row for row in rows if row["arm"].endswith(AGAIN)), None)
    if again is not None:
        note += (
            f" '{again['arm']}' repeats an arm with other random numbers: a difference like that between the two is "
            f"chance."
        )
    return note


def paired_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows of `paired_rows` for a terminal."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(caption=escape(paired_note(rows)), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.caption_justify = "left"
    for i, header in enumerate(_HEADERS):
        table.add_column(header, justify="left" if i == 0 else "right", no_wrap=i > 0, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, _paired_cells(row, between="\n")))  # two lines, so that it fits
    return table


def _page(
    folders: Mapping[str, Path],
    rows: Sequence[Mapping[str, Any]],
    paired: Sequence[Mapping[str, Any]],
    heading: str,
    commands: Sequence[str],
) -> str:
    manifest = read_checked(next(iter(folders.values())))
    data = "none" if manifest["dataset"] is None else manifest["dataset"]["note"]
    source = manifest["score"]["references"]["source"]
    scores = f" Scores: 0 = random policy, 100 = reference policy ({source})." if source else ""
    versioned = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
    done = "; ".join(f"`{command}`" for command in commands)
    differences = ""
    if paired:
        lines = [_HEADERS, ("---", *["---:"] * (len(_HEADERS) - 1)), *map(_paired_cells, paired)]
        differences = "".join("| " + " | ".join(line) + " |\n" for line in lines) + f"\n{paired_note(paired)}\n\n"
    return (
        f"# {heading}\n\nData: {data}.{scores}\n\n{render_table(rows)}\n{table_note(rows)}\n\n{differences}"
        f"![curves]({PICTURE})\n\nCommand: {done}\n\nVersions: {versioned}\n"
    )


def _write(path: Path, text: str) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
