"""The learner: draws rows from the buffers and has the agent update on them.

It knows no environment and no clock: what an update sees depends on the agent's number of updates, the weights and what
lies in the buffers alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from o2o_smooth.agents import Agent
from o2o_smooth.agents.base import Metrics
from o2o_smooth.agents.blending import GradientReport
from o2o_smooth.data.batch import Batch
from o2o_smooth.data.buffer import ReplayBuffer, concatenate
from o2o_smooth.errors import ConfigError
from o2o_smooth.smoothing.objective import COMPONENTS, Mix
from o2o_smooth.training.config import Regime

Source = Literal["offline", "online", "both"]  # whose rows an update sees


class Learner:
    """Updates an agent from offline and online rows.

    Args:
        agent: The agent.
        batch_size: Rows per objective and member.
        offline_rows: The dataset's rows, shared by all members; None without offline data.
        online_rows: What has been collected; may be set later, at the switch.
        regime: See `SmoothingConfig.regime`.
    """

    def __init__(
        self,
        agent: Agent,
        *,
        batch_size: int,
        offline_rows: ReplayBuffer | None = None,
        online_rows: ReplayBuffer | None = None,
        regime: Regime = "retain",
    ) -> None:
        self.agent, self.batch_size, self.regime = agent, batch_size, regime
        self.offline_rows, self.online_rows = offline_rows, online_rows
        self.mix: Mix | None = None  # of the latest online update

    def offline_update(self) -> Metrics:
        """One update before the switch."""
        return self.agent.update(self._offline_batch())

    def online_update(self, mix: Mix) -> Metrics:
        """One update after the switch; draws only the rows that some live objective sees."""
        self.mix = mix
        source = self.source(mix)
        if source == "offline":
            return self.agent.update(self._offline_batch(), mix=mix)
        target = self._online_batch(mix)
        if source == "online":
            return self.agent.update(target, mix=mix)
        return self.agent.update(self._offline_batch(), target, mix=mix)

    def offline_updates(self, count: int) -> Metrics:
        """Several updates before the switch, at least one; the metrics are the last one's."""
        with self.agent.own_threads():
            for _ in range(count - 1):
                self.offline_update()  # its metrics, if held, would be copied before the next one
            return self.offline_update()

    def online_updates(self, mixes: Sequence[Mix]) -> Metrics:
        """Several updates after the switch, at least one, on the rows there are; the metrics are the last one's."""
        with self.agent.own_threads():
            for mix in mixes[:-1]:
                self.online_update(mix)
            return self.online_update(mixes[-1])

    def source(self, mix: Mix) -> Source:
        """Whose rows an update after the switch sees: the two objectives' own ones, or one batch for both."""
        kinds = {mix.kind(name) for name in COMPONENTS}
        if self.regime != "retain" or kinds == {"online"}:
            return "online"
        return "offline" if kinds == {"offline"} else "both"

    def share(self, mix: Mix) -> int:
        """Offline rows in the batch that the online objective sees."""
        return round(mix.offline_fraction * self.batch_size)

    def gradients(self, mix: Mix) -> dict[str, GradientReport]:
        """Both objectives' gradients on the rows the next update would see; nothing is stepped."""
        target = self._online_batch(mix)
        if self.regime == "retain":
            return self.agent.gradient_report(self._offline_batch(), target)
        return self.agent.gradient_report(target)

    @property
    def share_name(self) -> str:
        """What the draw of those rows is called."""
        # Under mixed both objectives share one batch; under retain the online objective's share is drawn apart.
        return "offline_rows" if self.regime == "mixed" else "offline_share"

    def _offline_batch(self, name: str = "offline_rows", rows: int | None = None) -> Batch:
        if self.offline_rows is None:
            raise ConfigError("this step needs offline rows, and the run has none")
        index = self.agent.draws.integers(name, self.agent.updates, self.batch_size, len(self.offline_rows))
        return self.offline_rows.gather(index[:, :rows])

    def _online_batch(self, mix: Mix) -> Batch:
        if self.online_rows is None:
            raise ConfigError("this step needs online rows, and none are collected")
        offline = self.share(mix)
        index = self.agent.draws.integers("online_rows", self.agent.updates, self.batch_size, len(self.online_rows))
        if offline == 0:
            return self.online_rows.gather(index)
        rows = self._offline_batch(self.share_name, offline)
        if offline == self.batch_size:
            return rows
        return concatenate(rows, self.online_rows.gather(index[:, offline:]))
