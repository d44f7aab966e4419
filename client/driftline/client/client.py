"""A small client of the service: typed messages out, errors that a person can act on.

with Client("127.0.0.1:50551") as client:
    state = client.user_state("17850").user_state
    slate = client.recommend("17850", k=5, which="novel", categories=["lamps"], max_price=20).slate
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from driftline.client.address import checked
from driftline.client.errors import CertificateError, ClientError, InvalidRequest
from driftline.client.requests import checked_token, made, wanted
from driftline.client.steering import Steering, steered
from driftline.client.tls import speaks_tls
from driftline.v1 import recommendation_pb2 as pb
from driftline.v1 import recommendation_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from typing import Unpack  # of Python 3.11; under 3.10 no annotation is looked at while it runs

Which = Literal["overall", "novel", "repeat"]
PemFile = str | os.PathLike[str]
Answer = TypeVar("Answer", bound=Message)
_LISTS: dict[Which, pb.SlateList] = {
    "overall": pb.SLATE_LIST_OVERALL,
    "novel": pb.SLATE_LIST_NOVEL,
    "repeat": pb.SLATE_LIST_REPEAT,
}
SERVICE = pb.DESCRIPTOR.services_by_name["RecommendationService"].full_name
_HEALTH = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
_SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{"service": SERVICE}],
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

_MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""A service answers with 4 MiB at most; one of an earlier release did with more."""
_TLS_WORDS = ("handshake", "ssl", "tls", "certificate")
"""What gRPC's messages of a connection that failed for TLS have in them."""


class Client:
    """Calls one server. Thread-safe; close it, or use it as a context manager.

    Args:
        target: host:port, an IPv6 address in brackets: [::1]:50551.
        token: bearer token, "" = none.
        certificate: PEM file of the certificate to trust; None = not encrypted.
        timeout_s: deadline of each call but `watch`.
        proxy: go through the proxy that http_proxy, https_proxy or grpc_proxy names, unless no_proxy excludes the
            target. Off by default: such a proxy is meant for the web, and most let no gRPC through.
        client_certificate, client_key: PEM files of the caller's own certificate, where the service asks for one.
    """

    def __init__(
        self,
        target: str,
        token: str = "",
        certificate: PemFile | None = None,
        timeout_s: float = 10.0,
        proxy: bool = False,
        *,
        client_certificate: PemFile | None = None,
        client_key: PemFile | None = None,
    ) -> None:
        self.target, self._timeout_s = checked(target), timeout_s
        self._metadata = (("authorization", f"Bearer {checked_token(token)}"),) if token else ()
        options = (
            ("grpc.service_config", _SERVICE_CONFIG),
            ("grpc.max_receive_message_length", _MAX_ANSWER_BYTES),
            ("grpc.enable_http_proxy", int(proxy)),
        )
        if (client_certificate is None) != (client_key is None) or (client_certificate and certificate is None):
            raise CertificateError(
                "got a part of client_certificate, client_key and certificate; expected the caller's certificate with "
                "its key, and with them the certificate to trust"
            )
        self._is_plain = certificate is None
        if certificate is None:
            self._channel = grpc.insecure_channel(self.target, options)
        else:
            self._channel = grpc.secure_channel(
                self.target, _credentials(certificate, client_certificate, client_key), options
            )
        self._stub: Any = pb_grpc.RecommendationServiceStub(self._channel)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    def user_state(
        self, user_id: str, history: int = 0, at_ms: int = 0, min_user_state_version: int = 0
    ) -> pb.GetUserStateResponse:
        """The state of a user with their newest events; 0 = the server's default, now, and any state."""
        request = made(
            pb.GetUserStateRequest,
            user_id=user_id,
            history_limit=history,
            request_time_ms=at_ms,
            min_user_state_version=min_user_state_version,
        )
        return self._call(request, pb.GetUserStateResponse)

    def watch(
        self, user_id: str, history: int = 0, min_interval_ms: int = 0, min_user_state_version: int = 0
    ) -> Iterator[pb.WatchUserStateResponse]:
        """The state of a user now, or as soon as it is of that version, and after each change, while it is iterated."""
        request = made(
            pb.WatchUserStateRequest,
            user_id=user_id,
            history_limit=history,
            min_interval_ms=min_interval_ms,
            min_user_state_version=min_user_state_version,
        )
        stream = self._stub.WatchUserState(request, metadata=self._metadata)
        try:
            yield from stream
        except grpc.RpcError as error:
            raise self._explained(error) from None
        finally:
            stream.cancel()

    def recommend(
        self,
        user_id: str,
        k: int = 10,
        which: Which = "overall",
        at_ms: int = 0,
        min_user_state_version: int = 0,
        context: Mapping[str, str] | None = None,
        **steering: Unpack[Steering],
    ) -> pb.RecommendResponse:
        """The best items for a user.

        client.recommend("17850", k=5, categories=["lamps"], max_price=20, excluded=["84991"], diversity=0.3)

        Args:
            user_id: for whom; one never seen gets a cold-start answer.
            k: items wanted, 1 to 1000.
            which: "overall", "novel" (nothing that the user had) or "repeat" (only what the user had).
            at_ms: time for which to recommend, unix milliseconds; 0 = now.
            min_user_state_version: offset up to which the user's partition must be applied; 0 = any.
            context: how the request is made, by field of `signals.context`, as {"device": "phone"}.
            **steering: which items, and how far apart: see Steering.
        """
        options = _options(k, which, at_ms, min_user_state_version, context, steering)
        return self._call(made(pb.RecommendRequest, user_id=user_id, options=options), pb.RecommendResponse)

    def recommend_batch(
        self,
        user_ids: Sequence[str],
        k: int = 10,
        at_ms: int = 0,
        which: Which = "overall",
        min_user_state_version: int = 0,
        context: Mapping[str, str] | None = None,
        **steering: Unpack[Steering],
    ) -> pb.RecommendBatchResponse:
        """The best items for 1 to 256 users under one model, users times k at most 25,600; the rest as `recommend`.

        {one.user_id: list(one.slate.item_ids) for one in client.recommend_batch(["17850", "13047"], k=5).user_slates}

        Returns:
            `user_slates`, one a user in the order of the request, each with `slate` and `provenance` as of `recommend`.
        """
        options = _options(k, which, at_ms, min_user_state_version, context, steering)
        return self._call(made(pb.RecommendBatchRequest, user_ids=user_ids, options=options), pb.RecommendBatchResponse)

    def score(
        self,
        user_id: str,
        item_ids: Sequence[str],
        at_ms: int = 0,
        min_user_state_version: int = 0,
        which: Which = "overall",
        context: Mapping[str, str] | None = None,
    ) -> pb.ScoreItemsResponse:
        """Scores of 1 to 1000 items, parallel to their ids; NaN for those that `unknown_item_ids` names."""
        request = made(
            pb.ScoreItemsRequest,
            user_id=user_id,
            item_ids=item_ids,
            list=_list(which),
            request_time_ms=at_ms,
            min_user_state_version=min_user_state_version,
            context=context or {},
        )
        return self._call(request, pb.ScoreItemsResponse)

    def similar(self, item_id: str, k: int = 10, **steering: Unpack[Steering]) -> pb.SimilarItemsResponse:
        """The items that go with one item, 1 to 1000; `steering` says which of them, see Steering."""
        return self._call(
            made(pb.SimilarItemsRequest, item_id=item_id, k=wanted(k), **steered(**steering)), pb.SimilarItemsResponse
        )

    def model_info(self) -> pb.GetModelInfoResponse:
        """Which model serves."""
        return self._call(pb.GetModelInfoRequest(), pb.GetModelInfoResponse)

    def forget(self, user_id: str) -> pb.ForgetUserResponse:
        """Asks to forget a user, with a token of scope admin; the answer says where the request lies in the stream."""
        return self._call(made(pb.ForgetUserRequest, user_id=user_id), pb.ForgetUserResponse)

    def health(self, service: str = SERVICE) -> str:
        """SERVING or NOT_SERVING; of the process as a whole with service "", which serves while it lives."""
        # the messages of grpc.health.v1 have one field each, as these have, and no package of theirs is needed
        check = self._channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=StringValue.SerializeToString,
            response_deserializer=Int32Value.FromString,
        )
        try:
            status = check(StringValue(value=service), timeout=self._timeout_s, metadata=self._metadata).value
        except grpc.RpcError as error:
            raise self._explained(error) from None
        return _HEALTH[status] if status < len(_HEALTH) else _HEALTH[0]

    def _call(self, request: Message, kind: type[Answer]) -> Answer:
        method = getattr(self._stub, request.DESCRIPTOR.name.removesuffix("Request"))
        try:
            answer: Answer = method(request, timeout=self._timeout_s, metadata=self._metadata)
            return answer
        except grpc.RpcError as error:
            raise self._explained(error) from None

    def _explained(self, error: grpc.RpcError) -> ClientError:
        """What an error of gRPC means here; a service that speaks TLS says nothing to a client that does not."""
        is_unavailable = error.code() == grpc.StatusCode.UNAVAILABLE
        if is_unavailable and self._is_plain and "try again in" not in error.details() and speaks_tls(self.target):
            explained = _no_tls(self.target, "it speaks TLS, the client has no certificate to trust")
        else:
            explained = _explained(error, self.target)
        explained.code = error.code().name
        return explained


def _list(which: Which) -> pb.SlateList:
    if not isinstance(which, str) or which not in _LISTS:
        raise InvalidRequest(f"list {which!r}; expected {', '.join(_LISTS)}")
    return _LISTS[which]


def _options(
    k: int,
    which: Which,
    at_ms: int,
    min_user_state_version: int,
    context: Mapping[str, str] | None,
    steering: Steering,
) -> pb.SlateOptions:
    return made(
        pb.SlateOptions,
        k=wanted(k),
        list=_list(which),
        request_time_ms=at_ms,
        min_user_state_version=min_user_state_version,
        context=context or {},
        **steered(**steering),
    )


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


def _credentials(certificate: PemFile, own: PemFile | None, key: PemFile | None) -> grpc.ChannelCredentials:
    trusted, chain, private = (None if path is None else _pem(path) for path in (certificate, own, key))
    return grpc.ssl_channel_credentials(trusted, private, chain)


def _pem(path: PemFile) -> bytes:
    try:
        content = Path(path).read_bytes()
    except (TypeError, ValueError):
        raise CertificateError(
            f"certificate is of type {type(path).__name__}; expected the path of a PEM file"
        ) from None
    except OSError as error:
        shown = f"{path!s:.300}" if "BEGIN" not in str(path) else "that is the PEM text itself"
        raise CertificateError(
            f"certificate {shown} can't be read: {error.strerror}. Expected the path of a PEM file."
        ) from None
    if b"-----BEGIN" not in content:
        raise CertificateError(f"certificate {path} is no PEM file: expected text with a line -----BEGIN ...-----")
    return content


def _no_tls(target: str, why: str) -> ClientError:
    return ClientError(
        f"{target} and this client did not agree on TLS ({why}): give the certificate to trust "
        f"({_given('certificate')}) and, where the service has serving.tls_client_ca, your own (client_certificate "
        "and client_key)"
    )


def _given(name: str) -> str:
    """How an argument is given in Python and on the command line."""
    option = name.replace("_", "-")
    return f"{name}=... of Client, --{option} or DRIFTLINE_{name.upper()} on the command line"


def _explained(error: grpc.RpcError, target: str) -> ClientError:
    code, text = error.code(), error.details()
    if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND):
        return InvalidRequest(text)
    if code == grpc.StatusCode.UNAVAILABLE and any(word in text.lower() for word in _TLS_WORDS):
        return _no_tls(target, text)
    if code == grpc.StatusCode.UNAVAILABLE and "try again in" not in text:
        return ClientError(
            f"no driftline service answers at {target}: one that was just started takes some seconds; else start it "
            "with 'driftline up' or 'driftline serve', or name "
            "another address (--address HOST:PORT of a command, else serving.host and serving.port of -c); "
            "'driftline status' says what runs"
        )
    if code == grpc.StatusCode.UNAUTHENTICATED:
        return ClientError(f"{target} refuses the call: {text}; a token is given as {_given('token')}")
    if code == grpc.StatusCode.PERMISSION_DENIED:
        return ClientError(f"{target} refuses: {text}")
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return ClientError(f"the service at {target} did not answer in time; it may be overloaded")
    return ClientError(f"{target} answered {code.name}: {text}")
