"""Standard gRPC health (grpc.health.v1) that holds no lock while it sends.

The servicer of grpcio-health-checking sends to its watchers under its lock. A send waits for the server's event
thread, which waits for that lock when another watcher leaves at that moment: then the whole server stands still
(grpc/grpc#43403). Here a few threads of their own send, and a watcher that does not read is let go.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

LOG = logging.getLogger(__name__)
Status = int
"""A health_pb2.HealthCheckResponse.ServingStatus."""
SERVING: Status = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING: Status = health_pb2.HealthCheckResponse.NOT_SERVING
Send = Callable[[health_pb2.HealthCheckResponse | None], None]
"""Returns when the message is on its way; None ends the call."""
_SENDERS = 4
_SEND_S = 5.0
"""How long a message may take to be on its way."""


@dataclass(slots=True, eq=False)
class _Watcher:
    """An open Watch: what it was told last, and since when a thread is telling it."""

    service: str
    context: grpc.ServicerContext
    send: Send
    told: Status | None = None
    telling: bool = False
    since_s: float = float("inf")


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Status of the server ("") and of its services; a watcher gets each change, the newest alone if it is slow.

    Args:
        statuses: by service, to begin with.
        watchers: open at once; one more is refused.
    """

    def __init__(self, statuses: dict[str, Status], watchers: int) -> None:
        self._lock = threading.Lock()
        self._statuses, self._most = dict(statuses), watchers
        self._watchers: set[_Watcher] = set()
        self._senders = ThreadPoolExecutor(_SENDERS, thread_name_prefix="health-watch")
        self._closed = False

    def set(self, statuses: dict[str, Status]) -> None:
        """New statuses by service, and an end to watchers that do not read: call it every so often."""
        with self._lock:
            if not self._closed and self._statuses | statuses != self._statuses:
                self._statuses |= statuses
                self._tell(self._watchers)
            stalled = [watcher for watcher in self._watchers if time.monotonic() - watcher.since_s > _SEND_S]
        for watcher in stalled:
            watcher.context.cancel()

    def status(self, service: str) -> Status:
        """What a Check of a known service is told."""
        return self._statuses[service]

    def close(self) -> None:
        """Everything is NOT_SERVING from now on; watchers are told so, and their calls end."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._statuses = dict.fromkeys(self._statuses, NOT_SERVING)
                self._tell(self._watchers)
                self._senders.shutdown(wait=False)

    def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        """The status of a service."""
        status = self._statuses.get(request.service)
        if status is None:
            context.set_code(grpc.StatusCode.NOT_FOUND)
            context.set_details(f"service {request.service!r} is unknown; expected one of {sorted(self._statuses)}")
            return health_pb2.HealthCheckResponse()
        return health_pb2.HealthCheckResponse(status=status)

    def Watch(self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext, send: Send) -> None:
        """The status of a service now and after each change, SERVICE_UNKNOWN while it has none."""
        watcher = _Watcher(request.service, context, send)
        with self._lock:
            late, full = self._closed, len(self._watchers) >= self._most
            if not late and not full:
                self._watchers.add(watcher)
                self._tell([watcher])
        if late:
            send(self._answer(request.service))
            send(None)
        elif full:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{self._most} watch already; try again later, or Check")
        elif not context.add_callback(lambda: self._leave(watcher)):
            self._leave(watcher)

    Watch.experimental_non_blocking = True  # type: ignore[attr-defined]

    def _answer(self, service: str) -> health_pb2.HealthCheckResponse:
        unknown = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        return health_pb2.HealthCheckResponse(status=self._statuses.get(service, unknown))

    def _leave(self, watcher: _Watcher) -> None:
        with self._lock:
            self._watchers.discard(watcher)

    def _tell(self, watchers: Iterable[_Watcher]) -> None:
        """Has threads tell watchers what is new to them; the lock is held."""
        for watcher in watchers:
            if not watcher.telling:
                watcher.telling = True
                self._senders.submit(self._send, watcher)

    def _send(self, watcher: _Watcher) -> None:
        try:
            while True:
                with self._lock:
                    answer, last = self._answer(watcher.service), self._closed
                    if watcher not in self._watchers or answer.status == watcher.told:
                        watcher.telling, watcher.since_s = False, float("inf")
                        break
                    watcher.told, watcher.since_s = answer.status, time.monotonic()
                watcher.send(answer)
            if last:
                watcher.send(None)
        except Exception:
            LOG.exception("a watcher of health can't be told; its call ends")
            watcher.context.cancel()
