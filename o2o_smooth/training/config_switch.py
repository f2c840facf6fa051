"""Settings of the switch itself: what is checked there, and what is watched after it."""

from __future__ import annotations

from dataclasses import dataclass

from o2o_smooth.errors import ConfigError


@dataclass(frozen=True)
class SwitchConfig:
    """What is checked at the switch, and what is watched after it."""

    parity_check: bool = True
    """Before the first online update, run the policy through the evaluation path and through the collection path on the
    same seeds, and stop where they disagree (normaliser, action scaling, reward map, time limit, exploration)."""
    audit: bool = True
    """Write down what the switch does to the agent (audit.jsonl): gradients of both objectives, KL from the policy at
    the switch, TD errors, drift of Q and features, dormant units, optimiser. It changes nothing in the run."""
    audit_every: int | None = None
    """Online updates between audits, after the dense first ones (0, 1, 2, 4, 8, ...); default: as lines of
    metrics.jsonl, but at least 500, and in short runs fewer of the first ones, so that audits stay a small part."""
    audit_rows: int = 128
    """Offline rows, the same all the time, and newest online rows that the audit looks at."""

    holdout: float = 0.01
    """Share of the dataset's episodes that neither pretraining nor fine-tuning ever sees, for the offline TD error of
    the audit and of td_gate: at least 5 episodes, and none out of fewer than 200 or where they have fewer than 256
    rows; 0: none. A fork leaves out what its checkpoint's pretraining has left out."""

    def __post_init__(self) -> None:
        if self.audit_every is not None and self.audit_every < 1:
            raise ConfigError(f"audit_every must be at least 1, got {self.audit_every}")
        if self.audit_rows < 2:
            raise ConfigError(f"audit_rows must be at least 2, got {self.audit_rows}")
        if not 0.0 <= self.holdout <= 0.5:
            raise ConfigError(f"holdout must be between 0 and 0.5 (a share of the episodes), got {self.holdout}")
