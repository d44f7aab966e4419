"""What the Kafka clients log of their own doings, and what of it a person can use."""

from __future__ import annotations

import logging
import time

NO_NODE_S = 60.0
"""How often it is said that no broker answers; the client says so several times a second."""


class _OnceAMinute(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self._said_s = -NO_NODE_S

    def filter(self, record: logging.LogRecord) -> bool:
        if "No node available" not in str(record.msg):
            return True
        now_s = time.monotonic()
        if now_s - self._said_s < NO_NODE_S:
            return False
        self._said_s, record.msg, record.args = now_s, "no Kafka broker answers; asking again until one does", ()
        return True


class _NoRebalance(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "because it is rebalancing" not in str(record.msg)


def quiet_clients() -> None:
    """Leaves out how long a client's own tasks took and that a group rebalances; once a minute that nobody answers."""
    logging.getLogger("kafka.net.selector").setLevel(logging.ERROR)
    for name, made in (("kafka.cluster", _OnceAMinute), ("aiokafka.consumer.group_coordinator", _NoRebalance)):
        log = logging.getLogger(name)
        if not any(isinstance(one, made) for one in log.filters):
            log.addFilter(made())
