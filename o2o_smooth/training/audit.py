"""The audit: what the first updates after the switch do to the agent, written down at log-spaced updates.

It looks at a fixed set of offline rows, at the newest online rows and at the agent as it was at the switch, and moves
nothing: a run has the same parameters with and without it, to the last bit. What each number means, with its formula
and source, stands in docs/switch.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from o2o_smooth.agents import Agent
from o2o_smooth.agents.probes import (
    PolicySnapshot,
    activations,
    dormant_share,
    gram,
    kl_from,
    kl_name,
    linear_cka,
    moment_norms,
    policy_snapshot,
    pulls,
    q_values,
    snapshot_from,
    snapshot_tensors,
    td_error,
)
from o2o_smooth.agents.storage import read_tensors
from o2o_smooth.data.batch import Batch
from o2o_smooth.data.buffer import ReplayBuffer
from o2o_smooth.errors import CheckpointError
from o2o_smooth.smoothing.objective import Mix, effective_weight
from o2o_smooth.training.learner import Learner

ROWS_FILE = "audit.safetensors"  # in the checkpoint of the switch
FEWEST_BETWEEN = 500
SHARE = 150
"""An audit takes about as long as two to four updates. So regular audits are at least `FEWEST_BETWEEN` updates apart,
and a run has one for `SHARE` updates at most, but for two; both are more where the offline objective is dear."""
CHEAP_DRAWS = 10  # actions that an objective draws per row; CQL's 32 make it several times as dear as others
_ROW_SEED = 20_230_515  # of the choice of rows; every run on one dataset looks at the same ones
Values = Mapping[str, NDArray[np.float64]]  # name -> (M,)
Write = Callable[[int, int, Values], None]  # env_steps, updates since the switch, values


def offline_audit_rows(rows: ReplayBuffer, count: int) -> Batch:
    """Offline rows to look at, without a members axis, (n, ...): the same choice for every run on one dataset.

    Held-out rows, where there are any.
    """
    there, gather = (rows.held_out, rows.gather_held_out) if rows.held_out else (len(rows), rows.gather)
    numbers = np.random.default_rng(_ROW_SEED).choice(there, min(count, there), replace=False)
    index = torch.from_numpy(np.sort(numbers)).to(rows.device).expand(rows.members, -1)
    return Batch(*(x[0].clone() for x in gather(index)))


def saved_audit_rows(folder: Path, device: torch.device) -> Batch | None:
    """The rows that a checkpoint of the switch was saved with, or None.

    Raises:
        CheckpointError: The file is broken.
    """
    file = folder / ROWS_FILE
    if not file.is_file():
        return None
    tensors = read_tensors(file)
    try:
        return Batch(**{name: tensors[name].to(device) for name in Batch._fields})
    except KeyError as error:
        raise CheckpointError(f"{file} lacks {error}; take it away, and the audit does without it") from None


@dataclass(frozen=True)
class Rhythm:
    """When audits are due: after 0, 1, r, r^2, ... updates, and once these are further apart, every so many."""

    every: int
    ratio: int = 2
    first: int = 1
    """The first one that is not before all updates."""

    def after(self, updates: int) -> int:
        """The audit that follows one after so many updates."""
        if updates == 0:
            return self.first
        return updates + max(1, min((self.ratio - 1) * updates, self.every))

    def count(self, updates: int) -> int:
        """Audits of so many updates, with the one at the end."""
        found, at = 1, 0
        while at < updates:
            at, found = self.after(at), found + 1
        return found


def rhythm(updates: int, *, log_every: float, every: int | None = None, draws: int = 0) -> Rhythm:
    """The rhythm of a run, so that audits are a small part of it however long it is.

    Args:
        updates: Of the whole run, online.
        log_every: Updates between lines of metrics.
        every: Updates between regular audits, where somebody has chosen; the ratio is 2 then.
        draws: Actions that the offline objective draws per row.
    """
    if every is not None:
        return Rhythm(every)
    dear = max(1.0, draws / CHEAP_DRAWS)
    regular, most = max(math.ceil(FEWEST_BETWEEN * dear), math.ceil(log_every)), updates / (SHARE * dear)
    if most < 3:
        return Rhythm(regular, first=max(1, updates))
    found = Rhythm(regular)
    while found.count(updates) > most and found.ratio < updates:
        found = replace(found, ratio=2 * found.ratio)
    return found


def draws_per_row(agent: Agent) -> int:
    """Actions that the agent's offline objective draws per row, which is what makes it dear."""
    return sum(agent.offline.normal_noise.values()) + sum(agent.offline.uniform_noise.values())


@dataclass(frozen=True)
class Reference:
    """The agent at the switch."""

    rows: Batch  # (M, n, ...), raw
    policy: PolicySnapshot
    q: Tensor  # (M, E, n)
    grams: dict[str, Tensor]  # of the last hidden layer of each network

    @classmethod
    def of(cls, agent: Agent, rows: Batch) -> Reference:
        """Take the agent as it is now."""
        grams = {name: gram(layers[-1]) for name, layers in activations(agent, rows).items()}
        return cls(rows, policy_snapshot(agent), q_values(agent, rows), grams)


class Audit:
    """Measures at log-spaced updates; `look` is called after every group of updates.

    Args:
        learner: Whose agent and rows.
        write: Takes the values of each audit.
        rhythm: When to look.
        count: Newest online rows to look at; and where there are no offline rows, the first online rows to compare on.
        offline: From `offline_audit_rows`; None where there are none.
    """

    def __init__(
        self, learner: Learner, write: Write, *, rhythm: Rhythm, count: int, offline: Batch | None = None
    ) -> None:
        self.learner, self.write, self.rhythm, self.count = learner, write, rhythm, count
        self._offline: Batch | None = None
        if offline is not None:
            members = learner.agent.members
            self._offline = Batch(*(x.expand(members, *x.shape).contiguous() for x in offline))
        self._reference: Reference | None = None
        self.due = 0
        """Updates since the switch at which the next audit is."""
        self.last: int | None = None

    def look(self, env_steps: int, updates: int, mix: Mix) -> None:
        """Measure where an audit is due; there must be online rows.

        Args:
            env_steps: Since the switch, per member.
            updates: Since the switch.
            mix: Of the next update.
        """
        if updates >= self.due:
            self.due, self.last = self.rhythm.after(updates), updates
            self.write(env_steps, updates, self.measure(mix))

    def finish(self, env_steps: int, updates: int, mix: Mix) -> None:
        """Measure at the end, unless that has just been done or nothing has been learned."""
        if self.last not in (None, updates):
            self.due = updates
            self.look(env_steps, updates, mix)

    def state(self) -> dict[str, Any]:
        """When it has looked and will look, and the agent at the switch; arrays and numbers."""
        reference = self._reference
        kept: dict[str, Any] = {"due": self.due, "last": self.last, "reference": None}
        if reference is not None:
            kept["reference"] = {
                "rows": reference.rows._asdict(),
                "policy": snapshot_tensors(reference.policy),
                "q": reference.q,
                "grams": reference.grams,
            }
        return kept

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` gave; its arrays may have become numpy's."""
        self.due, self.last = int(state["due"]), state["last"]
        kept = state["reference"]
        if kept is not None:
            agent = self.learner.agent

            def own(values: Mapping[str, Any]) -> dict[str, Tensor]:
                return {name: torch.as_tensor(value, device=agent.device) for name, value in values.items()}

            self._reference = Reference(
                Batch(**own(kept["rows"])),
                snapshot_from(agent, own(kept["policy"])),
                torch.as_tensor(kept["q"], device=agent.device),
                own(kept["grams"]),
            )

    def measure(self, mix: Mix) -> Values:
        """All values, (M,) each."""
        agent = self.learner.agent
        with agent.own_threads():
            fresh = self._fresh()
            if self._reference is None:
                self._reference = Reference.of(agent, fresh if self._offline is None else self._offline)
            tensors = self._drift(agent, self._reference)
            tensors |= self._td_errors(agent, mix, fresh)
            host, pulled = self._pulls(agent, mix)
            tensors |= pulled
            for name, (first, second) in moment_norms(agent).items():
                tensors |= {f"switch/{name}_first_moment": first, f"switch/{name}_second_moment": second}
            if agent.networks.log_alpha is not None:
                tensors["switch/temperature"] = agent.networks.alpha.detach()
        for name, rates in agent.optimizer.learning_rates.items():
            host[f"switch/{name}_lr"] = np.asarray(rates, np.float64)
        host["switch/offline_fraction"] = np.full(agent.members, mix.offline_fraction)
        fetched = torch.stack([x.double() for x in tensors.values()]).cpu().numpy()
        return dict(sorted({**dict(zip(tensors, fetched, strict=True)), **host}.items()))

    def _fresh(self) -> Batch:
        rows = self.learner.online_rows
        if not rows:
            raise RuntimeError("an audit needs online rows, and none are collected")
        return rows.newest(self.count)

    def _drift(self, agent: Agent, reference: Reference) -> dict[str, Tensor]:
        """How far policy, values and features have moved on the fixed rows, and which units are silent."""
        change = q_values(agent, reference.rows) - reference.q  # (M, E, n)
        found = {
            f"switch/{kl_name(agent)}": kl_from(reference.policy, agent, reference.rows.obs),
            "switch/q_drift": change.mean((1, 2)),
            "switch/q_distance": change.double().square().mean((1, 2)).sqrt(),
        }
        for name, layers in activations(agent, reference.rows).items():
            found[f"switch/{name}_cka"] = linear_cka(gram(layers[-1]), reference.grams[name])
            found[f"switch/{name}_dormant"] = dormant_share(layers)
        return found

    def _td_errors(self, agent: Agent, mix: Mix, fresh: Batch) -> dict[str, Tensor]:
        """TD errors of the blend in force and of the offline objective, on offline and on fresh online rows."""
        w = torch.as_tensor(mix.weights["critic"], dtype=agent.dtype, device=agent.device)
        found = {}
        for name, rows in (("offline", self._offline), ("online", fresh)):
            if rows is None:
                continue
            source = td_error(agent, rows, objective="offline")
            target = source if agent.online is agent.offline else td_error(agent, rows, objective="online")
            found[f"switch/td_error_{name}"] = torch.lerp(source, target, w)
            found[f"switch/td_error_{name}_source"] = source
        return found

    def _pulls(self, agent: Agent, mix: Mix) -> tuple[dict[str, NDArray[np.float64]], dict[str, Tensor]]:
        """Both objectives' gradients on the rows of the next update, weights, and what the weights come to."""
        source, target = self._update_rows(mix)
        host: dict[str, NDArray[np.float64]] = {}
        found: dict[str, Tensor] = {}
        for name, pull in pulls(agent, source, target).items():
            w = host[f"switch/{name}_weight"] = np.array(mix.weights[name], np.float64)
            sides = {"offline": pull.offline, "online": pull.online, "cosine": pull.cosine}
            found |= {f"switch/{name}_gradient_{side}": x for side, x in sides.items() if x is not None}
            if pull.offline is not None and pull.online is not None:
                norms = (x.double().cpu().numpy() for x in (pull.offline, pull.online))
                host[f"switch/{name}_effective_weight"] = w if mix.mode == "matched" else effective_weight(w, *norms)
        return host, found

    def _update_rows(self, mix: Mix) -> tuple[Batch, Batch]:
        """The offline and the online objective's rows of the next update; without offline rows, the fixed ones."""
        learner = self.learner
        if learner.regime == "retain" and learner.offline_rows is None:
            target = learner.online_batch(mix)
            return (target if self._offline is None else self._offline), target
        source, target = learner.rows(mix)
        return (target if source is None else source), target


def audit_row(values: Values, member: int) -> dict[str, Any]:
    """One member's values."""
    return {name: float(value[member]) for name, value in values.items()}
