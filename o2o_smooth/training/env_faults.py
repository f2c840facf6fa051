"""What a run tells of its environments' failing: a note, a count in the manifest, the tracebacks in a file."""

from __future__ import annotations

from typing import Any

from o2o_smooth.envs.supervision import Fault
from o2o_smooth.training.output import Output

FAULTS_FILE = "env_faults.log"
"""In a run's folder: the tracebacks of environments that were made anew. Absent where none was."""
MANIFEST_KEY = "env_faults"


def tell_fault(output: Output, fault: Fault, *, evaluating: bool) -> None:
    """Tell one of the population's runs that an environment of one of its members failed.

    Args:
        output: The run.
        fault: What happened.
        evaluating: In an evaluation, whose episodes are played again; else while collecting, where one is dropped.
    """
    text = ("evaluation: " if evaluating else "") + fault.text
    output.progress.note(f"{output.label}{text}")
    known: dict[str, Any] = output.manifest.get(MANIFEST_KEY, {})
    count = "evaluations_repeated" if evaluating else "dropped_episodes"
    counts = {"dropped_episodes": 0, "evaluations_repeated": 0, **known}
    output.remember(MANIFEST_KEY, {**counts, count: counts[count] + 1, "last": fault.failure.cause})
    try:
        with (output.out / FAULTS_FILE).open("a", encoding="utf-8") as file:
            file.write(f"{text}\n{fault.failure.trace}\n")
    except OSError as error:  # the note and the manifest have told it
        output.progress.note(f"warning: {FAULTS_FILE} cannot be written: {error}")
