"""Learning rates at the switch beside those of the pretraining: a schedule that crosses the switch shows here.

A cosine over the offline phase has ended at zero by then, and an agent that cannot move looks like a stable one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from o2o_smooth.agents import Agent

Rates = dict[str, NDArray[np.float64]]  # component -> (M,)
NEGLIGIBLE = 1e-3  # of the pretraining's rate
TINY = 1e-9


def learning_rates(agent: Agent) -> Rates:
    """Every component's learning rates, (M,), as they are now."""
    return {name: np.array(rates, np.float64) for name, rates in agent.optimizer.learning_rates.items()}


def rate_warnings(now: Rates, before: Mapping[str, Sequence[float]], seeds: Sequence[int]) -> list[str]:
    """One line for every component whose rate at the switch is another one than in pretraining, or about zero.

    Args:
        now: At the switch, (M,).
        before: At the beginning of the pretraining, (M,); components that it did not have may be absent.
        seeds: Of the members.
    """
    found = []
    for name, rates in now.items():
        then = np.asarray(before.get(name, rates), np.float64)
        zero = (rates <= TINY) | (rates < NEGLIGIBLE * then)
        other = ~np.isclose(rates, then, rtol=1e-6, atol=0.0)
        if zero.any():
            m = int(np.argmax(zero))
            was = f", and was {then[m]:g} in pretraining" if other[m] else ""
            found.append(
                f"warning: the {name}'s learning rate is {rates[m]:g} at the switch (seed {seeds[m]}){was}: it can "
                f"hardly learn online. Does a schedule of the pretraining cross the switch?"
            )
        elif other.any():
            m = int(np.argmax(other))
            found.append(
                f"warning: the {name}'s learning rate is {rates[m]:g} at the switch (seed {seeds[m]}), and was "
                f"{then[m]:g} in pretraining; if a schedule moved it, it crosses the switch"
            )
    return found
