from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from o2o_smooth.data import Transitions
from o2o_smooth.errors import DataError


def transitions(**changes: Any) -> Transitions:
    """Five steps: a terminated episode of two, a truncated one of two, and one that just stops."""
    arrays: dict[str, Any] = {
        "obs": np.arange(10, dtype=np.float32).reshape(5, 2),
        "action": np.zeros((5, 1), np.float32),
        "reward": np.array([1, 2, 4, 8, 16], np.float32),
        "next_obs": np.arange(10, dtype=np.float32).reshape(5, 2) + 2,
        "terminated": np.array([0, 1, 0, 0, 0], np.bool_),
        "truncated": np.array([0, 0, 0, 1, 0], np.bool_),
    }
    return Transitions(**(arrays | changes))


def test_episodes_end_at_both_flags_and_at_the_last_row() -> None:
    np.testing.assert_array_equal(transitions().episode_ends, [1, 3, 4])
    np.testing.assert_array_equal(transitions().episode_returns, [3, 12, 16])


def test_mc_return_is_discounted_and_stops_at_episode_ends() -> None:
    np.testing.assert_array_equal(transitions().mc_returns(0.5), [1 + 0.5 * 2, 2, 4 + 0.5 * 8, 8, 16])
    assert transitions().mc_returns(0.5).dtype == np.float32


@pytest.mark.parametrize("field", ["obs", "action", "reward", "next_obs"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_a_number_names_field_and_row(field: str, value: float) -> None:
    array = getattr(transitions(), field).copy()
    array[3] = value
    with pytest.raises(DataError, match=rf"{field} .* in 1 of 5 rows, first in row 3"):
        transitions(**{field: array})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reward": np.zeros((5, 1), np.float32)}, "reward has shape"),
        ({"next_obs": np.zeros((5, 3), np.float32)}, "next_obs has shape"),
        ({"terminated": np.zeros(4, np.bool_)}, "terminated has shape"),
        ({"obs": np.zeros(5, np.float32)}, "two axes"),
        ({"obs": np.zeros((0, 2), np.float32)}, "no transitions"),
        ({"action": np.zeros((5, 1))}, "action has dtype float64"),
        ({"truncated": np.zeros(5, np.float32)}, "truncated has dtype float32"),
    ],
)
def test_shape_or_dtype_that_does_not_fit_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        transitions(**changes)
