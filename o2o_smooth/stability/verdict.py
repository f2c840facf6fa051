"""The words of a report: numbers in, sentences out. Knows no curves, no files, no pictures.

What is said and what is refused:

* A drop is a dip that exceeds its null dip (what evaluation noise alone would show) by `DROP_MARGIN` points.
* An effect counts where it exceeds the difference of an A/A pair and either its test says so or all of at least three
  seeds agree. Smaller than the A/A difference is noise, whatever a test says; anything else is not decided.
* No verdict on a dip where J0 is within noise of the random score, for then there is nothing to lose that could be
  seen; nor where evaluation ends before twice the ramp, for a window that ends with the ramp shows a false victory.
* An arm that falls as deep as the baseline, only later, has postponed the dip, and the sentence says so. Where seeds do
  not decide whether it falls as deep, the sentence says that and when it fell.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["better", "worse", "noise", "undecided", "unpaired"]
Refusal = Literal["random", "short", "unmeasured"]

AGREEING_SEEDS = 3
"""So many seeds, all of one sign, are evidence where a test at their number cannot be."""

LATER_SHARE = 0.75
"""Share of the seeds on which a dip must come later to be called postponed."""

LATER_FRACTION = 0.05
"""And by how much of the budget, on average."""


MOST_ARMS = 4
"""Arms that one sentence can hold."""


@dataclass(frozen=True)
class Outcome:
    """What happened to one arm; scores in `unit`, times in environment steps since the switch."""

    name: str
    """The arm."""
    n: int
    """Seeds."""
    j0: float
    """Mean score at the switch."""
    depth: float
    """Mean dip depth."""
    null_dip: float | None
    """Mean null dip; None where the spread of the episodes is not known."""
    dropped: int
    """Seeds that dropped."""
    recovered: int
    """How many of those came back."""
    dip_time: float
    """Median step of the minimum."""
    final: float
    """Mean final score."""
    refusal: Refusal | None = None
    """Why there is no verdict on its dip."""
    ramp_steps: float | None = None
    """Length of its ramp; None where nobody told."""
    random: float | None = None
    """The score of a random policy; None where not known."""


@dataclass(frozen=True)
class Effect:
    """An arm's metric minus the baseline's, over the seeds that both have."""

    mean: float
    """Mean difference."""
    low: float
    """Lower end of its interval."""
    high: float
    """Upper end."""
    n: int
    """Pairs; 0 where the arms share no seed."""
    up: int
    """Seeds with a difference above 0."""
    down: int
    """Seeds with a difference below 0."""
    significant: bool
    """What the test says."""
    noise: float = 0.0
    """Up to here it is noise: the difference of the A/A pair, or what stands in for it."""
    aa: float | None = None
    """The difference of the A/A pair; None without one."""
    base: float | None = None
    """The baseline's mean over these pairs, which may be fewer seeds than the baseline has; None where not known."""

    def kind(self, *, higher_is_better: bool) -> Kind:
        """What can be said of it."""
        if self.n == 0:
            return "unpaired"
        if abs(self.mean) <= self.noise:
            return "noise"
        agree = self.n >= AGREEING_SEEDS and max(self.up, self.down) == self.n
        if not self.significant and not agree:
            return "undecided"
        return "better" if (self.mean > 0) == higher_is_better else "worse"


@dataclass(frozen=True)
class Change:
    """What an arm changed against the baseline."""

    arm: Outcome
    """The arm."""
    depth: Effect
    """Of the dip depth."""
    area: Effect
    """Of the dip area."""
    final: Effect
    """Of the final score."""
    minimum: Effect
    """Of the step of the minimum."""
    onset: Effect
    """Of the step at which it first had dropped, over seeds that dropped in both."""


@dataclass(frozen=True)
class Unknowns:
    """What a reader must not take from the numbers."""

    missing_controls: tuple[str, ...] = ()
    """In words."""
    add_controls: str | None = None
    """The command that adds them."""
    seeds: int = 0
    """Seeds of the arm with the fewest."""
    confidence: float = 0.95
    """Asked for."""
    attainable: float = 0.95
    """What the intervals of the arm with the fewest seeds hold."""
    bootstrap: bool = False
    """Whether the intervals are percentile bootstraps."""
    null_unknown: tuple[str, ...] = ()
    """Arms without a null dip."""
    ramp_unknown: tuple[str, ...] = ()
    """Arms whose ramp is not known."""
    half_open: tuple[tuple[str, float], ...] = ()
    """Arms that move on signals and had not opened fully at the end, with their weight."""
    unforked: tuple[str, ...] = ()
    """Arms whose scores at the switch are not the baseline's: they do not share its checkpoints."""
    random_unknown: bool = False
    """Whether the random score is not known."""
    sparse: float | None = None
    """The first evaluation after the switch, where it is too late for the first dip."""


def postponed(change: Change, baseline: Outcome, budget: float) -> Effect | None:
    """The delay of an arm that only postpones the baseline's dip; None where it does not.

    Both drop (on half of the seeds at least), the depth is as it was or worse, and the minimum, or the moment of the
    drop, comes later on three quarters of the seeds, by a twentieth of the budget, and by more than A/A pairs differ.
    """
    shallower = change.depth.kind(higher_is_better=False) not in ("noise", "worse")  # or may be
    return None if shallower else _later(change, baseline, budget)


def _later(change: Change, baseline: Outcome, budget: float) -> Effect | None:
    """By how much an arm drops later than the baseline; None where it does not, or where one of them does not drop."""
    both = 2 * change.arm.dropped >= change.arm.n > 0 and 2 * baseline.dropped >= baseline.n > 0
    if not both or change.arm.refusal or baseline.refusal:
        return None
    for later in (change.minimum, change.onset):
        enough = later.mean > max(LATER_FRACTION * budget, later.noise)
        if later.n >= 2 and later.up >= LATER_SHARE * later.n and enough:
            return later
    return None


def refused(outcome: Outcome, budget: float, unit: str = "score") -> str:
    """Why there is no verdict on an arm's dip, as a sentence; empty where there is one."""
    if outcome.refusal == "random":
        noise = "" if outcome.null_dip is None else f"; null dip {_amount(outcome.null_dip)}"
        return (
            f"No verdict on a dip of {outcome.name}: its {unit} at the switch, {_amount(outcome.j0)}, is within noise "
            f"of the random policy's ({_amount(outcome.random or 0.0)}{noise}), so there is nothing to lose that could "
            "be seen."
        )
    if outcome.refusal == "short":
        ramp = outcome.ramp_steps or 0.0
        return (
            f"No verdict on a dip of {outcome.name}: evaluation ends at {_steps(budget)} steps, before twice its ramp "
            f"({_steps(2 * ramp)}), and a dip that is only postponed comes at the end of the ramp."
        )
    if outcome.refusal == "unmeasured":
        return f"No verdict on a dip of {outcome.name}: it has no evaluation that counts."
    return ""


def what_happened(outcome: Outcome, budget: float, unit: str = "score") -> str:
    """Did it drop, how far, did it come back."""
    if outcome.refusal:
        return refused(outcome, budget, unit)
    null = outcome.null_dip
    noise = "null dip not known" if null is None else f"a policy that never changed would show {_amount(null)}"
    start = f"its {unit} at the switch, {_amount(outcome.j0)}"
    if outcome.dropped == 0:
        return (
            f"{outcome.name} did not drop on any of {_seeds(outcome.n)}: its lowest evaluation lay "
            f"{_points(outcome.depth, unit)} under {start}, on average ({noise})."
        )
    where = f"{outcome.dropped} of {_seeds(outcome.n)}"
    back = "it did not come back" if outcome.dropped == 1 else "none of them came back"
    if outcome.recovered:
        some = "all" if outcome.recovered == outcome.dropped else str(outcome.recovered)
        back = f"{some} of these came back" if outcome.dropped > 1 else "it came back"
    end = outcome.final - outcome.j0
    final = f"{_points(abs(end), unit)} {'above' if end > 0 else 'below'} where it began"
    return (
        f"{outcome.name} dropped on {where}: {_points(outcome.depth, unit)} under {start}, on average over all seeds "
        f"({noise}), lowest after {_steps(outcome.dip_time)} steps; {back} within {_steps(budget)} steps, and the mean "
        f"final {unit} was {_amount(outcome.final)}, {final}."
    )


def change_clause(change: Change, baseline: Outcome, budget: float, unit: str = "score") -> str:
    """What an arm changed, without the words "against the baseline" and without a full stop."""
    name, depth = change.arm.name, change.depth
    if change.arm.refusal:
        why = {
            "random": "its score at the switch is within noise of random",
            "short": f"evaluation ends before twice its ramp ({_steps(2 * (change.arm.ramp_steps or 0.0))} steps)",
            "unmeasured": "it has no evaluation that counts",
        }
        return f"no verdict on {name} ({why[change.arm.refusal]})"
    if baseline.refusal or depth.n == 0:
        return f"no verdict on {name} (" + (
            "there is none on the baseline)" if baseline.refusal else "it shares no seed with the baseline)"
        )
    later, undecided = _later(change, baseline, budget), depth.kind(higher_is_better=False) == "undecided"
    if later is None or not (undecided or postponed(change, baseline, budget)):
        return f"{name} {_depth_words(change, baseline, unit)}, and {_final_words(change, unit)}"
    how = "lowest point came" if later is change.minimum else "drop came"
    when = f"its {how} {_steps(later.mean)} steps later, on {later.up} of {_seeds(later.n)}{_area_words(change.area)}"
    size = _sizes(depth, unit)
    if undecided:
        side = "deeper" if depth.mean > 0 else "smaller"
        seeds = f"on {depth.up if depth.mean > 0 else depth.down} of {_seeds(depth.n)}"
        said = f"may have made the dip {side} ({size}; {_aa(depth)}) {seeds}, which these seeds do not decide; {when}"
    else:
        said = f"only postponed the dip: it was not smaller ({size}; {_aa(depth)}), but {when}"
    return f"{name} {said}, and it {_final_words(change, unit)}"


def what_changed(changes: Sequence[Change], baseline: Outcome, budget: float, unit: str = "score") -> str:
    """What smoothing changed against the baseline, by how much of which; one sentence for all arms."""
    if not changes:
        return f"There is no other arm beside {baseline.name} but controls, so what smoothing changes is not known."
    clauses = [change_clause(change, baseline, budget, unit) for change in changes[:MOST_ARMS]]
    if len(changes) > MOST_ARMS:
        clauses.append(f"{len(changes) - MOST_ARMS} more below")
    return f"Against {baseline.name}: {'; '.join(clauses)}."


def what_is_not_known(unknowns: Unknowns) -> str:
    """What a reader must not take from the numbers, in one sentence."""
    found = []
    if unknowns.missing_controls:
        command = f"; {unknowns.add_controls} adds them" if unknowns.add_controls else ""
        found.append(f"what the missing controls would show: {_listed(unknowns.missing_controls)}{command}")
    if unknowns.seeds == 1:
        found.append("how other seeds would do: there is one")
    elif unknowns.attainable < unknowns.confidence:
        found.append(
            f"whether the differences are luck at {_percent(unknowns.confidence)} confidence: {unknowns.seeds} seeds "
            f"allow {_percent(unknowns.attainable)}"
        )
    if unknowns.bootstrap:
        found.append(
            f"how wide the intervals should be: percentile bootstraps of {unknowns.seeds} seeds are too narrow "
            "(--interval studentised or sign_flip holds)"
        )
    if unknowns.null_unknown:
        names = _listed(unknowns.null_unknown)
        found.append(f"how much of the dip of {names} is evaluation noise (their spread and episodes are not there)")
    if unknowns.ramp_unknown:
        found.append(
            f"whether evaluation went on to twice the ramp of {_listed(unknowns.ramp_unknown)} (--ramp ARM=STEPS says)"
        )
    found += [
        f"what {name} does once its gate is open: its weight was {weight:.2f} at the end"
        for name, weight in unknowns.half_open
    ]
    if unknowns.unforked:
        found.append(
            f"how much of the difference of {_listed(unknowns.unforked)} is pretraining: it starts elsewhere than the "
            "baseline"
        )
    if unknowns.random_unknown:
        found.append("how far the policy stood above a random one at the switch (--random-score says)")
    if unknowns.sparse is not None:
        found.append(f"what happened before the first evaluation, {_steps(unknowns.sparse)} steps after the switch")
    if not found:
        return "Not known: whether this holds on other tasks, data and agents."
    return f"Not known: {'; '.join(found)}."


def word(effect: Effect, *, higher_is_better: bool | None, judged: bool = True, brief: bool = False) -> str:
    """What a table says of an effect.

    Args:
        effect: The effect.
        higher_is_better: None where neither is, as of times.
        judged: False where a verdict is refused.
        brief: Leave out that all seeds agree where the test says nothing; the number of seeds stands beside it.
    """
    kind = effect.kind(higher_is_better=higher_is_better is not False)
    if kind == "unpaired":
        return "no common seeds"
    if not judged:
        return "no verdict"
    if kind in ("noise", "undecided"):
        return {"noise": "noise", "undecided": "not decided"}[kind]
    side = kind if higher_is_better is not None else "later" if effect.mean > 0 else "earlier"
    return side if effect.significant or brief else f"{side} on all {effect.n}"


def _depth_words(change: Change, baseline: Outcome, unit: str) -> str:
    """What became of the dip."""
    depth, kind = change.depth, change.depth.kind(higher_is_better=False)
    if kind == "noise":
        if baseline.dropped == 0 and change.arm.dropped == 0:
            return f"did not drop either ({_beside(depth, unit)})"
        return f"left the dip as it was ({_beside(depth, unit)}: noise)"
    seeds = f"on {depth.up if depth.mean > 0 else depth.down} of {_seeds(depth.n)}"
    side = "deeper" if depth.mean > 0 else "smaller"
    if kind == "undecided":
        return f"may have changed the dip ({_beside(depth, unit)}; {side} {seeds}), which these seeds do not decide"
    share = f"{100 * abs(depth.mean) / depth.base:.0f} % of it; " if depth.base and depth.base > 0 else ""
    return f"made the dip {_points(abs(depth.mean), unit)} {side} ({share}{_aa(depth)}) {seeds}"


def _area_words(area: Effect) -> str:
    """What a delay earned all the same."""
    if area.kind(higher_is_better=False) != "better":
        return ""
    return f", so that {_amount(abs(area.mean))} less was lost a step on average ({_aa(area)})"


def _final_words(change: Change, unit: str) -> str:
    """What became of the final score."""
    final, kind = change.final, change.final.kind(higher_is_better=True)
    if kind in ("better", "worse"):
        side, seeds = ("higher", final.up) if kind == "better" else ("lower", final.down)
        return f"ended {_points(abs(final.mean), unit)} {side} ({seeds} of {_seeds(final.n)}; {_aa(final)})"
    how = "within noise of" if kind == "noise" else "not told apart from"
    return f"ended {how} the baseline ({_signed(final.mean)}; {_aa(final)})"


def _sizes(depth: Effect, unit: str) -> str:
    """Both dips, over the seeds that both arms have."""
    if depth.base is None:
        return f"{_signed(depth.mean)} {_word(unit)}"
    return f"{_amount(depth.base + depth.mean)} instead of {_amount(depth.base)} {_word(unit)}"


def _beside(effect: Effect, unit: str) -> str:
    """The difference and what an A/A pair shows."""
    return f"{_signed(effect.mean)} {_word(unit)}; {_aa(effect)}"


def _aa(effect: Effect) -> str:
    """The A/A difference, which stands beside every effect."""
    return "no A/A pair" if effect.aa is None else f"A/A {_amount(effect.aa)}"


def _word(unit: str) -> str:
    return "points" if unit == "score" else "of return"


def _points(value: float, unit: str) -> str:
    if unit != "score":
        return f"{_amount(value)} of return"
    text = _amount(value)
    return f"{text} point{'' if text == '1' else 's'}"


def _amount(value: float) -> str:
    """As many digits as a score deserves."""
    text = f"{value:,.0f}" if abs(value) >= 10 else f"{value:.1f}"
    return text.removesuffix(".0").replace("-0", "0") if text in ("-0.0", "-0") else text.removesuffix(".0")


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + _amount(value)


def _steps(value: float) -> str:
    return f"{value:,.0f}"


def _seeds(n: int) -> str:
    return f"{n} seed{'' if n == 1 else 's'}"


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def _listed(names: Iterable[str]) -> str:
    """a, b and c."""
    *head, last = names
    return f"{', '.join(head)} and {last}" if head else last
