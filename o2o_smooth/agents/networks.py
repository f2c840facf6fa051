"""Networks with a members axis: every parameter is (members, copies, ...), every input (members, batch, ...).

The copies are a critic ensemble's. One batched matmul serves all members and copies; losses are summed over members, so
members never mix. Each member is initialised from its own seed, so it starts as the same member alone would.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from o2o_smooth.agents.heads import encode_batch, gaussian, gaussian_log_prob, gaussian_sample, join, squashed
from o2o_smooth.agents.native_heads import PerMember
from o2o_smooth.agents.stacked import Deposit, kernels_take, make_ready, stacked_forward
from o2o_smooth.kernels.cpu import MAX_LAYERS, StackedNet

ACTION_LIMIT = 1.0 - 1e-5  # dataset actions are clipped to this before atanh


Precision = Literal["fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


class MLP(nn.Module):
    """A stack of multilayer perceptrons, (M, B, in) -> (M, E, B, out), ReLU between layers.

    Args:
        members: M, population members.
        copies: E, independent copies per member.
        in_dim: Input features.
        hidden_dims: Widths of the hidden layers.
        out_dim: Output features.
        layer_norm: Normalise each hidden layer before the ReLU.
    """

    def __init__(
        self, members: int, copies: int, in_dim: int, hidden_dims: Sequence[int], out_dim: int, *, layer_norm: bool
    ) -> None:
        super().__init__()
        self.members, self.copies, self.in_dim, self.layer_norm = members, copies, in_dim, layer_norm
        sizes = [in_dim, *hidden_dims, out_dim]
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(members, copies, i, o)) for i, o in pairwise(sizes))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(members, copies, 1, o)) for o in sizes[1:])
        hidden = hidden_dims if layer_norm else ()
        self.gains = nn.ParameterList(nn.Parameter(torch.ones(members, copies, 1, h)) for h in hidden)
        self.shifts = nn.ParameterList(nn.Parameter(torch.zeros(members, copies, 1, h)) for h in hidden)
        # A ParameterList makes its names anew at every look, which a small network's pass would notice.
        self.parts = tuple(self.weights), tuple(self.biases), tuple(self.gains), tuple(self.shifts)
        self.native: StackedNet | None = None
        self.precision: Precision = "fp32"
        self.deposit: Deposit | None = None
        self.depositing = False
        make_ready()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "native": None, "deposit": None}  # pointers into this process's memory

    @torch.no_grad()
    def initialise(self, member: int, generator: torch.Generator) -> None:
        """Draw one member's weights: uniform in +-1/sqrt(fan_in), torch's default for linear layers."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            bound = 1.0 / math.sqrt(weight.shape[-2])
            for tensor in (weight, bias):
                draw = torch.empty(tensor.shape[1:], dtype=torch.float64).uniform_(-bound, bound, generator=generator)
                tensor[member] = draw.to(tensor)

    def _apply(self, fn: Any, recurse: bool = True) -> MLP:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.parts = tuple(self.weights), tuple(self.biases), tuple(self.gains), tuple(self.shifts)
        return self

    def anchor(self) -> Tensor:
        """What stands for the parameters in the graph where gradients are deposited; see `stacked.Deposit`."""
        self.deposit = self.deposit or Deposit(self)
        return self.deposit.anchor

    def forward(self, x: Tensor, *, frozen: bool = False, copies: int | None = None) -> Tensor:
        """Evaluate all copies, or the first ones.

        Args:
            x: (M, B, in).
            frozen: Let gradients reach the input but not the parameters.
            copies: How many copies; default: all. Fewer only where `frozen`, or without gradients.

        Returns:
            (M, copies, B, out).
        """
        copies = copies or self.copies
        half = self.precision == "bf16"
        known = kernels_take(x) and kernels_take(self.parts[0][0]) and len(self.parts[0]) <= MAX_LAYERS
        if known and x.shape[1] > 0:
            return stacked_forward(self, x, frozen=frozen, copies=copies)
        groups = self.members * copies
        if copies > 1:
            x = x.unsqueeze(1).expand(-1, copies, -1, -1).reshape(groups, *x.shape[1:])
        weights, biases, gains, shifts = self.parts
        if copies < self.copies:
            weights, biases, gains, shifts = (tuple(p[:, :copies] for p in part) for part in self.parts)
        last = len(weights) - 1
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            w, b = (weight.detach(), bias.detach()) if frozen else (weight, bias)
            if half and i < last:
                x = torch.bmm(x.bfloat16(), w.flatten(0, 1).bfloat16()).float() + b.flatten(0, 1)
            else:
                x = torch.baddbmm(b.flatten(0, 1), x, w.flatten(0, 1))
            if i < last:
                if self.layer_norm:
                    gain, shift = gains[i], shifts[i]
                    if frozen:
                        gain, shift = gain.detach(), shift.detach()
                    x = F.layer_norm(x, x.shape[-1:]) * gain.flatten(0, 1) + shift.flatten(0, 1)
                x = F.relu(x)
        return x.view(self.members, copies, *x.shape[1:])


class Actor(nn.Module):
    """Policy head: a tanh-squashed Gaussian, or a deterministic tanh policy where `stochastic` is False."""

    def __init__(
        self,
        members: int,
        obs_dim: int,
        action_dim: int,
        hidden_dims: Sequence[int],
        *,
        stochastic: bool,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.stochastic, self.action_dim = stochastic, action_dim
        self.net = MLP(members, 1, obs_dim, hidden_dims, action_dim * (2 if stochastic else 1), layer_norm=layer_norm)

    def output(self, obs: Tensor, *, frozen: bool = False) -> Tensor:
        """What the network says: (M, B, 2A) where stochastic, else (M, B, A)."""
        out: Tensor = self.net(obs, frozen=frozen)
        return out.squeeze(1)

    def distribution(self, obs: Tensor, *, frozen: bool = False) -> tuple[Tensor, Tensor]:
        """Mean before the tanh and log standard deviation, (M, B, A) each."""
        self._needs_density()
        return gaussian(self.output(obs, frozen=frozen))

    def mode(self, obs: Tensor, *, frozen: bool = False) -> Tensor:
        """Deterministic action in (-1, 1): tanh of the mean, (M, B, A)."""
        return squashed(self.output(obs, frozen=frozen)[..., : self.action_dim])

    def sample(self, obs: Tensor, noise: Tensor, *, frozen: bool = False) -> tuple[Tensor, Tensor]:
        """Reparametrised actions and their log density.

        Args:
            obs: (M, B, O).
            noise: Standard normal, (M, n, B, A): n actions per state from one pass.
            frozen: Keep gradients off the parameters.

        Returns:
            Actions (M, n, B, A) in (-1, 1) and log densities (M, n, B).
        """
        self._needs_density()
        return gaussian_sample(self.output(obs, frozen=frozen), noise)

    def log_prob(self, obs: Tensor, action: Tensor, *, edge: PerMember = 1e-5) -> Tensor:
        """Log density of given actions in [-1, 1], (M, B); actions are clipped to +-(1 - edge)."""
        self._needs_density()
        return gaussian_log_prob(self.output(obs), action, edge)

    def _needs_density(self) -> None:
        if not self.stochastic:
            raise ValueError("a deterministic actor has no density; build it with stochastic=True")


class Networks(nn.Module):
    """All tensors of an agent: actor, critics and their targets, and where needed V, target actor and temperature.

    The observation normaliser and the action scaling live here, so no checkpoint can lose them. They are applied
    once to each batch; losses then see normalised observations and actions in [-1, 1].

    Args:
        seeds: One per member.
        obs_dim: O.
        action_low: Lower bounds of the action box, (A,).
        action_high: Upper bounds, (A,).
        hidden_dims: Widths of every network's hidden layers.
        critics: E, critics in the ensemble.
        stochastic: Gaussian actor, or deterministic.
        value: Also build V (IQL).
        target_actor: Also build a Polyak-averaged actor (TD3).
        initial_temperature: Also build log alpha per member, starting here (SAC, CQL).
        multiplier: Also build a log Lagrange multiplier per member (CQL), starting at 0; it trains with the critic.
        critic_layer_norm: LayerNorm in critics and V.
        actor_layer_norm: LayerNorm in the actor.
    """

    obs_mean: Tensor
    obs_std: Tensor
    action_center: Tensor
    action_half: Tensor

    def __init__(
        self,
        seeds: Sequence[int],
        obs_dim: int,
        action_low: Tensor,
        action_high: Tensor,
        *,
        hidden_dims: Sequence[int],
        critics: int,
        stochastic: bool,
        value: bool,
        target_actor: bool,
        initial_temperature: float | None,
        multiplier: bool,
        critic_layer_norm: bool,
        actor_layer_norm: bool,
    ) -> None:
        super().__init__()
        members, action_dim = len(seeds), len(action_low)
        self.register_buffer("obs_mean", torch.zeros(obs_dim))
        self.register_buffer("obs_std", torch.ones(obs_dim))
        self.register_buffer("action_center", (action_high + action_low) / 2)
        self.register_buffer("action_half", (action_high - action_low) / 2)

        def make_actor() -> Actor:
            return Actor(members, obs_dim, action_dim, hidden_dims, stochastic=stochastic, layer_norm=actor_layer_norm)

        def make_q() -> MLP:
            return MLP(members, critics, obs_dim + action_dim, hidden_dims, 1, layer_norm=critic_layer_norm)

        self.actor = make_actor()
        self.critic = make_q()
        self.target_critic = make_q()
        self.value = MLP(members, 1, obs_dim, hidden_dims, 1, layer_norm=critic_layer_norm) if value else None
        self.target_actor = make_actor() if target_actor else None
        self.log_alpha = (
            None if initial_temperature is None else nn.Parameter(torch.full((members,), math.log(initial_temperature)))
        )
        self.log_multiplier = nn.Parameter(torch.zeros(members)) if multiplier else None
        for member, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(seed)
            for net in (self.actor.net, self.critic, self.value):
                if net is not None:
                    net.initialise(member, generator)
        # Looking a module up by name is slow enough to notice in an update of some milliseconds.
        self._learning = tuple([net for net in (self.actor.net, self.critic, self.value) if net is not None])
        self.target_critic.load_state_dict(self.critic.state_dict())
        self.target_critic.requires_grad_(False)
        if self.target_actor is not None:
            self.target_actor.load_state_dict(self.actor.state_dict())
            self.target_actor.requires_grad_(False)

    @torch.no_grad()
    def set_normalizer(self, mean: Tensor, std: Tensor) -> None:
        """Freeze the observation statistics, (O,) each; a constant feature (std below 1e-6) is only centred."""
        if mean.shape != self.obs_mean.shape or std.shape != self.obs_std.shape:
            raise ValueError(
                f"normaliser of shapes {tuple(mean.shape)} and {tuple(std.shape)}, "
                f"expected {tuple(self.obs_mean.shape)}"
            )
        self.obs_mean.copy_(mean)
        self.obs_std.copy_(torch.where(std < 1e-6, torch.ones_like(std), std))

    def set_precision(self, precision: Precision) -> None:
        """Multiply hidden layers in float32, or in bfloat16 with everything else in float32."""
        for net in self.modules():
            if isinstance(net, MLP):
                net.precision = precision

    def set_depositing(self, depositing: bool) -> None:
        """Whether gradients go straight into `.grad`; see `stacked.Deposit`."""
        for net in self._learning:
            net.depositing = depositing

    def encode(self, obs: Tensor, next_obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A batch's raw rows as the losses see them: `encode_obs` of both, `encode_action`."""
        scales = (self.obs_mean, self.obs_std, self.action_center, self.action_half)
        return encode_batch(obs, next_obs, action, scales, ACTION_LIMIT)

    def encode_obs(self, obs: Tensor) -> Tensor:
        """Observation units -> normalised."""
        return (obs - self.obs_mean) / self.obs_std

    def encode_action(self, action: Tensor) -> Tensor:
        """Environment units -> [-1, 1]; actions at the bounds land just inside, where the tanh density is finite."""
        return ((action - self.action_center) / self.action_half).clamp(-ACTION_LIMIT, ACTION_LIMIT)

    def decode_action(self, action: Tensor) -> Tensor:
        """[-1, 1] -> environment units."""
        return action * self.action_half + self.action_center

    def q(self, obs: Tensor, action: Tensor, *, frozen: bool = False, first: bool = False) -> Tensor:
        """All critics, or the `first` alone: (M, B, O), (M, B, A) -> (M, E, B)."""
        out: Tensor = self.critic(join(obs, action), frozen=frozen, copies=1 if first else None)
        return out.squeeze(-1)

    def target_q(self, obs: Tensor, action: Tensor) -> Tensor:
        """All target critics: (M, E, B)."""
        out: Tensor = self.target_critic(join(obs, action))
        return out.squeeze(-1)

    def v(self, obs: Tensor) -> Tensor:
        """V: (M, B)."""
        if self.value is None:
            raise ValueError("these networks were built without V")
        out: Tensor = self.value(obs)
        return out.squeeze(-1).squeeze(1)

    @property
    def alpha(self) -> Tensor:
        """Temperature per member, (M,), with gradient."""
        if self.log_alpha is None:
            raise ValueError("these networks were built without a temperature")
        return self.log_alpha.exp()

    def component_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by component."""
        groups = {"actor": list(self.actor.parameters()), "critic": list(self.critic.parameters())}
        if self.log_multiplier is not None:
            groups["critic"].append(self.log_multiplier)
        if self.value is not None:
            groups["value"] = list(self.value.parameters())
        if self.log_alpha is not None:
            groups["temperature"] = [self.log_alpha]
        return groups

    def targets(self) -> dict[str, list[Tensor]]:
        """Target network of every component that has one, in the order of `component_parameters`."""
        targets: dict[str, list[Tensor]] = {"critic": list(self.target_critic.parameters())}
        if self.target_actor is not None:
            targets["actor"] = list(self.target_actor.parameters())
        return targets
