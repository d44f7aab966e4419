"""What a call can end with.

    ClientError (76)           the service can't be reached, or refuses
    ├── InvalidRequest (65)    a request that the service does not take, an address that is none, an unknown item
    └── CertificateError (64)  a file of TLS that can't be read

Every message says what was received, what was expected and what to do. `exit_code` is what the command line ends with.
"""

from __future__ import annotations


class ClientError(Exception):
    """The service can't be reached, or refused a call.

    Attributes:
        code: name of the gRPC status that the call ended with, such as UNAVAILABLE; "" where none was made.
    """

    exit_code = 76
    code = ""


class InvalidRequest(ClientError):
    """A request, or an address, that does not follow its schema."""

    exit_code = 65


class CertificateError(ClientError):
    """A file of TLS can't be read."""

    exit_code = 64
