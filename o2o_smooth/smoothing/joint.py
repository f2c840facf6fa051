"""One controller for a population whose members follow schedules of their own.

Each part is a `SmoothingController` for some of the members, with its own curve or adaptive rule, ramp length and
overrides. It stays what it would be alone: its log, state and weights are those of the same controller in a run of its
own. What a batched learner must share, the parts share: the blending mode and the share of offline rows.

    smoothing = JointController.per_member(["jump", "linear:5000", "performance_gate:5000"])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from o2o_smooth.smoothing.controller import SmoothingController
from o2o_smooth.smoothing.objective import COMPONENTS, Mix
from o2o_smooth.smoothing.schedules import Schedule
from o2o_smooth.smoothing.signals import AdaptiveRule, Weights


class JointController(SmoothingController):
    """See the module docstring.

    Args:
        parts: Controllers of the first members, the next ones, and so on.

    Raises:
        ValueError: No part, or parts that differ in what they must share; the text names it.
    """

    def __init__(self, parts: Sequence[SmoothingController]) -> None:
        if not parts:
            raise ValueError("a joint controller needs at least one part")
        for name in ("mode", "weight_in"):
            values = {getattr(part, name) for part in parts}
            if len(values) > 1:
                raise ValueError(f"members of one population share {name}, got {' and '.join(sorted(values))}")
        shares = [part.offline_share for part in parts]
        if shares[0].end is not None and len({part.unit for part in parts}) > 1:
            raise ValueError("members of one population share what an annealed offline share counts (unit)")
        if len({(s.start, s.end, None if s.end is None else str(s.schedule)) for s in shares}) > 1:
            raise ValueError(
                "members of one population share the offline share of their batches, got "
                + " and ".join(
                    dict.fromkeys(str(s.start) if s.end is None else f"{s.start} to {s.end}" for s in shares)
                )
            )
        super().__init__(
            parts[0].rule,
            offline_share=shares[0],
            members=parts[0].members,
            unit=parts[0].unit,
            weight_in=parts[0].weight_in,
            mode=parts[0].mode,
        )
        self.parts = tuple(parts)
        self.members = sum(part.members for part in parts)
        self._firsts = np.cumsum([0, *(part.members for part in parts)]).tolist()

    @classmethod
    def per_member(
        cls,
        schedules: Sequence[Schedule | AdaptiveRule | str],
        *,
        ramp_steps: float | Sequence[float | None] | None = None,
        overrides: Sequence[Mapping[str, Schedule | str] | None] | None = None,
        **shared: Any,
    ) -> JointController:
        """A controller with one schedule per member.

        Args:
            schedules: One curve, adaptive rule (of one member) or text per member; see `SmoothingController`.
            ramp_steps: Length for texts without one: one for all, or one per member.
            overrides: One mapping of component to curve per member.
            **shared: What all members share, as `SmoothingController` takes it: offline_share, unit, mode, ...

        Raises:
            ValueError: A schedule that cannot be read, or lists of different lengths.
        """
        n = len(schedules)
        lengths = [ramp_steps] * n if ramp_steps is None or isinstance(ramp_steps, int | float) else list(ramp_steps)
        own = [None] * n if overrides is None else list(overrides)
        for name, values in (("ramp_steps", lengths), ("overrides", own)):
            if len(values) != n:
                raise ValueError(f"{name} has {len(values)} entries for {n} members")
        return cls(
            [
                SmoothingController(schedule, ramp_steps=steps, overrides=curves, **shared)
                for schedule, steps, curves in zip(schedules, lengths, own, strict=True)
            ]
        )

    # The clock

    def start(self) -> None:
        """See `SmoothingController.start`."""
        super().start()
        for part in self.parts:
            part.start()

    def advance(self, *, env_steps: int = 0, updates: int = 0) -> None:
        """See `SmoothingController.advance`."""
        if not self.started:
            return
        self.env_steps += env_steps
        self.updates += updates
        for part in self.parts:
            part.advance(env_steps=env_steps, updates=updates)
        self._mix = None

    # Signals

    def _part(self, member: int) -> tuple[SmoothingController, int]:
        """Whose member it is, and its position there."""
        index = int(np.searchsorted(self._firsts, member, side="right")) - 1
        return self.parts[index], member - self._firsts[index]

    def observe_episodes(
        self, member: int, returns: Sequence[float], lane: int = 0, lengths: Sequence[int] | None = None
    ) -> None:
        """See `SmoothingController.observe_episodes`."""
        part, position = self._part(member)
        part.observe_episodes(position, returns, lane, lengths)

    @property
    def needs(self) -> frozenset[str]:
        """See `SmoothingController.needs`."""
        return frozenset().union(*(part.needs for part in self.parts))

    def due(self) -> frozenset[str]:
        """What is due for any part; see `SmoothingController.due`."""
        return frozenset().union(*(part.due() for part in self.parts))

    def observe(self, signals: Mapping[str, Weights]) -> None:
        """Every part hears of what is due for it, as it would alone."""
        for part, first, end in zip(self.parts, self._firsts, self._firsts[1:], strict=False):
            part.observe({name: np.asarray(values)[first:end] for name, values in signals.items()})

    @property
    def needs_gradients(self) -> bool:
        """See `SmoothingController.needs_gradients`."""
        return any(part.needs_gradients for part in self.parts)

    def observe_gradients(self, norms: Mapping[str, tuple[Weights, Weights]], *, mixed_only: bool = False) -> None:
        """See `SmoothingController.observe_gradients`."""
        for part, first, end in zip(self.parts, self._firsts, self._firsts[1:], strict=False):
            own = {k: (np.asarray(a)[first:end], np.asarray(b)[first:end]) for k, (a, b) in norms.items()}
            part.observe_gradients(own, mixed_only=mixed_only)
        self._mix = None

    # Out

    def curve(self, component: str) -> Weights:
        """See `SmoothingController.curve`."""
        return np.concatenate([part.curve(component) for part in self.parts])

    def mix(self) -> Mix:
        """What an agent needs for its next step."""
        if self._mix is None:
            mixes = [part.mix() for part in self.parts]
            weights = {name: np.concatenate([mix.weights[name] for mix in mixes]) for name in COMPONENTS}
            self._mix = Mix(weights, offline_fraction=mixes[0].offline_fraction, mode=self.mode)
        return self._mix

    def effective_weights(self) -> dict[str, Weights]:
        """See `SmoothingController.effective_weights`; NaN for members whose norms have not been observed."""
        found = [part.effective_weights() for part in self.parts]
        names = dict.fromkeys(name for one in found for name in one)
        return {
            name: np.concatenate(
                [one.get(name, np.full(p.members, np.nan)) for p, one in zip(self.parts, found, strict=True)]
            )
            for name in names
        }

    def log(self) -> list[dict[str, float]]:
        """One row of metrics per member, with the columns that its own part logs."""
        return [row for part in self.parts for row in part.log()]

    # Keeping

    def state_dict(self) -> dict[str, Any]:
        """Every part's state, as JSON types."""
        return {
            "started": self.started,
            "env_steps": self.env_steps,
            "updates": self.updates,
            "parts": [part.state_dict() for part in self.parts],
            "mix": None if self._mix is None else self._mix.to_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave to a controller of the same parts.

        Raises:
            ValueError: The state was taken from other parts.
        """
        states = state.get("parts", ())
        if len(states) != len(self.parts):
            raise ValueError(f"the state was taken from {len(states)} parts, this controller has {len(self.parts)}")
        for part, one in zip(self.parts, states, strict=True):
            part.load_state_dict(one)
        self.started = bool(state["started"])
        self.env_steps, self.updates = int(state["env_steps"]), int(state["updates"])
        self._mix = None if state.get("mix") is None else Mix.from_dict(state["mix"])
