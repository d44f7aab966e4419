"""The eight RPCs. Each: check the request, take the model once, answer; errors become statuses in one place."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NoReturn, TypeVar

import grpc

from driftline.configs.settings import Serving
from driftline.serving.checks import MAX_HISTORY, MAX_SCORED, MAX_USERS, Checks
from driftline.serving.errors import DeadlinePassed, Overloaded, code_name, to_status
from driftline.serving.metrics import ServingMetrics
from driftline.serving.recommender import RETRY_MS, Reading, Recommender
from driftline.serving.sizes import share_bytes
from driftline.serving.state_reader import StateReader
from driftline.v1 import recommendation_pb2 as pb
from driftline.v1 import recommendation_pb2_grpc as pb_grpc

_WATCH_TICK_S = 0.25
_LONGEST_INTERVAL_MS = 3_600_000

Response = TypeVar("Response")


class RecommendationService(pb_grpc.RecommendationServiceServicer):
    """The transport side of a Recommender.

    Args:
        settings: defaults and bounds.
        recommender: makes the answers.
        state: wakes the streams.
        metrics: of this server.
        forget: sends a request to forget a user; partition and offset of its record.
    """

    def __init__(
        self,
        settings: Serving,
        recommender: Recommender,
        state: StateReader,
        metrics: ServingMetrics,
        forget: Callable[[str], tuple[int, int]],
    ) -> None:
        self._forget = forget
        self._settings, self._recommender, self._state, self._metrics = settings, recommender, state, metrics
        self._watchers = threading.BoundedSemaphore(settings.max_watchers)
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Ends the open streams."""
        self._stopping.set()

    def GetUserState(self, request: pb.GetUserStateRequest, context: grpc.ServicerContext) -> pb.GetUserStateResponse:
        """The state of one user as the stream left it."""

        def answer() -> pb.GetUserStateResponse:
            checks = Checks()
            checks.identifier("user_id", request.user_id)
            checks.time_ms("request_time_ms", request.request_time_ms)
            limit = checks.within("history_limit", request.history_limit, 0, MAX_HISTORY) or self._settings.history
            version = checks.version("min_user_state_version", request.min_user_state_version)
            checks.done()
            reading = self._recommender.read(request.user_id, request.request_time_ms, version)
            origin, state = self._recommender.user_state(reading, limit)
            self._count("GetUserState", origin)
            return pb.GetUserStateResponse(provenance=origin, user_state=state)

        return self._answer("GetUserState", context, answer)

    def WatchUserState(
        self, request: pb.WatchUserStateRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchUserStateResponse]:
        """The state of one user at once and after each change."""

        def limit() -> int:
            checks = Checks()
            checks.identifier("user_id", request.user_id)
            checks.within("min_interval_ms", request.min_interval_ms, 0, _LONGEST_INTERVAL_MS)
            wanted = checks.within("history_limit", request.history_limit, 0, MAX_HISTORY)
            checks.version("min_user_state_version", request.min_user_state_version)
            checks.done()
            if not self._watchers.acquire(blocking=False):
                raise Overloaded(f"{self._settings.max_watchers} streams are open already", RETRY_MS)
            return wanted or self._settings.history

        wanted = self._answer("WatchUserState", context, limit)
        self._metrics.watchers.inc()
        try:
            for reading in self._changes(request, context):
                origin, state = self._recommender.user_state(reading, wanted)
                yield pb.WatchUserStateResponse(provenance=origin, user_state=state)
        finally:
            self._metrics.watchers.dec()
            self._watchers.release()

    def Recommend(self, request: pb.RecommendRequest, context: grpc.ServicerContext) -> pb.RecommendResponse:
        """The best items for one user at one time."""

        def answer() -> pb.RecommendResponse:
            checks = Checks()
            checks.identifier("user_id", request.user_id)
            options = checks.options(request.options, self._settings.diversity)
            checks.done()
            served = self._recommender.model(options.min_model_sequence)
            origin, slate = self._recommender.recommend(request.user_id, options, served)
            self._count("Recommend", origin)
            return pb.RecommendResponse(provenance=origin, slate=slate)

        return self._answer("Recommend", context, answer)

    def RecommendBatch(
        self, request: pb.RecommendBatchRequest, context: grpc.ServicerContext
    ) -> pb.RecommendBatchResponse:
        """The best items for several users, all under one model version."""

        def answer() -> pb.RecommendBatchResponse:
            checks = Checks()
            users = checks.identifiers("user_ids", request.user_ids, 1, MAX_USERS)
            options = checks.options(request.options, self._settings.diversity)
            checks.batch(len(users), options.k)
            checks.done()
            options = replace(options, most_bytes=share_bytes(len(users)))
            served = self._recommender.model(options.min_model_sequence)
            response = pb.RecommendBatchResponse()
            answers = self._recommender.recommend_all(users, options, served)
            for user_id in users:
                _in_time(context)
                origin, slate = next(answers)
                self._count("RecommendBatch", origin)
                response.user_slates.add(user_id=user_id, provenance=origin, slate=slate)
            return response

        return self._answer("RecommendBatch", context, answer)

    def ScoreItems(self, request: pb.ScoreItemsRequest, context: grpc.ServicerContext) -> pb.ScoreItemsResponse:
        """Scores of items that the caller chose."""

        def answer() -> pb.ScoreItemsResponse:
            checks = Checks()
            user_id = checks.identifier("user_id", request.user_id)
            item_ids = checks.identifiers("item_ids", request.item_ids, 1, MAX_SCORED)
            time_ms = checks.time_ms("request_time_ms", request.request_time_ms)
            which = checks.which("list", request.list)
            version = checks.version("min_user_state_version", request.min_user_state_version)
            asked = checks.context("context", request.context)
            checks.done()
            served = self._recommender.required_model(request.min_model_sequence)
            origin, scores, unknown = self._recommender.score(user_id, item_ids, time_ms, which, served, version, asked)
            self._count("ScoreItems", origin)
            return pb.ScoreItemsResponse(provenance=origin, scores=scores, unknown_item_ids=unknown)

        return self._answer("ScoreItems", context, answer)

    def SimilarItems(self, request: pb.SimilarItemsRequest, context: grpc.ServicerContext) -> pb.SimilarItemsResponse:
        """The items that go best with one item."""

        def answer() -> pb.SimilarItemsResponse:
            checks = Checks()
            item_id = checks.identifier("item_id", request.item_id)
            options = checks.steering("", request, self._settings.diversity)
            checks.done()
            served = self._recommender.required_model(options.min_model_sequence)
            origin, slate = self._recommender.similar(item_id, options, served)
            self._count("SimilarItems", origin)
            return pb.SimilarItemsResponse(provenance=origin, slate=slate)

        return self._answer("SimilarItems", context, answer)

    def GetModelInfo(self, request: pb.GetModelInfoRequest, context: grpc.ServicerContext) -> pb.GetModelInfoResponse:
        """Which model serves, what it has learnt from and how good it was."""
        return self._answer("GetModelInfo", context, self._recommender.info)

    def ForgetUser(self, request: pb.ForgetUserRequest, context: grpc.ServicerContext) -> pb.ForgetUserResponse:
        """Asks the stream to forget a user."""

        def answer() -> pb.ForgetUserResponse:
            checks = Checks()
            checks.identifier("user_id", request.user_id)
            checks.done()
            partition, offset = self._forget(request.user_id)
            return pb.ForgetUserResponse(partition=partition, offset=offset)

        return self._answer("ForgetUser", context, answer)

    def _changes(self, request: pb.WatchUserStateRequest, context: grpc.ServicerContext) -> Iterator[Reading]:
        """The user now, and again after each change, until the caller or the server ends the stream."""
        mark: object = None
        resting_until_s = 0.0
        while context.is_active() and not self._stopping.is_set():
            rest_s = resting_until_s - time.monotonic()
            if rest_s > 0:
                self._stopping.wait(min(rest_s, _WATCH_TICK_S))
                continue
            reading = self._recommender.read(request.user_id, 0)
            if reading.mark != mark and reading.stored.store_offset >= request.min_user_state_version:
                mark = reading.mark
                yield reading
                resting_until_s = time.monotonic() + request.min_interval_ms / 1000
                continue
            with self._state.changed:
                self._state.changed.wait(_WATCH_TICK_S)

    def _answer(self, rpc: str, context: grpc.ServicerContext, answer: Callable[[], Response]) -> Response:
        """Runs one handler: deadline, status, latency and code in one place."""
        started = time.perf_counter()
        code = "OK"
        try:
            _in_time(context)
            return answer()
        except Exception as error:  # noqa: BLE001 - every failure becomes a status
            code = code_name(error)
            _abort(context, error)
        finally:
            self._metrics.latency_s.labels(rpc).observe(time.perf_counter() - started)
            self._metrics.answers.labels(rpc, code).inc()

    def _count(self, rpc: str, origin: pb.Provenance) -> None:
        name = pb.ServedFrom.Name(origin.served_from).removeprefix("SERVED_FROM_").lower()
        self._metrics.served_from.labels(rpc, name).inc()


def _abort(context: grpc.ServicerContext, error: Exception) -> NoReturn:
    context.abort_with_status(to_status(error))
    raise AssertionError("abort_with_status returned")


def _in_time(context: grpc.ServicerContext) -> None:
    remaining_s = context.time_remaining()
    if remaining_s is not None and remaining_s <= 0:
        raise DeadlinePassed("the deadline passed before the request was answered; give it more time or ask for less")
