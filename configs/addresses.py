"""Addresses in settings, environment and options: host:port, [IPv6]:port, or a host alone.

Everything that names an address goes through here, so that one form is taken everywhere, and refused in one sentence.
"""

from __future__ import annotations

import ipaddress
import random
import re
import socket
from contextlib import suppress
from dataclasses import dataclass

_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
FORM = "expected host:port, with an IPv6 address in brackets: [::1]:PORT"
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Addresses that are listened on and can't be connected to, and where their listener is found on its own machine."""


@dataclass(frozen=True, slots=True)
class Address:
    """A host, an IPv6 address without its brackets, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return joined(self.host, self.port)


def address(text: str) -> Address:
    """An address with its port.

    Raises:
        ValueError: it is none.
    """
    text = text.strip()
    if "://" in text or text.startswith("unix:"):
        raise ValueError(f"got {text!r}, which begins with a scheme; {FORM}")
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        raise ValueError(f"got {text!r}, which has no port; {FORM}")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError(f"got {text!r}, which has several colons; {FORM}")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"got {text!r}, whose port is {port!r}; expected a port of 1 to 65535")
    return Address(host_of(host), int(port))


def addresses(text: str) -> list[Address]:
    """Addresses with their ports, separated by commas.

    Raises:
        ValueError: one of them is none.
    """
    return [address(one) for one in text.split(",")]


def host_of(text: str) -> str:
    """A host alone: a name, an IPv4 address, or an IPv6 address with or without brackets, which go.

    Raises:
        ValueError: it is none.
    """
    host = text.strip()
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    with suppress(ValueError):
        return str(ipaddress.ip_address(bare.partition("%")[0])) + "".join(bare.partition("%")[1:])
    if bare != host or not _NAME.fullmatch(host) or re.fullmatch(r"[\d.]+", host):
        raise ValueError(f"got {text!r}; expected a host: a name, 127.0.0.1 or ::1, without scheme and port")
    return host


def free_port() -> int:
    """A port of this machine that nobody listens on, nor on its next one, which a broker takes for its controller.

    It lies below those that systems give to clients (32768 and up on Linux): between the look and the listening
    none of their connections can take it, and a client that tries to reach it before it listens can't meet itself.
    """
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000, 2)
        with suppress(OSError), socket.socket() as one, socket.socket() as next_one:
            one.bind(("127.0.0.1", port))
            next_one.bind(("127.0.0.1", port + 1))
            return port


def joined(host: str, port: int) -> str:
    """host:port as clients and servers take it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reachable(host: str) -> str:
    """Where a listener on a host is found on its own machine."""
    return _ANY.get(host, host)
