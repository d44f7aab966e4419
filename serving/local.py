"""The client of the service that the settings start on this machine."""

from __future__ import annotations

from pathlib import Path

from driftline.client import Client
from driftline.configs.addresses import joined, reachable
from driftline.configs.settings import Serving


def client_of(
    settings: Serving,
    token: str = "",
    certificate: Path | None = None,
    client_certificate: Path | None = None,
    client_key: Path | None = None,
) -> Client:
    """A client of the server that these settings start here.

    Args:
        settings: of the server; its token and its certificate are taken where none is given.
        token, certificate, client_certificate, client_key: see Client.
    """
    return Client(
        local_address(settings),
        token or next(iter(settings.tokens), ""),
        certificate or settings.tls_certificate,
        client_certificate=client_certificate,
        client_key=client_key,
    )


def local_address(settings: Serving) -> str:
    """host:port at which the server that these settings start here is found."""
    return joined(reachable(settings.host), settings.port)
