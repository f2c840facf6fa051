"""Whether a run fits: a prediction held against what can be had, with the settings that help most where it does not."""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from o2o_smooth.agents import CQLConfig
from o2o_smooth.data.extent import Extent
from o2o_smooth.data.room import Room, memory_left, own_memory
from o2o_smooth.data.store import MEMORY_VARIABLE, memory_limit, row_width
from o2o_smooth.errors import ConfigError
from o2o_smooth.training.config import RunConfig
from o2o_smooth.training.memory import (
    FLOAT,
    GIB,
    LIBRARIES,
    MIB,
    Prediction,
    Shape,
    mixes,
    online_rows,
    predict,
    uses_gpu,
)

NEAR = 0.8
"""Share of what can be had from which on a run is warned."""
HARMLESS = 128 * MIB
"""A run that needs no more than this beyond what its process holds is never refused: the tables' errors weigh more."""


@dataclass(frozen=True)
class Advice:
    """One setting that makes a run smaller."""

    flag: str
    """What to write."""
    saves: int
    """Bytes at the peak, of the memory that is short."""
    fits: bool
    """Whether it is enough by itself."""


@dataclass(frozen=True)
class Verdict:
    """A prediction beside what can be had; bytes."""

    prediction: Prediction
    host: int | None
    """Memory that the run may have, with what its process holds already; None where it cannot be told."""
    limit: str
    """Which limit that is."""
    device: int | None
    """Free memory of the GPU; None on the CPU."""
    advice: tuple[Advice, ...] = ()

    @property
    def share_of_host(self) -> float:
        """What is needed of what can be had; 1 is full."""
        return 0.0 if self.host is None else self.prediction.host / max(1, self.host)

    @property
    def share_of_device(self) -> float:
        """The same of the GPU."""
        return 0.0 if self.device is None else self.prediction.device / max(1, self.device)

    @property
    def share(self) -> float:
        """The larger of both."""
        return max(self.share_of_host, self.share_of_device)

    @property
    def short_of_device(self) -> bool:
        """Whether the GPU is the narrower of both."""
        return self.share_of_device > self.share_of_host

    @property
    def fits(self) -> bool:
        """Whether there is room for all of it."""
        return self.share <= 1.0

    @property
    def refused(self) -> bool:
        """Whether the run should not begin."""
        harmless = self.prediction.more <= HARMLESS
        return self.share_of_device > 1.0 or (self.share_of_host > 1.0 and not harmless)

    def sentence(self) -> str:
        """What is needed, what there is, and the largest parts."""
        short = self.short_of_device
        need, have = (self.prediction.device, self.device) if short else (self.prediction.host, self.host)
        where = "the GPU's free memory" if short else self.limit
        phase = self.prediction.phase
        sizes = [(p.device if short else p.host if phase in p.phases else 0, p.name) for p in self.prediction.parts]
        largest = ", ".join(f"{name} {gib(size)}" for size, name in sorted(sizes, reverse=True)[:3] if size)
        have_text = "an unknown amount" if have is None else gib(have)
        return f"needs about {gib(need)} of memory at its peak, and {have_text} can be had ({where}); {largest}"

    def cures(self) -> str:
        """The advice, in words."""
        if not self.advice:
            return "no setting alone; free memory, or take a larger machine"
        texts = [f"{a.flag} saves {gib(a.saves)}{', which is enough' if a.fits else ''}" for a in self.advice]
        return "; ".join(texts)


def judge(
    config: RunConfig[Any],
    shape: Shape,
    data: Extent | None = None,
    *,
    held: int | None = None,
    members: int | None = None,
    room: Room | None = None,
    device_free: int | None = None,
) -> Verdict:
    """Predict a run and hold it against what can be had.

    Args:
        config: The settings.
        shape: What the task tells.
        data: The offline dataset; None without one.
        held: See `predict`.
        members: See `predict`.
        room: Free memory of the host; default: asked for now.
        device_free: Free memory of the GPU; default: asked for now, where the settings name one.
    """
    room = memory_left() if room is None else room
    if uses_gpu(config) and device_free is None and torch.cuda.is_available():
        device_free = int(torch.cuda.mem_get_info(torch.device(config.device))[0])
    if not uses_gpu(config):
        device_free = None
    prediction = predict(config, shape, data, held=held, members=members)
    host = None if room.free is None else room.free + prediction.held
    verdict = Verdict(prediction, host, room.limit, device_free)
    if verdict.share <= NEAR:
        return verdict

    def again(other: RunConfig[Any], fewer: int | None = members) -> Verdict:
        found = predict(other, shape, data, held=prediction.held, members=fewer)
        return Verdict(found, host, room.limit, device_free if uses_gpu(other) else None)

    found = [*_smaller(config, shape, members, verdict, again), *_elsewhere(config, shape, data, verdict, again)]
    least = 0.05 * (verdict.prediction.device if verdict.short_of_device else verdict.prediction.host)
    helpful = sorted((a for a in found if a.saves >= least), key=lambda a: (a.fits, a.saves), reverse=True)
    return dataclasses.replace(verdict, advice=tuple(helpful[:5]))


@dataclass(frozen=True)
class MemoryCheck:
    """Holds a run against the memory that there was before any of it was made."""

    held: int = field(default_factory=lambda: own_memory() or LIBRARIES)
    """Bytes that the process had then."""
    room: Room = field(default_factory=memory_left)
    """What else it could have."""

    def __call__(
        self,
        configs: Sequence[RunConfig[Any]],
        shape: Shape,
        data: Extent | None,
        note: Callable[[str], None],
        *,
        members: int | None = None,
    ) -> None:
        """Refuse what cannot fit, and warn of what nearly fills the memory.

        Args:
            configs: Runs that share a learner; where the first has no `memory_check`, nothing is done.
            shape: What the task tells.
            data: The offline dataset; None without one.
            note: Takes the warning.
            members: Of the population; default: the number of the first run's seeds.

        Raises:
            ConfigError: It does not fit; the text names the parts, what can be had and what helps.
        """
        if not configs[0].memory_check:
            return
        config = max(configs, key=lambda c: (mixes(c), c.save_online))
        verdict = judge(config, shape, data, held=self.held, members=members, room=self.room)
        text = f"this run {verdict.sentence()}. What helps: {verdict.cures()}"
        if verdict.refused:
            raise ConfigError(
                f"{text}. o2o-smooth doctor with the same options shows every part; --no-memory-check runs all the same"
            )
        if verdict.share > NEAR and (data is None or data.rows is not None):  # else again when the data are there
            note(f"warning: {text}")


def _smaller(
    config: RunConfig[Any],
    shape: Shape,
    members: int | None,
    verdict: Verdict,
    again: Callable[..., Verdict],
) -> Iterator[Advice]:
    """Settings that are numbers."""
    evaluation = config.evaluation

    def with_batch(value: int) -> Verdict:
        return again(dataclasses.replace(config, batch_size=value))

    def with_buffer(value: int) -> Verdict:
        return again(dataclasses.replace(config, buffer_size=value))

    def with_eval(value: int) -> Verdict:
        return again(dataclasses.replace(config, evaluation=dataclasses.replace(evaluation, eval_envs=value)))

    def with_envs(value: int) -> Verdict:
        return again(dataclasses.replace(config, num_envs=value))

    def with_seeds(value: int) -> Verdict:
        return again(dataclasses.replace(config, seeds=config.seeds[:value]), None if members is None else value)

    if config.online_steps:
        rows = online_rows(config)
        yield from _largest(_round_numbers(rows), with_buffer, verdict, lambda n: f"--buffer-size {n}")
    halves = [config.batch_size >> k for k in range(1, 12) if config.batch_size >> k >= 32]
    yield from _largest(halves[::-1], with_batch, verdict, lambda n: f"--batch-size {n}")
    if evaluation.eval_envs > 1:
        yield from _largest(range(1, evaluation.eval_envs), with_eval, verdict, lambda n: f"--eval-envs {n}")
    if config.online_steps and config.num_envs > 1:
        yield from _largest(range(1, config.num_envs), with_envs, verdict, lambda n: f"--num-envs {n}")
    if config.pretrained is not None:
        return  # a fork has the checkpoint's seeds and networks

    def seeds_text(n: int) -> str:
        return f"--seeds {' '.join(map(str, config.seeds[:n]))}" if n <= 4 else f"--seeds with {n} a run"

    if len(config.seeds) > 1 and members in (None, len(config.seeds)):
        yield from _largest(range(1, len(config.seeds)), with_seeds, verdict, seeds_text)
    hyper = config.hyper
    widest = max(hyper.hidden_dims)

    def with_width(value: int) -> Verdict:
        dims = tuple(min(width, value) for width in hyper.hidden_dims)
        return again(dataclasses.replace(config, hyper=dataclasses.replace(hyper, hidden_dims=dims)))

    def width_text(n: int) -> str:
        return f"--hidden-dims {' '.join(str(min(width, n)) for width in hyper.hidden_dims)}"

    narrower = [widest >> k for k in range(1, 12) if widest >> k >= 64]
    yield from _largest(narrower[::-1], with_width, verdict, width_text)
    if isinstance(hyper, CQLConfig) and hyper.cql_actions > 1:

        def with_actions(value: int) -> Verdict:
            return again(dataclasses.replace(config, hyper=dataclasses.replace(hyper, cql_actions=value)))

        yield from _largest(range(1, hyper.cql_actions), with_actions, verdict, lambda n: f"--cql-actions {n}")


def _elsewhere(
    config: RunConfig[Any], shape: Shape, data: Extent | None, verdict: Verdict, again: Callable[..., Verdict]
) -> Iterator[Advice]:
    """Settings that are one way or the other."""
    if config.vectorizer == "async":
        yield from _one("--vectorizer sync", again(dataclasses.replace(config, vectorizer="sync")), verdict)
    if config.online_steps and config.save_online:
        yield from _one("--no-save-online", again(dataclasses.replace(config, save_online=False)), verdict)
    if uses_gpu(config):
        yield from _one("--device cpu", again(dataclasses.replace(config, device="cpu")), verdict)
    elif torch.cuda.is_available():
        moved = _with_gpu(again(dataclasses.replace(config, device="cuda")))
        yield from _one("--device cuda", moved, verdict)
    if data is not None and data.rows and not uses_gpu(config):
        size = data.rows * row_width(shape.obs_dim, shape.action_dim) * FLOAT
        if size <= memory_limit():
            have = verdict.host
            fits = have is not None and verdict.prediction.host - size <= have
            yield Advice(f"the environment variable {MEMORY_VARIABLE}=0 (data are mapped from disk)", size, fits)


def _with_gpu(verdict: Verdict) -> Verdict:
    """The same verdict with the GPU's free memory asked for."""
    return dataclasses.replace(verdict, device=int(torch.cuda.mem_get_info()[0]))


def _largest(
    values: Sequence[int], make: Callable[[int], Verdict], now: Verdict, text: Callable[[int], str]
) -> Iterator[Advice]:
    """The largest of ascending values that fits comfortably; where none does, the smallest."""
    if not values:
        return
    first_too_large = bisect_left(values, True, key=lambda value: make(value).share > NEAR)
    value = values[max(0, first_too_large - 1)]
    yield from _one(text(value), make(value), now)


def _one(flag: str, then: Verdict, now: Verdict) -> Iterator[Advice]:
    before, after = now.prediction, then.prediction
    saves = before.device - after.device if now.short_of_device else before.host - after.host
    if saves > 0:
        yield Advice(flag, saves, then.fits and not now.fits)


def _round_numbers(rows: int) -> list[int]:
    """Numbers of one digit and zeros below `rows`, ascending; a few thousand rows are no replay buffer."""
    decades = range(int(math.log10(max(rows, 1))) + 1)
    numbers = (digit * 10**k for k in decades for digit in range(1, 10))
    return [n for n in numbers if min(10_000, rows // 20) <= n < rows]


def gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"
