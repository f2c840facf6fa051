"""SmoothingController: signals in, Mix out.

The controller owns the clock since the switch and one weight per component and population member. A weight follows a
curve (`schedules`) or an adaptive rule (`gate`, `adaptive`) behind one interface; the share of offline rows in the
online objective's batch is an axis of its own. It never looks inside an agent, so it also smooths two losses of your
own:

    smoothing = SmoothingController("linear:5000")
    smoothing.start()                                    # at the switch
    loss = smoothing.blend(lambda: offline_loss(batch), lambda: online_loss(batch))
    loss.backward()
    smoothing.advance(env_steps=1)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from o2o_smooth.smoothing.objective import COMPONENTS, MODES, Mix, Mode, effective_weight, raw_weight
from o2o_smooth.smoothing.rules import RuleSettings, make_rule
from o2o_smooth.smoothing.schedules import Schedule, Stay, parse_schedule
from o2o_smooth.smoothing.signals import AdaptiveRule, Weights

Unit = Literal["env_steps", "updates"]
WeightIn = Literal["raw", "effective"]
NORM_DECAY = 0.9  # of the running gradient norms; they are measured every few hundred updates


@dataclass(frozen=True)
class OfflineShare:
    """Share of offline rows in the online objective's batch: from `start` to `end` along a weight curve."""

    start: float = 0.0
    end: float | None = None
    schedule: Schedule = field(default_factory=Stay)

    def __post_init__(self) -> None:
        for name, value in (("start", self.start), ("end", self.end)):
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"offline share: {name} must lie in [0, 1], got {value}")
        if self.end is not None and isinstance(self.schedule, Stay):
            raise ValueError("offline share: an end is reached along a schedule other than stay")

    def __call__(self, t: float) -> float:
        """Share t steps after the switch."""
        if self.end is None:
            return self.start
        s = self.schedule(t)
        return (1 - s) * self.start + s * self.end  # exact at both ends


class SmoothingController:
    """See the module docstring.

    Args:
        schedule: A curve, an adaptive rule, or the text of one; see `make_rule`.
        ramp_steps: Length for a text without one.
        overrides: Component -> its own curve. `value` follows `critic` unless given; an adaptive rule may bring curves
            for components without one.
        offline_share: Share of offline rows in the online objective's batch, fixed or annealed.
        members: M, population members.
        lanes: Parallel environments per member, for an adaptive rule that is given as text.
        unit: What the curves count: environment steps per member, or updates.
        weight_in: `raw`: the curve is w. `effective`: the curve is the share of the online gradient in the step, and w
            is solved from measured gradient norms (`observe_gradients`).
        mode: How agents blend; see `Mix`.
        random_return: Return of a random policy, where known; adaptive rules measure from there.
        reference_return: Return of the reference policy, where known.
        settings: Of an adaptive rule that is given as text.

    Raises:
        ValueError: An unknown schedule, component, unit or mode.
    """

    def __init__(
        self,
        schedule: Schedule | AdaptiveRule | str = "jump",
        *,
        ramp_steps: float | None = None,
        overrides: Mapping[str, Schedule | str] | None = None,
        offline_share: OfflineShare | float = 0.0,
        members: int = 1,
        lanes: int = 1,
        unit: Unit = "env_steps",
        weight_in: WeightIn = "raw",
        mode: Mode = "loss",
        random_return: float | None = None,
        reference_return: float | None = None,
        settings: RuleSettings | None = None,
    ) -> None:
        if unit not in ("env_steps", "updates"):
            raise ValueError(f"unit must be env_steps or updates, got '{unit}'")
        if weight_in not in ("raw", "effective"):
            raise ValueError(f"weight_in must be raw or effective, got '{weight_in}'")
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got '{mode}'")
        self.members, self.unit, self.weight_in, self.mode = members, unit, weight_in, mode
        if isinstance(schedule, str):
            schedule = make_rule(
                schedule,
                ramp_steps,
                members=members,
                lanes=lanes,
                random_return=random_return,
                reference_return=reference_return,
                settings=settings,
            )
        self.rule = schedule
        if not isinstance(self.rule, Schedule) and self.rule.members != members:
            raise ValueError(f"the adaptive rule has {self.rule.members} members, the controller {members}")
        self.overrides: dict[str, Schedule] = {}
        for name, curve in (overrides or {}).items():
            if name not in COMPONENTS:
                raise ValueError(f"there is no component '{name}'; there are {', '.join(COMPONENTS)}")
            self.overrides[name] = parse_schedule(curve, ramp_steps) if isinstance(curve, str) else curve
        if "critic" in self.overrides:
            self.overrides.setdefault("value", self.overrides["critic"])
        if not isinstance(self.rule, Schedule):
            self.overrides = dict(self.rule.curves) | self.overrides
        self.offline_share = offline_share if isinstance(offline_share, OfflineShare) else OfflineShare(offline_share)
        self.started = False
        self.env_steps = 0
        self.updates = 0
        self._norms: dict[str, tuple[Weights, Weights]] = {}
        self._measured = -1  # the latest of the rule's measurements, by its number
        self._mix: Mix | None = None

    # The clock

    def start(self) -> None:
        """The switch: from here on time counts; before it everything is purely offline.

        Raises:
            ValueError: It has been started before; a second switch needs a controller of its own.
        """
        if self.started:
            raise ValueError("the controller has been started already; a second switch needs a controller of its own")
        self.started, self.env_steps, self.updates = True, 0, 0
        self._mix = None

    @property
    def t(self) -> int:
        """Steps since the switch, in the controller's unit."""
        return self.env_steps if self.unit == "env_steps" else self.updates

    def advance(self, *, env_steps: int = 0, updates: int = 0) -> None:
        """Time goes on; without effect before `start`."""
        if not self.started:
            return
        self.env_steps += env_steps
        self.updates += updates
        moved = env_steps if self.unit == "env_steps" else updates
        if moved:
            if not isinstance(self.rule, Schedule):
                self.rule.advance(self.t)
            self._mix = None

    # Signals

    def observe_episodes(
        self, member: int, returns: Sequence[float], lane: int = 0, lengths: Sequence[int] | None = None
    ) -> None:
        """Undiscounted returns of episodes that a member's parallel environment (lane) has just finished.

        Args:
            member: Whose.
            returns: One per episode.
            lane: Which of its parallel environments.
            lengths: In steps, one per episode; some rules need them.
        """
        if self.started and not isinstance(self.rule, Schedule):
            self.rule.observe_episodes(member, returns, lane, lengths)

    @property
    def needs(self) -> frozenset[str]:
        """What must be measured for the rule, now and then; names in `SIGNALS`."""
        return frozenset() if isinstance(self.rule, Schedule) else self.rule.needs

    def due(self) -> frozenset[str]:
        """What is to be measured now and given to `observe`: a matter of the clock alone."""
        if not self.started or isinstance(self.rule, Schedule) or not self.rule.needs:
            return frozenset()
        return self.rule.needs if self.t // self.rule.every > self._measured else frozenset()

    def observe(self, signals: Mapping[str, Weights]) -> None:
        """Measurements, (M,) each; a rule for which none is due does not hear of them.

        Raises:
            ValueError: One that is due is missing, or not finite.
        """
        if self.due() and not isinstance(self.rule, Schedule):
            self.rule.observe(signals)
            self._measured = int(self.t // self.rule.every)

    @property
    def needs_gradients(self) -> bool:
        """True while a mixed step cannot be weighted before gradient norms have been observed."""
        return self.weight_in == "effective" and not self._norms

    def observe_gradients(self, norms: Mapping[str, tuple[Weights, Weights]], *, mixed_only: bool = False) -> None:
        """Gradient norms of a component's offline and online objective, (M,) each; a running mean is kept.

        With `mixed_only` they are for a controller in its ramp: one that is purely offline or online ignores them. It
        tells apart the parts of a `JointController`.
        """
        if mixed_only and not any(self.mix().kind(name) == "mixed" for name in COMPONENTS):
            return
        for name, (offline, online) in norms.items():
            offline, online = np.asarray(offline, np.float64), np.asarray(online, np.float64)
            if name in self._norms:
                old = self._norms[name]
                offline = NORM_DECAY * old[0] + (1 - NORM_DECAY) * offline
                online = NORM_DECAY * old[1] + (1 - NORM_DECAY) * online
            self._norms[name] = (offline, online)
        self._mix = None

    # Out

    def curve(self, component: str) -> Weights:
        """Where the component's curve or rule stands, (M,), before any translation of effective weights."""
        if not self.started:
            return np.zeros(self.members)
        rule = self.overrides.get(component, self.rule)
        if isinstance(rule, Schedule):
            return np.full(self.members, rule(self.t))
        return rule.weights()

    def weights(self) -> dict[str, Weights]:
        """Raw weight w of every component, (M,)."""
        return {name: values.copy() for name, values in self.mix().weights.items()}

    def mix(self) -> Mix:
        """What an agent needs for its next step."""
        if self._mix is None:
            weights = {}
            for name in COMPONENTS:
                weight = self.curve(name)
                if self.weight_in == "effective" and self.mode != "matched" and name in self._norms:
                    weight = raw_weight(weight, *self._norms[name])
                weights[name] = weight
            share = self.offline_share(self.t) if self.started else 1.0
            self._mix = Mix(weights, offline_fraction=share, mode=self.mode)
        return self._mix

    def effective_weights(self) -> dict[str, Weights]:
        """Share of the online gradient in each component's step, (M,); only where norms have been observed.

        Matched gradients are of one norm, so there the share is w itself.
        """
        weights = self.mix().weights
        if self.mode == "matched":
            return {name: weights[name].copy() for name in self._norms}
        return {name: effective_weight(weights[name], *norms) for name, norms in self._norms.items()}

    def blend(
        self, offline: Callable[[], Tensor] | Tensor, online: Callable[[], Tensor] | Tensor, component: str = "actor"
    ) -> Tensor:
        """Smooth two losses of your own: (1 - w) offline + w online.

        Args:
            offline: The source loss, a scalar or (M,); as a function it is not even computed at w = 1.
            online: The target loss; as a function it is not even computed at w = 0.
            component: Whose weight to use.

        Raises:
            ValueError: A loss of another shape than a scalar or (M,), an unknown component, or a mode other than
                `loss`.
        """
        if self.mode != "loss":
            raise ValueError(f"blend() mixes losses; mode '{self.mode}' needs more than two losses: it is for agents")
        if component not in COMPONENTS:
            raise ValueError(f"there is no component '{component}'; there are {', '.join(COMPONENTS)}")
        mix = self.mix()
        kind = mix.kind(component)
        if kind == "offline":
            return self._loss(offline)
        if kind == "online":
            return self._loss(online)
        a, b = self._loss(offline), self._loss(online)
        if a.shape != b.shape:
            raise ValueError(f"both losses must be of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
        w = torch.as_tensor(mix.weights[component], dtype=b.dtype, device=b.device).reshape(b.shape)
        return (1 - w) * a + w * b

    def _loss(self, loss: Callable[[], Tensor] | Tensor) -> Tensor:
        value = loss if isinstance(loss, Tensor) else loss()
        if value.shape != (self.members,) and not (value.dim() == 0 and self.members == 1):
            wanted = "a scalar or of shape (1,)" if self.members == 1 else f"of shape ({self.members},), one per member"
            raise ValueError(f"a loss must be {wanted}, got shape {tuple(value.shape)}")
        return value

    def log(self) -> list[dict[str, float]]:
        """One row of metrics per member: weights, effective weights, offline share and the rule's signals."""
        columns: dict[str, Weights] = {f"smoothing/{k}_weight": v for k, v in self.mix().weights.items()}
        columns |= {f"smoothing/{k}_effective_weight": v for k, v in self.effective_weights().items()}
        columns["data/offline_fraction"] = np.full(self.members, self.mix().offline_fraction)
        if not isinstance(self.rule, Schedule):
            columns |= self.rule.signals()
        return [{name: float(values[m]) for name, values in columns.items()} for m in range(self.members)]

    # Keeping

    def state_dict(self) -> dict[str, Any]:
        """Everything that moves, as JSON types."""
        return {
            "started": self.started,
            "env_steps": self.env_steps,
            "updates": self.updates,
            "rule": None if isinstance(self.rule, Schedule) else self.rule.state_dict(),
            "norms": {k: [a.tolist(), b.tolist()] for k, (a, b) in self._norms.items()},
            "measured": self._measured,
            "mix": None if self._mix is None else self._mix.to_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave to a controller of the same settings.

        Raises:
            ValueError: The state was taken from another kind of rule.
        """
        if (state["rule"] is None) != isinstance(self.rule, Schedule):
            raise ValueError("the state was taken from another kind of smoothing rule (curve against adaptive)")
        if not isinstance(self.rule, Schedule):
            self.rule.load_state_dict(state["rule"])
        self.started = bool(state["started"])
        self.env_steps, self.updates = int(state["env_steps"]), int(state["updates"])
        self._norms = {k: (np.array(a), np.array(b)) for k, (a, b) in state["norms"].items()}
        self._measured = int(state.get("measured", -1))
        # A rule may have heard of an episode since: the weights hold until the clock moves.
        self._mix = None if state.get("mix") is None else Mix.from_dict(state["mix"])
