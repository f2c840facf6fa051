"""Measuring what adaptive rules look at, on rows that are there anyway; nothing is stepped, no random state moves."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from o2o_smooth.agents.probes import kl_from, policy_snapshot, snapshot_from, snapshot_tensors, td_error
from o2o_smooth.data.batch import Batch
from o2o_smooth.errors import ConfigError, O2OError
from o2o_smooth.smoothing import SIGNALS, SmoothingController
from o2o_smooth.training.learner import Learner

ROWS = 256  # the latest online rows of a member, and as many offline rows
FEWEST = 64  # online rows before the first measurement
EXPLORATION = 0.1  # standard deviation, in half widths of the action range, of a deterministic policy as it collects


class Signals:
    """What a controller's rule needs, measured when it is due.

    A deterministic actor has no density; it counts as a Gaussian with TD3's exploration noise, so that the distance d
    of two actions is a divergence of d^2 / (2 sigma^2).

    Args:
        learner: Whose agent and rows; the policy as it is now is the one at the switch.
        controller: Whose rule.

    Raises:
        ConfigError: The rule needs offline rows, and there are none.
    """

    def __init__(self, learner: Learner, controller: SmoothingController) -> None:
        self.learner, self.controller = learner, controller
        if unknown := controller.needs - SIGNALS.keys():
            raise ConfigError(f"nobody measures {', '.join(sorted(unknown))}; there are {', '.join(SIGNALS)}")
        if "td_offline" in controller.needs and learner.offline_rows is None:
            raise ConfigError("the rule compares with offline rows, and there are none; use --regime retain or mixed")
        self._switch = policy_snapshot(learner.agent) if "kl" in controller.needs else None

    def measure(self) -> None:
        """Tell the controller what is due, if anything is.

        Raises:
            O2OError: A measurement is not finite.
        """
        due = self.controller.due()
        if not due or self.learner.online_rows is None or len(self.learner.online_rows) < FEWEST:
            return
        values = {name: self._host(value) for name, value in self._values(due).items()}
        try:
            self.controller.observe(values)
        except ValueError as error:
            raise O2OError(f"{error}; a lower learning rate or LayerNorm in the critics may help") from None

    def _values(self, due: AbstractSet[str]) -> dict[str, Tensor]:
        agent = self.learner.agent
        values: dict[str, Tensor] = {}
        if "kl" in due and self._switch is not None:
            moved = kl_from(self._switch, agent, self._recent().obs)
            stochastic = agent.networks.actor.stochastic
            values["kl"] = (moved if stochastic else moved / (2 * EXPLORATION**2)) / agent.action_dim
        if "td_online" in due:
            values["td_online"] = td_error(agent, self._recent())
        if "td_offline" in due:
            values["td_offline"] = td_error(agent, self._offline())
        if "gradient_cosine" in due:
            values["gradient_cosine"] = self.learner.gradients(self.controller.mix())["actor"].cosine
        return values

    def _recent(self) -> Batch:
        """Each member's latest online rows."""
        rows = self.learner.online_rows
        assert rows is not None
        numbers = torch.arange(rows.written - min(ROWS, len(rows)), rows.written, device=rows.device)
        return rows.gather((numbers % rows.capacity).expand(rows.members, -1))

    def _offline(self) -> Batch:
        """The same offline rows every time, drawn by seed: held-out ones, where there are any."""
        rows, agent = self.learner.offline_rows, self.learner.agent
        assert rows is not None
        there, gather = (rows.held_out, rows.gather_held_out) if rows.held_out else (len(rows), rows.gather)
        return gather(agent.draws.integers("signals/offline", 0, min(ROWS, there), there))

    @staticmethod
    def _host(value: Tensor) -> NDArray[np.float64]:
        return np.asarray(value.detach().double().cpu().numpy())

    # Keeping

    def state(self) -> dict[str, Tensor]:
        """The policy at the switch, where the rule looks at it."""
        return {} if self._switch is None else snapshot_tensors(self._switch)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` gave."""
        if self._switch is not None:
            self._switch = snapshot_from(self.learner.agent, state)
