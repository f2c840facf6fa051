"""Made-up curves with known answers for the report's tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from o2o_smooth.stability.arms import Arm, arms_by_name
from o2o_smooth.stability.curves import Curve

STEPS = (0, 100, 200, 400, 800, 1000)


def curve(arm: str, seed: int, scores: Sequence[float], steps: Sequence[float] = STEPS, **more: Any) -> Curve:
    if "spread" not in more:
        more |= {"spread": np.full(len(scores), 5.0), "episodes": np.full(len(scores), 20)}
    more = {name: value for name, value in more.items() if value is not None}
    return Curve("run-" + arm, arm, seed, np.array(steps, dtype=float), np.array(scores, dtype=float), **more)


def arms(shapes: Mapping[str, Sequence[float]], seeds: int = 4, **more: Any) -> list[Arm]:
    """Each arm's seeds have one shape, seed s lies s points higher and dips s points deeper."""
    curves = [
        curve(arm, s, [shape[0] + s, *(v + (0 if v < shape[0] else s) for v in shape[1:])], **more)
        for arm, shape in shapes.items()
        for s in range(seeds)
    ]
    return arms_by_name(curves, dict.fromkeys(shapes, 200.0))


JUMP = (50, 5, 5, 10, 40, 50)
SMOOTH = (50, 45, 40, 42, 50, 60)
LATE = (50, 50, 48, 30, 5, 6)
"""As deep as the jump, only later."""
FLAT = (50, 50, 50, 50, 50, 50)
