"""What an objective is, and how two of them are blended.

An objective is a value: it maps a batch to one loss term per component (`actor`, `critic`, `value`, `temperature`). A
blend never looks inside: it takes the terms of both sides and a weight per component and population member,

    L_w = (1 - w) L_offline + w L_online.

Whether a component is purely offline, mixed or purely online is known on the host (`Mix.kind`), so a side without
weight is never computed; inside the mixed range the weight is a tensor, so a moving weight never recompiles anything.
Nothing here imports anything of ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

COMPONENTS = ("actor", "critic", "value", "temperature")
Kind = Literal["offline", "mixed", "online"]
Mode = Literal["loss", "target", "matched", "projected"]
MODES: tuple[Mode, ...] = ("loss", "target", "matched", "projected")
Noise = Mapping[str, Tensor]  # named draws, (M, n, B, A) each; equal names in two objectives are the same draws


class Term(NamedTuple):
    """One component's loss."""

    loss: Tensor  # (M,): mean over the batch, one per member
    info: dict[str, Tensor]  # detached, (M, ...) each, a mean over all but members when read; names like "critic/q"


class Objective(Protocol):
    """Losses over an agent's networks, one per component, and the way to explore under it."""

    name: str
    components: tuple[str, ...]
    delay: int  # actor and target networks move every `delay` critic updates
    normal_noise: Mapping[str, int]  # name -> standard normal actions per row
    uniform_noise: Mapping[str, int]  # name -> actions uniform in [-1, 1] per row

    def terms(
        self, batch: Any, noise: Noise, want: frozenset[str], critic_target: Tensor | None = None
    ) -> dict[str, Term]:
        """Loss terms of the wanted components; `critic_target` (M, B) replaces the objective's own TD target."""
        ...

    def critic_target(self, batch: Any, noise: Noise) -> Tensor:
        """TD target of the critic, (M, B), without gradient."""
        ...

    def explore(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Actions in [-1, 1] to collect with: obs (M, B, O), standard normal noise (M, B, A) -> (M, B, A)."""
        ...


@dataclass(frozen=True)
class Mix:
    """How much of the online objective every component gets at one moment; made by the controller.

    Attributes:
        weights: Component -> weight per member, (M,), on the host.
        offline_fraction: Share of offline rows in the batch the online objective sees.
        mode: `loss` blends losses; `target` blends the critic's TD targets and regresses on them; `matched` brings the
            two gradients of a component to one norm before blending; `projected` takes from each what opposes the
            other.
    """

    weights: Mapping[str, NDArray[np.float64]]
    offline_fraction: float = 0.0
    mode: Mode = "loss"
    _kinds: dict[str, Kind] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got '{self.mode}'")
        if not 0.0 <= self.offline_fraction <= 1.0:
            raise ValueError(f"offline_fraction must lie in [0, 1], got {self.offline_fraction}")
        kinds: dict[str, Kind] = {}
        for name, weight in self.weights.items():
            if not bool(((weight >= 0) & (weight <= 1)).all()):
                raise ValueError(f"the weight of {name} must lie in [0, 1], got {weight.tolist()}")
            kinds[name] = "offline" if not weight.any() else "online" if bool((weight == 1).all()) else "mixed"
        object.__setattr__(self, "_kinds", kinds)

    @classmethod
    def uniform(cls, weight: float, members: int = 1, mode: Mode = "loss") -> Mix:
        """The same weight for every component and member."""
        return cls({name: np.full(members, float(weight)) for name in COMPONENTS}, mode=mode)

    def to_dict(self) -> dict[str, Any]:
        """The mix as JSON types."""
        weights = {name: weight.tolist() for name, weight in self.weights.items()}
        return {"weights": weights, "offline_fraction": self.offline_fraction, "mode": self.mode}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Mix:
        """What `to_dict` gave."""
        weights = {name: np.array(weight, np.float64) for name, weight in state["weights"].items()}
        return cls(weights, float(state["offline_fraction"]), state["mode"])

    def kind(self, component: str) -> Kind:
        """Which objectives the component needs; mixed as soon as any member needs both."""
        return self._kinds[component]

    def tensors(self, like: Tensor) -> dict[str, Tensor]:
        """Weights of the mixed components as tensors (M,), on the device and in the dtype of `like`."""
        return {
            name: torch.as_tensor(weight, dtype=like.dtype).to(like.device, non_blocking=True)
            for name, weight in self.weights.items()
            if self._kinds[name] == "mixed"
        }


def wanted(components: Sequence[str], kinds: Mapping[str, Kind], side: Literal["offline", "online"]) -> frozenset[str]:
    """Components of one side's objective that carry weight."""
    return frozenset(name for name in components if kinds[name] in (side, "mixed"))


def blend(
    offline: Mapping[str, Term],
    online: Mapping[str, Term],
    weights: Mapping[str, Tensor],
    kinds: Mapping[str, Kind],
) -> dict[str, Tensor]:
    """Blend two sides' terms: component -> loss (M,).

    A component that only one side has counts as zero on the other, so IQL's V loss fades with 1 - w. At w = 0 and w = 1
    the loss is the pure side's tensor itself, not a product with one.
    """
    losses: dict[str, Tensor] = {}
    for name in dict.fromkeys([*offline, *online]):
        kind = kinds[name]
        if kind == "mixed":
            w = weights[name]
            parts = []
            if name in offline:
                parts.append((1 - w) * offline[name].loss)
            if name in online:
                parts.append(w * online[name].loss)
            losses[name] = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        else:
            side = offline if kind == "offline" else online
            if name in side:
                losses[name] = side[name].loss
    return losses


def member_norms(gradients: Sequence[Tensor]) -> Tensor:
    """Euclidean norm over all parameters, per member: gradients (M, ...) -> (M,)."""
    return torch.stack([g.reshape(len(g), -1).square().sum(1) for g in gradients]).sum(0).sqrt()


def member_dots(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Inner product over all parameters, per member: (M,)."""
    return torch.stack([(x * y).reshape(len(x), -1).sum(1) for x, y in zip(a, b, strict=True)]).sum(0)


def match_gradients(offline: Sequence[Tensor], online: Sequence[Tensor], w: Tensor) -> list[Tensor]:
    """Blend two gradients of one component after bringing both to one norm, per member.

    The common norm is (1 - w) |g_off| + w |g_on|, so that w = 0 and w = 1 give the pure gradients. A gradient that is
    zero stays zero.
    """
    n_off, n_on = member_norms(offline), member_norms(online)
    common = (1 - w) * n_off + w * n_on

    def scale(share: Tensor, norm: Tensor) -> Tensor:
        # A zero norm must not become a huge factor: infinity times a zero gradient is NaN.
        factor = torch.where(norm > 0, share * common / torch.where(norm > 0, norm, torch.ones_like(norm)), 0.0)
        return torch.where((share == 0) | (share == 1), share, factor)

    scale_off, scale_on = scale(1 - w, n_off), scale(w, n_on)

    def per_member(scale: Tensor, like: Tensor) -> Tensor:
        return scale.view(-1, *([1] * (like.dim() - 1)))

    return [per_member(scale_off, a) * a + per_member(scale_on, b) * b for a, b in zip(offline, online, strict=True)]


def project_gradients(offline: Sequence[Tensor], online: Sequence[Tensor], w: Tensor) -> list[Tensor]:
    """Blend two gradients of one component after taking from each what conflicts with the other, per member.

    Where their inner product is negative, each is projected onto the normal plane of the other (as it was given); where
    it is not, nothing is taken. At w = 0 and w = 1 the pure gradients are left as they are.

    Source: PCGrad (Yu et al. 2020, arXiv 2001.06782, algorithm 1) for two tasks of losses (1 - w) L_off and w L_on.
    """
    dots = member_dots(offline, online).clamp_max(0.0)
    inside = (w > 0) & (w < 1)

    def share_of(other: Sequence[Tensor]) -> Tensor:
        squared = member_norms(other).square()
        seen = inside & (squared > 0)
        return torch.where(seen, dots / torch.where(seen, squared, torch.ones_like(squared)), 0.0)

    of_online, of_offline = share_of(online), share_of(offline)  # what each loses, in units of the other

    def per_member(value: Tensor, like: Tensor) -> Tensor:
        return value.view(-1, *([1] * (like.dim() - 1)))

    # One factor per gradient: (1 - w) (a - x b) + w (b - y a).
    off, on = (1 - w) - w * of_offline, w - (1 - w) * of_online
    return [per_member(off, a) * a + per_member(on, b) * b for a, b in zip(offline, online, strict=True)]


def effective_weight(
    w: NDArray[np.float64], norm_offline: NDArray[np.float64], norm_online: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Share of the online gradient in the step: w |g_on| / ((1 - w) |g_off| + w |g_on|); w itself where both vanish."""
    total = (1 - w) * norm_offline + w * norm_online
    return np.where(total > 0, w * norm_online / np.where(total > 0, total, 1.0), w)


def raw_weight(
    effective: NDArray[np.float64], norm_offline: NDArray[np.float64], norm_online: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The inverse of `effective_weight`: the w that gives the wanted effective weight; exact at 0 and 1.

    Where a norm is zero or not finite no w gives it, and the wanted weight itself is returned: solving would jump to an
    end on a gradient that says nothing.
    """
    solvable = (norm_offline > 0) & (norm_online > 0) & np.isfinite(norm_offline) & np.isfinite(norm_online)
    offline, online = np.where(solvable, norm_offline, 1.0), np.where(solvable, norm_online, 1.0)
    return np.where(solvable, effective * offline / ((1 - effective) * online + effective * offline), effective)
