"""Requests from what callers give; what can't be one is refused with a sentence, where protobuf names only a type."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar

from google.protobuf.message import Message

from driftline.client.errors import CertificateError, InvalidRequest

Request = TypeVar("Request", bound=Message)


def made(kind: type[Request], **fields: Any) -> Request:
    """A message with these fields.

    Raises:
        InvalidRequest: a value is of another type, out of the bounds of its type, or text that is not Unicode.
    """
    message = kind()
    for name, value in fields.items():
        try:
            if isinstance(value, str) and message.DESCRIPTOR.fields_by_name[name].is_repeated:
                raise TypeError("text is taken apart into characters")
            message.MergeFrom(kind(**{name: value}))
        except (TypeError, ValueError, OverflowError):
            raise InvalidRequest(_refusal(name, value, message.DESCRIPTOR.fields_by_name[name])) from None
    return message


def wanted(k: int) -> int:
    """How many items are asked for.

    Raises:
        InvalidRequest: none, which the service would take for what it gives by default.
    """
    if isinstance(k, int) and k < 1:
        raise InvalidRequest(f"k is {k}; expected 1 to 1000")
    return k


def checked_token(token: object) -> str:
    """A bearer token as a header can carry it.

    Raises:
        CertificateError: it has other characters; the message does not show it.
    """
    if not isinstance(token, str) or not re.fullmatch(r"[!-~]+", token):
        raise CertificateError(
            f"the token is a {type(token).__name__} that a header can't carry; expected one line of visible ASCII "
            "characters, as its file has it: no spaces, no line break at its end"
        )
    return token


def _refusal(name: str, value: object, field: Any) -> str:
    texts = [value] if isinstance(value, str) else value if isinstance(value, Sequence) else ()
    bad = next((text for text in texts if isinstance(text, str) and not _is_unicode(text)), None)
    if bad is not None and not (field.is_repeated and isinstance(value, str)):
        return (
            f"{name} {bad!r:.120} is not UTF-8; expected text without lone surrogates, which stand for bytes that were "
            "decoded with the wrong encoding: decode ids as UTF-8"
        )
    kind = "text" if field.cpp_type == field.CPPTYPE_STRING else "whole numbers of 64 bits at most, not negative"
    kind = "numbers" if field.cpp_type in (field.CPPTYPE_DOUBLE, field.CPPTYPE_FLOAT) else kind
    expected = f"a list of {kind}" if field.is_repeated else kind.removesuffix("s")
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        expected = "text by name, as {'device': 'phone'}"
    return f"{name} is {value!r:.120} ({type(value).__name__}); expected {expected}"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
