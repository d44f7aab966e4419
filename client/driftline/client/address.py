"""Where a service is: host:port, with an IPv6 address in brackets."""

from __future__ import annotations

import ipaddress
import re

from driftline.client.errors import InvalidRequest

_FORM = re.compile(r"(\[(?P<six>[0-9A-Fa-f:.]+)(%[\w.-]+)?\]|(?P<host>[\w.-]+)):(?P<port>\d{1,5})", re.ASCII)


def checked(target: str) -> str:
    """The address without space around it. gRPC takes other forms, too, and then waits for nobody.

    Raises:
        InvalidRequest: it is none.
    """
    text = target.strip() if isinstance(target, str) else ""
    if not _is_address(text):
        what = ", without a scheme" if "://" in text or text.startswith("unix:") else ""
        raise InvalidRequest(f"address {target!r}; expected host:port{what}, such as 127.0.0.1:50551 or [::1]:50551")
    return text


def host_and_port(target: str) -> tuple[str, int]:
    """The two parts of an address that was checked, the host without brackets."""
    host, _, port = target.rpartition(":")
    return host.strip("[]"), int(port)


def _is_address(text: str) -> bool:
    found = _FORM.fullmatch(text)
    if found is None or not 0 < int(found["port"]) < 65536:
        return False
    literal = found["six"] or (found["host"] if re.fullmatch(r"[\d.]+", found["host"]) else None)
    try:
        return literal is None or ipaddress.ip_address(literal).version == (6 if found["six"] else 4)
    except ValueError:
        return False
