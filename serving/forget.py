"""A request to forget a user, as a record of `interactions`: the one thing that the service writes.

    key user_id, value {"forget_user_id": "..."}

Worker and trainer judge it at its offset (stream/process/forget.py).
"""

from __future__ import annotations

import threading
import time
from typing import Any

import orjson

from driftline.configs.security import client_options
from driftline.configs.settings import Broker
from driftline.serving.errors import NotReady
from driftline.serving.unclosed import close_producer, close_what_is_dropped

FIELD = "forget_user_id"
_RETRY_MS = 1000
_TIMEOUT_MS = 5000
"""How long a call waits for a connection, for the partitions of the topic, and for the answer to its record."""


def encode_forget(user_id: str) -> tuple[bytes, bytes]:
    """Key and value of the record that forgets a user."""
    return user_id.encode(), orjson.dumps({FIELD: user_id})


class Forgetter:
    """Sends requests; connects with the first one, so that a service that forgets nobody needs no producer.

    Args:
        broker: how the client makes itself known, and the prefix of the topic.
        bootstrap: Kafka servers.
    """

    def __init__(self, broker: Broker, bootstrap: str) -> None:
        self._topic, self._broker, self._bootstrap = broker.prefix + "interactions", broker, bootstrap
        self._connecting = threading.Lock()
        """Held by the call that connects, and by nobody for longer than that takes."""
        self._producer: Any = None
        self._closed = False

    def forget(self, user_id: str) -> tuple[int, int]:
        """Partition and offset of the record, once the broker has it.

        Raises:
            NotReady: the broker does not take it, or can't be reached.
        """
        from kafka.errors import KafkaError

        key, value = encode_forget(user_id)
        try:
            sent = self._connected().send(self._topic, key=key, value=value)
            found = sent.get(timeout=_TIMEOUT_MS / 1000)
        except (KafkaError, ValueError) as error:
            raise NotReady(f"the broker does not take the request: {error!r:.200}", _RETRY_MS) from None
        return int(found.partition), int(found.offset)

    def close(self) -> None:
        """Ends the connection; one that is being made ends with the process."""
        self._closed = True
        if self._producer is not None:
            close_producer(self._producer, 1.0)

    def _connected(self) -> Any:
        """The producer; those that came while another call connects have as long as that one in all."""
        until_s = time.monotonic() + _TIMEOUT_MS / 1000
        if self._producer is None and self._connecting.acquire(timeout=_TIMEOUT_MS / 1000):
            try:
                left_ms = int((until_s - time.monotonic()) * 1000)
                if self._producer is None and not self._closed and left_ms > 0:
                    self._producer = self._connect(left_ms)
            finally:
                self._connecting.release()
        if self._producer is None:
            raise NotReady(f"no connection to {self._bootstrap} yet", _RETRY_MS)
        return self._producer

    def _connect(self, timeout_ms: int) -> Any:
        from kafka import KafkaProducer

        close_what_is_dropped()
        return KafkaProducer(
            **client_options(self._broker, self._bootstrap),
            acks="all",
            bootstrap_timeout_ms=timeout_ms,
            max_block_ms=_TIMEOUT_MS,
            request_timeout_ms=_TIMEOUT_MS,
        )
