"""How long a run's ramp is: a dip that it only postpones comes at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from o2o_smooth.smoothing.rules import rule_name
from o2o_smooth.smoothing.schedules import Schedule, parse_schedule

COMPONENT_SCHEDULES = ("actor_schedule", "critic_schedule", "value_schedule", "temperature_schedule")
"""Settings that ease a component along a curve of its own."""

_FOREVER = 1e15


def ramp_length(config: Mapping[str, Any]) -> float | None:
    """Environment steps after the switch until every weight of a run stands still, warm-up included.

    0 where no weight ever moves or jumps at once; of a rule that moves on signals the length it would take at best.
    None where there is no telling: a rule without a length (`return_pd`), or a text that cannot be read.

    Args:
        config: A run's settings as in its manifest; what older manifests lack counts as off.
    """
    smoothing = config["smoothing"]
    texts = [smoothing["schedule"], *(text for name in COMPONENT_SCHEDULES if (text := smoothing.get(name)))]
    if smoothing.get("offline_fraction_end") is not None:
        texts.append(smoothing["offline_fraction_schedule"])
    lengths = [_settled(text, float(smoothing["ramp_steps"])) for text in texts]
    known = [length for length in lengths if length is not None]
    if len(known) < len(lengths):
        return None
    if all(text.strip() == "stay" for text in texts):
        return 0.0  # nothing begins when the warm-up ends
    longest = max(known)
    warm_up = float((config.get("hygiene") or {}).get("warm_up_steps", 0))
    if smoothing.get("ramp_unit", "env_steps") == "env_steps" or longest == 0:
        return warm_up + longest  # the clock of the curves begins when it ends
    return max(float(config["update_after"]), warm_up) + longest / float(config["utd"])


def _settled(text: str, ramp_steps: float) -> float | None:
    """The step from which a weight stands still; None where there is no telling."""
    rule = rule_name(text)
    try:
        if rule is None:
            return _end(parse_schedule(text, ramp_steps))
        if rule == "return_pd":
            return None
        _, colon, number = text.partition(":")
        return float(number) if colon else ramp_steps
    except ValueError:
        return None


def _end(curve: Schedule) -> float:
    """The step from which a curve stands still; curves never fall, so it can be bracketed."""
    end = curve(_FOREVER) - 1e-9
    if curve(0.0) >= end:
        return 0.0
    low, high = 0.0, 1.0
    while curve(high) < end:
        low, high = high, 2 * high
    while high - low > 1e-3:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (low, middle) if curve(middle) >= end else (middle, high)
    return float(round(high, 3))
