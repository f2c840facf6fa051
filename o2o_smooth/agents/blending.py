"""What the two objectives of an agent make of a batch: blended losses, blended gradients, gradients side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from o2o_smooth.agents.plan import Plan
from o2o_smooth.data.batch import Batch
from o2o_smooth.smoothing.objective import (
    COMPONENTS,
    Kind,
    Noise,
    Objective,
    Term,
    blend,
    match_gradients,
    member_dots,
    member_norms,
    project_gradients,
)

Losses = dict[str, Tensor]  # component -> (M,)
Info = dict[str, Tensor]  # metric -> (M, ...), detached
Gradients = dict[str, list[Tensor]]  # component -> one per parameter


class GradientReport(NamedTuple):
    """The two objectives' gradients of one component at one moment, per member (M,)."""

    norm_offline: Tensor
    norm_online: Tensor
    cosine: Tensor


class Step(NamedTuple):
    """All that the losses of one update depend on."""

    offline: Objective
    online: Objective
    plan: Plan
    source: Batch
    """The offline objective's rows, encoded."""
    target: Batch
    """The online objective's rows, encoded."""
    noise: Noise
    weights: Mapping[str, Tensor]
    """Of the online objective, per mixed component, (M,)."""
    parameters: Mapping[str, Sequence[Tensor]]
    """Per component."""

    def terms(self) -> tuple[dict[str, Term], dict[str, Term]]:
        """The offline and the online objective's own terms."""
        plan = self.plan
        offline = self.offline.terms(self.source, self.noise, plan.offline) if plan.offline else {}
        online = self.online.terms(self.target, self.noise, plan.online) if plan.online else {}
        return offline, online


def blended_losses(
    offline: Objective,
    online: Objective,
    plan: Plan,
    source: Batch,
    target: Batch,
    noise: Noise,
    weights: Mapping[str, Tensor],
) -> tuple[Losses, Info]:
    """All terms of a step: the loss per component (M,), and what to report, (M, ...). Arguments are as in `Step`."""
    y_source = y_target = None
    if plan.mode == "target" and "critic" in plan.offline and "critic" in plan.online:
        y_source = _blended_target(offline, online, source, noise, weights["critic"])
        y_target = y_source if plan.one_batch else _blended_target(offline, online, target, noise, weights["critic"])
    off = offline.terms(source, noise, plan.offline, y_source) if plan.offline else {}
    on = online.terms(target, noise, plan.online, y_target) if plan.online else {}
    return blend(off, on, weights, dict(plan.kinds)), _merge_info(off, on)


@torch.no_grad()
def _blended_target(offline: Objective, online: Objective, batch: Batch, noise: Noise, weight: Tensor) -> Tensor:
    w = weight[:, None]
    return (1 - w) * offline.critic_target(batch, noise) + w * online.critic_target(batch, noise)


PER_GRADIENT = {"matched": match_gradients, "projected": project_gradients}
"""Modes that need the gradients of both objectives apart, and how each blends them."""


def mixed_gradients(step: Step) -> tuple[Losses, Info, Gradients]:
    """Losses, metrics, and gradients: blended by the mode where both objectives carry weight, else plain ones."""
    mix = PER_GRADIENT[step.plan.mode]
    offline, online = step.terms()
    losses = blend(offline, online, step.weights, dict(step.plan.kinds))
    both = [name for name in losses if name in offline and name in online]
    off = gradients_of({name: offline[name].loss for name in both}, step.parameters)
    on = gradients_of({name: online[name].loss for name in both}, step.parameters)
    gradients = gradients_of({name: losses[name] for name in losses if name not in both}, step.parameters)
    gradients |= {name: mix(off[name], on[name], step.weights[name]) for name in both}
    return losses, _merge_info(offline, online), gradients


def gradients_of(losses: Mapping[str, Tensor], parameters: Mapping[str, Sequence[Tensor]]) -> Gradients:
    """Gradients of the sum of losses (M,), of their components' parameters; losses stay differentiable no longer."""
    if not losses:
        return {}
    flat = [p for name in losses for p in parameters[name]]
    # Of their sum: given gradients of the outputs torch would first import sympy, which takes half a second.
    total = torch.cat(list(losses.values())).sum()
    found = iter(torch.autograd.grad(total, flat, allow_unused=True, materialize_grads=True))
    return {name: [next(found) for _ in parameters[name]] for name in losses}


def report_plan(offline: Objective, online: Objective) -> Plan:
    """The plan of a step in which every component that both objectives have is mixed."""
    want = frozenset(offline.components) & frozenset(online.components)
    kinds: tuple[tuple[str, Kind], ...] = tuple((name, "mixed") for name in COMPONENTS)
    return Plan(kinds, want, want, "loss", one_batch=False)


def report_gradients(step: Step) -> dict[str, GradientReport]:
    """Norms and cosine of the two objectives' gradients of every component that both have."""
    offline, online = step.terms()
    shared = [name for name in step.offline.components if name in step.plan.offline]
    off = gradients_of({name: offline[name].loss for name in shared}, step.parameters)
    on = gradients_of({name: online[name].loss for name in shared}, step.parameters)
    report = {}
    for name in shared:
        n_off, n_on = member_norms(off[name]), member_norms(on[name])
        tiny = torch.finfo(n_off.dtype).tiny
        report[name] = GradientReport(n_off, n_on, member_dots(off[name], on[name]) / (n_off * n_on).clamp_min(tiny))
    return report


def _merge_info(offline: Mapping[str, Any], online: Mapping[str, Any]) -> Info:
    """Metrics of both sides; the side's name goes in front where both are alive."""
    info: Info = {}
    for prefix, terms in (("offline/", offline), ("online/", online)):
        for name, term in terms.items():
            side = prefix if offline and online else ""
            info.update({f"{side}{key}": value for key, value in term.info.items()})
            if offline and online:
                info[f"{prefix}{name}/loss"] = term.loss.detach()
    return info
