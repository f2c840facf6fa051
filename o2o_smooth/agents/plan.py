"""Everything about a step that is known on the host: which losses exist, and which members move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from o2o_smooth.agents.device_adam import Following, following
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

    @cached_property
    def whole(self) -> frozenset[str]:
        """Components that all members step."""
        return frozenset(name for name, mask in self.components.items() if mask.all())

    @cached_property
    def partly(self) -> frozenset[str]:
        """Components that some members step and others do not."""
        return frozenset(name for name, mask in self.components.items() if mask.any()) - self.whole

    @cached_property
    def following(self) -> Following:
        """Which members' target networks move."""
        return following(self.targets)


class Planner:
    """Plans of two objectives; a plan that has been made once is found again by what it depends on.

    Args:
        offline: The offline objective.
        online: The online objective.

    Attributes:
        period: Updates after which the rhythm of actor and targets begins anew.
    """

    def __init__(self, offline: Objective, online: Objective) -> None:
        self.offline, self.online = offline, online
        self.period = offline.delay * online.delay
        self._plans: dict[object, tuple[Plan, Movement]] = {}
        self._noise: dict[Plan, tuple[dict[str, int], dict[str, int]]] = {}

    def __call__(
        self, mix: Mix, *, updates: int, one_batch: bool, frozen: Mapping[str, Mask] | None = None
    ) -> tuple[Plan, Movement]:
        """What the step after `updates` updates computes, and whom it moves.

        A member whose mask in `frozen` is set does not move that component, whatever its weight.

        A member at w = 0 takes the pure offline step, one at w = 1 the pure online step, whatever the others do. Where
        the two objectives move the actor and the targets at different rhythms, a blended step takes the slower one.
        """
        kinds = tuple([(name, mix.kind(name)) for name in COMPONENTS])
        ends: tuple[bytes, ...] = ()
        if any(kind == "mixed" for _, kind in kinds) and len(mix.weights["actor"]) > 1:
            ends = tuple([((w > 0) + 2 * (w < 1)).tobytes() for w in mix.weights.values()])
        held = tuple([(name, mask.tobytes()) for name, mask in frozen.items()]) if frozen else ()
        key = (kinds, ends, mix.mode, one_batch, (updates + 1) % self.period, held)
        found = self._plans.get(key)
        if found is None:
            found = self._plans[key] = self._make(mix, updates, one_batch, frozen or {})
        return found

    def noise(self, plan: Plan) -> tuple[dict[str, int], dict[str, int]]:
        """Normal and uniform actions per row that a plan's objectives draw, by name; equal names share their draws."""
        found = self._noise.get(plan)
        if found is None:
            found = self._noise[plan] = ({}, {})
            for objective, want in ((self.offline, plan.offline), (self.online, plan.online)):
                if want:
                    for counts, needed in zip(found, (objective.normal_noise, objective.uniform_noise), strict=True):
                        counts.update({name: max(n, counts.get(name, 0)) for name, n in needed.items()})
        return found

    def _make(self, mix: Mix, updates: int, one_batch: bool, frozen: Mapping[str, Mask]) -> tuple[Plan, Movement]:
        kinds = {name: mix.kind(name) for name in COMPONENTS}
        off = wanted(self.offline.components, kinds, "offline")
        on = wanted(self.online.components, kinds, "online")
        due = self._due(mix, updates)
        if not due.any():
            off, on = off - {"actor"}, on - {"actor"}
        still = {name for name, mask in frozen.items() if mask.all()}
        off, on = off - still, on - still
        moving: dict[str, Mask] = {}
        for name in off | on:
            weight = mix.weights[name]
            moving[name] = ((weight < 1) & (name in off)) | ((weight > 0) & (name in on))
        if "actor" in moving:
            moving["actor"] &= due
        for name in frozen.keys() & moving.keys():
            moving[name] &= ~frozen[name]
        mode = mix.mode if any(kind == "mixed" for kind in kinds.values()) else "loss"
        return Plan(tuple(kinds.items()), off, on, mode, one_batch), Movement(moving, due)

    def _due(self, mix: Mix, updates: int) -> Mask:
        """Members whose actor and target networks move now."""
        off = np.any([mix.weights[name] < 1 for name in self.offline.components], axis=0)
        on = np.any([mix.weights[name] > 0 for name in self.online.components], axis=0)
        delay = np.maximum(np.where(off, self.offline.delay, 1), np.where(on, self.online.delay, 1))
        due: Mask = (updates + 1) % delay == 0
        return due
