"""Updates as real CUDA graphs; what can be shown without a GPU is in `test_graphed`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from o2o_smooth.agents import Agent
from o2o_smooth.data.transfer import fetch
from o2o_smooth.smoothing.objective import Mix
from o2o_smooth.training.graphed import GraphedLearner
from tests.training.test_graphed import (
    AGENTS_AND_ONLINE,
    OBS_DIM,
    assert_equal,
    assert_metrics,
    collect,
    course,
    make_agent,
    make_learner,
    ramp,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def on_gpu(name: str, online: str, *, double: bool = False) -> Agent:
    return make_agent(name, online, device="cuda", double=double)


@pytest.mark.parametrize(("name", "online"), AGENTS_AND_ONLINE)
@pytest.mark.parametrize("apart", [False, True])
def test_graphs_are_the_updates_of_the_plain_learner(name: str, online: str, apart: bool) -> None:
    plain = make_learner(on_gpu(name, online, double=True), graphs="off")
    learner = make_learner(on_gpu(name, online, double=True), graphs="on")
    assert isinstance(learner, GraphedLearner)
    for _ in range(3):  # once as it stands, once captured, once replayed
        mine, theirs = course(learner, apart=apart), course(plain, apart=apart)
    assert_metrics(mine, theirs, rtol=1e-6, atol=1e-8)
    assert_equal(learner.agent, plain.agent, rtol=1e-6, atol=1e-8)
    assert any(program.replay is not None for program in learner.programs.values())


@pytest.mark.parametrize(("name", "online"), AGENTS_AND_ONLINE)
def test_the_gpu_has_the_numbers_of_the_cpu(name: str, online: str) -> None:
    """Given the same draws."""
    there = make_learner(on_gpu(name, online, double=True), graphs="on")
    here = make_learner(make_agent(name, online), plain=True)
    course(there)
    course(here)
    for mine, theirs in zip(there.agent.networks.parameters(), here.agent.networks.parameters(), strict=True):
        torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-6, atol=1e-8)


@pytest.fixture
def no_waiting() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    yield
    torch.cuda.set_sync_debug_mode(before)


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize(("name", "online"), AGENTS_AND_ONLINE)
@pytest.mark.parametrize("graphs", ["on", "off"])
def test_nothing_in_the_loop_waits_for_the_device(name: str, online: str, graphs: str) -> None:
    learner = make_learner(on_gpu(name, online), graphs=graphs)
    agent = learner.agent
    obs = torch.zeros((agent.members, 2, OBS_DIM), device="cuda")

    def loop(t: int) -> None:
        fetch(agent.act(obs, deterministic=False, step=t))
        learner.offline_updates(16)
        learner.online_updates([ramp(agent.members, t + i) for i in range(2)])
        learner.online_updates([Mix.uniform(1.0, agent.members)] * 2)
        collect(learner, t)

    for t in [*range(6, 12)] * 3:
        loop(t)
    torch.cuda.set_sync_debug_mode("error")
    for t in range(6, 12):
        loop(t)
