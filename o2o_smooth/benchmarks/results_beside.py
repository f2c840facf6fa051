"""Which published curves stand behind ours in the pictures: those that were measured alike, and no others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from o2o_smooth.benchmarks.results_curves import CurveAgreement, Pretrainings
from o2o_smooth.benchmarks.results_study import Group, Study
from o2o_smooth.stability.beside import ReferenceCurve
from o2o_smooth.stability.curves import PretrainCurve


@dataclass(frozen=True)
class Beside:
    """What goes behind the curves of one task and agent."""

    pretraining: tuple[PretrainCurve, ...] = ()
    """Ours, before the switch, one a seed."""
    before: tuple[ReferenceCurve, ...] = ()
    """Theirs, before the switch."""
    after: tuple[ReferenceCurve, ...] = ()
    """Theirs, after it."""

    @property
    def words(self) -> str:
        """For the caption; empty where nothing of others is shown."""
        names = dict.fromkeys(curve.name for curve in (*self.before, *self.after))
        return f" Grey: published ({'; '.join(names)})." if names else ""


def beside_groups(study: Study, groups: Sequence[Group], found: Sequence[CurveAgreement]) -> dict[str, Beside]:
    """By the label of a group, what goes behind its curves; groups with nothing have no entry.

    Args:
        study: The study.
        groups: All of it.
        found: Published curves beside ours; only comparable ones are used.
    """
    before = Pretrainings(study)
    pictures = {}
    for group in groups:
        mine = [one for one in found if one.comparable and (one.task, one.agent) == (group.task, group.agent)]
        if not mine:
            continue
        curves = {phase: tuple(_drawn(one) for one in _once(mine, phase)) for phase in ("offline", "online")}
        own: tuple[PretrainCurve, ...] = ()
        if curves["offline"]:
            once = {(run.run.pretraining, run.seed): run for run in reversed(group.runs) if run.status == "completed"}
            known = [curve for run in once.values() if (curve := before.of(run)) is not None]
            own = tuple(sorted(known, key=lambda curve: curve.seed))
        pictures[group.label] = Beside(own, curves["offline"], curves["online"])
    return pictures


def _once(found: Sequence[CurveAgreement], phase: str) -> list[CurveAgreement]:
    """Of several arms that a curve was held against, the first."""
    kept: dict[tuple[str, str], CurveAgreement] = {}
    for one in found:
        if one.published.source.phase == phase:
            kept.setdefault((one.published.task, one.published.source.name), one)
    return list(kept.values())


def _drawn(one: CurveAgreement) -> ReferenceCurve:
    return ReferenceCurve(one.published.source.name, np.array(one.published.at, dtype=np.float64), one.theirs())
