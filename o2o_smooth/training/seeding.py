"""Where every random number of a run comes from: named streams derived from the run's seeds.

Streams never collide: training environments, evaluation environments and the learner draw from different spawn keys of
one SeedSequence per seed.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What the numbers are for."""

    TRAIN_ENV = 1
    EVAL_ENV = 2
    RANDOM_ACTIONS = 3


def env_seeds(seed: int, stream: Stream, count: int, index: int = 0) -> list[int]:
    """Seeds for `count` environments of one run, 31 bits each; `index` tells evaluations apart."""
    sequence = np.random.SeedSequence(seed, spawn_key=(int(stream), index))
    return [int(x) >> 1 for x in sequence.generate_state(count, np.uint32)]


def generator(seed: int, stream: Stream) -> np.random.Generator:
    """A numpy generator of one run."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(stream),)))
