"""The words of a study's results: three sentences that say what came out, and what to keep in mind.

The rules are the report's: a verdict is refused where there was nothing to lose or evaluation ended too early, what is
no larger than an A/A difference is noise, a dip that only comes later is called postponed, and what was not run or did
not finish is named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from o2o_smooth.benchmarks.results_across import Across
from o2o_smooth.benchmarks.results_boards import GroupResult
from o2o_smooth.benchmarks.results_study import STATUSES, Group, SeedRun, losses, seed_counts
from o2o_smooth.stability.intervals import FEW_SEEDS
from o2o_smooth.stability.page import sentences
from o2o_smooth.stability.verdict import Change, Unknowns, postponed, what_is_not_known

MOST_NAMES = 4
"""Names that a sentence lists before it only counts."""

_SEPARATOR = "; "
_FLAGS = re.compile(r" \(--[^)]*\)")  # advice on flags of o2o-smooth report, which a study does not have


def opening(results: Sequence[GroupResult], groups: Sequence[Group]) -> tuple[str, str, str]:
    """What happened, what smoothing changed, and what is not known; one sentence each."""
    if not results:
        return (
            "Nothing can be said of the switch: no run is completed that could be compared.",
            "What smoothing changes is not known.",
            _unknown(results, groups),
        )
    if len(results) == 1:
        label = results[0].group.label
        first, second, _ = sentences(results[0].comparison)
        return f"{label}: {first}", second, _unknown(results, groups)
    return _what_happened(results), _what_changed(results), _unknown(results, groups)


def _what_happened(results: Sequence[GroupResult]) -> str:
    dropped, kept, refused = [], [], []
    for result in results:
        outcome, label = result.comparison.baseline.outcome, _of(result)
        if outcome.refusal:
            refused.append(label)
        elif outcome.dropped:
            depth = _amount(outcome.depth, result)
            dropped.append(
                f"{label} ({outcome.dropped} of {outcome.n} seeds, by {depth}, {outcome.recovered} came back)"
            )
        else:
            kept.append(label)
    names = list(dict.fromkeys(result.comparison.baseline.arm.name for result in results))
    pairs = f"{len(results)} pairs of task and agent"
    parts = [f"Of {pairs}, the baseline ({_listed(names)}) dropped by more than noise on {len(dropped)}"]
    if dropped:
        parts[0] += f": {_listed(dropped, most=MOST_NAMES)}"
    if kept:
        parts.append(f"it did not drop on {len(kept)} ({_listed(kept, most=MOST_NAMES)})")
    if refused:
        parts.append(
            f"there is no verdict on {len(refused)} ({_listed(refused, most=MOST_NAMES)}), where the score at the "
            "switch is within noise of random or evaluation ends before twice the ramp"
        )
    return f"{_SEPARATOR.join(parts)}."


def _what_changed(results: Sequence[GroupResult]) -> str:
    """A clause for every arm that is no control: on how many pairs it did what."""
    found: dict[str, dict[str, list[str]]] = {}
    for result in results:
        for change in result.comparison.changes:
            found.setdefault(change.arm.name, {}).setdefault(dip_outcome(change, result), []).append(_of(result))
            final = change.final.kind(higher_is_better=True)
            found[change.arm.name].setdefault(f"final {final}", []).append(_of(result))
    if not found:
        return "There is no other arm beside the baseline but controls, so what smoothing changes is not known."
    clauses = [_arm_clause(name, own) for name, own in found.items()]
    if len(clauses) > 2 * MOST_NAMES:
        clauses = [*clauses[: 2 * MOST_NAMES], f"{len(clauses) - 2 * MOST_NAMES} more arms below"]
    return f"Against the baseline, in pairs of task and agent: {', '.join(clauses)}."


_DIPS = {
    "better": "smaller on {}",
    "worse": "deeper on {}",
    "postponed": "only postponed on {}",
    "noise": "within noise on {}",
    "undecided": "not decided on {}",
    "refused": "no verdict on {}",
}
_FINALS = {
    "final better": "higher on {}",
    "final worse": "lower on {}",
    "final noise": "within noise on {}",
    "final undecided": "not decided on {}",
    "final unpaired": "unpaired on {}",
}


def dip_outcome(change: Change, result: GroupResult) -> str:
    """What became of an arm's dip: a key of `_DIPS`."""
    base = result.comparison.baseline.outcome
    kind = change.depth.kind(higher_is_better=False)
    if change.arm.refusal or base.refusal or kind == "unpaired":
        return "refused"
    if postponed(change, base, result.comparison.window or result.comparison.budget):
        return "postponed"
    return kind


def _arm_clause(name: str, own: Mapping[str, Sequence[str]]) -> str:
    dips = [words.format(len(own[key])) for key, words in _DIPS.items() if key in own]
    finals = [words.format(len(own[key])) for key, words in _FINALS.items() if key in own]
    worse = [label for key in ("worse", "final worse") for label in own.get(key, [])]
    where = f"; worse on {_listed(list(dict.fromkeys(worse)), most=MOST_NAMES)}" if worse else ""
    return f"{name} (dip {', '.join(dips)}; final score {', '.join(finals)}{where})"


def _unknown(results: Sequence[GroupResult], groups: Sequence[Group]) -> str:
    """What a reader must not take from the numbers, of all groups together."""
    found = []
    planned, lost = sum(len(group.runs) for group in groups), losses(groups)
    if lost:
        found.append(
            f"what {len(lost)} of {planned} planned runs would have shown: {_statuses(lost)} (they are named below)"
        )
    if results:
        common = _FLAGS.sub("", what_is_not_known(_merged(results)))
        if not common.startswith("Not known: whether this holds"):
            found.append(common.removeprefix("Not known: ").removesuffix("."))
    if len(results) > 1 and any(result.comparison.unit == "return" for result in results):
        found.append("how tasks without reference scores compare with the rest: they are in no table over tasks")
    if not found:
        return "Not known: whether this holds on other tasks, data and agents."
    return f"Not known: {_SEPARATOR.join(found)}."


def _merged(results: Sequence[GroupResult]) -> Unknowns:
    """The unknowns of all groups as one: the worst of each."""
    every = [result.comparison.unknowns for result in results]

    def names(pick: str) -> tuple[str, ...]:
        """Arms that any group names; where not all do, with how many."""
        counts: dict[str, int] = {}
        for one in every:
            for name in getattr(one, pick):
                counts[name] = counts.get(name, 0) + 1
        return tuple(n if k == len(every) else f"{n} (in {k} of {len(every)} pairs)" for n, k in counts.items())

    open_gates: dict[str, list[float]] = {}
    for one in every:
        for name, weight in one.half_open:
            open_gates.setdefault(name, []).append(weight)
    sparse = [one.sparse for one in every if one.sparse is not None]
    return replace(
        every[0],
        missing_controls=names("missing_controls"),
        add_controls=None,  # a study adds arms in its suite
        seeds=min(one.seeds for one in every),
        attainable=min(one.attainable for one in every),
        bootstrap=any(one.bootstrap for one in every),
        null_unknown=names("null_unknown"),
        ramp_unknown=names("ramp_unknown"),
        half_open=tuple((name, min(weights)) for name, weights in open_gates.items()),
        unforked=names("unforked"),
        random_unknown=any(one.random_unknown for one in every),
        sparse=max(sparse) if sparse else None,
    )


def _statuses(lost: Sequence[SeedRun]) -> str:
    counts = {status: sum(one.status == status for one in lost) for status in STATUSES}
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count)


def unequal_seeds(groups: Iterable[Group]) -> list[str]:
    """What to say of arms whose completed seeds are not all that were planned, or differ from the others'."""
    notes = []
    for group in groups:
        counts = seed_counts(group)
        done = {arm: found for arm, (found, _) in counts.items()}
        short = {arm: pair for arm, pair in counts.items() if pair[0] < pair[1]}
        if short:
            told = ", ".join(f"{arm} {found} of {planned}" for arm, (found, planned) in short.items())
            notes.append(f"{group.label}: completed seeds are fewer than planned: {told}.")
        elif len(set(done.values())) > 1:
            told = ", ".join(f"{arm} {found}" for arm, found in done.items())
            notes.append(f"{group.label}: arms do not have the same number of seeds: {told}.")
    return notes


def caveats(results: Sequence[GroupResult], across: Sequence[Across], provenances: Sequence[str]) -> list[str]:
    """What to keep in mind, in plain words; only what applies here."""
    found = []
    seeds = [len(column.rows) for result in results for column in result.comparison.columns]
    if seeds and min(seeds) <= FEW_SEEDS:
        found.append(
            f"Some arms have {min(seeds)} seed{'' if min(seeds) == 1 else 's'}. With {FEW_SEEDS} or fewer (marked †) "
            "the percentile bootstraps of interquartile means and of probabilities are too narrow; trust the means "
            "with their own intervals and the counts of seeds."
        )
    if results and not all(result.comparison.aa for result in results):
        without = [_of(result) for result in results if not result.comparison.aa]
        found.append(
            f"No A/A pair (one arm twice, with other random numbers) on {_listed(without, most=MOST_NAMES)}: there a "
            "margin of 8 points stands in for dip and final score, and nothing for the rest."
        )
    if "generated" in provenances:
        found.append(
            "Data marked generated were made by a script or by this package's own training. Scores learned from them "
            "say how arms compare here; they are not D4RL or Minari results and must not stand beside those."
        )
    if across:
        found.append(
            "Tables over tasks take every run of every task alike; a task with large effects can carry a difference, "
            "so the tables of each task stand below them. Tasks without reference scores are in none of them."
        )
    if len(results) > 1:
        found.append(
            f"{len(results)} pairs of task and agent are each tested on their own: with a 95 % level, about one "
            "comparison in twenty differs by chance where nothing does."
        )
    found.append(
        "Evaluation episodes are not counted as interaction, and wall times include them; runs that shared a "
        "population share its time."
    )
    return found


def _of(result: GroupResult) -> str:
    return f"{result.group.task} / {result.group.agent}"


def _amount(value: float, result: GroupResult) -> str:
    return f"{value:.0f} points" if result.comparison.unit == "score" else f"{value:.3g} of return"


def _listed(names: Sequence[str], *, most: int | None = None) -> str:
    """a, b and c; or the first few and how many more."""
    if most is not None and len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    *head, last = names
    return f"{', '.join(head)} and {last}" if head else last
