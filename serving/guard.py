"""Who may call, and how many at once: decided when a call's headers arrive, before it waits for a thread.

Requests, ForgetUser (which waits for Kafka), WatchUserState, reflection, health checks and refusals each run in a pool
of their own, so that none takes a thread from another. Health needs no token. A thread waits for the first message of a
call, as grpc has it, before it takes one of the places at which requests are computed; the call is cancelled
`_MESSAGE_S` after it came, or a moment after its thread began to wait. A refusal never waits for it. A stream that asks
nothing more for `_IDLE_S`, or does not read what it is sent for as long, is cancelled, too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from driftline.serving.access import Access
from driftline.serving.errors import InvalidRequest, Overloaded, RequestError, to_status
from driftline.serving.metrics import ServingMetrics

_HEALTH, _REFLECTION = "/grpc.health.v1.", "/grpc.reflection."
_HEALTH_CALLS = 16
"""Health checks queued or running at once."""
_REFLECTIONS = 16
"""Reflection streams open at once: people and tools that look at the schema."""
_FORGETS = 4
"""ForgetUser calls running at once: each may wait for a broker that does not answer."""
_IDLE_S = 30.0
"""How long a thread waits for the next message of an open stream, or for the reader of one that it sent."""
_RETRY_MS = 200
_MESSAGE_S = 5.0
"""How long after its arrival an open call may keep a thread waiting for its first message."""
_TICK_S = 0.5


class CountingPool(futures.ThreadPoolExecutor):
    """A thread pool that knows how many calls it has accepted and not finished."""

    def __init__(self, threads: int, name: str) -> None:
        super().__init__(threads, thread_name_prefix=name)
        self._count_lock = threading.Lock()
        self.in_flight = 0

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> futures.Future[Any]:
        """See ThreadPoolExecutor."""
        with self._count_lock:
            self.in_flight += 1
        future = super().submit(call, *args, **kwargs)
        future.add_done_callback(self._finished)
        return future

    def _finished(self, _: futures.Future[Any]) -> None:
        with self._count_lock:
            self.in_flight -= 1


class Guard(grpc.ServerInterceptor):  # type: ignore[misc]
    """Checks the bearer token and the load of every call that arrives, and ends those whose message does not.

    Args:
        access: says who may call what.
        requests: pool in which unary calls wait for their message and for a place, and run.
        computed: unary calls that are computed at once.
        max_in_flight: unary calls waiting or running at once.
        streams: WatchUserState streams open at once.
        metrics: counts what is shed.
    """

    def __init__(
        self,
        access: Access,
        requests: CountingPool,
        computed: int,
        max_in_flight: int,
        streams: int,
        metrics: ServingMetrics,
    ) -> None:
        self._access = access
        self._requests, self._max_in_flight, self._metrics = requests, max_in_flight, metrics
        self._places = threading.BoundedSemaphore(computed)
        self._streams, self._max_streams = CountingPool(streams, "stream"), streams
        self._health = CountingPool(_HEALTH_CALLS, "health-check")
        self._reflection = CountingPool(_REFLECTIONS, "reflection")
        self._forgets = CountingPool(_FORGETS, "forget")
        self._refusals = futures.ThreadPoolExecutor(2, thread_name_prefix="refusal")
        self._waiting: dict[grpc.ServicerContext, tuple[str, float]] = {}
        self._waiting_lock = threading.Lock()
        self._closed = threading.Event()
        threading.Thread(target=self._cancel_late, name="late-messages", daemon=True).start()

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """See grpc.ServerInterceptor."""
        handler = continuation(details)
        if handler is None:
            return None
        rpc, pool, most = details.method.rpartition("/")[2], self._requests, self._max_in_flight
        if details.method.startswith(_HEALTH):
            pool, most = self._health, _HEALTH_CALLS
        elif (refusal := self._access.refusal(rpc, details.invocation_metadata)) is not None:
            return self._refusing(refusal)
        elif details.method.startswith(_REFLECTION):
            pool, most = self._reflection, _REFLECTIONS
        elif rpc == "ForgetUser":
            pool, most = self._forgets, _FORGETS
        elif handler.response_streaming:
            pool, most = self._streams, self._max_streams
        if pool.in_flight >= most:
            self._metrics.shed.labels(rpc).inc()
            return self._refusing(Overloaded(f"{most} requests are in flight", _RETRY_MS))
        return self._in_pool(handler, pool, rpc)

    def close(self) -> None:
        """Lets the threads end."""
        self._closed.set()
        for pool in (self._streams, self._reflection, self._forgets, self._health, self._refusals):
            pool.shutdown(wait=False)

    def _refusing(self, error: RequestError) -> grpc.RpcMethodHandler:
        def refuse(messages: Iterator[Any], context: grpc.ServicerContext) -> None:
            context.abort_with_status(to_status(error))

        refuse.experimental_thread_pool = self._refusals  # type: ignore[attr-defined]
        return grpc.stream_stream_rpc_method_handler(refuse)

    def _in_pool(self, handler: grpc.RpcMethodHandler, pool: CountingPool, rpc: str) -> grpc.RpcMethodHandler:
        """The same handler run by a pool: as one of a stream of messages, since only such a one may wait for them."""
        arrived_s = time.monotonic()
        call = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

        def behavior(messages: Iterator[Any], context: grpc.ServicerContext, *send: Callable[[Any], None]) -> Any:
            arriving = self._arriving(messages, context, rpc, arrived_s)
            if not handler.request_streaming:
                arriving = self._only(arriving, handler.request_deserializer, context, rpc)
            if pool is self._requests:
                with self._places:
                    return call(arriving, context)
            answer = call(arriving, context, *send)
            return self._read(answer, context, rpc) if handler.response_streaming and not send else answer

        behavior.experimental_thread_pool = pool  # type: ignore[attr-defined]
        behavior.experimental_non_blocking = getattr(call, "experimental_non_blocking", False)  # type: ignore[attr-defined]
        streamed = handler.response_streaming
        make = grpc.stream_stream_rpc_method_handler if streamed else grpc.stream_unary_rpc_method_handler
        deserializer = handler.request_deserializer if handler.request_streaming else None
        return make(behavior, deserializer, handler.response_serializer)

    def _arriving(
        self, messages: Iterator[Any], context: grpc.ServicerContext, rpc: str, arrived_s: float
    ) -> Iterator[Any]:
        """The messages of a call; while one is waited for, the call is known to wait."""
        # one that stood in a queue has had its time; it gets a moment to be read
        until_s = max(arrived_s + _MESSAGE_S, time.monotonic() + _TICK_S)
        while True:
            with self._waits(context, rpc, until_s):
                message = next(messages, None)
            if message is None:
                return
            yield message
            until_s = time.monotonic() + _IDLE_S

    def _read(self, answers: Iterator[Any], context: grpc.ServicerContext, rpc: str) -> Iterator[Any]:
        """The messages of a stream; until one is taken over by the connection, the call is known to wait."""
        for answer in answers:
            with self._waits(context, rpc, time.monotonic() + _IDLE_S):
                yield answer

    @contextmanager
    def _waits(self, context: grpc.ServicerContext, rpc: str, until_s: float) -> Iterator[None]:
        """For as long as a thread waits for the other side of a call, which is cancelled at `until_s`."""
        with self._waiting_lock:
            self._waiting[context] = rpc, until_s
        try:
            yield
        finally:
            with self._waiting_lock:
                self._waiting.pop(context, None)

    def _only(
        self, arriving: Iterator[bytes], decode: Callable[[bytes], Any], context: grpc.ServicerContext, rpc: str
    ) -> Any:
        try:
            return decode(next(arriving))
        except (StopIteration, DecodeError):
            self._metrics.answers.labels(rpc, grpc.StatusCode.INVALID_ARGUMENT.name).inc()
            violation = ("request", "got no message, or bytes that are none; expected one message as in the schema")
            context.abort_with_status(to_status(InvalidRequest([violation])))

    def _cancel_late(self) -> None:
        while not self._closed.wait(_TICK_S):
            now_s = time.monotonic()
            with self._waiting_lock:
                late = [context for context, (_, until_s) in self._waiting.items() if until_s < now_s]
                names = [self._waiting.pop(context)[0] for context in late]
            for context, rpc in zip(late, names, strict=True):
                context.cancel()
                self._metrics.answers.labels(rpc, grpc.StatusCode.CANCELLED.name).inc()
