"""The learner: draws rows from the buffers and has the agent update on them.

It knows no environment and no clock: what an update sees depends on the agent's number of updates, the weights and what
lies in the buffers alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

from torch import Tensor

from o2o_smooth.agents import Agent
from o2o_smooth.agents.base import Metrics
from o2o_smooth.agents.blending import GradientReport
from o2o_smooth.data.batch import Batch, Drawn
from o2o_smooth.data.buffer import ReplayBuffer, concatenate
from o2o_smooth.errors import ConfigError
from o2o_smooth.smoothing.objective import COMPONENTS, Mix
from o2o_smooth.training.config import Regime

DRAWS_AT_ONCE = 32
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
        self._ahead = 1  # updates that follow at once, the next one among them
        self._drawn: dict[str, tuple[object, dict[int, Tensor]]] = {}  # name -> what it is of, step -> row numbers

    def offline_update(self) -> Metrics:
        """One update before the switch."""
        return self.agent.update(self._offline_rows())

    def online_update(self, mix: Mix) -> Metrics:
        """One update after the switch; draws only the rows that some live objective sees."""
        self.mix = mix
        source = self.source(mix)
        if source == "offline":
            return self.agent.update(self._offline_rows(), mix=mix)
        target = self._online_rows() if self.share(mix) == 0 else self._online_batch(mix)
        if source == "online":
            return self.agent.update(target, mix=mix)
        return self.agent.update(self._offline_rows(), target, mix=mix)

    def offline_updates(self, count: int) -> Metrics:
        """Several updates before the switch, at least one; the metrics are the last one's."""
        with self.agent.own_threads():
            for self._ahead in range(count, 1, -1):
                self.offline_update()  # its metrics, if held, would be copied before the next one
            self._ahead = 1
            return self.offline_update()

    def online_updates(self, mixes: Sequence[Mix]) -> Metrics:
        """Several updates after the switch, at least one, on the rows there are; the metrics are the last one's."""
        with self.agent.own_threads():
            for self._ahead, mix in zip(range(len(mixes), 1, -1), mixes, strict=False):
                self.online_update(mix)
            self._ahead = 1
            return self.online_update(mixes[-1])

    def acting(self) -> AbstractContextManager[None]:
        """Within it the agent acts as it should be seen to act: collecting, and in evaluations."""
        return nullcontext()

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
        source, target = self.rows(mix)
        return self.agent.gradient_report(target) if source is None else self.agent.gradient_report(source, target)

    def online_batch(self, mix: Mix) -> Batch:
        """The rows that the next update's online objective would see."""
        return self._online_batch(mix)

    def rows(self, mix: Mix) -> tuple[Batch | None, Batch]:
        """The rows that the next update's objectives would see, the offline one's first; None: both see the others."""
        target = self._online_batch(mix)
        return (self._offline_batch() if self.regime == "retain" else None), target

    @property
    def share_name(self) -> str:
        """What the draw of those rows is called."""
        # Under mixed both objectives share one batch; under retain the online objective's share is drawn apart.
        return "offline_rows" if self.regime == "mixed" else "offline_share"

    def _offline_rows(self, name: str = "offline_rows") -> Drawn:
        if self.offline_rows is None:
            raise ConfigError("this step needs offline rows, and the run has none")
        return self.offline_rows.drawn(self._numbers(name, len(self.offline_rows)))

    def _online_rows(self) -> Drawn:
        if self.online_rows is None:
            raise ConfigError("this step needs online rows, and none are collected")
        return self.online_rows.drawn(self._numbers("online_rows", len(self.online_rows)))

    def _numbers(self, name: str, high: int) -> Tensor:
        """Row numbers (M, B) of the next update, in [0, high).

        Those of the updates that follow it at once are drawn with them: after an update all that a draw needs lies
        cold in the caches, and a draw is a function of its step alone.
        """
        draws, step = self.agent.draws, self.agent.updates
        key = (draws, high, self.batch_size)
        known, numbers = self._drawn.get(name, (None, {}))
        if known != key or step not in numbers:
            count = min(self._ahead, DRAWS_AT_ONCE)
            numbers = dict(enumerate(draws.series(name, step, count, self.batch_size, high), step))
            self._drawn[name] = (key, numbers)
        return numbers.pop(step)

    def _offline_batch(self, name: str = "offline_rows", rows: int | None = None) -> Batch:
        drawn = self._offline_rows(name)
        return drawn.gather(drawn.index[:, :rows])

    def _online_batch(self, mix: Mix) -> Batch:
        drawn = self._online_rows()
        offline = self.share(mix)
        if offline == 0:
            return drawn.batch()
        rows = self._offline_batch(self.share_name, offline)
        if offline == self.batch_size:
            return rows
        return concatenate(rows, drawn.gather(drawn.index[:, offline:]))
