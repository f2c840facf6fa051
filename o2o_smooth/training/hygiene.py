"""Switch hygiene: what a run does at the switch and around its online updates, besides smoothing.

`Hygiene` is made at the switch, where parameters and temperature are what everything is measured from. It counts the
online updates; what happens at which of them depends on that count and on the weights alone. `TendedLearner` asks it
around every update. A run without any of it has none, and the learner's own way is taken.

Reference parameters, means and Fisher information have the members axis: a member of a population is anchored to its
own start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from o2o_smooth.agents import Agent
from o2o_smooth.agents.base import Metrics
from o2o_smooth.agents.fisher import component_fisher
from o2o_smooth.agents.optimizer import Mask
from o2o_smooth.agents.storage import load_agent, read_tensors
from o2o_smooth.data.batch import Batch
from o2o_smooth.errors import CheckpointError, ConfigError
from o2o_smooth.smoothing.anchors import Anchors, Decay, networks_of
from o2o_smooth.smoothing.averaging import EMA, SFA, restore
from o2o_smooth.smoothing.objective import Mix
from o2o_smooth.training.config_hygiene import AnchorConfig, AveragingConfig, HygieneConfig
from o2o_smooth.training.graphed import GraphedLearner
from o2o_smooth.training.launch import LARGEST
from o2o_smooth.training.learner import Learner

ACTION_EDGE = 0.02  # of anchor_bc for agents without an `action_edge` of their own; see `IQLConfig.action_edge`
POLICY_SIDE = ("actor", "temperature")  # what stands still in critic-first updates


def require_fits(agent: Agent, hygiene: HygieneConfig, anchors: AnchorConfig, *, offline_rows: bool) -> None:
    """Check the settings against an agent, before anything is trained.

    Raises:
        ConfigError: Something that this agent does not have; names the setting.
    """
    networks = agent.networks
    if hygiene.switch_temperature != "carry" and networks.log_alpha is None:
        raise ConfigError(
            f"switch_temperature={hygiene.switch_temperature}: {agent.name} with online objective "
            f"{agent.online_choice} has no temperature"
        )
    if hygiene.reset_optimizer is not None and hygiene.reset_optimizer.strip() != "all":
        have = networks.component_parameters()
        for name in hygiene.reset_components():
            if name not in have:
                raise ConfigError(
                    f"reset_optimizer: {agent.name} with online objective {agent.online_choice} has no {name}; it has "
                    f"{', '.join(have)}"
                )
    if anchors.needs_offline_rows and not offline_rows:
        name = "anchor_bc" if anchors.anchor_bc else "anchor_ewc"
        raise ConfigError(f"{name} needs offline rows, and the run has none; give --dataset")


class Hygiene:
    """See the module docstring.

    Args:
        agent: As it is at the switch; its optimiser and temperature are reset here, if that is wanted.
        hygiene: Settings.
        anchors: Settings.
        averaging: Settings.
        updates: Online updates that will come.
        offline: Gives offline rows: (draw's name, count) -> encoded batch; for `anchor_ewc`.
    """

    def __init__(
        self,
        agent: Agent,
        hygiene: HygieneConfig,
        anchors: AnchorConfig,
        averaging: AveragingConfig,
        *,
        updates: int,
        offline: Callable[[str, int], Batch] | None = None,
    ) -> None:
        self.agent, self.hygiene, self.anchor_config, self.averaging = agent, hygiene, anchors, averaging
        self.done = 0  # online updates
        optimizer = agent.optimizer
        self._rates = {name: rates.copy() for name, rates in optimizer.learning_rates.items()}
        optimizer.reset(name for name in hygiene.reset_components() if name in optimizer.components)
        self._temperature = TemperaturePath(agent) if hygiene.switch_temperature == "interpolate" else None
        if hygiene.switch_temperature == "reset":
            set_temperature(agent, initial_log_alpha(agent), np.ones(agent.members, bool))
        self.anchors = self._anchors(offline) if anchors.on else None
        self.sfa = self._sfa(updates) if averaging.sfa_period else None
        self.ema: EMA | None = None
        if averaging.ema_decay:
            self.ema = EMA(list(agent.networks.actor.parameters()), decay=averaging.ema_decay)
        self._everyone = np.ones(agent.members, bool)

    def _anchors(self, offline: Callable[[str, int], Batch] | None) -> Anchors:
        config, agent = self.anchor_config, self.agent
        made = Anchors(
            agent.networks,
            kl=Decay(config.anchor_kl, config.anchor_kl_decay, config.anchor_kl_floor),
            bc=Decay(config.anchor_bc, config.anchor_bc_decay, config.anchor_bc_floor),
            ewc=config.anchor_ewc,
            l2=config.anchor_l2,
            parts=config.anchor_parts,
            edge=getattr(agent.settings, "action_edge", ACTION_EDGE),
        )
        if config.anchor_ewc:
            if offline is None:
                raise ConfigError("anchor_ewc needs offline rows, and the run has none")
            rows = offline("fisher_rows", config.anchor_ewc_rows)
            made.fisher = component_fisher(agent.networks, made.held, rows.obs, rows.action)
        return made

    def _sfa(self, updates: int) -> SFA:
        averaging = self.averaging
        parameters = [
            p for net in networks_of(self.agent.networks, averaging.sfa_parts).values() for p in net.parameters()
        ]
        every = max(1, round(averaging.sfa_period * updates))
        return SFA(parameters, every=every, share=averaging.sfa_share, total=updates)

    # Around updates

    @property
    def alone(self) -> str:
        """Why the next update must be done by itself, not in a captured graph; empty where it need not."""
        if self.anchors is not None:
            return "anchors"
        if self.ema is not None:
            return "ema_decay"
        if self.done < self._rewarmed:
            return "rewarm_updates"
        if self._temperature is not None and not self._temperature.released.all():
            return "switch_temperature"
        return ""

    @property
    def _rewarmed(self) -> int:
        """Updates after which all learning rates are what they were."""
        n = self.hygiene.rewarm_updates
        return n + self.hygiene.critic_first_updates if n else 0

    def span(self) -> int:
        """Updates that may be done in one go before anything else is due; at least one."""
        if self.alone:
            return 1
        stops = [LARGEST]
        if self.done < self.hygiene.critic_first_updates:
            stops.append(self.hygiene.critic_first_updates - self.done)
        if self.sfa is not None:
            stops.append(self.sfa.due_in(self.done))
        return max(1, min(stops))

    def before(self, mix: Mix) -> None:
        """Make ready for the next update, or the next `span` of them."""
        frozen: dict[str, Mask] = {}
        if self._temperature is not None:
            held = self._temperature.before(mix.weights["temperature"])
            if held.any():
                frozen["temperature"] = held
        if self.done < self.hygiene.critic_first_updates:
            frozen |= dict.fromkeys(POLICY_SIDE, self._everyone)
        self.agent.frozen = frozen
        if self.done <= self._rewarmed and self.hygiene.rewarm_updates:
            self.agent.optimizer.set_rates({name: rate * self.warmth(name) for name, rate in self._rates.items()})

    def warmth(self, component: str) -> float:
        """Factor on a component's learning rate in the next update."""
        n = self.hygiene.rewarm_updates
        first = self.hygiene.critic_first_updates if component in POLICY_SIDE else 0
        return min(max(self.done + 1 - first, 0) / n, 1.0) if n else 1.0

    def after(self, updates: int = 1) -> None:
        """So many updates have been done."""
        self.done += updates
        if self.sfa is not None:
            self.sfa.after(self.done)
        if self.ema is not None:
            self.ema.update()

    def acting(self) -> AbstractContextManager[None]:
        """Within it the agent acts as it should be seen to act."""
        return nullcontext() if self.ema is None else self.ema.applied()

    # Keeping

    def state_dict(self, members: Sequence[int] | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What moves and what was measured at the switch: tensors (M, ...) and JSON types; of some members or all."""
        tensors: dict[str, Tensor] = {}
        for name, part in (("anchors", self.anchors), ("sfa", self.sfa), ("ema", self.ema)):
            if part is not None:
                tensors |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
        if self._temperature is not None:
            tensors["temperature.carried"] = self._temperature.carried
            tensors["temperature.released"] = torch.from_numpy(self._temperature.released)
        if members is not None:
            tensors = {name: value[list(members)] for name, value in tensors.items()}
        return tensors, {"updates": self.done}

    def files(self, members: Sequence[int] | None = None) -> dict[str, Any]:
        """The state as files of a checkpoint."""
        tensors, state = self.state_dict(members)
        return {"hygiene.json": state, **({"hygiene.safetensors": tensors} if tensors else {})}

    def load_state_dict(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave to the hygiene of the same settings.

        Raises:
            ValueError: A tensor is missing or of another shape.
        """
        for name, part in (("anchors", self.anchors), ("sfa", self.sfa), ("ema", self.ema)):
            if part is not None:
                own = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
                part.load_state_dict(own)
        if self._temperature is not None:
            for key in ("carried", "released"):
                if f"temperature.{key}" not in tensors:
                    raise ValueError(f"the tensor 'temperature.{key}' is missing")
            self._temperature.carried = tensors["temperature.carried"].to(self._temperature.carried)
            self._temperature.released = tensors["temperature.released"].cpu().numpy().astype(bool)
        self.done = int(state["updates"])


def acting_agent(folder: Path) -> Agent:
    """The agent of a checkpoint as it was seen to act: with the actor's running mean, where the run kept one.

    Raises:
        CheckpointError: The folder holds no agent, or its mean does not fit.
    """
    agent = load_agent(folder)
    file = folder / "hygiene.safetensors"
    mean = read_tensors(file) if file.is_file() else {}
    if any(name.startswith("ema.") for name in mean):
        try:
            restore([p.data for p in agent.networks.actor.parameters()], mean, "ema.mean")
        except ValueError as error:
            raise CheckpointError(f"{file}: {error}") from None
    return agent


# Temperature


def initial_log_alpha(agent: Agent) -> NDArray[np.float64]:
    """Every member's log temperature at the start of its training, (M,)."""
    start = np.asarray(agent.settings.sac.host("initial_temperature"), np.float64)
    log_alpha: NDArray[np.float64] = np.log(np.broadcast_to(start, (agent.members,)))
    return log_alpha


@torch.no_grad()
def set_temperature(agent: Agent, log_alpha: NDArray[np.float64], members: Mask) -> None:
    """Put members' log temperatures (M,) in, in place."""
    own = agent.networks.log_alpha
    if own is None:
        raise ConfigError(f"{agent.name} with online objective {agent.online_choice} has no temperature")
    mask = torch.as_tensor(members, device=own.device)
    own.copy_(torch.where(mask, torch.as_tensor(log_alpha, device=own.device).to(own.dtype), own))


class TemperaturePath:
    """log alpha = (1 - w) carried + w initial for members with w < 1; at w = 1 a member is released, for good.

    Args:
        agent: As it is at the switch.
    """

    def __init__(self, agent: Agent) -> None:
        assert agent.networks.log_alpha is not None
        self.agent = agent
        self.carried = agent.networks.log_alpha.detach().clone()
        self.released = np.zeros(agent.members, bool)
        self._initial = initial_log_alpha(agent)

    def before(self, weights: NDArray[np.float64]) -> Mask:
        """Set the temperatures for an update at weights (M,); the members that are held, (M,)."""
        if not self.released.all():
            carried = self.carried.double().cpu().numpy()
            path = (1.0 - weights) * carried + weights * self._initial
            set_temperature(self.agent, path, ~self.released)
            self.released = self.released | (weights >= 1.0)
        return ~self.released


class TendedLearner(GraphedLearner):
    """A learner whose online updates are tended by a `Hygiene`, once there is one.

    Where the host has something to do around every update, updates go one by one, also on a GPU.
    """

    hygiene: Hygiene | None = None

    def tend(
        self, hygiene: HygieneConfig, anchors: AnchorConfig, averaging: AveragingConfig, *, updates: int
    ) -> Hygiene | None:
        """At the switch, while the offline rows are still there: begin; None where everything is off."""
        if not (hygiene.acts_on_updates or anchors.on or averaging.on):
            return None
        offline = None if self.offline_rows is None else self._encoded_offline
        self.hygiene = Hygiene(self.agent, hygiene, anchors, averaging, updates=updates, offline=offline)
        self.agent.pull = None if self.hygiene.anchors is None else self._pull
        return self.hygiene

    def online_update(self, mix: Mix) -> Metrics:
        """See `Learner`."""
        return super().online_update(mix) if self.hygiene is None else self.online_updates([mix])

    def online_updates(self, mixes: Sequence[Mix]) -> Metrics:
        """See `Learner`."""
        hygiene = self.hygiene
        if hygiene is None:
            return super().online_updates(mixes)
        info: Metrics = {}
        with self.agent.own_threads():
            done = 0
            while done < len(mixes):
                hygiene.before(mixes[done])
                if self.grouped and not hygiene.alone:
                    part = mixes[done : done + hygiene.span()]
                    info = super().online_updates(part)
                else:
                    part = mixes[done : done + 1]
                    info = Learner.online_update(self, part[0])
                done += len(part)
                hygiene.after(len(part))
        return info

    def acting(self) -> AbstractContextManager[None]:
        """See `Learner`."""
        return super().acting() if self.hygiene is None else self.hygiene.acting()

    def _encoded_offline(self, name: str, rows: int) -> Batch:
        assert self.offline_rows is not None
        index = self.agent.draws.integers(name, self.agent.updates, rows, len(self.offline_rows))
        return self.agent.encode(self.offline_rows.gather(index))

    def _pull(self, moving: Mapping[str, Mask]) -> Mapping[str, Tensor]:
        """The anchors' part of an update, on the rows that the update's losses see or would see."""
        hygiene = self.hygiene
        assert hygiene is not None
        assert hygiene.anchors is not None
        names = {name for name, mask in moving.items() if mask.any()}
        anchors, agent = hygiene.anchors, self.agent
        online = offline = None
        if "actor" in names and anchors.needs_online:
            assert self.online_rows is not None
            index = agent.draws.integers("online_rows", agent.updates, self.batch_size, len(self.online_rows))
            online = agent.encode(self.online_rows.gather(index)).obs
        if "actor" in names and anchors.needs_offline:
            offline = self._encoded_offline("offline_rows", self.batch_size)
        return anchors.pull(
            hygiene.done,
            names,
            online_obs=online,
            offline_obs=None if offline is None else offline.obs,
            offline_action=None if offline is None else offline.action,
        )
