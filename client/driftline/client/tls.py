"""Whether a service speaks TLS: gRPC says nothing of it to a client that does not, only that nobody answers."""

from __future__ import annotations

import socket
import ssl

from driftline.client.address import host_and_port

_WAIT_S = 2.0


def speaks_tls(target: str) -> bool:
    """Greets an address with TLS and looks whether the answer is TLS, too. Sends nothing else and trusts nobody."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection(host_and_port(target), _WAIT_S) as plain, context.wrap_socket(plain) as secure:
            return secure.version() is not None
    except ssl.SSLEOFError:
        return False
    except ssl.SSLError as error:  # an alert is an answer in TLS, anything else is not
        return "ALERT" in (error.reason or "")
    except (OSError, ValueError):
        return False
