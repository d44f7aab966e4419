"""The one place where gRPC status codes are chosen.

    RequestError
    ├── InvalidRequest    INVALID_ARGUMENT     BadRequest field violations
    ├── UnknownItem       NOT_FOUND            ResourceInfo
    ├── NotReady          UNAVAILABLE          RetryInfo
    ├── Overloaded        RESOURCE_EXHAUSTED   RetryInfo
    ├── DeadlinePassed    DEADLINE_EXCEEDED
    ├── Unauthenticated   UNAUTHENTICATED
    └── PermissionDenied  PERMISSION_DENIED

Anything else that a handler raises is INTERNAL, with a number under which the log has the traceback.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence

from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

LOG = logging.getLogger(__name__)
_TOLD = 20
"""Violations that fit into an answer's metadata, of which gRPC takes 16 KB."""


class RequestError(Exception):
    """A request that is answered with a status instead of a response."""

    code: int = code_pb2.UNKNOWN

    def details(self) -> Sequence[Message]:
        """Messages of google.rpc that say more."""
        return ()


class InvalidRequest(RequestError):
    """Fields that do not follow the schema: (field, what was received and what is expected). Tells the first 20."""

    code = code_pb2.INVALID_ARGUMENT

    def __init__(self, violations: Sequence[tuple[str, str]]) -> None:
        self.violations = violations[:_TOLD]
        more = [f"and {len(violations) - _TOLD} more"] if len(violations) > _TOLD else []
        super().__init__("; ".join([f"{field}: {text}" for field, text in self.violations] + more))

    def details(self) -> Sequence[Message]:
        """See RequestError."""
        violation = error_details_pb2.BadRequest.FieldViolation
        rows = [violation(field=field, description=text) for field, text in self.violations]
        return (error_details_pb2.BadRequest(field_violations=rows),)


class UnknownItem(RequestError):
    """An item that the serving model does not know."""

    code = code_pb2.NOT_FOUND

    def __init__(self, item_id: str, model_version: str, near: Sequence[str] = (), listed: bool = False) -> None:
        meant = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        where = "it is in the catalogue, but " if listed else ""
        super().__init__(
            f"item {item_id!r} is not known to model {model_version}: {where}it had no event yet, or its first one is "
            f"newer{meant}"
        )
        self.item_id = item_id

    def details(self) -> Sequence[Message]:
        """See RequestError."""
        return (
            error_details_pb2.ResourceInfo(resource_type="item", resource_name=self.item_id, description=str(self)),
        )


class _Later(RequestError):
    def __init__(self, text: str, retry_ms: int) -> None:
        super().__init__(f"{text}; try again in {retry_ms} ms")
        self.retry_ms = retry_ms

    def details(self) -> Sequence[Message]:
        """See RequestError."""
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(self.retry_ms)
        return (error_details_pb2.RetryInfo(retry_delay=delay),)


class NotReady(_Later):
    """There is nothing to answer from yet."""

    code = code_pb2.UNAVAILABLE


class Overloaded(_Later):
    """More requests than `max_in_flight`."""

    code = code_pb2.RESOURCE_EXHAUSTED


class DeadlinePassed(RequestError):
    """The caller has stopped waiting."""

    code = code_pb2.DEADLINE_EXCEEDED


class Unauthenticated(RequestError):
    """No bearer token, or one that is not configured."""

    code = code_pb2.UNAUTHENTICATED


class PermissionDenied(RequestError):
    """A token that may not make this call."""

    code = code_pb2.PERMISSION_DENIED


def to_status(error: Exception) -> rpc_status.Status:
    """The rich gRPC status of an error; an unexpected one is logged and named by a number only."""
    if isinstance(error, RequestError):
        code, text, details = error.code, str(error), error.details()
    else:
        number = uuid.uuid4().hex[:8]
        LOG.error("request failed, error %s", number, exc_info=error)
        code, details = code_pb2.INTERNAL, ()
        text = f"the server failed on this request; its log has the reason under error {number}"
    status = status_pb2.Status(code=code, message=text)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return rpc_status.to_status(status)


def code_name(error: Exception) -> str:
    """The name of the status code of an error."""
    return str(code_pb2.Code.Name(error.code if isinstance(error, RequestError) else code_pb2.INTERNAL))
