"""Random draws that depend only on (seed, name, step): no global generator, no stream to save.

Each draw seeds its own generator from a hash, so a population member gets the same numbers as the same member alone,
arms forked from one checkpoint share their draws, and a resumed run goes on exactly where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


def mix64(*values: int) -> int:
    """Hash integers to 64 bits (splitmix64's finaliser over a running sum)."""
    state = 0x9E3779B97F4A7C15
    for value in values:
        state = (state + (value & _MASK) * 0xBF58476D1CE4E5B9 + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


class Draws:
    """Named draws for a population: one seed per member.

    Args:
        seeds: One seed per member; equal seeds draw equal numbers.
        device: Where the numbers are made.
        dtype: Floating dtype of the numbers.
    """

    def __init__(
        self, seeds: Sequence[int], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.seeds = tuple(int(s) for s in seeds)
        self.device = torch.device(device)
        self.dtype = dtype
        self._generator = torch.Generator(device=self.device)

    def _seeded(self, member: int, name: str, step: int) -> torch.Generator:
        # The CPU generator keeps only 32 bits of its seed; the hash spreads them well.
        return self._generator.manual_seed(mix64(self.seeds[member], crc32(name.encode()), step) >> 1)

    def normal(self, name: str, step: int, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers, (M, *shape)."""
        out = torch.empty((len(self.seeds), *shape), device=self.device, dtype=self.dtype)
        for member in range(len(self.seeds)):
            out[member].normal_(generator=self._seeded(member, name, step))
        return out

    def uniform(self, name: str, step: int, shape: Sequence[int], low: float = -1.0, high: float = 1.0) -> Tensor:
        """Uniform numbers in [low, high), (M, *shape)."""
        out = torch.empty((len(self.seeds), *shape), device=self.device, dtype=self.dtype)
        for member in range(len(self.seeds)):
            out[member].uniform_(low, high, generator=self._seeded(member, name, step))
        return out

    def integers(self, name: str, step: int, count: int, high: int) -> Tensor:
        """Integers in [0, high), (M, count), int64."""
        out = torch.empty((len(self.seeds), count), device=self.device, dtype=torch.int64)
        for member in range(len(self.seeds)):
            out[member].random_(0, high, generator=self._seeded(member, name, step))
        return out
