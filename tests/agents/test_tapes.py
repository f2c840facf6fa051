"""Steps from a tape: the same numbers to the last bit, and the ordinary way where a tape would not see what happens."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from o2o_smooth.agents import AGENTS, Agent
from o2o_smooth.agents.iql import IQLObjective
from o2o_smooth.agents.networks import Precision
from o2o_smooth.agents.optimizer import MemberAdam
from o2o_smooth.agents.pushed import soft_maximum
from o2o_smooth.data.batch import Batch
from o2o_smooth.draws import Draws
from o2o_smooth.errors import DataError
from o2o_smooth.kernels.calls import Call
from o2o_smooth.kernels.cpu import unavailable
from o2o_smooth.kernels.tape import Unrepeatable, record
from o2o_smooth.smoothing.averaging import EMA
from o2o_smooth.smoothing.objective import COMPONENTS, Mix, Mode, Term

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=f"no native kernels here: {unavailable()}")
OBS, ACTION, ROWS = 5, 3, 16
PAIRS = [(name, online) for name, agent in AGENTS.items() for online in agent.online_choices]


def make_batch(seed: int, members: int = 1, rows: int = ROWS) -> Batch:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(members, rows, *shape, generator=g)

    ended = (torch.rand(members, rows, generator=g) < 0.1).float()
    action = 2 * torch.rand(members, rows, ACTION, generator=g) - 1
    return Batch(normal(OBS), action, normal(), normal(OBS), ended, torch.zeros_like(ended), normal())


def make_agent(
    name: str,
    online: str | None = None,
    *,
    members: int = 1,
    replay: bool = True,
    precision: Precision = "fp32",
    layer_norm: bool = False,
) -> Agent:
    config = AGENTS[name].config_class(hidden_dims=(16, 16), critic_layer_norm=layer_norm)
    obs = gym.spaces.Box(-np.inf, np.inf, (OBS,), np.float32)
    action = gym.spaces.Box(-1.0, 1.0, (ACTION,), np.float32)
    agent = AGENTS[name](obs, action, config, online=online, seeds=tuple(range(members)), precision=precision)
    agent.replay = replay
    return agent


def course(agent: Agent, mode: Mode) -> list[Mapping[str, Tensor]]:
    """Offline steps, a ramp on two batches and on one, then online steps; what every one of them reported."""
    m = agent.members
    told: list[Mapping[str, Tensor]] = []
    for u in range(28):
        own = make_batch(u, m)
        if u < 7:
            told.append(agent.update(own))
        elif u < 16:
            weights = {name: np.linspace((u - 7) / 16, (u - 7) / 9, m) for name in COMPONENTS}
            told.append(agent.update(own, make_batch(100 + u, m), mix=Mix(weights, mode=mode)))
        else:
            told.append(agent.update(own, mix=Mix.uniform(0.5 if u < 22 else 1.0, m, mode)))
    return told


@pytest.mark.parametrize(
    ("members", "layer_norm", "precision", "mode"),
    [
        (1, False, "fp32", "loss"),
        (3, True, "fp32", "target"),
        (2, False, "bf16", "loss"),
        (1, False, "fp32", "matched"),
        (2, False, "fp32", "projected"),
    ],
)
@pytest.mark.parametrize(("name", "online"), PAIRS)
def test_a_tape_gives_the_same_bits(
    name: str, online: str, mode: Mode, members: int, layer_norm: bool, precision: Precision
) -> None:
    plain, taped = (
        make_agent(name, online, replay=on, members=members, layer_norm=layer_norm, precision=precision)
        for on in (False, True)
    )
    ours, theirs = course(taped, mode), course(plain, mode)
    assert taped._tapes.count() >= 1
    assert plain._tapes.count() == 0
    for mine, other in zip(ours, theirs, strict=True):  # read at the end: held metrics keep their values
        assert dict(mine).keys() == dict(other).keys()
        for key in other:
            assert torch.equal(mine[key], other[key]), key
    for p, q in zip(taped.networks.parameters(), plain.networks.parameters(), strict=True):
        assert torch.equal(p, q)
    moments = (agent.optimizer.state_tensors().values() for agent in (taped, plain))
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))


def small_work(x: Tensor, y: Tensor, pair: Tensor, each: Tensor) -> list[Tensor]:
    """Operations that tapes hand to a kernel of their own, on memories in many orders."""
    across = x.transpose(1, 2)
    return [
        x + y,
        x - 2.5 * y,
        1.0 - each,
        each[:, None, None] * x,
        -across,
        across.contiguous(),
        x[:, ::2, 1:].clone(),
        torch.cat([x, y[..., :2]], -1),
        torch.cat([x.sum(0), y[1]], 0),
        x / (y.abs() + 1.0),
        3.0 / pair,
        pair.sum(1),
        pair.sum(1, keepdim=True),
        each[0].sum(0),  # of no axes, and of all: torch's own
        x.sum(None, keepdim=True),
        torch.complex(each, each).conj().imag + 1.0,  # memory of the other sign
        pair.sum(-1),  # of more than two: torch's own
        each * each[0],
        (x[None, None] * y[None, :, None]).sum((0, 1)),
        x + torch.arange(5),  # integers: torch's own
        torch.cat([x.double(), y.double()], 0),
    ]


def test_small_operations_give_the_bits_of_torch() -> None:
    g = torch.Generator().manual_seed(0)
    x, y, pair, each = (torch.randn(*s, generator=g) for s in ((3, 7, 5), (3, 7, 5), (3, 2, 6), (3,)))
    with record() as tape:
        made = small_work(x, y, pair, each)
    tape.prune(made)
    assert sum(isinstance(one.call, Call) for one in tape.operations) >= 16
    odd = torch.tensor([-0.0, 0.0, torch.nan, torch.inf, -torch.inf, 1e-40, -1e-44, 3e38])
    for spread in (1, 3):
        for t in (x, y, pair, each):
            t.normal_(generator=g).view(-1)[::spread] = odd.repeat(t.numel())[: len(t.view(-1)[::spread])]
        tape.replay()
        for ours, theirs in zip(made, small_work(x, y, pair, each), strict=True):
            nan = theirs.isnan()
            assert torch.equal(ours.isnan(), nan)
            bits = torch.int32 if theirs.dtype == torch.float32 else torch.int64
            assert torch.equal(ours[~nan].view(bits), theirs[~nan].view(bits))
    zeros = torch.full_like(pair, -0.0)
    pair.copy_(zeros)
    tape.replay()
    assert not made[11].signbit().any()
    assert not pair.sum(1).signbit().any()


@pytest.mark.parametrize("members", [1, 2])
def test_noise_that_is_drawn_ahead_is_that_of_its_step(members: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where steps are left out or come again, as after a rollback; drawn seldom, but in time."""
    plain, taped = (make_agent("sac", replay=on, members=members) for on in (False, True))
    drawn: list[tuple[str, int]] = []
    normal = Draws.normal

    def noted(draws: Draws, name: str, step: int, *args: object, **kwargs: object) -> Tensor:
        if draws is taped.draws:
            drawn.append((name, step))
        return normal(draws, name, step, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Draws, "normal", noted)
    course = [*range(20), 3, 4, 50, 51, 1000, 52, 7]
    for batch, step in enumerate(course):
        for agent in (plain, taped):
            agent.updates = step
            agent.update(make_batch(batch, members))
    for p, q in zip(taped.networks.parameters(), plain.networks.parameters(), strict=True):
        assert torch.equal(p, q)
    assert len({draw for draw in drawn if draw[1] in range(2, 18)}) == 32  # two names
    assert [step for name, step in drawn if name == "next"].count(12) == 2  # on the way, and after a jump back


def test_other_draws_and_another_optimiser_in_the_middle() -> None:
    plain, taped = (make_agent("sac", replay=on) for on in (False, True))
    for u in range(24):
        for agent in (plain, taped):
            if u == 9:
                agent.draws = Draws((77,))
            if u == 15:
                agent.draws.seeds = (78,)
            if u == 18:
                agent._optimizer = MemberAdam(agent.networks.component_parameters(), dict.fromkeys(COMPONENTS, 0.01))
            agent.update(make_batch(u))
    for p, q in zip(taped.networks.parameters(), plain.networks.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("replay", [False, True])
def test_a_step_in_which_nothing_is_due_moves_nothing(replay: bool) -> None:
    """TD3's actor moves every second time; with a frozen critic the other times have no loss at all."""
    agent = make_agent("td3", replay=replay)
    agent.frozen = {"critic": np.ones(1, bool)}
    for u in range(8):
        before = [p.clone() for p in agent.networks.actor.parameters()]
        agent.update(make_batch(u))
        moved = any(not torch.equal(p, q) for p, q in zip(before, agent.networks.actor.parameters(), strict=True))
        assert moved == (u % 2 == 1)


def test_a_batch_without_rows_is_refused() -> None:
    with pytest.raises(DataError, match="no rows"):
        make_agent("sac").update(make_batch(0, rows=0))


def test_gradients_of_a_taped_step_can_be_read() -> None:
    plain, taped = (make_agent("iql", replay=on) for on in (False, True))
    for u in range(5):
        for agent in (plain, taped):
            agent.update(make_batch(u))
    for p, q in zip(taped.networks.parameters(), plain.networks.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        assert p.grad is None or q.grad is None or torch.equal(p.grad, q.grad)


def test_other_work_between_two_steps_does_not_disturb_them() -> None:
    plain, taped = (make_agent("td3_bc", replay=on) for on in (False, True))
    for u in range(9):
        for agent in (plain, taped):
            agent.update(make_batch(u))
            agent.gradient_report(make_batch(50 + u))
            agent.act(np.zeros((4, OBS), np.float32), deterministic=False)
            other = make_agent("td3_bc")  # passes of the same sizes take the same memory in turn
            other.update(make_batch(70 + u))
    for p, q in zip(taped.networks.parameters(), plain.networks.parameters(), strict=True):
        assert torch.equal(p, q)


def test_steps_of_other_shapes_and_threads_have_tapes_of_their_own() -> None:
    plain, taped = (make_agent("sac", replay=on) for on in (False, True))
    before = torch.get_num_threads()
    try:
        for u in range(12):
            torch.set_num_threads(1 + u // 6)
            for agent in (plain, taped):
                agent.update(make_batch(u, rows=8 if u % 2 else 24))
    finally:
        torch.set_num_threads(before)
    assert taped._tapes.count() == 4
    for p, q in zip(taped.networks.parameters(), plain.networks.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_restored_agent_and_new_settings_begin_new_tapes() -> None:
    plain, taped = (make_agent("iql", replay=on) for on in (False, True))
    for agent in (plain, taped):
        for u in range(4):
            agent.update(make_batch(u))
        first = agent.networks.actor.net.parts[0][0]
        first.data = first.data.clone()  # elsewhere in memory
        agent.set_normalizer(np.full(OBS, 0.5), np.full(OBS, 2.0))
        agent.optimizer.learning_rates["actor"] = np.array([1e-2])
        for u in range(4, 9):
            agent.update(make_batch(u))
    for p, q in zip(taped.networks.parameters(), plain.networks.parameters(), strict=True):
        assert torch.equal(p, q)


class Fading(IQLObjective):
    """An objective of somebody's own, whose host decides something anew at every step."""

    steps = 0

    def terms(self, *args: object, **kwargs: object) -> dict[str, Term]:
        self.steps += 1
        terms = super().terms(*args, **kwargs)  # type: ignore[arg-type]
        return {name: Term(term.loss * 0.5**self.steps, term.info) for name, term in terms.items()}


def test_an_objective_of_ones_own_is_never_taped() -> None:
    plain, taped = (make_agent("iql", replay=on) for on in (False, True))
    for agent in (plain, taped):
        agent.offline = Fading(agent.networks, agent.settings)
        for u in range(6):
            agent.update(make_batch(u))
    assert taped._tapes.count() == 0
    for p, q in zip(taped.networks.parameters(), plain.networks.parameters(), strict=True):
        assert torch.equal(p, q)


def test_an_objective_put_in_later_replaces_what_was_taped() -> None:
    agent = make_agent("iql")
    for u in range(4):
        agent.update(make_batch(u))
    assert agent._tapes.count() == 1
    fading = agent.offline = Fading(agent.networks, agent.settings)
    agent.update(make_batch(5))
    assert fading.steps == 1


def test_few_tapes_are_kept() -> None:
    agent = make_agent("sac")
    for rows in range(1, 20):
        for u in range(3):
            agent.update(make_batch(u, rows=rows))
    assert agent._tapes.count() == 12


def test_float64_and_compiled_agents_have_no_tapes() -> None:
    agent = make_agent("td3").double()
    batch = {k: np.asarray(v[0], np.float64) for k, v in make_batch(0)._asdict().items()}
    for _ in range(4):
        agent.update(batch)
    assert agent._tapes.count() == 0


@pytest.mark.parametrize("work", [lambda x: x.sum().item(), lambda x: x.normal_(), lambda x: torch.tensor([1.0]) * x])
def test_what_a_tape_would_not_see_is_refused(work: Callable[[Tensor], object]) -> None:
    with pytest.raises(Unrepeatable), record():
        work(torch.ones(3))
    with record() as tape:  # and nothing of it stays
        torch.ones(3).mul_(2)
    assert len(tape.operations) == 2


def test_a_tape_repeats_operations_of_every_form() -> None:
    x, y = torch.arange(6.0).view(2, 3), torch.zeros(2)

    def work() -> Tensor:
        seen = x[:, 1:].t()
        y.add_(seen.amin(0))
        best, where = x.max(1)  # two results
        rolled = torch.roll(x, 1, 0)  # without a variant that writes into given memory
        return torch.stack([y, best, where.to(x.dtype), rolled.sum(1)])

    with record() as tape:
        out = work()
    for value in (3.0, -1.0, 0.5):
        x.mul_(value).add_(value)
        before = y.clone()
        tape.replay()
        found = out.clone()
        y.copy_(before)
        assert torch.equal(found, work())


def test_what_nobody_reads_and_what_stays_the_same_is_left_out() -> None:
    x, kept, other = torch.ones(3), torch.zeros(3), torch.ones(3)
    with record() as tape:
        ones = torch.ones_like(x)
        changed = torch.ones_like(x)
        changed.add_(x)
        (x * 5).sum()  # nobody reads it
        out = x * ones + changed
        kept.copy_(other * 2)  # memory from before: somebody may look there
    count = len(tape.operations)
    tape.prune([out])
    assert count - len(tape.operations) == 3
    x.fill_(2.0)
    tape.replay()
    assert out.tolist() == [5.0] * 3
    assert kept.tolist() == [2.0] * 3


def test_metrics_are_settled_when_they_are_still_held() -> None:
    agent = make_agent("iql")
    for u in range(3):
        agent.update(make_batch(u))
    held = agent.update(make_batch(3))
    value = held["critic/q"].clone()
    for u in range(4, 7):
        agent.update(make_batch(u))
    assert torch.equal(held["critic/q"], value)


def test_a_metric_that_is_kept_without_its_update_keeps_its_value() -> None:
    plain, taped = (make_agent("iql", replay=on) for on in (False, True))
    kept = [[agent.update(make_batch(u))["critic/loss"] for u in range(6)] for agent in (plain, taped)]
    assert all(torch.equal(a, b) for a, b in zip(*kept, strict=True))


@pytest.mark.parametrize("name", ["sac", "td3", "iql"])
def test_acting_with_other_parameters_in_between_does_not_reach_the_steps(name: str) -> None:
    """As a running mean does: the kernels then point at the mean's memory."""
    plain, taped = (make_agent(name, replay=on) for on in (False, True))
    for agent in (plain, taped):
        mean = EMA(list(agent.networks.actor.parameters()), decay=0.9)
        for u in range(8):
            with mean.applied():
                agent.act(torch.zeros(1, 64, OBS))
            agent.update(make_batch(u), mix=Mix.uniform(1.0, 1))
            mean.update()
    assert taped._tapes.count() >= 1
    for p, q in zip(taped.networks.parameters(), plain.networks.parameters(), strict=True):
        assert torch.equal(p, q)


def test_agents_are_freed_with_their_tapes() -> None:
    import gc
    import weakref

    agent = make_agent("iql")
    for u in range(4):
        agent.update(make_batch(u))
    gone = weakref.ref(agent.networks)
    del agent
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("of", ["a stack", "a soft maximum"])
def test_what_another_agent_holds_for_its_way_back_is_not_a_tape_s(of: str) -> None:
    one, other = make_agent("cql"), make_agent("cql", members=1)
    for u in range(4):
        one.update(make_batch(u))
    assert one._tapes.count() == 1
    critic, rows = other.networks.critic, make_batch(9)
    tried = torch.rand(1, 30, ROWS, ACTION, generator=torch.Generator().manual_seed(0))

    def value() -> Tensor:
        if of == "a stack":
            q: Tensor = critic(torch.cat([rows.obs, rows.action], -1))
            return q.square().mean()
        return soft_maximum(critic, rows.obs, tried, torch.zeros(1, 30, ROWS)).sum()

    parameters = list(critic.parameters())
    wanted = torch.autograd.grad(value(), parameters)
    held = value()
    one.update(make_batch(5))
    for a, b in zip(torch.autograd.grad(held, parameters), wanted, strict=True):
        assert torch.equal(a, b)


def test_a_tape_does_not_wake_torch_s_compiler() -> None:
    """Its import takes a second and 70 MB, with sympy."""
    code = (
        "import sys; from tests.agents.test_tapes import make_agent, make_batch\n"
        "agent = make_agent('sac')\n"
        "for u in range(4): agent.update(make_batch(u))\n"
        "print(agent._tapes.count(), 'torch._dynamo' in sys.modules, 'sympy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False", "False"]
