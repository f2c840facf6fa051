"""The compiled update against the eager one, and how often it is compiled."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from o2o_smooth.agents import AGENTS, Agent, compiling
from o2o_smooth.agents.networks import Precision
from o2o_smooth.data.batch import Batch, as_batch
from o2o_smooth.kernels.cpu import unavailable
from o2o_smooth.smoothing.objective import Mix
from tests.agents.helpers import ACT, OBS

pytestmark = [
    pytest.mark.slow,
    # torch's own inductor still uses torch.jit.script_method when it starts
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def _graphs() -> int:
    """Graphs that have been compiled since the test began."""
    return int(counters["stats"]["unique_graphs"])


def _agent(name: str, online: str | None, *, compile: bool, dtype: torch.dtype = torch.float32) -> Agent:
    cls = AGENTS[name]
    agent = cls(OBS, ACT, cls.config_class(hidden_dims=(16, 16)), online=online, seeds=(0, 1), compile=compile)
    return agent.double() if dtype is torch.float64 else agent


def _batch(seed: int, dtype: torch.dtype = torch.float32) -> Batch:
    rng = np.random.default_rng(seed)
    rows = {
        "obs": rng.normal(size=(2, 32, 3)),
        "action": rng.uniform(-1, 1, size=(2, 32, 2)),
        "reward": rng.normal(size=(2, 32)),
        "next_obs": rng.normal(size=(2, 32, 3)),
        "terminated": rng.random((2, 32)) < 0.1,
        "mc_return": rng.normal(size=(2, 32)),
    }
    return as_batch(rows, members=2, dtype=dtype)


def _mix(step: int) -> Mix:
    """Offline, a ramp on which the members are at different places, online."""
    if step < 30:
        return Mix.uniform(0.0, 2)
    if step >= 70:
        return Mix.uniform(1.0, 2)
    w = (step - 29) / 42
    return Mix({name: np.array([w, w / 2]) for name in ("actor", "critic", "value", "temperature")})


@pytest.mark.parametrize(
    ("name", "online", "dtype"),
    [
        ("iql", "sac", torch.float32),
        ("iql", "sac", torch.float64),
        ("cql", "sac", torch.float32),
        ("td3_bc", "td3", torch.float32),
    ],
)
def test_a_hundred_compiled_updates_are_those_of_the_eager_agent(name: str, online: str, dtype: torch.dtype) -> None:
    eager, compiled = (_agent(name, online, compile=c, dtype=dtype) for c in (False, True))
    loose = dtype is torch.float32
    for step in range(100):
        batch, other, mix = _batch(step, dtype), _batch(1000 + step, dtype), _mix(step)
        losses = [dict(agent.update(batch, other, mix=mix)) for agent in (eager, compiled)]
        assert losses[0].keys() == losses[1].keys()
        for key, value in losses[0].items():
            tolerance = (2e-3, 2e-3) if loose else (1e-9, 1e-9)
            torch.testing.assert_close(losses[1][key], value, rtol=tolerance[0], atol=tolerance[1], msg=f"{key} {step}")
    for a, b in zip(eager.networks.parameters(), compiled.networks.parameters(), strict=True):
        tolerance = (1e-2, 1e-3) if loose else (1e-9, 1e-10)
        torch.testing.assert_close(a, b, rtol=tolerance[0], atol=tolerance[1])
    moved = _agent(name, online, compile=False, dtype=dtype)
    assert not torch.allclose(next(moved.networks.critic.parameters()), next(compiled.networks.critic.parameters()))


def test_nothing_is_compiled_again_when_a_weight_moves_a_phase_comes_back_or_members_differ() -> None:
    agent = _agent("iql", "sac", compile=True)
    batch, other = _batch(0), _batch(1)

    def update(*weights: float) -> int:
        w = np.array(weights)
        agent.update(batch, other, mix=Mix(dict.fromkeys(("actor", "critic", "value", "temperature"), w)))
        return _graphs()

    offline = update(0.0, 0.0)
    mixed = update(0.5, 0.5)
    online = update(1.0, 1.0)
    assert 0 < offline < mixed < online
    for weights in ((0.1, 0.1), (0.7, 0.7), (0.2, 0.9), (0.0, 0.4), (0.4, 1.0), (0.0, 1.0)):
        assert update(*weights) == online, weights
    assert update(0.0, 0.0) == online
    assert update(1.0, 1.0) == online
    assert update(0.5, 0.1) == online


def test_members_of_other_settings_share_the_graph() -> None:
    cls = AGENTS["iql"]
    overrides = [{"expectile": 0.6, "beta": 1.0}, {"expectile": 0.9, "beta": 5.0}]
    agent = cls(OBS, ACT, cls.config_class(hidden_dims=(16, 16)), seeds=(0, 1), compile=True, overrides=overrides)
    eager = cls(OBS, ACT, cls.config_class(hidden_dims=(16, 16)), seeds=(0, 1), overrides=overrides)
    agent.update(_batch(0))
    once = _graphs()
    for step in range(1, 5):
        agent.update(_batch(step))
    for step in range(5):
        eager.update(_batch(step))
    assert _graphs() == once
    for a, b in zip(eager.networks.parameters(), agent.networks.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_vector_instructions_are_taken_as_known_only_while_a_step_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setattr(compiling, "unavailable", lambda: None)
    seen: list[bool | None] = []

    def compiled(x: int) -> int:
        seen.append(config.cpp.vec_isa_ok)
        return x + 1

    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled)
    with config.patch({"cpp.vec_isa_ok": None}):
        step = compiling.compile_step(lambda x: x)
        assert [step(1), step(2)] == [2, 3]
    assert seen == [True, None]
    with config.patch({"cpp.vec_isa_ok": False}):  # somebody's own choice
        compiling.compile_step(lambda x: x)(1)
    assert seen[-1] is False
    monkeypatch.setattr(compiling, "unavailable", lambda: "no C compiler")
    with config.patch({"cpp.vec_isa_ok": None}):
        compiling.compile_step(lambda x: x)(1)
    assert seen[-1] is None


def test_only_the_probes_of_instructions_that_every_compiler_knows_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch._inductor.cpu_vec_isa import VecAMX, VecAVX512, VecAVX512VNNI, VecISA

    built: list[str] = []

    def build(isa: VecISA, code: str) -> bool:
        built.append(code)
        return False

    monkeypatch.setattr(VecISA, "check_build", build)
    with compiling._without_probes():
        assert VecAVX512().check_build(VecAVX512._avx512_bf16_code)
        assert VecAVX512VNNI().check_build(VecAVX512VNNI._avx512_vnni_code)
        assert not VecAMX().check_build(VecAMX._amx_code)
    assert built == [VecAMX._amx_code]
    assert VecISA.check_build is build


def test_headers_are_begun_once_with_the_callers_settings_and_cannot_hurt(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import codecache, config, cpu_vec_isa

    called = threading.Event()
    seen: list[tuple[tuple[bool | None, int | None], str]] = []

    def load(argument_types: list[str], source: str) -> None:
        seen.append(((config.cpp.vec_isa_ok, config.cpp.simdlen), source))
        called.set()
        raise RuntimeError("no space left on device")

    monkeypatch.setattr(compiling, "unavailable", lambda: None)
    monkeypatch.setattr(compiling, "_headers_begun", threading.Event())
    monkeypatch.setattr(cpu_vec_isa, "pick_vec_isa", lambda: None)
    monkeypatch.setattr(codecache.CppPythonBindingsCodeCache, "load_pybinding_async", load)
    with config.patch({"cpp.vec_isa_ok": None, "cpp.simdlen": 256}):
        compiling.begin_headers()
        compiling.begin_headers()
    assert called.wait(60)
    assert [settings for settings, _ in seen] == [(True, 256)]
    assert "cpp_prefix.h" in seen[0][1]


def test_headers_that_cannot_be_begun_leave_the_agent_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpu_vec_isa

    def broken() -> None:
        raise OSError("no C++ compiler")

    monkeypatch.setattr(compiling, "unavailable", lambda: None)
    monkeypatch.setattr(compiling, "_headers_begun", threading.Event())
    monkeypatch.setattr(cpu_vec_isa, "pick_vec_isa", broken)
    assert _agent("iql", "sac", compile=True).compile


def test_headers_that_a_killed_compiler_left_are_removed(tmp_path: Path) -> None:
    for name, content, age in (("left", b"gpcWrite..", 600), ("whole", b"gpch.014..", 600), ("now", b"gpcWrite..", 0)):
        (tmp_path / f"{name}.h.gch").write_bytes(content)
        then = time.time() - age
        os.utime(tmp_path / f"{name}.h.gch", (then, then))
    compiling.remove_unfinished(tmp_path)
    compiling.remove_unfinished(tmp_path / "absent")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["now.h.gch", "whole.h.gch"]


def test_what_two_threads_replace_in_the_compiler_is_put_back() -> None:
    from torch._inductor.cpu_vec_isa import VecISA

    before = VecISA.check_build
    first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        with compiling._trusting():
            first_in.set()
            second_in.wait(0.5)
        first_out.set()

    def second() -> None:
        first_in.wait()
        with compiling._trusting():
            second_in.set()
            first_out.wait(0.5)

    threads = [threading.Thread(target=f) for f in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert VecISA.check_build is before


@pytest.mark.skipif(unavailable() is not None, reason=f"native kernels: {unavailable()}")
def test_a_first_compilation_finds_the_headers_that_were_begun_for_it(tmp_path: Path) -> None:
    """In a process and with caches of its own; a header that torch built for itself would be a second one."""
    program = """
import logging
import torch
logging.basicConfig()
logging.getLogger("o2o_smooth.agents.compiling").setLevel("DEBUG")
from o2o_smooth.agents import compiling
compiling.begin_headers()
step = compiling.compile_step(lambda x: (x.exp() + 1).log().sum())
x = torch.linspace(-1, 1, 100)
torch.testing.assert_close(step(x), (x.exp() + 1).log().sum())
from torch._dynamo.utils import counters
assert counters["stats"]["unique_graphs"] == 1
"""
    environment = os.environ | {"TMPDIR": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "compiled ahead" not in done.stderr
    assert len(list(tmp_path.rglob("*.gch"))) == 1


def test_compiled_updates_in_half_precision_are_those_of_the_eager_agent() -> None:
    def parameters(*, compile: bool, precision: Precision) -> torch.Tensor:
        cls = AGENTS["iql"]
        config = cls.config_class(hidden_dims=(16, 16))
        agent = cls(OBS, ACT, config, seeds=(0, 1), compile=compile, precision=precision)
        for step in range(5):
            agent.update(_batch(step))
        return torch.cat([p.detach().flatten() for p in agent.networks.parameters()])

    eager, compiled = (parameters(compile=c, precision="bf16") for c in (False, True))
    single = parameters(compile=False, precision="fp32")
    # Adam makes a whole step of a gradient near zero, whatever its sign: a few parameters go another way.
    assert float((compiled - eager).abs().median()) < 1e-5
    assert float((compiled - eager).norm()) < 0.2 * float((single - eager).norm())
