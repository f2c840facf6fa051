"""Everything about a step that is known on the host: which losses exist, and which members move."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from o2o_smooth.agents.optimizer import Mask
from o2o_smooth.smoothing.objective import COMPONENTS, Kind, Mix, Mode, Objective, wanted


@dataclass(frozen=True)
class Plan:
    """Which terms a step has, and how they blend; one compiled graph per plan."""

    kinds: tuple[tuple[str, Kind], ...]
    offline: frozenset[str]
    online: frozenset[str]
    mode: Mode
    one_batch: bool


@dataclass(frozen=True)
class Movement:
    """Which members move in a step, (M,) each."""

    components: dict[str, Mask]
    targets: Mask


def make_plan(
    offline: Objective, online: Objective, mix: Mix, *, updates: int, one_batch: bool
) -> tuple[Plan, Movement]:
    """What the step after `updates` updates computes, and whom it moves.

    A member at w = 0 takes the pure offline step, one at w = 1 the pure online step, whatever the others do. Where the
    two objectives move the actor and the targets at different rhythms, a blended step takes the slower one.
    """
    kinds = {name: mix.kind(name) for name in COMPONENTS}
    off = wanted(offline.components, kinds, "offline")
    on = wanted(online.components, kinds, "online")
    due = _due(offline, online, mix, updates)
    if not due.any():
        off, on = off - {"actor"}, on - {"actor"}
    moving: dict[str, Mask] = {}
    for name in off | on:
        weight = mix.weights[name]
        moving[name] = ((weight < 1) & (name in off)) | ((weight > 0) & (name in on))
    if "actor" in moving:
        moving["actor"] &= due
    mode = mix.mode if any(kind == "mixed" for kind in kinds.values()) else "loss"
    return Plan(tuple(kinds.items()), off, on, mode, one_batch), Movement(moving, due)


def _due(offline: Objective, online: Objective, mix: Mix, updates: int) -> Mask:
    """Members whose actor and target networks move now."""
    off = np.any([mix.weights[name] < 1 for name in offline.components], axis=0)
    on = np.any([mix.weights[name] > 0 for name in online.components], axis=0)
    delay = np.maximum(np.where(off, offline.delay, 1), np.where(on, online.delay, 1))
    due: Mask = (updates + 1) % delay == 0
    return due
