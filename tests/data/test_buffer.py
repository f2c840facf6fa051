from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from o2o_smooth.data.batch import Transitions
from o2o_smooth.data.buffer import ReplayBuffer, concatenate, pack, unpack
from o2o_smooth.data.store import UNKNOWN_RETURN
from o2o_smooth.errors import ConfigError, DataError

O, A = 3, 2  # noqa: E741 - observation and action, as everywhere
WIDTH = 2 * O + A + 4

Rows = NDArray[np.float32]


def numbered(first: int, count: int, members: int = 1) -> Rows:
    """Packed rows (members, count, width): row k of member m is 1000 m + k in every column, its return unknown."""
    values = 1000 * np.arange(members)[:, None] + first + np.arange(count)
    rows = np.repeat(values[..., None], WIDTH, axis=-1).astype(np.float32)
    rows[..., -1] = UNKNOWN_RETURN
    return rows


def slots(buffer: ReplayBuffer) -> NDArray[np.float32]:
    """Reward of every slot in use, (M, len)."""
    index = torch.arange(len(buffer)).expand(buffer.members, -1)
    return buffer.gather(index).reward.numpy()


def test_oldest_rows_go_first_when_the_ring_is_full() -> None:
    buffer = ReplayBuffer(1, 5, O, A)
    assert len(buffer) == 0
    buffer.add(numbered(0, 3))
    assert (len(buffer), buffer.written) == (3, 3)
    assert slots(buffer).tolist() == [[0, 1, 2]]
    buffer.add(numbered(3, 4))  # wraps around
    assert (len(buffer), buffer.written) == (5, 7)
    assert slots(buffer).tolist() == [[5, 6, 2, 3, 4]]


def test_write_larger_than_the_ring_keeps_its_last_rows_in_their_slots() -> None:
    buffer = ReplayBuffer(2, 4, O, A)
    buffer.add(numbered(0, 3, 2))
    buffer.add(numbered(3, 10, 2))
    assert buffer.written == 13
    assert slots(buffer).tolist() == [[12, 9, 10, 11], [1012, 1009, 1010, 1011]]  # row k sits at k % capacity


def test_empty_write_changes_nothing() -> None:
    buffer = ReplayBuffer(1, 4, O, A)
    buffer.add(numbered(0, 2))
    buffer.add(numbered(2, 0))
    assert buffer.written == 2


def test_members_gather_from_their_own_rings() -> None:
    buffer = ReplayBuffer(3, 4, O, A)
    buffer.add(numbered(0, 4, 3))
    batch = buffer.gather(torch.tensor([[0, 3, 3], [1, 1, 1], [2, 0, 3]]))
    assert batch.reward.tolist() == [[0, 3, 3], [1001, 1001, 1001], [2002, 2000, 2003]]
    assert batch.obs.shape == (3, 3, O)
    assert batch.action.shape == (3, 3, A)


def test_shared_ring_serves_every_member() -> None:
    buffer = ReplayBuffer(3, 4, O, A, shared=True)
    buffer.add(numbered(0, 4))
    assert buffer.gather(torch.tensor([[0, 3], [1, 1], [2, 0]])).reward.tolist() == [[0, 3], [1, 1], [2, 0]]


def test_batch_is_a_copy_of_the_rows() -> None:
    buffer = ReplayBuffer(1, 4, O, A)
    buffer.add(numbered(0, 4))
    batch = buffer.gather(torch.tensor([[0]]))
    batch.obs.zero_()
    batch.reward.fill_(9)
    assert slots(buffer).tolist() == [[0, 1, 2, 3]]


def test_write_copies_the_rows() -> None:
    buffer = ReplayBuffer(1, 4, O, A)
    rows = numbered(0, 2)
    buffer.add(rows)
    rows[:] = 99
    assert slots(buffer).tolist() == [[0, 1]]


def test_returns_of_finished_episodes_are_filled_in_for_their_member_only() -> None:
    buffer = ReplayBuffer(2, 6, O, A)
    buffer.add(numbered(0, 6, 2))
    buffer.set_mc_returns(1, np.array([1, 3, 5]), np.array([10, 30, 50], np.float32))
    batch = buffer.gather(torch.arange(6).expand(2, -1))
    unknown = UNKNOWN_RETURN
    assert batch.mc_return[0].tolist() == [unknown] * 6
    assert batch.mc_return[1].tolist() == [unknown, 10, unknown, 30, unknown, 50]
    assert batch.reward[1].tolist() == [1000, 1001, 1002, 1003, 1004, 1005]


def test_returns_of_overwritten_rows_are_left_out() -> None:
    buffer = ReplayBuffer(1, 4, O, A)
    buffer.add(numbered(0, 7))  # rows 3 to 6 are alive
    buffer.set_mc_returns(0, np.arange(1, 6), np.arange(1, 6, dtype=np.float32))
    batch = buffer.gather(torch.arange(4)[None])
    rows_to_returns = dict(zip(batch.reward[0].tolist(), batch.mc_return[0].tolist(), strict=True))
    assert rows_to_returns == {3: 3, 4: 4, 5: 5, 6: UNKNOWN_RETURN}


def test_new_row_in_an_old_slot_has_no_return_of_its_predecessor() -> None:
    buffer = ReplayBuffer(1, 2, O, A)
    buffer.add(numbered(0, 2))
    buffer.set_mc_returns(0, np.array([0, 1]), np.array([7, 8], np.float32))
    buffer.add(numbered(2, 1))
    assert buffer.gather(torch.tensor([[0, 1]])).mc_return.tolist() == [[UNKNOWN_RETURN, 8]]


def random_fields(rng: np.random.Generator, *shape: int) -> dict[str, NDArray[Any]]:
    return {
        "obs": rng.normal(size=(*shape, O)).astype(np.float32),
        "action": rng.normal(size=(*shape, A)).astype(np.float32),
        "reward": rng.normal(size=shape).astype(np.float32),
        "next_obs": rng.normal(size=(*shape, O)).astype(np.float32),
        "terminated": rng.random(shape) < 0.5,
        "truncated": rng.random(shape) < 0.5,
        "mc_return": rng.normal(size=shape).astype(np.float32),
    }


def test_packed_rows_unpack_to_the_same_fields() -> None:
    fields = random_fields(np.random.default_rng(0), 2, 5)
    batch = unpack(torch.from_numpy(pack(**fields)), O, A)
    for name, value in batch._asdict().items():
        np.testing.assert_array_equal(value.numpy(), fields[name].astype(np.float32))


def test_return_is_unknown_unless_given() -> None:
    fields = random_fields(np.random.default_rng(0), 4)
    del fields["mc_return"]
    assert (pack(**fields)[..., -1] == UNKNOWN_RETURN).all()


def test_dataset_becomes_a_full_shared_buffer_with_its_returns() -> None:
    fields = random_fields(np.random.default_rng(1), 6)
    del fields["mc_return"]
    fields["reward"] = np.array([1, 2, 3, 4, 5, 6], np.float32)
    fields["terminated"] = np.array([False, True, False, False, False, False])
    fields["truncated"] = np.array([False, False, False, True, False, False])
    buffer = ReplayBuffer.from_transitions(Transitions(**fields), 2, discount=0.5)
    assert (len(buffer), buffer.capacity, buffer.shared) == (6, 6, True)
    batch = buffer.gather(torch.tensor([[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]]))
    for name, value in fields.items():
        np.testing.assert_array_equal(getattr(batch, name)[0], value.astype(np.float32))
        np.testing.assert_array_equal(getattr(batch, name)[1], value[::-1].astype(np.float32))
    assert batch.mc_return[0].tolist() == [2.0, 2.0, 5.0, 4.0, 8.0, 6.0]


def test_batches_are_joined_along_the_rows() -> None:
    buffer = ReplayBuffer(2, 4, O, A)
    buffer.add(numbered(0, 4, 2))
    joined = concatenate(buffer.gather(torch.tensor([[0], [1]])), buffer.gather(torch.tensor([[2, 3], [3, 2]])))
    assert joined.reward.tolist() == [[0, 2, 3], [1001, 1003, 1002]]
    assert joined.obs.shape == (2, 3, O)


@pytest.mark.parametrize("shape", [(1, 2, WIDTH), (3, 2, WIDTH), (2, WIDTH), (2, 2, WIDTH - 1)])
def test_rows_of_another_shape_are_refused_with_both_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=rf"expected \(2, n, {WIDTH}\)") as error:
        ReplayBuffer(2, 4, O, A).add(np.zeros(shape, np.float32))
    assert str(shape) in str(error.value)


def test_capacity_that_cannot_be_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        ReplayBuffer(1, 0, O, A)
    with pytest.raises(ConfigError, match=r"GiB.*smaller capacity"):
        ReplayBuffer(1, 10**15, O, A)


writes = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 12)),
        st.tuples(st.just("returns"), st.integers(0, 10**6)),
    ),
    max_size=12,
)


@given(members=st.integers(1, 3), capacity=st.integers(1, 8), shared=st.booleans(), steps=writes)
@settings(max_examples=60)
def test_buffer_behaves_like_a_list_of_rows(
    members: int, capacity: int, shared: bool, steps: list[tuple[str, int]]
) -> None:
    buffer = ReplayBuffer(members, capacity, O, A, shared=shared)
    rings = 1 if shared else members
    model: list[list[NDArray[np.float32]]] = [[] for _ in range(rings)]  # every row ever written
    for kind, number in steps:
        written = len(model[0])
        if kind == "add":
            rows = numbered(written, number, rings)
            buffer.add(rows)
            for ring in range(rings):
                model[ring] += list(rows[ring].copy())
        elif written:
            rng = np.random.default_rng(number)
            member = int(rng.integers(rings))
            chosen = rng.choice(written, size=min(written, 3), replace=False)
            returns = rng.normal(size=len(chosen)).astype(np.float32)
            buffer.set_mc_returns(member, chosen, returns)
            for row, value in zip(chosen, returns, strict=True):
                model[member][row][-1] = value
    written = len(model[0])
    assert buffer.written == written
    assert len(buffer) == min(written, capacity)
    if not written:
        return
    alive = range(max(0, written - capacity), written)
    batch = buffer.gather(torch.tensor([k % capacity for k in alive]).expand(members, -1))
    for m in range(members):
        expected = np.stack([model[0 if shared else m][k] for k in alive])
        np.testing.assert_array_equal(batch.reward[m], expected[:, -4])
        np.testing.assert_array_equal(batch.mc_return[m], expected[:, -1])
        np.testing.assert_array_equal(batch.next_obs[m], expected[:, O : 2 * O])


MILLION = """
import re, sys
from pathlib import Path
import numpy as np
import torch
from o2o_smooth.data.buffer import ReplayBuffer, columns

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

rows, obs_dim, action_dim, chunk = 1_000_000, 29, 8, 4096
rng = np.random.default_rng(0)
packed = rng.normal(size=(1, chunk, columns(obs_dim, action_dim).width)).astype(np.float32)
torch.zeros(10).sum(), packed[:, ::2].copy()  # what every first call allocates
before = peak()
buffer = ReplayBuffer(1, rows, obs_dim, action_dim)
while buffer.written < rows + chunk:  # and once around
    buffer.add(packed)
    buffer.set_mc_returns(0, np.arange(buffer.written - chunk, buffer.written), packed[0, :, 0])
assert len(buffer) == rows
for seed in range(20):
    buffer.gather(torch.randint(rows, (1, 256), generator=torch.Generator().manual_seed(seed)))
print((peak() - before) / (rows * packed.shape[2] * 4))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_a_million_antmaze_rows_take_hardly_more_than_their_array() -> None:
    done = subprocess.run([sys.executable, "-c", MILLION], capture_output=True, text=True, check=True)
    assert 0.9 < float(done.stdout) <= 1.1
