"""Named points at which a process can be made to die, for `driftline chaos`. Nothing happens unless one is armed.

DRIFTLINE_CHAOS_POINT=NAME:N in the environment kills the process with SIGKILL as it passes NAME for the Nth time.
"""

from __future__ import annotations

import os
import signal
from itertools import count

ARMED = "DRIFTLINE_CHAOS_POINT"
WORKER_POINTS = ("opening", "recovery", "rebalance", "before-batch", "after-batch", "before-ack", "adoption")
"""While a partition is read in; before it is read on; as partitions are assigned; between the steps of an epoch, and
between committing and announcing a graph version."""
STARTING_POINTS = ("opening", "recovery", "rebalance")
"""Those that a process passes as it starts."""
ITEM_POINTS = ("by-item-batch",)
"""Several partitions only: between sending and committing an epoch of item rows."""
CHECKPOINT_POINTS = ("checkpoint-rows", "checkpoint", "checkpoint-prune")
"""All steps of a checkpoint: its rows are on disk; it is about to take its name; the rows of the one before go."""
TRAINER_POINTS = ("publish", *CHECKPOINT_POINTS)
"""Before a snapshot's pointer takes its name, and those of a checkpoint."""
PUBLISH_POINTS = ("publish-part", "publish-name", "publish", "publish-pointer", "publish-prune")
"""All steps of publishing: a part is written, the snapshot takes its name, then its pointer; an old one goes."""

_name, _, _passes = os.environ.get(ARMED, "").partition(":")
_left = count(int(_passes) - 1 if _passes.isdigit() else 0, -1)


def point(name: str) -> None:
    """Dies here if this is the armed point and its time has come."""
    if name == _name and next(_left) <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
