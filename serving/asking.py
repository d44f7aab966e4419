"""A thread that asks a broker about one topic, for as long as it is open; whatever goes wrong, it tries again."""

from __future__ import annotations

import socket
import threading
from abc import ABC, abstractmethod
from contextlib import closing, suppress
from typing import Any

from driftline.configs.addresses import addresses
from driftline.configs.security import consumer_options
from driftline.configs.settings import Broker
from driftline.serving.header_names import escape_header_names
from driftline.serving.unclosed import close_what_is_dropped

RETRY_S = 1.0
_PROBE_S = 2.0
_BOOTSTRAP_MS = 5000


class Asking(ABC):
    """The thread; it runs from here on.

    Args:
        broker: how the client makes itself known, and the prefix of the topic.
        bootstrap: Kafka servers.
        name: of the topic, without prefix.
        thread: name of the thread.
    """

    def __init__(self, broker: Broker, bootstrap: str, name: str, thread: str) -> None:
        self._topic, self._bootstrap = broker.prefix + name, bootstrap
        self._options = consumer_options(broker, bootstrap)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=thread, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops asking."""
        self._stop.set()
        self._thread.join(timeout=5.0)

    @abstractmethod
    def _ask(self, consumer: Any) -> None:
        """Asks until it is to stop, or something goes wrong."""

    @abstractmethod
    def _ended(self, error: Exception | None) -> None:
        """After `_ask`, or where no client came to be; in a moment it is tried again."""

    def _run(self) -> None:
        while not self._stop.is_set():
            error = None
            try:
                with closing(self._client()) as consumer:
                    self._ask(consumer)
            except Exception as found:  # noqa: BLE001 - a thread that ends says nothing more
                error = found
            self._ended(error)
            self._stop.wait(RETRY_S)

    def _client(self) -> Any:
        from kafka import KafkaConsumer

        escape_header_names()
        close_what_is_dropped()
        _check_one_listens(self._bootstrap)
        return KafkaConsumer(**self._options, bootstrap_timeout_ms=_BOOTSTRAP_MS)


def _check_one_listens(bootstrap: str) -> None:
    """A broker that is away is found out at once, not after a client has tried for a while.

    Raises:
        OSError: nobody listens at any of the addresses.
    """
    for at in addresses(bootstrap):
        with suppress(OSError), socket.create_connection((at.host, at.port), _PROBE_S):
            return
    raise OSError(f"nobody listens at {bootstrap}")
