"""What every agent is: networks, an offline and an online objective over them, optimisers, and one step.

An agent knows no environment, no logger, no path of its own and no trainer. It can be used alone:

    agent = IQL(observation_space, action_space, IQLConfig())
    agent.update(batch)                            # one offline step
    agent.update(batch, online_batch, mix=mix)     # a smoothed step
    action = agent.act(obs)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self, cast, overload

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from o2o_smooth.agents.blending import (
    PER_GRADIENT,
    GradientReport,
    Step,
    blended_losses,
    gradients_of,
    mixed_gradients,
    report_gradients,
    report_plan,
)
from o2o_smooth.agents.compiling import begin_headers, compile_step
from o2o_smooth.agents.config import AgentConfig
from o2o_smooth.agents.devices import find_device
from o2o_smooth.agents.mirror import Mirror
from o2o_smooth.agents.networks import PRECISIONS, Networks, Precision
from o2o_smooth.agents.optimizer import Mask, MemberAdam
from o2o_smooth.agents.plan import Plan, Planner
from o2o_smooth.agents.readings import Readings
from o2o_smooth.agents.settings import Settings, settle
from o2o_smooth.agents.spaces import check_spaces
from o2o_smooth.agents.stacked import kernels_take
from o2o_smooth.agents.taped import Tapes
from o2o_smooth.data.batch import Batch, Drawn, as_batch, gathered
from o2o_smooth.draws import make_draws
from o2o_smooth.errors import ConfigError, DataError
from o2o_smooth.kernels.cpu import all_threads
from o2o_smooth.smoothing.objective import COMPONENTS, Mix, Noise, Objective

Metrics = Mapping[str, Tensor]  # name -> (M,), detached, on the device: reading one waits for it
Pull = Callable[[Mapping[str, Mask]], Mapping[str, Tensor]]
"""Adds to the gradients in `.grad` of the components that move (component -> members, (M,)); gives metrics (M, ...).

It acts in `Agent.update` alone: `Agent.gradients`, and so a captured graph, does not see it."""

Watch = Callable[["Agent", Plan, Batch | Drawn, Batch | Drawn, Readings], None]
"""Sees an update (plan, both objectives' rows, metrics) before its step, and may stop it by raising; so it acts, as
`Pull` does, in `Agent.update` alone."""


class Agent:
    """Base of all agents; see the module docstring.

    Args:
        observation_space: A one-dimensional Box.
        action_space: A one-dimensional, bounded Box.
        config: The agent's settings; default: the paper's.
        online: Which online objective to build; see `online_choices`.
        seeds: One per population member; a single seed makes a population of one.
        overrides: Settings that differ between members: one mapping per member of `config`'s numbers, for example
            `[{"expectile": 0.7}, {"expectile": 0.9, "td3.target_noise": 0.1}]`; see `settings.PER_MEMBER`.
        device: Where everything lives.
        precision: Of the hidden layers' matrix products in an update, `fp32` or `bf16`. Parameters, moments, losses,
            the last layers and acting are float32 either way.
        compile: Compile the forward and backward pass (once per kind of step).

    Raises:
        EnvError: A space of another kind.
        ConfigError: An online objective that does not fit this agent, or settings that cannot differ between members.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[AgentConfig]]
    online_choices: ClassVar[tuple[str, ...]]
    config: AgentConfig

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        config: AgentConfig | None = None,
        *,
        online: str | None = None,
        seeds: Sequence[int] = (0,),
        overrides: Sequence[Mapping[str, float | None]] | None = None,
        device: torch.device | str = "cpu",
        compile: bool = False,
        precision: Precision = "fp32",
    ) -> None:
        self.config = config if config is not None else self.config_class()
        if not isinstance(self.config, self.config_class):
            raise ConfigError(f"{self.name} needs a {self.config_class.__name__}, got a {type(config).__name__}")
        self.online_choice = online or self.online_choices[0]
        if self.online_choice not in self.online_choices:
            hint = "; a deterministic actor has no density for SAC" if self.online_choice == "sac" else ""
            raise ConfigError(
                f"{self.name} cannot go on with online='{self.online_choice}'; it offers "
                f"{', '.join(self.online_choices)}{hint}"
            )
        if len(seeds) == 0:
            raise ConfigError("a population needs at least one seed")
        obs_dim, low, high = check_spaces(observation_space, action_space)
        self.obs_dim, self.action_dim, self.members = obs_dim, len(low), len(seeds)
        self.action_low, self.action_high = low, high
        self.seeds = tuple(int(s) for s in seeds)
        self.device = find_device(device) if isinstance(device, str) else device
        self.config, self.overrides = settle(self.config, overrides, self.members, self.action_dim)
        self.settings = Settings(self.config, self.overrides, self.device)
        self.networks = self._build_networks().to(self.device)
        self._set_temperatures()
        self.offline: Objective = self._offline_objective()
        self.online: Objective = (
            self.offline if self.online_choice == "same" else self._online_objective(self.online_choice)
        )
        self.draws = make_draws(self.seeds, self.device)
        self.updates = 0
        self.acts = 0
        self.compile = compile
        if precision not in PRECISIONS:
            raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}, got '{precision}'")
        self.precision: Precision = precision
        self._compiled: dict[Plan, Callable[..., Any]] = {}
        self._optimizer: MemberAdam | None = None
        self._plans = Planner(self.offline, self.online)
        self.pure = Mix.uniform(0.0, self.members)  # offline updates
        self.frozen: Mapping[str, Mask] = {}  # component -> members (M,) that do not move it for now
        self.pull: Pull | None = None
        self.watch: Watch | None = None
        self._ones = torch.ones(self.members, dtype=self.dtype, device=self.device)
        self._mirror = Mirror(self)
        self.replay = True  # steps from a tape where they can be; the numbers are the same
        self._tapes = Tapes(self)
        if compile and self.device.type == "cpu":
            begin_headers()

    # What a concrete agent fills in

    def _networks(self) -> dict[str, object]:
        """Which networks the two objectives need; keyword arguments of `Networks`."""
        raise TypeError(f"{type(self).__name__} does not say which networks it needs")

    def _offline_objective(self) -> Objective:
        raise TypeError(f"{type(self).__name__} has no offline objective")

    def _online_objective(self, choice: str) -> Objective:
        raise ConfigError(f"{self.name} has no online objective '{choice}'")

    # Construction

    def _build_networks(self) -> Networks:
        arguments: dict[str, Any] = {
            "value": False,
            "target_actor": False,
            "initial_temperature": None,
            "multiplier": False,
            **self._networks(),
        }
        return Networks(
            self.seeds,
            self.obs_dim,
            torch.as_tensor(self.action_low),
            torch.as_tensor(self.action_high),
            hidden_dims=self.config.hidden_dims,
            critics=self.config.num_critics,
            critic_layer_norm=self.config.critic_layer_norm,
            actor_layer_norm=self.config.actor_layer_norm,
            **arguments,
        )

    @torch.no_grad()
    def _set_temperatures(self) -> None:
        """Start each member's temperature where its own settings say; `Networks` knows one start for all."""
        log_alpha = self.networks.log_alpha
        for member, own in enumerate(self.overrides):
            start = own.get("sac.initial_temperature")
            if start is not None and log_alpha is not None:
                log_alpha[member] = math.log(start)

    @property
    def optimizer(self) -> MemberAdam:
        """Adam with a learning rate per component; made at first use, so `double()` can come before."""
        if self._optimizer is None:
            rates = {name: self.settings.host(f"{name}_lr") for name in COMPONENTS}
            self._optimizer = MemberAdam(self.networks.component_parameters(), rates, self.networks.targets())
        return self._optimizer

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the parameters."""
        return self.networks.obs_mean.dtype

    def double(self) -> Self:
        """Turn to float64, for exact comparisons; before the first update."""
        if self._optimizer is not None:
            raise ConfigError("double() must come before the first update")
        self.networks.double()
        self.settings.double()
        self.draws = make_draws(self.seeds, self.device, torch.float64)
        self._ones = self._ones.double()
        return self

    def set_normalizer(self, mean: NDArray[Any], std: NDArray[Any]) -> None:
        """Freeze the observation statistics, (O,) each; saved with the agent."""
        like = self.networks.obs_mean
        self.networks.set_normalizer(torch.as_tensor(mean).to(like), torch.as_tensor(std).to(like))

    # Acting

    @overload
    def act(self, obs: NDArray[Any], *, deterministic: bool = True, step: int | None = None) -> NDArray[np.float32]: ...
    @overload
    def act(self, obs: Tensor, *, deterministic: bool = True, step: int | None = None) -> Tensor: ...
    @torch.no_grad()
    def act(
        self, obs: NDArray[Any] | Tensor, *, deterministic: bool = True, step: int | None = None
    ) -> NDArray[np.float32] | Tensor:
        """Actions in environment units for raw observations.

        Args:
            obs: (O,) or (n, O) for a population of one; (M, n, O) in general. Numpy in, numpy out.
            deterministic: The policy's mode; otherwise explore as the online objective does.
            step: Index of the exploration noise; default: a counter. Equal (seed, step) draw equal noise.

        Raises:
            DataError: A shape that does not fit.
        """
        shape = tuple(np.shape(obs))
        rows = shape[-2] if len(shape) > 1 else 1
        batched = (self.members, rows, self.obs_dim)
        if len(shape) not in (1, 2, 3) or (shape if len(shape) == 3 else (1, rows, *shape[-1:])) != batched:
            raise DataError(
                f"obs has shape {shape}, expected ({self.members}, n, {self.obs_dim})"
                + (f" or (n, {self.obs_dim}) or ({self.obs_dim},)" if self.members == 1 else "")
            )
        noise = None
        if not deterministic:
            if step is None:
                step = self.acts
                self.acts += 1
            noise = self.draws.normal("explore", step, (rows, self.action_dim))
        out = (*shape[:-1], self.action_dim)
        if not isinstance(obs, Tensor) and self._mirror.ready(rows, deterministic=deterministic):
            raw = np.asarray(obs, dtype=np.float32).reshape(batched)
            return self._mirror.act(raw, None if noise is None else noise.numpy()).reshape(out)
        encoded = self.networks.encode_obs(torch.as_tensor(obs, dtype=self.dtype, device=self.device).reshape(batched))
        unit = self.networks.actor.mode(encoded) if noise is None else self.online.explore(encoded, noise)
        action = self.networks.decode_action(unit).reshape(out)
        return action if isinstance(obs, Tensor) else action.cpu().numpy().astype(np.float32, copy=False)

    # Learning

    def update(
        self,
        batch: Batch | Drawn | Mapping[str, object],
        online_batch: Batch | Drawn | Mapping[str, object] | None = None,
        *,
        mix: Mix | None = None,
    ) -> Metrics:
        """One gradient step of every component that has weight.

        Args:
            batch: What the offline objective sees; see `as_batch` for plain arrays. `Drawn` rows of a buffer are
                gathered on the way.
            online_batch: What the online objective sees; default: the same batch (the `mixed` regime).
            mix: Weights of the online objective; default: pure offline.

        Returns:
            Metrics, (M,) each, detached and on the device.

        Raises:
            DataError: A batch that does not fit; plain arrays are also checked for NaN.
            ConfigError: An online batch without a mix.
        """
        with self.own_threads():
            return self._update(batch, online_batch, mix)

    @property
    def wants_returns(self) -> bool:
        """Whether the offline objective needs `mc_return`."""
        return False

    def own_threads(self) -> AbstractContextManager[None]:
        """Within it the native kernels have all of torch's threads, and torch has one; an update does so by itself.

        Around several updates it also covers what comes between them, such as drawing their rows.
        """
        native = not self.compile and kernels_take(self._ones)
        return all_threads() if native else nullcontext()

    def _update(
        self,
        batch: Batch | Drawn | Mapping[str, object],
        online_batch: Batch | Drawn | Mapping[str, object] | None,
        mix: Mix | None,
    ) -> Metrics:
        if online_batch is not None and mix is None:
            raise ConfigError("an online batch without a mix would be ignored; give mix=controller.mix()")
        source = self._as_rows(batch)
        target = source if online_batch is None or online_batch is batch else self._as_rows(online_batch)
        mix = mix or self.pure
        plan, movement = self.plans(mix, updates=self.updates, one_batch=target is source, frozen=self.frozen)
        if self.wants_returns and plan.offline and not isinstance(batch, Batch | Drawn):
            self._check_returns(batch)
        readings = self._tapes.update(plan, source, target, mix)
        if readings is None:
            rows = gathered(source)
            readings = self._step_plainly(plan, rows, rows if target is source else gathered(target), mix)
        if self.pull is not None:
            readings.raw = {**readings.raw, **self.pull(movement.components)}
        if self.watch is not None:
            self.watch(self, plan, source, target, readings)
        self.optimizer.step(movement.components, moving=movement.targets, tau=self.settings.host("tau"))
        self.updates += 1
        return readings

    def _step_plainly(self, plan: Plan, source: Batch, target: Batch, mix: Mix) -> Readings:
        """Put a step's gradients into the parameters' `.grad`."""
        source = self.encode(source)
        target = source if plan.one_batch else self.encode(target)
        noise = self._noise(plan, source)
        weights = mix.tensors(source.reward)
        if self.precision != "fp32":
            self.networks.set_precision(self.precision)
        try:
            if plan.mode in PER_GRADIENT:
                losses, info, gradients = mixed_gradients(self._step(plan, source, target, noise, weights))
                self.optimizer.zero_grad()
                parameters = self.networks.component_parameters()
                for name, own in gradients.items():
                    for parameter, gradient in zip(parameters[name], own, strict=True):
                        parameter.grad = gradient
                info.update({f"{name}/loss": loss.detach() for name, loss in losses.items()})
            else:
                info = self.backward(plan, source, target, noise, weights)
        finally:
            if self.precision != "fp32":
                self.networks.set_precision("fp32")  # acting and evaluating are not worth a rounding
        return Readings(info)

    def backward(
        self, plan: Plan, source: Batch, target: Batch, noise: Noise, weights: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Gradients of blended losses into the parameters' `.grad`; arguments and metrics as those of `gradients`."""
        self.networks.set_depositing(not self.compile)
        try:
            losses, info = self._loss_function(plan)(source, target, noise, weights)
            self.optimizer.zero_grad()
            if losses:  # what is not frozen may not be due
                # A sum and not gradients of one: with those torch imports sympy, which takes most of a second.
                torch.cat(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        finally:
            self.networks.set_depositing(False)
        return {**info, **{f"{name}/loss": loss.detach() for name, loss in losses.items()}}

    def gradients(
        self, plan: Plan, source: Batch, target: Batch, noise: Noise, weights: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, list[Tensor]]]:
        """What an update computes before anything moves; it reads tensors alone, so a CUDA graph can capture it.

        Args:
            plan: From `plans`.
            source: The offline objective's rows, from `encode`.
            target: The online objective's rows, from `encode`.
            noise: The draws that the plan needs; see `Planner.noise`.
            weights: The online objective's weight of every mixed component, (M,).

        Returns:
            Metrics, detached, (M, ...) each, and per component with a loss the gradients of its parameters.
        """
        self.networks.set_precision(self.precision)
        try:
            if plan.mode in PER_GRADIENT:
                losses, info, gradients = mixed_gradients(self._step(plan, source, target, noise, weights))
            else:
                losses, info = self._loss_function(plan)(source, target, noise, weights)
                gradients = gradients_of(losses, self.networks.component_parameters())
        finally:
            self.networks.set_precision("fp32")
        return {**info, **{f"{name}/loss": loss.detach() for name, loss in losses.items()}}, gradients

    def gradient_report(
        self,
        batch: Batch | Mapping[str, object],
        online_batch: Batch | Mapping[str, object] | None = None,
        *,
        mix: Mix | None = None,
    ) -> dict[str, GradientReport]:
        """Gradient norms and cosine of the two objectives for every component both have; nothing is stepped.

        Costs two backward passes; keep it off the hot path.
        """
        source = self._as_batch(batch)
        target = source if online_batch is None else self._as_batch(online_batch)
        source = self.encode(source)
        target = self.encode(target) if online_batch is not None else source
        plan = report_plan(self.offline, self.online)
        noise = self._noise(plan, source)
        return report_gradients(self._step(plan, source, target, noise, {}))

    @property
    def plans(self) -> Planner:
        """Plans of the steps of both objectives."""
        if self._plans.offline is not self.offline or self._plans.online is not self.online:
            self._plans = Planner(self.offline, self.online)  # somebody put in an objective of their own
        return self._plans

    def _as_rows(self, batch: Batch | Drawn | Mapping[str, object]) -> Batch | Drawn:
        if not isinstance(batch, Drawn):
            return self._as_batch(batch)
        members, rows, obs_dim = batch.shape
        self._check_sizes(members, rows, obs_dim, batch.packed.action_dim)
        return batch

    def _as_batch(self, batch: Batch | Mapping[str, object]) -> Batch:
        if not isinstance(batch, Batch):
            batch = as_batch(batch, members=self.members, device=self.device, dtype=self.dtype)
        members, rows, obs_dim = batch.obs.shape
        self._check_sizes(members, rows, obs_dim, batch.action.shape[-1])
        return batch

    def _check_returns(self, batch: Mapping[str, object]) -> None:
        if "mc_return" not in batch:
            raise DataError(
                f"{self.name} is calibrated and needs the field mc_return (B,): the discounted return from each row to "
                f"its episode's end. Transitions.mc_returns computes it; calibrated=False does without"
            )

    def _check_sizes(self, members: int, rows: int, obs_dim: int, action_dim: int) -> None:
        if not rows:
            raise DataError("the batch has no rows")
        if obs_dim != self.obs_dim or action_dim != self.action_dim:
            raise DataError(
                f"the batch has observations of {obs_dim} and actions of {action_dim} features, the agent was built "
                f"for {self.obs_dim} and {self.action_dim}"
            )
        if members != self.members:
            raise DataError(f"the batch has {members} members, the agent {self.members}")

    @torch.no_grad()
    def encode(self, batch: Batch) -> Batch:
        """Rows as the objectives see them: normalised observations, actions in [-1, 1]."""
        obs, next_obs, action = self.networks.encode(batch.obs, batch.next_obs, batch.action)
        return batch._replace(obs=obs, next_obs=next_obs, action=action)

    def _noise(self, plan: Plan, batch: Batch) -> Noise:
        rows = batch.action.shape[1:]
        normal, uniform = self.plans.noise(plan)
        noise = {name: self.draws.normal(name, self.updates, (n, *rows)) for name, n in normal.items()}
        noise.update({name: self.draws.uniform(name, self.updates, (n, *rows)) for name, n in uniform.items()})
        return noise

    def _step(self, plan: Plan, source: Batch, target: Batch, noise: Noise, weights: Mapping[str, Tensor]) -> Step:
        parameters = self.networks.component_parameters()
        return Step(self.offline, self.online, plan, source, target, noise, weights, parameters)

    def _loss_function(self, plan: Plan) -> Callable[..., tuple[dict[str, Tensor], dict[str, Tensor]]]:
        if not self.compile:
            return partial(blended_losses, self.offline, self.online, plan)
        if plan not in self._compiled:
            self._compiled[plan] = compile_step(partial(blended_losses, self.offline, self.online, plan))
        return self._compiled[plan]

    # Keeping

    def save(self, path: str | Path) -> Path:
        """Write networks, optimiser, normaliser and counters to a directory (safetensors and JSON), atomically.

        An agent that was saved there before is replaced.

        Raises:
            CheckpointError: It cannot be written, or other files are there; they stay.
        """
        from o2o_smooth.agents.storage import save_agent

        return save_agent(self, Path(path))

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: torch.device | str = "cpu",
        compile: bool = False,
        precision: Precision | None = None,
    ) -> Self:
        """Read what `save` wrote; nothing in it is executed.

        Args:
            path: The directory.
            device: Where the agent goes.
            compile: See `Agent`.
            precision: See `Agent`; default: the saved agent's.

        Raises:
            CheckpointError: The directory is absent, broken, or holds another kind of agent.
        """
        from o2o_smooth.agents.storage import load_agent

        expected = cls if cls is not Agent else None
        agent = load_agent(Path(path), device=device, compile=compile, precision=precision, expected=expected)
        return cast(Self, agent)
