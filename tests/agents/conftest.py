"""What the kernels may depend on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from o2o_smooth.kernels.cpu import HALF_WAYS, HalfWay, half_way, library, unavailable


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(params=HALF_WAYS)
def way(request: pytest.FixtureRequest) -> Iterator[HalfWay]:
    """Every way to multiply bfloat16 that this processor and this torch have."""
    wanted: HalfWay = request.param
    if unavailable() is not None:
        pytest.skip(f"no native kernels here: {unavailable()}")
    lib, before = library(), HALF_WAYS.index(half_way())
    if lib.o2o_half_way(HALF_WAYS.index(wanted)) != HALF_WAYS.index(wanted):
        pytest.skip(f"this machine cannot multiply bfloat16 by {wanted}")
    yield wanted
    lib.o2o_half_way(before)
