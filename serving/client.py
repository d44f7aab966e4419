"""A small client of the service: typed messages out, errors that a person can act on.

with Client("127.0.0.1:50551") as client:
    state = client.user_state("17850").user_state
    slate = client.recommend("17850", k=5, which="novel").slate
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from configs.errors import ConfigError, DriftlineError, InputError, ServingError
from configs.settings import Serving
from serving.proto.driftline.v1 import recommendation_pb2 as pb
from serving.proto.driftline.v1 import recommendation_pb2_grpc as pb_grpc

Which = Literal["overall", "novel", "repeat"]
Answer = TypeVar("Answer", bound=Message)
_LISTS: dict[Which, pb.SlateList] = {
    "overall": pb.SLATE_LIST_OVERALL,
    "novel": pb.SLATE_LIST_NOVEL,
    "repeat": pb.SLATE_LIST_REPEAT,
}
_SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{"service": pb.DESCRIPTOR.services_by_name["RecommendationService"].full_name}],
                "retryPolicy": {
                    "maxAttempts": 3,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 3,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)


class Client:
    """Calls one server. Thread-safe; close it, or use it as a context manager.

    Args:
        target: host:port.
        token: bearer token, "" = none.
        certificate: PEM file of the certificate to trust; None = not encrypted.
        timeout_s: deadline of each call but `watch`.
    """

    def __init__(self, target: str, token: str = "", certificate: Path | None = None, timeout_s: float = 10.0) -> None:
        if "://" in target:
            raise InputError(f"address {target!r}; expected host:port, without a scheme")
        self.target, self._timeout_s = target, timeout_s
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        options = (("grpc.service_config", _SERVICE_CONFIG),)
        if certificate is None:
            self._channel = grpc.insecure_channel(target, options)
        else:
            self._channel = grpc.secure_channel(target, _trust(certificate), options)
        self._stub: Any = pb_grpc.RecommendationServiceStub(self._channel)  # type: ignore[no-untyped-call]

    @classmethod
    def of(cls, settings: Serving) -> Client:
        """The client of the server that these settings start on this machine."""
        host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
        return cls(f"{host}:{settings.port}", next(iter(settings.tokens), ""), settings.tls_certificate)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    def user_state(self, user_id: str, history: int = 0, at_ms: int = 0) -> pb.GetUserStateResponse:
        """The state of a user with their newest events; 0 = the server's default, and now."""
        request = pb.GetUserStateRequest(user_id=user_id, history_limit=history, request_time_ms=at_ms)
        return self._call(request, pb.GetUserStateResponse)

    def watch(self, user_id: str, history: int = 0, min_interval_ms: int = 0) -> Iterator[pb.WatchUserStateResponse]:
        """The state of a user now and after each change, for as long as it is iterated."""
        request = pb.WatchUserStateRequest(user_id=user_id, history_limit=history, min_interval_ms=min_interval_ms)
        stream = self._stub.WatchUserState(request, metadata=self._metadata)
        try:
            yield from stream
        except grpc.RpcError as error:
            raise _explained(error, self.target) from None
        finally:
            stream.cancel()

    def recommend(
        self,
        user_id: str,
        k: int = 10,
        which: Which = "overall",
        at_ms: int = 0,
        excluded: Sequence[str] = (),
        domain: str = "",
        min_model_sequence: int = 0,
        min_user_state_version: int = 0,
    ) -> pb.RecommendResponse:
        """The best items for a user; what each argument means is said in SlateOptions."""
        if which not in _LISTS:
            raise InputError(f"list {which!r}; expected {', '.join(_LISTS)}")
        options = pb.SlateOptions(
            k=k,
            list=_LISTS[which],
            request_time_ms=at_ms,
            excluded_item_ids=excluded,
            domain=domain,
            min_model_sequence=min_model_sequence,
            min_user_state_version=min_user_state_version,
        )
        return self._call(pb.RecommendRequest(user_id=user_id, options=options), pb.RecommendResponse)

    def recommend_batch(self, user_ids: Sequence[str], k: int = 10, at_ms: int = 0) -> pb.RecommendBatchResponse:
        """The best items for several users under one model."""
        options = pb.SlateOptions(k=k, request_time_ms=at_ms)
        return self._call(pb.RecommendBatchRequest(user_ids=user_ids, options=options), pb.RecommendBatchResponse)

    def score(self, user_id: str, item_ids: Sequence[str], at_ms: int = 0) -> pb.ScoreItemsResponse:
        """Scores of given items, parallel to their ids."""
        request = pb.ScoreItemsRequest(user_id=user_id, item_ids=item_ids, request_time_ms=at_ms)
        return self._call(request, pb.ScoreItemsResponse)

    def similar(self, item_id: str, k: int = 10) -> pb.SimilarItemsResponse:
        """The items that go with one item."""
        return self._call(pb.SimilarItemsRequest(item_id=item_id, k=k), pb.SimilarItemsResponse)

    def model_info(self) -> pb.GetModelInfoResponse:
        """Which model serves."""
        return self._call(pb.GetModelInfoRequest(), pb.GetModelInfoResponse)

    def _call(self, request: Message, kind: type[Answer]) -> Answer:
        method = getattr(self._stub, request.DESCRIPTOR.name.removesuffix("Request"))
        try:
            answer: Answer = method(request, timeout=self._timeout_s, metadata=self._metadata)
            return answer
        except grpc.RpcError as error:
            raise _explained(error, self.target) from None


def as_dict(message: Message) -> dict[str, Any]:
    """A message as JSON-ready data: field names as in the proto, every field present, 64-bit numbers as numbers."""
    data = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return {name: _numbers(value, message.DESCRIPTOR.fields_by_name[name]) for name, value in data.items()}


def _numbers(value: Any, field: Any) -> Any:
    if isinstance(value, list):
        return [_numbers(one, field) for one in value]
    if isinstance(value, dict):
        return {name: _numbers(one, field.message_type.fields_by_name[name]) for name, one in value.items()}
    if isinstance(value, str) and field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64):
        return int(value)
    return None if value == "NaN" and field.cpp_type == field.CPPTYPE_FLOAT else value


def _trust(certificate: Path) -> grpc.ChannelCredentials:
    try:
        return grpc.ssl_channel_credentials(certificate.read_bytes())
    except OSError as error:
        raise ConfigError(f"certificate {certificate} can't be read: {error.strerror}. Expected a PEM file.") from None


def _explained(error: grpc.RpcError, target: str) -> DriftlineError:
    code, text = error.code(), error.details()
    if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND):
        return InputError(text)
    if code == grpc.StatusCode.UNAVAILABLE and "try again in" not in text:
        return ServingError(
            f"no driftline service answers at {target}: start it with 'driftline serve', or set serving.host and port"
        )
    if code == grpc.StatusCode.UNAUTHENTICATED:
        return ServingError(f"{target} wants one of its serving.tokens: give it as --token, or in DRIFTLINE_TOKEN")
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return ServingError(f"the service at {target} did not answer in time; it may be overloaded")
    return ServingError(f"{target} answered {code.name}: {text}")
