from __future__ import annotations

import numpy as np
import pytest
import torch

from o2o_smooth.data.transfer import fetch, to_device

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
]


@pytest.mark.parametrize("device", DEVICES)
def test_there_and_back(device: str) -> None:
    rng = np.random.default_rng(0)
    for array in (rng.normal(size=(3, 4)), rng.normal(size=(4, 3)).astype(np.float32).T, np.arange(5)):
        tensor = to_device(array, torch.device(device))
        assert tensor.device.type == device
        back = fetch(tensor * 2)
        np.testing.assert_array_equal(back(), array * 2)
        np.testing.assert_array_equal(back(), array * 2)  # it may be asked again


@pytest.mark.parametrize("device", DEVICES)
def test_a_fetched_array_stays_as_it_was(device: str) -> None:
    tensor = to_device(np.ones(3, np.float32), torch.device(device))
    back = fetch(tensor.clone())
    tensor.zero_()
    assert back().tolist() == [1.0, 1.0, 1.0]


def test_on_the_cpu_nothing_is_copied() -> None:
    array = np.zeros(3, np.float32)
    to_device(array, torch.device("cpu"))[1] = 5.0
    assert array.tolist() == [0.0, 5.0, 0.0]
