"""The exceptions that driftline raises on purpose, and the exit code of each.

    DriftlineError (1)
    ├── ConfigError (64)      a key, a value or a file of the settings
    ├── InputError (65)       an events file, an items file, a request
    ├── StateError (73)       a state directory, its lock, its contents
    │   └── LockedError (75)  another process holds the partition, or the trainer's root
    ├── BrokerError (69)      Kafka can't be reached or refuses
    ├── EndpointError (69)    the endpoint of the language model refuses
    ├── SnapshotError (74)    a snapshot that may not be served
    ├── ServingError (76)     the gRPC service can't be reached or refuses
    └── MissingModelError (66) weights that the set-up should have brought

Every message says what was received, what was expected and what to do. The command line prints the message
without a traceback and exits with `exit_code`.
"""

from __future__ import annotations

UNEXPECTED_EXIT_CODE = 70
"""A worker ends with this code on an unexpected error; its supervisor restarts it."""
INTERRUPTED_EXIT_CODE = 130
EXIT_CODES = {
    0: "done",
    1: "failed",
    2: "usage",
    64: "settings",
    65: "input",
    66: "model files missing",
    69: "broker or endpoint",
    UNEXPECTED_EXIT_CODE: "unexpected",
    73: "state",
    74: "snapshot",
    75: "locked",
    76: "serving not reachable",
    INTERRUPTED_EXIT_CODE: "interrupted",
}
"""Every code that a command ends with, in a word; docs/exit-codes.md says what to do."""


class DriftlineError(Exception):
    """Base of every error that a user can act on."""

    exit_code = 1


class ConfigError(DriftlineError):
    """A setting is unknown, out of range or can't be read.

    Args:
        faults: a sentence for each mistake, in the order in which they stand.
    """

    exit_code = 64

    def __init__(self, *faults: str) -> None:
        super().__init__(*faults)
        self.faults = faults

    def __str__(self) -> str:
        if len(self.faults) == 1:
            return self.faults[0]
        return "\n  ".join((f"{len(self.faults)} mistakes in the settings:", *self.faults))


class InputError(DriftlineError):
    """Input data does not follow its schema."""

    exit_code = 65


class MissingModelError(DriftlineError):
    """Model weights are not where the set-up puts them."""

    exit_code = 66


class BrokerError(DriftlineError):
    """The broker can't be reached, or refused a request."""

    exit_code = 69


class EndpointError(DriftlineError):
    """The endpoint of the language model refuses every request: its address, key or model is wrong."""

    exit_code = 69


class StateError(DriftlineError):
    """A state directory can't be opened or holds something else."""

    exit_code = 73


class SnapshotError(DriftlineError):
    """A snapshot is missing, damaged or refused by its gate."""

    exit_code = 74


class LockedError(StateError):
    """Another process holds the lock of this partition, or of this trainer's root."""

    exit_code = 75


class ServingError(DriftlineError):
    """The gRPC service can't be reached, or refused a request."""

    exit_code = 76
