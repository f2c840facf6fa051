"""Random draws that depend only on (seed, name, step): no global generator, no stream to save.

On the CPU each draw seeds its own generator from a hash; elsewhere the hash itself gives the numbers. Either way a
population member gets the same numbers as the same member alone, arms forked from one checkpoint share their draws, and
a resumed run goes on exactly where it was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from o2o_smooth.data.transfer import to_device
from o2o_smooth.kernels.cpu import unavailable
from o2o_smooth.kernels.rows import HIGHEST, integers

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # as int64
_FIRST, _SECOND = 0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64)


def mix64(*values: int) -> int:
    """Hash integers to 64 bits (splitmix64's finaliser over a running sum)."""
    state = 0x9E3779B97F4A7C15
    for value in values:
        state = (state + (value & _MASK) * 0xBF58476D1CE4E5B9 + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


@cache
def _hashed(name: str) -> int:
    return crc32(name.encode())


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
        return self._generator.manual_seed(mix64(self.seeds[member], _hashed(name), step) >> 1)

    def normal(self, name: str, step: int, shape: Sequence[int], *, out: Tensor | None = None) -> Tensor:
        """Standard normal numbers, (M, *shape); into `out` where it is given."""
        if out is None:
            out = torch.empty((len(self.seeds), *shape), device=self.device, dtype=self.dtype)
        for member in range(len(self.seeds)):
            out[member].normal_(generator=self._seeded(member, name, step))
        return out

    def uniform(
        self,
        name: str,
        step: int,
        shape: Sequence[int],
        low: float = -1.0,
        high: float = 1.0,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """Uniform numbers in [low, high), (M, *shape); into `out` where it is given."""
        if out is None:
            out = torch.empty((len(self.seeds), *shape), device=self.device, dtype=self.dtype)
        for member in range(len(self.seeds)):
            out[member].uniform_(low, high, generator=self._seeded(member, name, step))
        return out

    def integers(self, name: str, step: int, count: int, high: int) -> Tensor:
        """Integers in [0, high), (M, count), int64."""
        return self.series(name, step, 1, count, high)[0]

    def series(self, name: str, step: int, steps: int, count: int, high: int) -> Sequence[Tensor]:
        """The `integers` of several steps, from `step` on."""
        out = torch.empty((steps, len(self.seeds), count), device=self.device, dtype=torch.int64)
        if self.device.type == "cpu" and 0 < high <= HIGHEST and unavailable() is None:
            integers(self.seeds, _hashed(name), step, high, out)
        else:
            for k in range(steps):
                for member in range(len(self.seeds)):
                    out[k, member].random_(0, high, generator=self._seeded(member, name, step + k))
        return out.unbind()


class CounterDraws(Draws):
    """The same draws as functions of a counter: a number is a hash of (seed, name, step, its place in the draw).

    Plain tensor operations in the device's queue: nothing waits for them, and a captured graph can repeat them with a
    step that it advances itself. A draw of fewer numbers is the beginning of a larger one. The numbers differ from
    those of `Draws`.

    Source: splitmix64 (Steele, Lea & Flood 2014, doi 10.1145/2660193.2660195), normal numbers by Box & Muller 1958.
    """

    def __init__(
        self, seeds: Sequence[int], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.seeds, self.device, self.dtype = tuple(int(s) for s in seeds), torch.device(device), dtype
        self._keys: dict[str, Tensor] = {}
        self._places: dict[int, Tensor] = {}

    def normal(self, name: str, step: int | Tensor, shape: Sequence[int], *, out: Tensor | None = None) -> Tensor:
        """Standard normal numbers, (*S, M, *shape), for a step or an int64 tensor of steps (*S)."""
        bits = self._bits(name, step, math.prod(shape))
        # One half of the bits is the radius, the other the angle; the half keeps the logarithm away from zero.
        radius = ((bits >> 32) & 0xFFFFFFFF).to(self.dtype).add_(0.5).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
        angle = (bits & 0xFFFFFFFF).to(self.dtype).mul_(2.0**-31 * math.pi)
        return _into(out, radius.mul_(angle.cos_()).view(*bits.shape[:-1], *shape))

    def uniform(
        self,
        name: str,
        step: int | Tensor,
        shape: Sequence[int],
        low: float = -1.0,
        high: float = 1.0,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """Uniform numbers in [low, high), (*S, M, *shape), for a step or an int64 tensor of steps (*S)."""
        bits = self._bits(name, step, math.prod(shape))
        kept = 53 if self.dtype == torch.float64 else 24  # what the mantissa holds
        unit = ((bits >> (64 - kept)) & ((1 << kept) - 1)).to(self.dtype).mul_(2.0**-kept)
        return _into(out, unit.mul_(high - low).add_(low).view(*bits.shape[:-1], *shape))

    def integers(self, name: str, step: int | Tensor, count: int, high: int | Tensor) -> Tensor:
        """Integers in [0, high), (*S, M, count), int64; `high` may be an int64 scalar on the device."""
        return (self._bits(name, step, count) & ((1 << 63) - 1)) % high

    def series(self, name: str, step: int, steps: int, count: int, high: int) -> Sequence[Tensor]:
        """The `integers` of several steps, from `step` on."""
        return [self.integers(name, step + k, count, high) for k in range(steps)]

    def _bits(self, name: str, step: int | Tensor, count: int) -> Tensor:
        """64 random bits a number, (*S, M, count), as int64."""
        keys = self._keys.get(name)
        if keys is None:
            made = [_signed(mix64(seed, crc32(name.encode()))) for seed in self.seeds]
            keys = self._keys[name] = to_device(np.array(made), self.device)
        places = self._places.get(count)
        if places is None:
            places = self._places[count] = torch.arange(count, device=self.device) * _GOLDEN
        step = step[..., None] * _GOLDEN if isinstance(step, Tensor) else _signed(step * _GOLDEN)
        return _finalise(_finalise(keys + step)[..., None] + places)


def _into(out: Tensor | None, made: Tensor) -> Tensor:
    return made if out is None else out.copy_(made)


def make_draws(seeds: Sequence[int], device: torch.device, dtype: torch.dtype = torch.float32) -> Draws:
    """The draws that suit a device: generators on the CPU, counters elsewhere."""
    return (Draws if device.type == "cpu" else CounterDraws)(seeds, device, dtype)


def _signed(value: int) -> int:
    """The int64 of the same 64 bits."""
    return ((value + (1 << 63)) & _MASK) - (1 << 63)


def _finalise(x: Tensor) -> Tensor:
    """splitmix64's finaliser, in place; int64 shifts keep the sign, so they are masked."""
    x.bitwise_xor_((x >> 30) & ((1 << 34) - 1)).mul_(_FIRST)
    x.bitwise_xor_((x >> 27) & ((1 << 37) - 1)).mul_(_SECOND)
    return x.bitwise_xor_((x >> 31) & ((1 << 33) - 1))
