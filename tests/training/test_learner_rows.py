"""Rows on their way from a buffer into an update: drawn ahead, encoded by the kernel; always the same rows."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from o2o_smooth.agents import AGENTS, Agent
from o2o_smooth.data.batch import Transitions
from o2o_smooth.data.buffer import ReplayBuffer, pack
from o2o_smooth.data.normalize import RewardMap
from o2o_smooth.draws import CounterDraws, Draws
from o2o_smooth.errors import DataError
from o2o_smooth.kernels.cpu import unavailable
from o2o_smooth.kernels.rows import HIGHEST, Encoder
from o2o_smooth.smoothing.objective import Mix
from o2o_smooth.training import learner as learner_module
from o2o_smooth.training.learner import Learner

OBS, ACTION, ROWS = 5, 3, 200
needs_kernels = pytest.mark.skipif(unavailable() is not None, reason=f"no native kernels here: {unavailable()}")


def arrays(n: int, seed: int) -> list[np.ndarray]:
    g = np.random.default_rng(seed)
    ended = g.random(n) < 0.1
    cut = ~ended & (g.random(n) < 0.1)
    cut[-1], ended[-1] = True, False
    obs, following = g.normal(size=(2, n, OBS)).astype(np.float32)
    action = g.uniform(-2.0, 3.0, (n, ACTION)).astype(np.float32)
    return [obs, action, g.normal(size=n).astype(np.float32), following, ended, cut]


def offline(members: int) -> ReplayBuffer:
    """A dataset with held-out rows and mapped rewards."""
    held = ((0, 3), (50, 61), (190, 200))
    reward_map = RewardMap(0.37, -1.3)
    return ReplayBuffer.from_transitions(
        Transitions(*arrays(ROWS, 0)), members, discount=0.99, reward_map=reward_map, held_out=held
    )


def online(members: int, written: int) -> ReplayBuffer:
    """Rings of each member's own, which have gone over their end where more than 64 are written."""
    buffer = ReplayBuffer(members, 64, OBS, ACTION)
    rows = [pack(*arrays(written, 10 + m)) for m in range(members)]
    buffer.add(np.stack(rows))
    return buffer


def agent_of(members: int, *, replay: bool = True) -> Agent:
    box = gym.spaces.Box(-np.inf, np.inf, (OBS,), np.float32)
    action = gym.spaces.Box(np.array([-2, -1, 0], np.float32), np.array([3, 1, 4], np.float32), (ACTION,), np.float32)
    config = AGENTS["td3_bc"].config_class(hidden_dims=(16, 16))
    agent = AGENTS["td3_bc"](box, action, config, seeds=tuple(range(members)))
    agent.set_normalizer(np.linspace(-1, 1, OBS), np.linspace(0.5, 2, OBS))
    agent.replay = replay
    return agent


def parameters(agent: Agent) -> Tensor:
    return torch.cat([p.detach().flatten() for p in agent.networks.parameters()])


@needs_kernels
@pytest.mark.parametrize("members", [1, 3])
def test_encoded_rows_are_those_of_the_gathered_batch(members: int) -> None:
    drawn, gathered = agent_of(members), agent_of(members)
    for buffer in (offline(members), online(members, 40), online(members, 100)):
        for step in range(6):  # the second step of a kind is recorded, those after it are repeated
            index = drawn.draws.integers("rows", step, 16, len(buffer))
            ours, theirs = drawn.update(buffer.drawn(index)), gathered.update(buffer.gather(index))
            assert {k: v.tolist() for k, v in ours.items()} == {k: v.tolist() for k, v in theirs.items()}
        assert drawn._tapes.count() > 0
        assert torch.equal(parameters(drawn), parameters(gathered))


@needs_kernels
@pytest.mark.parametrize("count", [1, 64, 193])
def test_threads_gather_the_same_rows_and_find_the_first_that_is_none(count: int) -> None:
    members, before = 3, torch.get_num_threads()
    buffer = offline(members)
    scales = (torch.zeros(OBS), torch.full((OBS,), 1.7), torch.full((ACTION,), 0.5), torch.ones(ACTION))
    index = torch.randint(0, len(buffer), (members, count), generator=torch.Generator().manual_seed(0))
    made = []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            memory = [torch.full((members, count, OBS + ACTION), torch.nan)]
            memory += [torch.full((members, count, OBS), torch.nan), torch.full((4, members, count), torch.nan)]
            encode = Encoder(scales, 0.9, *memory)
            encode(buffer.packed, len(buffer), index)
            made.append([x.clone() for x in memory])
            wrong = index.clone()
            wrong[2, count // 2] = wrong[1, count // 3] = 10**6
            wrong[2, 0] = -5
            with pytest.raises(IndexError, match="row number 1000000 is not among"):
                encode(buffer.packed, len(buffer), wrong)
    finally:
        torch.set_num_threads(before)
    for one, several in zip(*made, strict=True):
        assert not one.isnan().any()
        assert torch.equal(one, several)


@needs_kernels
def test_a_number_that_is_no_row_is_refused() -> None:
    agent, buffer = agent_of(1), online(1, 40)
    index = torch.arange(16)[None]
    for _ in range(4):
        agent.update(buffer.drawn(index))
    for wrong in (40, 64, -1):
        with pytest.raises(IndexError, match=f"row number {wrong} is not among the 40 rows"):
            agent.update(buffer.drawn(torch.where(index == 7, wrong, index)))


def test_numbers_that_are_not_as_the_kernel_reads_them_are_refused_or_put_in_order() -> None:
    buffer = online(2, 40)
    for wrong in (torch.zeros((2, 4), dtype=torch.int32), torch.zeros((1, 4), dtype=torch.int64), torch.arange(4)):
        with pytest.raises(DataError, match=r"expected torch.int64 of \(2, B\)"):
            buffer.drawn(wrong)
    apart = torch.arange(32).view(2, 16)[:, ::2]
    drawn = buffer.drawn(apart)
    assert drawn.index.is_contiguous()
    assert torch.equal(drawn.index, apart)


def test_members_that_are_pretrained_for_others_read_a_shared_buffer() -> None:
    """Of runs that differ after the switch alone, one of each seed is pretrained, on the rows of all."""
    buffer, index = offline(4), torch.arange(8).view(2, 4)
    assert torch.equal(buffer.drawn(index).batch().obs, buffer.gather(index).obs)
    assert buffer.drawn(index).shape == (2, 4, OBS)


def test_rows_of_another_size_or_number_of_members_are_refused() -> None:
    other = ReplayBuffer(1, 8, OBS + 1, ACTION)
    other.add(np.zeros((1, 8, 2 * (OBS + 1) + ACTION + 4), np.float32))
    with pytest.raises(DataError, match="observations of 6 and actions of 3"):
        agent_of(1).update(other.drawn(torch.zeros((1, 4), dtype=torch.int64)))
    with pytest.raises(DataError, match="the batch has 2 members, the agent 1"):
        agent_of(1).update(online(2, 40).drawn(torch.zeros((2, 4), dtype=torch.int64)))


def learner_of(members: int, *, replay: bool = True, written: int = 50) -> Learner:
    rows = online(members, written)
    return Learner(agent_of(members, replay=replay), batch_size=16, offline_rows=offline(members), online_rows=rows)


def test_updates_at_once_are_those_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner_module, "DRAWS_AT_ONCE", 4)
    at_once, one_by_one, plain = learner_of(2), learner_of(2), learner_of(2, replay=False)
    mixes = [Mix.uniform(w, 2) for w in np.linspace(0.0, 1.0, 9)]
    at_once.offline_updates(11)
    at_once.online_updates(mixes)
    at_once.online_rows = online(2, 60)  # more rows: numbers that were drawn for fewer must not be used
    at_once.online_updates(mixes[5:])
    for single in (one_by_one, plain):
        for _ in range(11):
            single.offline_update()
        for mix in mixes:
            single.online_update(mix)
        single.online_rows = online(2, 60)
        for mix in mixes[5:]:
            single.online_update(mix)
    assert torch.equal(parameters(at_once.agent), parameters(one_by_one.agent))
    torch.testing.assert_close(parameters(at_once.agent), parameters(plain.agent), rtol=1e-3, atol=1e-4)


def test_numbers_drawn_ahead_are_not_used_after_draws_begin_anew() -> None:
    learner = learner_of(1)
    learner._ahead = 8
    first = learner._numbers("offline_rows", 100)
    learner.agent.updates += 1
    learner.agent.draws = Draws([77])
    assert torch.equal(learner._numbers("offline_rows", 100), Draws([77]).integers("offline_rows", 1, 16, 100))
    assert torch.equal(first, Draws([0]).integers("offline_rows", 0, 16, 100))


@needs_kernels
@pytest.mark.parametrize("high", [1, 2, 3, 1000, 99_991, 2**20 + 7, 2**27 + 11, HIGHEST, HIGHEST + 1, 2**33])
def test_integers_are_those_of_torchs_generator(high: int) -> None:
    draws = Draws([0, 7, -3, 2**63])
    for step, count in ((0, 1), (5, 256), (10**9, 623), (6, 624), (7, 625), (2**40, 2000)):
        expected = torch.empty((4, count), dtype=torch.int64)
        for member in range(4):
            expected[member].random_(0, high, generator=draws._seeded(member, "rows", step))
        assert torch.equal(draws.integers("rows", step, count, high), expected)


@pytest.mark.parametrize("draws", [Draws([0, 5]), CounterDraws([0, 5])])
def test_a_series_is_the_draws_of_its_steps(draws: Draws) -> None:
    series = draws.series("rows", 3, 5, 7, 100)
    assert [x.tolist() for x in series] == [draws.integers("rows", 3 + k, 7, 100).tolist() for k in range(5)]


def test_numbers_drawn_ahead_are_not_used_where_there_are_other_rows() -> None:
    learner = learner_of(1)
    learner._ahead = 8
    learner._numbers("online_rows", 100)
    learner.agent.updates += 1
    assert torch.equal(learner._numbers("online_rows", 90), Draws([0]).integers("online_rows", 1, 16, 90))
