"""What logged numbers are called for people, and which question each of them answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

_Anything = TypeVar("_Anything")

_NAMES = (
    (r"(?:smoothing|switch)/(\w+)(?<!_effective)_weight", "Weight of online: {}"),
    (r"(?:smoothing|switch)/(\w+)_effective_weight", "Online share of the step: {}"),
    (r"(?:smoothing|switch)/(\w+)_gradient_cosine", "Cosine of both gradients: {}"),
    (r"(?:data|switch)/offline_fraction", "Share of offline rows"),
    (r"gate/running_return", "Gate: running return"),
    (r"gate/bar", "Gate: return to be reached"),
    (r"gate/switch_return", "Gate: return at the switch"),
    (r"gate/evidence", "Gate: evidence of a drop"),
    (r"gate/verdict", "Gate: verdict"),
    (r"pd/mean_return", "return_pd: mean return"),
    (r"pd/return", "return_pd: latest return"),
    (r"kl_gate/kl", "kl_gate: KL from the switch"),
    (r"td_gate/td_offline", "td_gate: TD error, offline rows"),
    (r"td_gate/td_online", "td_gate: TD error, fresh rows"),
    (r"gradient_agreement/cosine", "gradient_agreement: cosine"),
    (r"switch/kl", "KL from the switch"),
    (r"switch/action_distance", "Distance from actions at switch"),
    (r"switch/temperature", "Temperature"),
    (r"switch/td_error_offline", "TD error, offline rows"),
    (r"switch/td_error_online", "TD error, fresh rows"),
    (r"switch/td_error_offline_source", "Offline TD error, offline rows"),
    (r"switch/td_error_online_source", "Offline TD error, fresh rows"),
    (r"switch/q_drift", "Q since the switch: mean change"),
    (r"switch/q_distance", "Q since the switch: distance"),
    (r"switch/(\w+)_cka", "Likeness with the switch: {}"),
    (r"switch/(\w+)_dormant", "Share of silent units: {}"),
    (r"switch/(\w+)_gradient_offline", "Offline gradient: {}"),
    (r"switch/(\w+)_gradient_online", "Online gradient: {}"),
    (r"switch/(\w+)_lr", "Learning rate: {}"),
    (r"switch/(\w+)_first_moment", "Adam, first moment: {}"),
    (r"switch/(\w+)_second_moment", "Adam, second moment: {}"),
)

_QUESTIONS = (
    ("How far the weights were", r"smoothing/\w+_weight|switch/\w+_weight|(data|switch)/offline_fraction"),
    ("What the rule looked at", r"(gate|pd|kl_gate|td_gate|gradient_agreement)/.*"),
    ("What the policy did", r"switch/(kl|action_distance|temperature)"),
    ("What the critics know", r"switch/(td_error_.*|q_drift|q_distance)"),
    ("What became of the features", r"switch/\w+_(cka|dormant)"),
    ("What the gradients did", r"(smoothing|switch)/\w+_gradient_\w+"),
    ("What the optimiser did", r"switch/\w+_(lr|first_moment|second_moment)"),
)
_OTHERS = "What else was logged"


def signal_title(name: str) -> str:
    """A title in plain words; a name that is not known is its own."""
    for pattern, title in _NAMES:
        if found := re.fullmatch(pattern, name):
            return title.format(*found.groups())
    return name


def by_question(signals: Mapping[str, _Anything]) -> dict[str, dict[str, _Anything]]:
    """The signals under the questions they answer, in the order in which these are asked; others come last.

    Under each question the same of all components stands together.
    """
    found: dict[str, dict[str, _Anything]] = {question: {} for question in (*dict(_QUESTIONS), _OTHERS)}
    for name, one in sorted(signals.items(), key=lambda item: _place(item[0])):
        question = next((q for q, pattern in _QUESTIONS if re.fullmatch(pattern, name)), _OTHERS)
        found[question][name] = one
    return {question: own for question, own in found.items() if own}


def _place(name: str) -> int:
    return next((i for i, (pattern, _) in enumerate(_NAMES) if re.fullmatch(pattern, name)), len(_NAMES))


def told_elsewhere(name: str, weights: Mapping[str, object]) -> bool:
    """Whether what an audit says is its axis, or stands among the weights that were logged all the time."""
    short = name.removeprefix("switch/")
    if not name.startswith("switch/"):
        return False
    logged = f"smoothing/{short}" if short.endswith("_weight") else f"data/{short}"
    return short == "updates" or logged in weights
