"""What the user can put right: every such failure is an `O2OError` whose text names the cause and the cure."""


class O2OError(Exception):
    """A failure with a cause the user can act on; the command line prints it in one line and exits with code 2."""


class ConfigError(O2OError, ValueError):
    """A setting that is unknown, out of range, or does not fit another one."""


class DataError(O2OError, ValueError):
    """A dataset that is absent, broken or does not fit the task."""


class EnvError(O2OError, ValueError):
    """An environment that is unknown, not installed or of an unsupported kind."""


class CheckpointError(O2OError, ValueError):
    """A checkpoint that is absent, broken or made for something else."""


class ParityError(O2OError):
    """At the switch, the same policy does otherwise where it collects than where it is evaluated.

    Args:
        culprit: What differs, in a word or two.
        text: What was seen, and what to do.
    """

    def __init__(self, culprit: str, text: str) -> None:
        super().__init__(f"the evaluation path and the collection path disagree at the switch ({culprit}): {text}")
        self.culprit = culprit


class LaunchError(O2OError):
    """A job that cannot be started: no such launcher, no cluster, or more asked for than any machine has."""
