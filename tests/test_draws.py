from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from o2o_smooth.draws import Draws, mix64

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
