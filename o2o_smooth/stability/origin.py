"""What a score was learned from and what it counts from, and which scores may stand beside each other.

A score says nothing without its data: Minari's re-collected sets are not D4RL's, and a set that a script made is
neither. So every curve carries the provenance of its offline data and their own return, tables and pictures show both,
and a comparison across provenances has to be asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from o2o_smooth.errors import DataError

K = TypeVar("K", bound=Hashable)
_LARGEST = 1e30
AND = " + "
"""Between the names where the seeds of one arm come from several sets."""


class References(NamedTuple):
    """The returns that the scores 0 and 100 stand for."""

    random: float
    expert: float
    source: str | None
    """Where the two come from, in words."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Origin:
    """Where a curve's scores come from."""

    provenance: str | None = None
    """"d4rl", "minari", "generated" or "own". None: the run had no offline data, or nobody wrote down which."""
    dataset: str | None = None
    """Id of the offline data."""
    behaviour: float | None = None
    """Mean return of the offline data's episodes, in the unit of the curve."""
    references: References | None = None
    """What the scores count from; None for returns."""


@dataclass(frozen=True)
class OfflineData:
    """One set of offline data, and the arms that learned from it."""

    name: str
    """Id and provenance."""
    behaviour: float | None
    """As in `Origin`."""
    arms: tuple[str, ...]
    """In the order of the comparison."""


def score_block(task: Mapping[str, Any], dataset: Mapping[str, Any] | None) -> dict[str, Any]:
    """The manifest's block `score`, from its blocks `task` and `dataset`; None for what is not known."""
    random, expert = task.get("ref_random"), task.get("ref_expert")
    behaviour = dataset.get("return_mean") if dataset else None
    score = None
    if random is not None and expert is not None and behaviour is not None:
        score = 100.0 * (behaviour - random) / (expert - random)
    return {
        "provenance": dataset.get("provenance") if dataset else None,
        "references": {"random": random, "expert": expert, "source": task.get("ref_source")},
        "behaviour_return": behaviour,
        "behaviour_score": score,
    }


def read_origin(manifest: Mapping[str, Any], unit: str) -> Origin:
    """The origin of a run's curves in "score" or "return"; where the manifest has no such block, it is worked out."""
    dataset = manifest.get("dataset")
    block = manifest.get("score") or score_block(manifest.get("task") or {}, dataset)
    random, expert, source = (block["references"][name] for name in ("random", "expert", "source"))
    texts = (block["provenance"], dataset["id"] if dataset else None, source)
    values, behaviour = (random, expert), block[f"behaviour_{unit}"]
    if not all(isinstance(text, str | None) for text in texts):
        raise ValueError("its score's provenance, dataset or source is no text")
    if not all(v is None or (isinstance(v, int | float) and abs(v) < _LARGEST) for v in values):
        raise ValueError("its score's references are no numbers")
    if behaviour is not None and (isinstance(behaviour, bool) or not isinstance(behaviour, int | float)):
        raise ValueError("the return of its score's data is no number")
    return Origin(
        provenance=block["provenance"],
        dataset=dataset["id"] if dataset else None,
        # One wild reward in the data does that, and the run's own curve can be shown without it.
        behaviour=behaviour if behaviour is not None and abs(behaviour) < _LARGEST else None,
        references=None if unit == "return" or random is None else References(random, expert, source),
    )


def check_comparable(arms: Mapping[str, Sequence[Origin]], *, mix_provenance: bool = False) -> None:
    """Refuse arms whose scores cannot be compared.

    Arms without a provenance (None) may stand beside any: an agent that learned online alone owes its score to the
    environment, whatever data the others had. Arms that count from other references may never: their points differ.

    Args:
        arms: Curves, or other things with an origin, by the name of their arm.
        mix_provenance: Let several provenances pass.

    Raises:
        DataError: Two provenances, or two pairs of references.
    """
    by_provenance = _group(arms, lambda one: one.provenance)
    if len(by_provenance) > 1 and not mix_provenance:
        learned = " and ".join(f"from {name} data ({', '.join(names)})" for name, names in by_provenance.items())
        raise DataError(
            f"scores learned {learned} do not belong in one table or picture: the sets differ, so the scores cannot be "
            f"compared; --mix-provenance (in Python mix_provenance=True) does it all the same"
        )
    by_points = _group(arms, lambda one: one.references and one.references[:2])
    if len(by_points) > 1:
        sources = _group(arms, lambda one: one.references)
        counted = " and ".join(
            f"{ref.random:.8g} and {ref.expert:.8g} in {', '.join(names)}" + (f" ({ref.source})" if ref.source else "")
            for ref, names in sources.items()
        )
        raise DataError(
            f"scores of different references do not belong in one table or picture: 0 and 100 stand for returns of "
            f"{counted}; run again what was scored by the older ones"
        )


def provenances(arms: Mapping[str, Sequence[Origin]]) -> list[str]:
    """The provenances that are known, each once; more than one are a mixed comparison."""
    return list(_group(arms, lambda one: one.provenance))


def offline_data(arms: Mapping[str, Sequence[Origin]]) -> list[OfflineData]:
    """The sets of offline data behind the arms, each once. Sets of one name and different returns are different."""
    origins: dict[tuple[str, str], Origin] = {}

    def key(one: Origin) -> tuple[str, str] | None:
        if one.dataset is None and one.provenance is None:
            return None
        name = f"{one.dataset or 'unnamed'} ({one.provenance or 'of unknown provenance'})"
        found = (name, "" if one.behaviour is None else f"{one.behaviour:.6g}")
        origins.setdefault(found, one)
        return found

    return [OfflineData(found[0], origins[found].behaviour, tuple(names)) for found, names in _group(arms, key).items()]


def _group(arms: Mapping[str, Sequence[Origin]], key: Callable[[Origin], K | None]) -> dict[K, list[str]]:
    """Names of the arms by what the key says of their curves; without those of which it says None."""
    found: dict[K, list[str]] = {}
    for arm, curves in arms.items():
        for value in dict.fromkeys(key(curve) for curve in curves):
            if value is not None:
                found.setdefault(value, []).append(arm)
    return found
