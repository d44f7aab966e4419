"""Who may call, and how many at once: decided when a request arrives, before it waits for a thread.

Streams (WatchUserState, reflection) run in a pool of their own, so that open ones never take a thread from requests.
Refusals run in a small pool, so that they are prompt when all threads are busy. Health checks pass freely.
"""

from __future__ import annotations

import hmac
import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import grpc

from serving.errors import Overloaded, RequestError, Unauthenticated, to_status
from serving.metrics import ServingMetrics

_HEALTH = "/grpc.health.v1."
_RETRY_MS = 200


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
    """Checks the bearer token and the load of every request that arrives.

    Args:
        tokens: that may call; none = everybody may.
        requests: pool in which unary calls run.
        max_in_flight: unary calls queued or running at once.
        streams: open streams at once.
        metrics: counts what is shed.
    """

    def __init__(
        self, tokens: Sequence[str], requests: CountingPool, max_in_flight: int, streams: int, metrics: ServingMetrics
    ) -> None:
        self._tokens = [f"Bearer {token}".encode() for token in tokens]
        self._requests, self._max_in_flight, self._metrics = requests, max_in_flight, metrics
        self._streams = futures.ThreadPoolExecutor(streams, thread_name_prefix="stream")
        self._refusals = futures.ThreadPoolExecutor(2, thread_name_prefix="refusal")

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """See grpc.ServerInterceptor."""
        handler = continuation(details)
        if handler is None or details.method.startswith(_HEALTH):
            return handler
        if self._tokens and not self._may_call(details.invocation_metadata):
            return self._refusing(
                handler, Unauthenticated("no valid bearer token; send the metadata 'authorization: Bearer TOKEN'")
            )
        if handler.response_streaming:
            return _in_pool(handler, _behavior(handler), self._streams)
        if self._requests.in_flight >= self._max_in_flight:
            self._metrics.shed.labels(details.method.rpartition("/")[2]).inc()
            return self._refusing(handler, Overloaded(f"{self._max_in_flight} requests are in flight", _RETRY_MS))
        return handler

    def close(self) -> None:
        """Lets the pools' threads end."""
        self._streams.shutdown(wait=False)
        self._refusals.shutdown(wait=False)

    def _may_call(self, metadata: Sequence[tuple[str, str | bytes]]) -> bool:
        given = [
            value.encode() if isinstance(value, str) else value for key, value in metadata if key == "authorization"
        ]
        return any(hmac.compare_digest(value, token) for value in given for token in self._tokens)

    def _refusing(self, handler: grpc.RpcMethodHandler, error: RequestError) -> grpc.RpcMethodHandler:
        def refuse(request: Any, context: grpc.ServicerContext) -> None:
            context.abort_with_status(to_status(error))

        return _in_pool(handler, refuse, self._refusals)


def _behavior(handler: grpc.RpcMethodHandler) -> Callable[..., Any]:
    behavior: Callable[..., Any] = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )
    return behavior


def _in_pool(
    handler: grpc.RpcMethodHandler, call: Callable[..., Any], pool: futures.ThreadPoolExecutor
) -> grpc.RpcMethodHandler:
    """The same kind of handler with another behaviour, run by another pool."""

    def behavior(request: Any, context: grpc.ServicerContext) -> Any:
        return call(request, context)

    behavior.experimental_thread_pool = pool  # type: ignore[attr-defined]
    kinds = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    make = kinds[handler.request_streaming, handler.response_streaming]
    return make(behavior, handler.request_deserializer, handler.response_serializer)
