"""How fast a learner could be: the matmuls an update cannot do without, at the rate of a large matmul.

`useful_flops` counts the multiply-adds (2 FLOPs each) of matrix products alone, from the agent's configuration, and of
those only what every implementation has to do:

* a layer i -> o costs i*o multiply-adds a row forward, i*o for its weights' gradient and i*o for its input's;
* the input's gradient of a first layer is not needed, except the action's share where an actor learns through a critic;
* an actor is evaluated once a state, however many actions are drawn from it and whichever loss asks for them;
* a first layer's share of the state is computed once a state, however many actions are tried there (CQL);
* the gradient of a minimum over critics reaches one critic a row;
* what happens every d-th update (TD3's actor) counts 1/d.

An implementation that recomputes gets no credit for it. Everything else (sampling, noise, Adam, target networks,
activations) is memory traffic and counts nothing, so no implementation reaches a share of 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from o2o_smooth.agents import CQLConfig, IQLConfig, SACConfig, TD3BCConfig, TD3Config
from o2o_smooth.agents.config import AgentConfig
from o2o_smooth.errors import ConfigError

MATMUL_SIZES = (1024, 2048)  # the faster of these square products is the machine's peak


@dataclass(frozen=True)
class Net:
    """Multiply-adds of a multilayer perceptron, a row."""

    sizes: tuple[int, ...]

    @property
    def forward(self) -> int:
        """One evaluation."""
        return sum(i * o for i, o in pairwise(self.sizes))

    def back(self, inputs: int = 0) -> int:
        """Gradient through the layers down to `inputs` of the input's features, without the weights' gradients."""
        return self.forward - self.sizes[0] * self.sizes[1] + inputs * self.sizes[1]

    @property
    def train(self) -> int:
        """Forward, and backward into the weights."""
        return 2 * self.forward + self.back()


@dataclass(frozen=True)
class _Nets:
    actor: Net
    q: Net
    v: Net
    critics: int
    obs_dim: int
    action_dim: int


def useful_flops(config: AgentConfig, *, obs_dim: int, action_dim: int, batch: int, members: int = 1) -> float:
    """FLOPs of the matrix products of one offline update, averaged over the actor's delay.

    Args:
        config: The agent's settings.
        obs_dim: O.
        action_dim: A.
        batch: B, rows a member.
        members: M; an update moves all of them.

    Raises:
        ConfigError: An agent that this formula does not know.
    """
    stochastic = not isinstance(config, TD3BCConfig | TD3Config)
    nets = _Nets(
        actor=_net(obs_dim, config.hidden_dims, action_dim * (2 if stochastic else 1)),
        q=_net(obs_dim + action_dim, config.hidden_dims, 1),
        v=_net(obs_dim, config.hidden_dims, 1),
        critics=config.num_critics,
        obs_dim=obs_dim,
        action_dim=action_dim,
    )
    if isinstance(config, IQLConfig):
        per_row: float = _iql(nets)
    elif isinstance(config, CQLConfig):
        per_row = _cql(nets, config)
    elif isinstance(config, SACConfig):
        per_row = _sac(nets)
    elif isinstance(config, TD3BCConfig | TD3Config):
        per_row = _td3(nets, config.td3.actor_delay)
    else:
        raise ConfigError(f"there is no FLOP count for {type(config).__name__}; add one to benchmarks/speed_limit.py")
    return 2.0 * per_row * batch * members


def _net(inputs: int, hidden_dims: Sequence[int], outputs: int) -> Net:
    return Net((inputs, *hidden_dims, outputs))


def _iql(n: _Nets) -> int:
    """Target critics, V and its successor, critics, actor."""
    return n.critics * n.q.forward + n.v.train + n.v.forward + n.critics * n.q.train + n.actor.train


def _sac(n: _Nets) -> int:
    """Target through the next action; critics; actor through the smallest critic."""
    target = n.actor.forward + n.critics * n.q.forward
    through = n.critics * n.q.forward + n.q.back(n.action_dim)
    return target + n.critics * n.q.train + n.actor.train + through


def _cql(n: _Nets, config: CQLConfig) -> int:
    """SAC, and 3 x `cql_actions` further actions a state through every critic."""
    first, extra = n.obs_dim * n.q.sizes[1], 3 * config.cql_actions
    # The state's share of the first layer: forward and weights' gradient, both already in SAC's own row.
    penalty = n.critics * extra * (n.q.train - 2 * first)
    backup = 0
    if config.max_target_backup:
        backup = n.critics * (config.cql_actions - 1) * (n.q.forward - first)
    return _sac(n) + penalty + backup


def _td3(n: _Nets, delay: int) -> float:
    """Target through the target actor; critics; every `delay`-th update the actor through the first critic."""
    critic = n.actor.forward + n.critics * n.q.forward + n.critics * n.q.train
    return critic + (n.actor.train + n.q.forward + n.q.back(n.action_dim)) / delay
