"""The native CPU kernels against plain torch: outputs, gradients, steps, whole updates."""

from __future__ import annotations

import copy
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from o2o_smooth.agents import AGENTS, Agent, heads, stacked
from o2o_smooth.agents.native_heads import native
from o2o_smooth.agents.networks import MLP, Precision
from o2o_smooth.agents.optimizer import MemberAdam
from o2o_smooth.data.batch import Batch, as_batch
from o2o_smooth.kernels import build, calls
from o2o_smooth.kernels.cpu import HalfWay, library
from o2o_smooth.smoothing.objective import Mix
from tests.agents.helpers import ACT, OBS
from tests.agents.stacks import needs_kernels, plain, rounded_stack, stack

STACKS = [  # members, copies, rows, layer norm, hidden layers, outputs
    (1, 2, 256, False, (64, 64), 1),
    (1, 1, 130, True, (64, 48, 32), 12),
    (3, 2, 100, True, (40, 24), 1),
    (1, 1, 7, False, (16,), 1),
    (2, 1, 700, False, (32, 48), 5),  # rows beyond one chunk of the backward pass
    (1, 1, 600, True, (32, 48), 1),
    (1, 3, 33, False, (24, 24), 2),
]


def _pass(
    net: MLP,
    rows: int,
    dtype: torch.dtype,
    *,
    frozen: bool,
    copies: int | None,
    precision: Precision = "fp32",
    through: Callable[[MLP, Tensor], Tensor] | None = None,
) -> list[Tensor]:
    """Output and all gradients for fixed numbers."""
    net = copy.deepcopy(net).to(dtype)
    net.precision = precision
    generator = torch.Generator().manual_seed(3)
    used = copies or net.copies
    x = torch.empty(net.members, rows, 23).normal_(generator=generator).to(dtype).requires_grad_()
    weights = torch.empty(net.members, used, rows, net.weights[-1].shape[-1]).normal_(generator=generator).to(dtype)
    y = net(x, frozen=frozen, copies=copies) if through is None else through(net, x)
    inputs = [x] if frozen else [x, *net.parameters()]
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), inputs)]


@needs_kernels
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("shape", STACKS)
def test_a_stack_has_the_outputs_and_gradients_of_plain_torch_in_float64(
    shape: tuple[Any, ...], frozen: bool, threads: int
) -> None:
    members, copies, rows, layer_norm, hidden, out = shape
    net = stack(members, copies, layer_norm, hidden, out)
    for used in (None, 1) if frozen else (None,):
        single = _pass(net, rows, torch.float32, frozen=frozen, copies=used)
        exact = _pass(net, rows, torch.float64, frozen=frozen, copies=used)
        for a, b in zip(single, exact, strict=True):
            scale = float(b.abs().max())
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=3e-6 * scale)


@needs_kernels
@pytest.mark.parametrize("shape", STACKS)
def test_half_precision_is_as_near_to_float64_as_plain_torch_in_half_precision(shape: tuple[Any, ...]) -> None:
    members, copies, rows, layer_norm, hidden, out = shape
    net = stack(members, copies, layer_norm, hidden, out)
    for frozen, used in ((False, None), (True, None), (True, 1)):
        ours = _pass(net, rows, torch.float32, frozen=frozen, copies=used, precision="bf16")
        exact = _pass(net, rows, torch.float64, frozen=frozen, copies=used)
        with plain():
            theirs = _pass(net, rows, torch.float32, frozen=frozen, copies=used, precision="bf16")
        for a, b, e in zip(ours, theirs, exact, strict=True):
            norm = float(e.norm())
            error, reference = float((a.double() - e).norm()) / norm, float((b.double() - e).norm()) / norm
            assert error < 2 * reference + 5e-3, (frozen, used, tuple(e.shape))
            assert error < 0.15
        assert any(float((a.double() - e).norm()) > 1e-4 * float(e.norm()) for a, e in zip(ours, exact, strict=True))


PRODUCTS = [
    (1, 1, 1),
    (6, 16, 2),
    (7, 17, 3),
    (5, 64, 32),
    (128, 48, 256),
    (256, 23, 96),
    (17, 256, 31),
    (300, 70, 1100),
]


@pytest.mark.parametrize("across", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("size", PRODUCTS)
def test_a_half_product_is_that_of_rounded_matrices(
    way: HalfWay, size: tuple[int, int, int], across: tuple[bool, bool]
) -> None:
    m, n, k = size
    generator = torch.Generator().manual_seed(m)
    a, b = (
        (torch.randn(shape[::-1], generator=generator).t() if turned else torch.randn(shape, generator=generator))
        for shape, turned in zip(((m, k), (k, n)), across, strict=True)
    )
    exact = a.bfloat16().double() @ b.bfloat16().double()
    before = torch.randn(m, n + 3, generator=generator)
    for add in (0, 1):
        c = before.clone()
        strides = (a.data_ptr(), *a.stride(), b.data_ptr(), *b.stride())
        library().o2o_half_product(m, n, k, *strides, c.data_ptr(), n + 3, add)
        expected = exact + add * before[:, :n].double()
        torch.testing.assert_close(c[:, :n].double(), expected, rtol=1e-5, atol=1e-6 * float(exact.abs().max() + 1))
        assert torch.equal(c[:, n:], before[:, n:])


def test_a_half_product_rounds_to_even_and_keeps_nan_and_infinity(way: HalfWay) -> None:
    one = torch.eye(4)
    ties = torch.tensor([[1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 1 + 2**-8 + 2**-16], [3e38, -3e38, torch.inf, 0.0]])
    odd = torch.tensor([[torch.nan, 1.0], [1.0, 2.0]])
    for matrix in (ties, odd):
        m, n = matrix.shape
        c = torch.empty(m, n)
        identity = one[:n, :n].contiguous()
        library().o2o_half_product(m, n, n, matrix.data_ptr(), n, 1, identity.data_ptr(), n, 1, c.data_ptr(), n, 0)
        torch.testing.assert_close(c, matrix.bfloat16().float() @ identity, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", STACKS)
def test_a_stack_in_half_precision_is_a_float64_stack_with_rounded_products(
    way: HalfWay, shape: tuple[Any, ...]
) -> None:
    members, copies, rows, layer_norm, hidden, out = shape
    net = stack(members, copies, layer_norm, hidden, out)
    ours = _pass(net, rows, torch.float32, frozen=False, copies=None, precision="bf16")
    theirs = _pass(net, rows, torch.float64, frozen=False, copies=None, through=rounded_stack)
    for a, b in zip(ours, theirs, strict=True):
        # a sum that float32 ends on the other side of a tie is another bfloat16 in the next layer
        assert float((a.double() - b).norm()) < 2e-4 * float(b.norm()), tuple(b.shape)


@needs_kernels
def test_rows_that_lie_apart_are_read_where_they_are() -> None:
    net = stack(2, 2, False, (16, 16), 1)
    wide = torch.randn(2, 40, 30, generator=torch.Generator().manual_seed(1))
    part = wide[..., 4:27]
    assert not part.is_contiguous()
    with torch.no_grad():
        torch.testing.assert_close(net(part), net(part.contiguous()), rtol=0, atol=0)


@needs_kernels
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_pass_that_no_cache_holds_is_that_of_its_parts(layer_norm: bool, precision: Precision) -> None:
    """Beyond 16 MiB activations pass by the caches; the same rows in two passes stay below."""
    net = stack(1, 2, layer_norm, (256, 248), 1)
    net.precision = precision
    rows = 4096 if layer_norm else 8192
    x = torch.randn(1, rows, 23, generator=torch.Generator().manual_seed(5))
    halves = x.chunk(2, dim=1)
    whole = net(x)
    parts = [net(half) for half in halves]
    assert torch.equal(whole, torch.cat(parts, dim=2))
    together = torch.autograd.grad(whole.square().mean(), list(net.parameters()))
    apart = torch.autograd.grad(torch.stack([part.square().mean() for part in parts]).mean(), list(net.parameters()))
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@needs_kernels
def test_nan_stays_nan() -> None:
    net = stack(1, 2, False, (16, 16), 1)
    x = torch.zeros(1, 4, 23)
    x[0, 2] = torch.nan
    with torch.no_grad():
        broken = torch.isnan(net(x))[0, :, :, 0]
    assert broken.tolist() == [[False, False, True, False]] * 2
    out = torch.zeros(1, 2, 12)
    out[0, 1] = torch.nan
    log_prob = heads.gaussian_log_prob(out, torch.zeros(1, 2, 6), 0.02)
    action, _ = heads.gaussian_sample(out, torch.zeros(1, 1, 2, 6))
    assert torch.isnan(log_prob).tolist() == [[False, True]]
    assert torch.isnan(action[0, 0]).all(-1).tolist() == [False, True]


@needs_kernels
def test_two_passes_through_one_network_do_not_share_their_memory() -> None:
    """The second forward pass must not overwrite what the first one's backward pass needs."""
    net = stack(1, 1, False, (32, 32), 1)
    a, b = (torch.randn(1, 50, 23, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    parameters = list(net.parameters())
    alone = [torch.autograd.grad(net(x).square().sum(), parameters) for x in (a, b)]
    together = torch.autograd.grad(net(a).square().sum() + net(b).square().sum(), parameters)
    for one, two, both in zip(*alone, together, strict=True):
        torch.testing.assert_close(one + two, both, rtol=1e-5, atol=1e-5)


def _heads() -> dict[str, tuple[Callable[..., Any], list[Tensor]]]:
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.empty(shape).normal_(generator=g) * scale

    m, e, b, a, n = 3, 2, 50, 6, 4
    uniform = torch.empty(m, b, a).uniform_(-1, 1, generator=g)
    uniform[0, 0], uniform[0, 1] = 1.0, -1.0
    per_member = torch.tensor([0.6, 0.7, 0.9])
    return {
        "td_error": (heads.td_error, [normal(m, e, b), normal(m, b)]),
        "expectile": (lambda v, y: heads.expectile_error(y, v, 0.7), [normal(m, b), normal(m, b)]),
        "expectile_each": (
            lambda v, y: heads.expectile_error(y, v, per_member[:, None].to(v)),
            [normal(m, b), normal(m, b)],
        ),
        "advantage": (lambda p, x: heads.advantage_weighted(p, x, 3.0), [normal(m, b), normal(m, b, scale=2.0)]),
        "advantage_each": (
            lambda p, x: heads.advantage_weighted(p, x, per_member[:, None].to(p)),
            [normal(m, b), normal(m, b)],
        ),
        "log_prob": (lambda o, x: heads.gaussian_log_prob(o, x, 0.02), [normal(m, b, 2 * a, scale=3.0), uniform]),
        "log_prob_each": (
            lambda o, x: heads.gaussian_log_prob(o, x, per_member[:, None, None].to(o) / 10),
            [normal(m, b, 2 * a), uniform],
        ),
        "sample": (heads.gaussian_sample, [normal(m, b, 2 * a, scale=3.0), normal(m, n, b, a)]),
        "sample_far": (heads.gaussian_sample, [normal(m, b, 2 * a, scale=30.0), normal(m, n, b, a)]),
        "least": (lambda q, _: heads.least(q.detach()) + 0 * q.sum(), [normal(m, e, b), normal(m, b)]),
        "td_target": (
            lambda q, x: (
                heads.td_target(x, (x > 1).to(x), per_member[:, None].to(x), q) + 0 * q.sum(),
                heads.td_target(x, (x > 1).to(x), 0.9, q[:, :1], x * x) + 0 * q.sum(),
            ),
            [normal(m, 3, b), normal(m, b)],
        ),
        "smoothed": (
            lambda o, x: (
                heads.smoothed_action(o, x, 0.4, 0.5) + 0 * o.sum(),
                heads.smoothed_action(o, x, per_member[:, None, None].to(x), per_member[:, None, None].to(x))
                + 0 * o.sum(),
            ),
            [normal(m, b, a, scale=2.0), normal(m, b, a)],
        ),
        "policy_value": (lambda q, _: heads.policy_value(q, 2.5), [normal(m, b, scale=9.0), normal(m, b)]),
        "policy_value_each": (
            lambda q, _: heads.policy_value(q, per_member[:, None].to(q)),
            [normal(m, b, scale=9.0), normal(m, b)],
        ),
        "policy_value_plain": (lambda q, _: heads.policy_value(q, None), [normal(m, b), normal(m, b)]),
        "mean_square": (heads.mean_square, [normal(m, b, a), normal(m, b, a)]),
        "soft_value": (
            lambda q, p: heads.soft_value(q, p, per_member.to(p)),
            [normal(m, e, b).round(), normal(m, b)],  # rounded: some critics agree, and share the gradient
        ),
        "soft_value_density": (
            lambda p, q: heads.soft_value(q, p, per_member.to(p)),
            [normal(m, b), normal(m, 3, b)],
        ),
        "squashed": (lambda o, _: heads.squashed(o), [normal(m, b, a, scale=3.0), normal(m, b)]),
        "entropy_gap": (
            lambda p, _: heads.entropy_gap(p, -2.5) + 0 * p.sum(),
            [normal(m, b, scale=4.0), normal(m, b)],
        ),
        "entropy_gap_each": (
            lambda p, _: heads.entropy_gap(p, per_member[:, None].to(p)) + 0 * p.sum(),
            [normal(m, b), normal(m, b)],
        ),
        "sample_wide": (heads.gaussian_sample, [normal(1, 3, 2 * 1500), normal(1, 2, 3, 1500)]),
    }


@needs_kernels
@pytest.mark.parametrize("name", list(_heads()))
def test_heads_have_the_values_and_gradients_of_plain_torch_in_float64(name: str) -> None:
    function, (first, second) = _heads()[name]
    stacked.make_ready()
    assert native(first)

    def results(dtype: torch.dtype) -> list[Tensor]:
        x = first.to(dtype).requires_grad_()
        out = function(x, second.to(dtype))
        out = out if isinstance(out, tuple) else (out,)
        g = torch.Generator().manual_seed(1)
        parts = [(y * torch.empty(y.shape).normal_(generator=g).to(dtype)).sum() for y in out]
        return [*(y.detach() for y in out), *torch.autograd.grad(torch.stack(parts).sum(), x)]

    for a, b in zip(results(torch.float32), results(torch.float64), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=3e-6 * max(1.0, float(b.abs().max())))


def test_the_table_of_signatures_is_that_of_the_sources() -> None:
    sources = "".join((Path(build.__file__).parent / f"{part}.c").read_text() for part in build.SOURCES)
    kinds = {"int64_t": "i", "int": "n", "float": "f", "uint64_t": "u", "uint32_t": "u"}
    found = {}
    for name, arguments in re.findall(r"^void o2o_(\w+)\(([^)]*)\) \{", sources, re.MULTILINE):
        found[name] = "".join("p" if "*" in one else kinds[one.split()[-2]] for one in arguments.split(","))
    del found["init"], found["integers"]  # of their own kind
    assert found == dict(calls.SIGNATURES)
    assert max(map(len, found.values())) <= calls._WORDS


@needs_kernels
def test_a_nan_among_critics_is_seen() -> None:
    q = torch.zeros(1, 3, 3)
    for e in range(3):
        q[0, e, e] = math.nan
    still = torch.zeros(1, 3)
    loss, low = heads.soft_value(q, still, torch.ones(1))
    found = (heads.least(q), heads.td_target(still, still, 0.9, q), low)
    assert all(bool(x.isnan().all()) for x in found)
    assert bool(loss.isnan().all())


@needs_kernels
def test_a_batch_is_encoded_as_in_plain_torch_and_lies_side_by_side() -> None:
    g = torch.Generator().manual_seed(0)
    packed = torch.empty(2, 40, 3 + 3 + 2 + 4).normal_(generator=g)
    obs, next_obs, action, _ = torch.split(packed, [3, 3, 2, 4], -1)
    scales = tuple(torch.empty(n).uniform_(0.5, 2.0, generator=g) for n in (3, 3, 2, 2))
    ours = heads.encode_batch(obs, next_obs, action, scales, 0.9)  # type: ignore[arg-type]
    with plain():
        theirs = heads.encode_batch(obs, next_obs, action, scales, 0.9)  # type: ignore[arg-type]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    joined = heads.join(ours[0], ours[2])
    assert joined.data_ptr() == ours[0].data_ptr()
    torch.testing.assert_close(joined, torch.cat([theirs[0], theirs[2]], -1), rtol=1e-6, atol=1e-7)
    for first, second in ((ours[0], action), (obs, action), (ours[1], ours[2]), (ours[0], ours[2].requires_grad_())):
        torch.testing.assert_close(heads.join(first, second), torch.cat([first, second], -1), rtol=0, atol=0)


@needs_kernels
def test_adam_and_targets_are_those_of_plain_torch() -> None:
    """Members that step at different times, at rates of their own, with targets that follow some of them."""
    rng = np.random.default_rng(0)
    g = torch.Generator().manual_seed(0)
    start = [torch.empty(s).normal_(generator=g) for s in ((3, 2, 40, 500), (3, 7), (3,))]

    def make(dtype: torch.dtype) -> tuple[MemberAdam, list[torch.nn.Parameter], list[Tensor]]:
        parameters = [torch.nn.Parameter(x.to(dtype)) for x in start]
        targets = [x.to(dtype) + 1 for x in start[:2]]
        rates = {"critic": np.array([1e-2, 3e-3, 1e-3])}
        return MemberAdam({"critic": parameters}, rates, {"critic": targets}), parameters, targets

    sides = [make(torch.float32), make(torch.float64)]
    assert sides[0][0]._native() and not sides[1][0]._native()
    for step in range(25):
        mask, moving = rng.random(3) < 0.7, rng.random(3) < 0.5
        for adam, parameters, _ in sides:
            gradient = torch.Generator().manual_seed(step)
            for p in parameters:
                p.grad = torch.empty(p.shape).normal_(generator=gradient).to(p.dtype)
            if step % 5 == 0:
                parameters[1].grad = None  # zero, not "leave alone"
            adam.step({"critic": mask}, moving=moving, tau=np.array([0.1, 0.2, 0.3]))
    (_, ours, our_targets), (_, theirs, their_targets) = sides
    for a, b in zip((*ours, *our_targets), (*theirs, *their_targets), strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-6)


def _agent(name: str) -> Agent:
    cls = AGENTS[name]
    return cls(OBS, ACT, cls.config_class(hidden_dims=(32, 32), critic_layer_norm=True), seeds=(3, 8))


def _batch(seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    rows = {
        "obs": rng.normal(size=(2, 64, 3)),
        "action": rng.uniform(-1, 1, size=(2, 64, 2)),
        "reward": rng.normal(size=(2, 64)),
        "next_obs": rng.normal(size=(2, 64, 3)),
        "terminated": rng.random((2, 64)) < 0.1,
        "mc_return": rng.normal(size=(2, 64)),
    }
    return as_batch(rows, members=2)


@needs_kernels
@pytest.mark.parametrize("w", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", sorted(AGENTS))
def test_updates_with_and_without_kernels_agree(name: str, w: float) -> None:
    """From the same start, ten updates of every agent: the same parameters up to rounding."""
    agents = [_agent(name) for _ in range(2)]
    batches = [(_batch(s), _batch(100 + s)) for s in range(10)]
    for offline, online in batches:
        agents[0].update(offline, online, mix=Mix.uniform(w, 2))
    with plain():
        for offline, online in batches:
            agents[1].update(offline, online, mix=Mix.uniform(w, 2))
    moved = 0.0
    fresh = _agent(name)
    for a, b, c in zip(*(x.networks.parameters() for x in (*agents, fresh)), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-4)
        moved = max(moved, float((a - c).detach().abs().max()))
    assert moved > 1e-3


@needs_kernels
def test_a_parameter_changed_by_the_kernels_is_known_to_autograd() -> None:
    p = torch.nn.Parameter(torch.ones(1, 4))
    adam = MemberAdam({"actor": [p]}, {"actor": 0.1})
    loss = p.square().sum()
    p.grad = torch.ones_like(p)
    adam.step({"actor": np.ones(1, bool)})
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # type: ignore[no-untyped-call]


def test_without_a_compiler_the_reason_is_told_and_everything_works(tmp_path: Path) -> None:
    code = (
        "import torch\n"
        "from o2o_smooth.kernels.cpu import unavailable\n"
        "from o2o_smooth.agents.networks import MLP\n"
        "y = MLP(1, 2, 3, (8,), 1, layer_norm=False)(torch.zeros(1, 4, 3))\n"
        "print(tuple(y.shape), unavailable())\n"
    )
    environment = {**os.environ, "PATH": str(tmp_path), "O2O_SMOOTH_CACHE": str(tmp_path / "cache")}
    environment.pop("CC", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "(1, 2, 4, 1) there is no C compiler; install gcc" in done.stdout
    environment = {**os.environ, "O2O_SMOOTH_KERNELS": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "switched off by O2O_SMOOTH_KERNELS=0" in done.stdout


@needs_kernels
@pytest.mark.slow
def test_kernels_are_built_once_and_survive_a_broken_cache(tmp_path: Path) -> None:
    code = "from o2o_smooth.kernels.cpu import unavailable; print(unavailable())"
    environment = {**os.environ, "O2O_SMOOTH_CACHE": str(tmp_path / "cache")}

    def run() -> str:
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert run() == "None"
    (built,) = (tmp_path / "cache").glob("*.so")
    stamp = built.stat().st_mtime_ns
    assert run() == "None"
    assert built.stat().st_mtime_ns == stamp
    built.write_bytes(b"not a library")
    assert "remove it to have it built anew" in run()


@needs_kernels
def test_nothing_is_loaded_from_a_file_that_others_may_write(tmp_path: Path) -> None:
    path = tmp_path / "kernels.so"
    path.write_bytes(b"")
    path.chmod(0o666)
    with pytest.raises(build.BuildError, match="can be written by others"):
        build.check_owner(path)


@needs_kernels
def test_several_python_threads_may_use_the_kernels_at_once() -> None:
    """One of them gets the pool, the others work alone; the numbers are the same."""
    from concurrent.futures import ThreadPoolExecutor

    nets = [stack(1, 2, False, (64, 64), 1) for _ in range(4)]
    x = torch.randn(1, 256, 23, generator=torch.Generator().manual_seed(0))

    def evaluate(net: MLP) -> list[Tensor]:
        return [torch.autograd.grad(net(x).square().sum(), list(net.parameters()))[0] for _ in range(20)]

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        expected = evaluate(nets[0])[0]
        with ThreadPoolExecutor(4) as executor:
            for results in executor.map(evaluate, nets):
                for result in results:
                    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-4)
    finally:
        torch.set_num_threads(before)


@needs_kernels
def test_a_forked_child_works_without_its_parents_threads() -> None:
    code = (
        "import os, torch\n"
        "from o2o_smooth.agents.networks import MLP\n"
        "torch.set_num_threads(2)\n"
        "net = MLP(1, 2, 23, (64, 64), 1, layer_norm=False)\n"
        "net.initialise(0, torch.Generator().manual_seed(0))\n"
        "x = torch.ones(1, 256, 23)\n"
        "with torch.no_grad():\n"
        "    expected = net(x)\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        os._exit(0 if all(torch.equal(net(x), expected) for _ in range(5)) else 3)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), bool((expected != 0).any()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["0", "True"]
