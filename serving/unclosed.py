"""What kafka-python leaves open, closed: sockets that were never connected, and clients that found no broker.

It drops a socket whose connect or TLS handshake fails, runs out of time or is cancelled, and the file descriptor stays
until the garbage collector comes by. A client that finds no broker as it is made raises, and leaves a thread that runs
for ever, with its selector. A producer whose last records nobody takes does not close. A process that outlives its
broker for hours would run out of file descriptors.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any


def close_what_is_dropped() -> None:
    """Lets kafka-python close what it would leave open; once a process is enough."""
    from kafka.net.inet import KafkaNetSocket
    from kafka.net.manager import KafkaConnectionManager
    from kafka.net.transport import KafkaSSLTransport

    _replace(KafkaNetSocket, "sock_connect", _connected_or_closed)
    _replace(KafkaSSLTransport, "handshake", _shaken_or_closed)
    _replace(KafkaConnectionManager, "bootstrap", _found_or_closed)


def close_producer(producer: Any, timeout_s: float) -> None:
    """Ends a producer's connection and thread; what it could not send within a time is lost.

    Its own `close` flushes first: where that runs out of time it raises and ends nothing.
    """
    from kafka.errors import KafkaTimeoutError

    try:
        producer.close(timeout_s)
    except KafkaTimeoutError:
        producer._sender.force_close()
        producer._sender.join(timeout_s)


def _replace(owner: Any, name: str, mended: Callable[[Any], Any]) -> None:
    method = getattr(owner, name)
    if not hasattr(method, "__wrapped__"):
        setattr(owner, name, mended(method))


def _connected_or_closed(connect: Any) -> Any:
    @wraps(connect)
    async def closing(self: Any, net: Any, sock: Any, *where: Any, **options: Any) -> Any:
        try:
            return await connect(self, net, sock, *where, **options)
        except BaseException:  # a client that is closed meanwhile ends this with GeneratorExit
            sock.close()
            raise

    return closing


def _shaken_or_closed(handshake: Any) -> Any:
    @wraps(handshake)
    async def closing(self: Any) -> None:
        try:
            await handshake(self)
        except BaseException:
            self.close()
            raise

    return closing


def _found_or_closed(bootstrap: Any) -> Any:
    @wraps(bootstrap)
    def closing(self: Any, *arguments: Any, **options: Any) -> None:
        try:
            bootstrap(self, *arguments, **options)
        except BaseException:
            self.close()
            self._net.close()
            raise

    return closing
