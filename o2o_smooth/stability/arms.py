"""The arms of a comparison, and which of them are controls. Imports neither torch nor our agents.

A control is recognised by what it did at the switch (schedule, regime and whatever else its manifest tells; for curves
of other libraries by its name), never by where it stands in a list.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from o2o_smooth.errors import DataError
from o2o_smooth.stability.curves import Curve

Role = Literal["jump", "smoothed", "stay", "mixed", "floor", "twin"]

CONTROLS: dict[Role, str] = {
    "stay": "stay (the offline objective for ever)",
    "mixed": "jump with a mixed batch",
    "floor": "jump straight to a floor",
    "twin": "an A/A pair (one arm twice, to see what chance does)",
}
"""The controls that a comparison needs, in words."""

_TWIN = re.compile(r"[\s,_-]*\(?\b(?:a/a|a-a|aa)\b\)?$", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Arm:
    """One way to switch: its curves, and what is known of how it was done."""

    name: str
    """Under which its seeds are put together."""
    curves: tuple[Curve, ...]
    """One a seed, seeds rising."""
    role: Role
    """`jump`, `smoothed` (eased in whatever way), or which control it is."""
    twin_of: str | None = None
    """The arm whose settings it has, with other random numbers (role `twin`)."""
    ramp_steps: float | None = None
    """Environment steps until the curve of weights stands still; 0 for a jump, None where nobody told."""
    weight_at_end: float | None = None
    """The online objective's weight at the end of the budget, mean over seeds, of a controller that moves on signals;
    None for a curve of time."""
    settings: str | None = None
    """All that the arm was made with but for names and random numbers, as text; None where not known."""
    stream: int = 0
    """Which random numbers it had after the switch."""

    @property
    def control(self) -> bool:
        """Whether it is there to be compared with, not to be recommended."""
        return self.role not in ("jump", "smoothed")

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, rising."""
        return tuple(curve.seed for curve in self.curves)


def role_of(
    schedule: str, regime: str = "retain", offline_fraction: float | None = None, *, treated: bool = False
) -> Role:
    """What an arm is, from the text of its schedule and the regime of its batches.

    Args:
        schedule: Of all components.
        regime: Of its batches.
        offline_fraction: Share of offline rows in the online batch; None: the regime's.
        treated: Whether something else eases its switch (a component's own curve, an anchor, an average, ...): then it
            is compared with controls and none itself, whatever its schedule.
    """
    if treated:
        return "smoothed"
    parts = [part.strip() for part in schedule.split("+")]
    if parts == ["stay"]:
        return "stay"
    if parts == ["jump"]:
        return "mixed" if regime == "mixed" or (offline_fraction or 0.0) > 0 else "jump"
    if parts[-1] == "jump" and len(parts) == 2 and parts[0].startswith("floor:"):
        return "floor"
    return "smoothed"


def role_by_name(name: str) -> Role:
    """What an arm is, from its name alone: `stay`, `jump`, `jump, mixed batch`, `floor:0.2+jump`, `NAME (A/A)`."""
    plain = " ".join(re.split(r"[\s,_-]+", name.strip().lower()))
    if _TWIN.search(name.strip()) and twin_name(name):
        return "twin"
    if plain in ("jump mixed", "jump mixed batch", "mixed jump"):
        return "mixed"
    if re.fullmatch(r"floor[ :]?[\d.]*|floor:[\d.]+\+jump|jump floor.*|jump to floor.*", plain):
        return "floor"
    return "stay" if plain == "stay" else "jump" if plain == "jump" else "smoothed"


def twin_name(name: str) -> str:
    """The name of the arm whose twin this is: `linear (A/A)` -> `linear`."""
    return _TWIN.sub("", name.strip()).strip()


def find_twins(arms: Sequence[Arm]) -> list[Arm]:
    """The arms with the roles of A/A pairs filled in.

    Of arms whose settings agree in everything but name and random numbers, and which share seeds, the one with the
    lowest stream (the first of equals) is the arm and the others are its twins. Where settings are not known, names
    tell: `NAME (A/A)` is the twin of `NAME` if there is such an arm.
    """
    first: dict[str, Arm] = {}
    for arm in sorted(arms, key=lambda one: one.stream):
        if arm.settings is not None:
            first.setdefault(arm.settings, arm)
    names = {arm.name for arm in arms}
    found = []
    for arm in arms:
        original = None
        if arm.settings is not None:
            head = first[arm.settings]
            if head is not arm and set(head.seeds) & set(arm.seeds):
                original = head.name
        elif arm.role == "twin" and twin_name(arm.name) in names - {arm.name}:
            original = twin_name(arm.name)
        if original is not None:
            arm = replace(arm, role="twin", twin_of=original)
        elif arm.role == "twin":
            arm = replace(arm, role=role_by_name(twin_name(arm.name)))
        found.append(arm)
    return found


def group_curves(curves: Iterable[Curve]) -> dict[str, tuple[Curve, ...]]:
    """Curves by arm, arms in order of appearance, seeds rising.

    Raises:
        DataError: An arm has a seed twice.
    """
    found: dict[str, list[Curve]] = {}
    for curve in curves:
        found.setdefault(curve.arm, []).append(curve)
    for arm, mine in found.items():
        mine.sort(key=lambda curve: curve.seed)
        for one, other in itertools.pairwise(mine):
            if one.seed == other.seed:
                raise DataError(
                    f"arm '{arm}' has seed {one.seed} twice (runs {one.run} and {other.run}): give the two arms "
                    f"different names (a run folder is renamed for the report by NAME=FOLDER)"
                )
    return {arm: tuple(mine) for arm, mine in found.items()}


def arms_by_name(curves: Iterable[Curve], ramps: Mapping[str, float] | None = None) -> list[Arm]:
    """The arms of curves of which nothing is known but their names.

    Args:
        curves: Of any number of arms.
        ramps: Length of each arm's ramp in environment steps, where it is known; 0 is known of jumps and of stay.
    """
    arms = []
    for name, mine in group_curves(curves).items():
        role = role_by_name(name)
        plain = role_by_name(twin_name(name)) if role == "twin" else role
        ramp = 0.0 if plain in ("jump", "mixed", "floor", "stay") else None
        arms.append(Arm(name=name, curves=mine, role=role, ramp_steps=(ramps or {}).get(name, ramp)))
    return find_twins(arms)
