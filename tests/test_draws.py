from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from o2o_smooth.draws import CounterDraws, Draws, _finalise, make_draws, mix64

integers64 = st.integers(-(2**63), 2**64 - 1)


def test_members_draws_do_not_depend_on_the_population() -> None:
    population = Draws([7, 3, 11])
    for row, seed in enumerate((7, 3, 11)):
        alone = Draws([seed])
        for step in (0, 1, 10**9):
            assert torch.equal(population.normal("a", step, (4, 5))[row], alone.normal("a", step, (4, 5))[0])
            assert torch.equal(population.uniform("a", step, (3,))[row], alone.uniform("a", step, (3,))[0])
            assert torch.equal(population.integers("a", step, 9, 100)[row], alone.integers("a", step, 9, 100)[0])


def test_draws_depend_on_seed_name_and_step_and_on_nothing_before() -> None:
    draws = Draws([0])
    first = draws.normal("policy", 5, (8,))
    draws.normal("next", 5, (3,))
    draws.uniform("policy", 6, (100,))
    assert torch.equal(draws.normal("policy", 5, (8,)), first)
    for other in (
        draws.normal("next", 5, (8,)),
        draws.normal("policy", 6, (8,)),
        Draws([1]).normal("policy", 5, (8,)),
    ):
        assert (other != first).all()


def test_equal_seeds_draw_equal_numbers() -> None:
    a, b = Draws([4, 4]).normal("x", 0, (6,))
    assert torch.equal(a, b)


def test_global_generators_are_neither_read_nor_moved() -> None:
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    first = Draws([0, 1]).normal("x", 0, (5,))
    Draws([0, 1]).uniform("x", 0, (5,))
    Draws([0, 1]).integers("x", 0, 5, 10)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(123)
    assert torch.equal(Draws([0, 1]).normal("x", 0, (5,)), first)


def test_dtype_is_the_one_asked_for() -> None:
    draws = Draws([0], dtype=torch.float64)
    assert draws.normal("x", 0, (2,)).dtype == draws.uniform("x", 0, (2,)).dtype == torch.float64
    assert Draws([0]).normal("x", 0, (2,)).dtype == torch.float32
    assert draws.integers("x", 0, 2, 5).dtype == torch.int64
    assert (draws.normal("x", 0, (2,)).float().double() != draws.normal("x", 0, (2,))).all()  # all 53 bits


def test_shapes_have_the_members_in_front() -> None:
    draws = Draws([0, 1, 2])
    assert draws.normal("x", 0, (4, 5)).shape == (3, 4, 5)
    assert draws.uniform("x", 0, ()).shape == (3,)
    assert draws.integers("x", 0, 6, 2).shape == (3, 6)


def test_moments_are_those_of_the_distribution() -> None:
    draws = Draws([0, 1], dtype=torch.float64)
    normal = draws.normal("x", 0, (100_000,)).numpy()
    uniform = draws.uniform("x", 0, (100_000,), -2.0, 4.0).numpy()
    np.testing.assert_allclose(normal.mean(1), 0.0, atol=0.02)
    np.testing.assert_allclose(normal.std(1), 1.0, atol=0.02)
    np.testing.assert_allclose((normal**4).mean(1), 3.0, atol=0.15)
    np.testing.assert_allclose(uniform.mean(1), 1.0, atol=0.03)
    np.testing.assert_allclose(uniform.std(1), 6 / np.sqrt(12), atol=0.03)
    assert uniform.min() >= -2.0
    assert uniform.max() < 4.0
    assert abs(np.corrcoef(normal)[0, 1]) < 0.02


def test_first_numbers_of_successive_steps_are_independent() -> None:
    # each draw seeds a generator anew: neighbouring steps and seeds must not give related first numbers
    firsts = torch.stack([Draws(range(4), dtype=torch.float64).uniform("x", step, (1,))[:, 0] for step in range(2000)])
    table = firsts.numpy()
    np.testing.assert_allclose(table.mean(0), 0.0, atol=0.05)
    np.testing.assert_allclose(table.std(0), 1 / np.sqrt(3), atol=0.03)
    assert np.abs(np.corrcoef(table.T) - np.eye(4)).max() < 0.08
    assert np.abs([np.corrcoef(column[:-1], column[1:])[0, 1] for column in table.T]).max() < 0.08


@pytest.mark.parametrize("high", [1, 2, 7])
def test_integers_stay_in_range_and_hit_every_value_evenly(high: int) -> None:
    drawn = Draws([0, 5]).integers("rows", 3, 7000, high)
    for row in drawn:
        counts = np.bincount(row.numpy(), minlength=high)
        assert len(counts) == high
        np.testing.assert_allclose(counts, 7000 / high, rtol=0.15)


@given(st.lists(integers64, min_size=1, max_size=4), st.data())
def test_hash_is_64_bits_and_every_value_and_place_matters(values: list[int], data: st.DataObject) -> None:
    mixed = mix64(*values)
    assert 0 <= mixed < 2**64
    place = data.draw(st.integers(0, len(values) - 1))
    other = list(values)
    other[place] = data.draw(integers64.filter(lambda v: v % 2**64 != values[place] % 2**64))
    assert mix64(*other) != mixed
    assert mix64(*values, 0) != mixed


def test_negative_and_large_seeds_and_steps_are_told_apart() -> None:
    seeds = [0, -1, 1, 2**31, 2**32, 2**63, -(2**63) + 1]
    table = Draws(seeds).normal("x", 0, (4,))
    assert len({tuple(row.tolist()) for row in table}) == len(seeds)


# Draws by counter


def test_counted_members_draw_what_they_would_alone_and_names_and_steps_differ() -> None:
    population = CounterDraws([7, 3, 11])
    for m, seed in enumerate([7, 3, 11]):
        alone = CounterDraws([seed])
        assert torch.equal(population.normal("x", 4, (3, 2))[m], alone.normal("x", 4, (3, 2))[0])
        assert torch.equal(population.uniform("x", 4, (5,))[m], alone.uniform("x", 4, (5,))[0])
        assert torch.equal(population.integers("x", 4, 9, 100)[m], alone.integers("x", 4, 9, 100)[0])
    a, b = CounterDraws([4, 4]).normal("x", 0, (6,))
    assert torch.equal(a, b)
    first = population.normal("policy", 5, (8,))
    for other in (population.normal("next", 5, (8,)), population.normal("policy", 6, (8,)), first[[1, 2, 0]]):
        assert (other != first).all()


def test_several_steps_at_once_are_the_same_steps_one_by_one() -> None:
    draws = CounterDraws([0, 9], dtype=torch.float64)
    steps = torch.tensor([3, 2**33, 5])
    ways: dict[str, Callable[[int | torch.Tensor], torch.Tensor]] = {
        "normal": lambda step: draws.normal("x", step, (4, 2)),
        "uniform": lambda step: draws.uniform("x", step, (4, 2), -2.0, 3.0),
        "integers": lambda step: draws.integers("x", step, 6, 50),
    }
    for name, made in ways.items():
        together = made(steps)
        assert together.shape[:2] == (3, 2), name
        for k, step in enumerate(steps.tolist()):
            assert torch.equal(together[k], made(step)), name
            assert torch.equal(together[k], made(torch.tensor(step))), name


def test_a_counted_draw_of_fewer_numbers_begins_a_larger_one() -> None:
    draws = CounterDraws([0, 1])
    assert torch.equal(draws.normal("x", 3, (2, 5)), draws.normal("x", 3, (4, 5))[:, :2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_counted_draws_have_their_distributions(dtype: torch.dtype) -> None:
    draws = CounterDraws([0, 1], dtype=dtype)
    normal = draws.normal("x", 0, (100_000,)).double().numpy()
    uniform = draws.uniform("x", 0, (100_000,), -2.0, 4.0).double().numpy()
    assert np.abs(normal).max() < 7.0
    assert ((uniform >= -2.0) & (uniform < 4.0)).all()
    for m in range(2):
        assert stats.kstest(normal[m], "norm").pvalue > 1e-3
        assert stats.kstest(uniform[m], "uniform", (-2.0, 6.0)).pvalue > 1e-3


def test_counted_draws_are_independent_between_members_names_and_steps() -> None:
    draws = CounterDraws(range(4), dtype=torch.float64)
    n = 20_000
    streams = [draws.normal(name, torch.arange(3), (n,)).flatten(0, 1) for name in ("next", "policy", "explore")]
    streams.append(draws.normal("next", 0, (n + 1,))[:, 1:])  # neighbours within a draw
    correlation = torch.corrcoef(torch.cat(streams)).fill_diagonal_(0.0)
    assert correlation.abs().max() < 5 / n**0.5
    # The first number of a draw, over steps: what a weak mixing of the counter would show.
    firsts = draws.uniform("x", torch.arange(20_000), (1,))[:, :, 0]
    assert torch.corrcoef(torch.cat([firsts[:-1], firsts[1:]], 1).T).fill_diagonal_(0.0).abs().max() < 5 / n**0.5
    assert stats.kstest(firsts[:, 0].numpy(), "uniform", (-1.0, 2.0)).pvalue > 1e-3


@pytest.mark.parametrize("high", [1, 7, 1000, 2**40])
def test_counted_integers_reach_all_of_their_range(high: int) -> None:
    drawn = CounterDraws([0, 5]).integers("rows", 3, 7000, torch.tensor(high))
    assert drawn.dtype == torch.int64
    assert ((drawn >= 0) & (drawn < high)).all()
    assert torch.equal(drawn, CounterDraws([0, 5]).integers("rows", 3, 7000, high))
    if high <= 7:
        counts = torch.stack([row.bincount(minlength=high) for row in drawn]).numpy()
        assert (stats.chisquare(counts, axis=1).pvalue > 1e-3).all() if high > 1 else (counts == 7000).all()
    else:
        assert stats.kstest(drawn[0].numpy() / high, "uniform").pvalue > 1e-3


def test_the_counted_hash_is_splitmix64() -> None:
    """The first outputs of the reference implementation for seed 1234567."""
    state = torch.tensor([(1234567 + (k + 1) * 0x9E3779B97F4A7C15) % 2**64 for k in range(3)], dtype=torch.uint64)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [v % 2**64 for v in _finalise(state.view(torch.int64)).tolist()] == expected


def test_the_cpu_keeps_its_generators() -> None:
    assert type(make_draws([0], torch.device("cpu"))) is Draws
    assert type(make_draws([0], torch.device("meta"))) is CounterDraws
