"""The results of a study: tidy tables, leaderboards, pictures, `RESULTS.md`, and published numbers beside ours.

    write_results(Path("study"))            # after the last run, or at any time before
    compare(Path("study"))                  # 0: agrees with what is published, 1: does not, 2: cannot tell

What is read is the study's folder alone (`study.json`, `jobs/`, `runs/`), so results can be made again anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from o2o_smooth.benchmarks.published import Published, read_published
from o2o_smooth.benchmarks.published_curves import read_published_curves
from o2o_smooth.benchmarks.results_across import across_tasks
from o2o_smooth.benchmarks.results_beside import beside_groups
from o2o_smooth.benchmarks.results_boards import compare_groups
from o2o_smooth.benchmarks.results_compare import TOLERANCE, Agreement, Judged, agreements, exit_code
from o2o_smooth.benchmarks.results_curves import curve_agreements
from o2o_smooth.benchmarks.results_leaderboards import LEADERBOARDS, leaderboards_page
from o2o_smooth.benchmarks.results_page import RESULTS, Findings, results_page
from o2o_smooth.benchmarks.results_pictures import draw_all
from o2o_smooth.benchmarks.results_published import interval_words, source_line, sources
from o2o_smooth.benchmarks.results_published_curves import curve_lines, curve_source_line, curve_sources
from o2o_smooth.benchmarks.results_rows import (
    CURVE_FIELDS,
    RUN_FIELDS,
    curve_rows,
    has_parquet,
    run_rows,
    write_table,
)
from o2o_smooth.benchmarks.results_study import read_groups, read_study
from o2o_smooth.benchmarks.results_tables import number
from o2o_smooth.errors import ConfigError
from o2o_smooth.files import written_whole

PLOTS = "plots"
NO_PARQUET = "results are written as CSV only: Parquet needs pyarrow (pip install 'o2o_smooth[bench]')"


def write_results(study: Path, note: Callable[[str], None] | None = None, *, baseline: str | None = None) -> None:
    """Write everything that a study's folder says, into that folder; what an earlier call wrote is replaced.

    `results.csv`, `curves.csv` (and `.parquet`, where pyarrow is installed), `plots/`, `leaderboards.md`, `RESULTS.md`.
    Runs that failed or are missing keep their rows, and are named.

    Args:
        study: The folder.
        note: Told what a user should know; prints where None.
        baseline: The arm that others are compared with; the jump where None.

    Raises:
        ConfigError: There is no arm of the baseline's name.
        DataError: `study.json` is absent or broken.
        O2OError: The folder cannot be written.
    """
    tell = note or print
    found = _find(study, baseline=baseline)
    root = found.study.root
    beside = beside_groups(found.study, found.groups, found.curves)
    pictures = draw_all(found.results, found.across, root / PLOTS, beside) if found.results else []
    for path in set((root / PLOTS).glob("*.png")) - {picture.path for picture in pictures}:  # of arms that are gone
        path.unlink(missing_ok=True)
    files = [
        *write_table(root / "results", RUN_FIELDS, found.rows),
        *write_table(root / "curves", CURVE_FIELDS, curve_rows(found.groups)),
    ]
    if not has_parquet():
        tell(NO_PARQUET)
    whole = Findings(**{**vars(found), "pictures": pictures, "files": files})
    pages = {LEADERBOARDS: leaderboards_page(found.study.suite, found.results), RESULTS: results_page(whole)}
    for name, text in pages.items():
        with written_whole(root / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _find(study: Path, published: Iterable[Published] | None = None, *, baseline: str | None = None) -> Findings:
    """Read a study and compare its arms."""
    plan = read_study(study)
    groups = read_groups(plan)
    results, problems = compare_groups(groups, baseline)
    rows = run_rows(groups, {result.group.label: result.comparison for result in results})
    return Findings(
        study=plan,
        groups=groups,
        results=results,
        problems=problems,
        across=across_tasks(results),
        rows=rows,
        pictures=(),
        agreements=agreements(rows, read_published() if published is None else published),
        files=(),
        curves=curve_agreements(plan, groups, rows, read_published_curves()),
    )


def compare(
    study: Path,
    *,
    force: bool = False,
    tolerance: float = TOLERANCE,
    references: Iterable[Path] | None = None,
    curves: Iterable[Path] | None = None,
    tell: Callable[[str], None] = print,
) -> int:
    """Say whether a study agrees with published numbers.

    Args:
        study: The folder.
        force: Show numbers also where they are not comparable, with that mark; they never count.
        tolerance: Differences up to this do not matter, in points.
        references: Files of published numbers; those of the package where None.
        curves: Heads of published curves; those of the package where None.
        tell: Where lines go.

    Returns:
        0: all that is comparable is inside; 1: something is outside; 2: nothing is, but not all could be told, or
        nothing is comparable.

    Raises:
        ConfigError: A tolerance that is not positive.
        DataError: The study or a file of numbers is absent or broken.
    """
    if not tolerance > 0:
        raise ConfigError(f"tolerance must be more than 0 points, got {tolerance}")
    plan = read_study(study)
    groups = read_groups(plan)
    results, problems = compare_groups(groups)
    rows = run_rows(groups, {result.group.label: result.comparison for result in results})
    found = agreements(rows, read_published(references), tolerance=tolerance)
    along = curve_agreements(plan, groups, rows, read_published_curves(curves), tolerance=tolerance)
    judged: list[Judged] = [*found, *along]
    for label, problem in problems.items():
        tell(f"{label}: left out, its arms cannot be compared: {problem}")
    if not judged:
        tell("no published numbers are on file for the completed runs of this study")
        return exit_code(judged)
    for one in found:
        tell(_line(one, force=force))
    for curve in along:
        for line in curve_lines(curve, force=force):
            tell(line)
    for source in sources(found):
        tell(f"source: {source_line(source)}")
    for origin in curve_sources(along):
        tell(f"source: {curve_source_line(origin)}")
    counts = [sum(one.comparable and one.answer == answer for one in judged) for answer in ("inside", "outside")]
    apart = sum(not one.comparable for one in judged)
    tell(
        f"{counts[0]} inside, {counts[1]} outside, {len(judged) - sum(counts) - apart} cannot tell, {apart} not "
        f"comparable (within {tolerance:g} points)"
    )
    return exit_code(judged)


def _line(one: Agreement, *, force: bool) -> str:
    """One number in a line."""
    theirs = one.published
    head = f"{one.task}, {one.agent}, {theirs.metric} ({one.arm})"
    numbers = (
        f"ours {number(one.mean)} ({len(one.values)} seeds), published {theirs.text} ({theirs.source.seeds} seeds), "
        f"difference {interval_words(one)}"
        if one.values
        else f"published {theirs.text} ({theirs.source.seeds} seeds)"
    )
    if one.comparable:
        return f"{head}: {one.answer}; {numbers}"
    reasons = "; ".join(one.reasons)
    return f"{head}: NOT COMPARABLE ({reasons})" + (f"; {numbers}" if force else "; --force shows the numbers")
