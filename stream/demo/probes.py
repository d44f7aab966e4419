"""The engine from outside: events sent over Kafka, questions asked over gRPC, and the time between the two."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import grpc
import orjson
from kafka import KafkaProducer

from driftline.configs import settings
from driftline.configs.security import producer_options
from driftline.serving.local import local_address
from driftline.serving.transport import direct_channel
from driftline.stream.demo.parts import LOGS, DemoError
from driftline.stream.events.produce import LINGER_MS
from driftline.v1 import recommendation_pb2 as pb
from driftline.v1 import recommendation_pb2_grpc as pb_grpc

POLL_S = 0.02
"""Between two looks at a state that lacks an event: every one of them costs the service what a user's question does."""


class Serving:
    """Questions to the serving part.

    Args:
        at: its host and port.
    """

    def __init__(self, at: settings.Serving) -> None:
        channel = direct_channel(local_address(at))
        self._stub: Any = pb_grpc.RecommendationServiceStub(channel)

    def applied(self) -> int:
        """Next offset of the state, 0 while serving can't read it."""
        try:
            return int(self.state("?", latest=1).user_state.freshness.store_offset)
        except grpc.RpcError:
            return 0

    def learnt(self) -> int:
        """Next offset that the serving model has not learnt from, 0 while none serves."""
        try:
            return int(sum(source.offset for source in self.model().source_offsets))
        except grpc.RpcError:
            return 0

    def model(self) -> Any:
        """The `GetModelInfoResponse` of the model that serves."""
        return self._stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=5)

    def state(self, user_id: str, now_ms: int = 0, latest: int = 3) -> Any:
        """The `GetUserStateResponse` of a user at a time, 0 = now, with so many latest events."""
        request = pb.GetUserStateRequest(user_id=user_id, request_time_ms=now_ms, history_limit=latest)
        return self._stub.GetUserState(request, timeout=5)

    def recommend(self, user_id: str, now_ms: int, which: Any = pb.SLATE_LIST_OVERALL) -> Any:
        """The `RecommendResponse` of ten items from one of the lists."""
        options = pb.SlateOptions(request_time_ms=now_ms, k=10, list=which)
        return self._stub.Recommend(pb.RecommendRequest(user_id=user_id, options=options), timeout=5)

    def similar(self, item_id: str, k: int = 5) -> Any:
        """The `SimilarItemsResponse` of the items that go best with one; None = no model has learnt of it yet."""
        try:
            return self._stub.SimilarItems(pb.SimilarItemsRequest(item_id=item_id, k=k), timeout=5)
        except grpc.RpcError as error:
            if isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise


@dataclass(frozen=True, slots=True)
class Sent:
    """An event that the broker has acknowledged; `at_s` is when it was sent, on the monotonic clock."""

    user_id: str = ""
    t_ms: int = 0
    offset: int = -1
    at_s: float = 0.0


class Sender:
    """Sends events and knows the newest one acknowledged.

    Args:
        broker: names the topic.
        bootstrap: address of the broker.
    """

    def __init__(self, broker: settings.Broker, bootstrap: str) -> None:
        self.newest = Sent()
        self._topic = broker.prefix + "interactions"
        self._producer = KafkaProducer(**producer_options(broker, bootstrap), linger_ms=LINGER_MS)

    def send(self, key: bytes | None, value: bytes) -> None:
        """Hands an encoded event to the producer."""
        at_s = time.monotonic()

        def acknowledged(metadata: Any) -> None:
            data = orjson.loads(value)
            self.newest = Sent(data["user_id"], data["timestamp_ms"], metadata.offset, at_s)

        self._producer.send(self._topic, key=key, value=value).add_callback(acknowledged)

    def flush(self) -> None:
        """Returns when everything sent is acknowledged."""
        self._producer.flush()

    def close(self) -> None:
        """Ends the producer."""
        self._producer.close()


@dataclass(slots=True)
class Measured:
    """Latencies, one entry a measurement."""

    event_to_state_ms: list[float] = field(default_factory=list)
    event_to_snapshot_s: list[float] = field(default_factory=list)
    recommend_ms: list[float] = field(default_factory=list)


class Probes:
    """Two threads that follow the events of a sender into the state and into the model: a context manager.

    Args:
        serving: is asked.
        sender: sends meanwhile.

    Raises:
        DemoError: at the end, if one of the threads failed.
    """

    def __init__(self, serving: Serving, sender: Sender) -> None:
        self.measured = Measured()
        self._serving, self._sender = serving, sender
        self._done = threading.Event()
        self._errors: list[Exception] = []
        probes = (self._probe_state, self._probe_model)
        self._threads = [threading.Thread(target=self._run, args=(probe,)) for probe in probes]

    def __enter__(self) -> Probes:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()
        if self._errors and kind is None:
            what = " ".join(repr(self._errors[0]).split())
            raise DemoError(f"a probe failed: {what:.300}; see {LOGS / 'serve.log'}") from self._errors[0]

    def _run(self, probe: Callable[[], None]) -> None:
        try:
            probe()
        except Exception as error:  # noqa: BLE001 - raised where the probes end
            self._errors.append(error)

    def _probe_state(self) -> None:
        """How long until an event's user shows it, each event once; and how long a recommendation takes."""
        seen = -1
        while not self._done.wait(0.25):
            sent = self._sender.newest
            if sent.offset <= seen:
                continue
            seen = sent.offset
            while not self._done.is_set():
                if self._serving.state(sent.user_id, latest=1).provenance.user_state_version > sent.offset:
                    self.measured.event_to_state_ms.append((time.monotonic() - sent.at_s) * 1000)
                    break
                time.sleep(POLL_S)
            for _ in range(3):
                before = time.perf_counter()
                self._serving.recommend(sent.user_id, sent.t_ms + 1000)
                self.measured.recommend_ms.append((time.perf_counter() - before) * 1000)

    def _probe_model(self) -> None:
        """How long until a serving model has learnt an event."""
        waiting: list[Sent] = []
        while not self._done.wait(0.1):
            newest = self._sender.newest
            if newest.offset >= 0 and (not waiting or newest.offset > waiting[-1].offset):
                waiting.append(newest)
            learnt, now = self._serving.learnt(), time.monotonic()
            while waiting and waiting[0].offset < learnt:
                self.measured.event_to_snapshot_s.append(now - waiting.pop(0).at_s)
