"""Who may call what: bearer tokens with scopes, read again when their file changes.

| scope      | calls |
|------------|-------|
| read_state | GetUserState, WatchUserState |
| recommend  | Recommend, RecommendBatch, ScoreItems, SimilarItems |
| admin      | ForgetUser |

GetModelInfo and reflection take any token, health takes none. A scope brings no other. Without tokens everybody who
reaches the port may call, but for `admin`, which always needs a token.

    tokens:                                       # serving.token_file: YAML or JSON
      - {name: shop, token: "...", scopes: [recommend]}
      - {name: privacy, sha256: "...", scopes: [admin]}     # sha256 of the token: no secret in the file
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import yaml
from pydantic import Field, ValidationError, model_validator

from driftline.configs.errors import ConfigError
from driftline.configs.settings import Scope, Section, Serving, Token
from driftline.serving.errors import PermissionDenied, RequestError, Unauthenticated
from driftline.serving.metrics import ServingMetrics

LOG = logging.getLogger(__name__)
SCOPES: dict[str, Scope] = {
    "GetUserState": "read_state",
    "WatchUserState": "read_state",
    "Recommend": "recommend",
    "RecommendBatch": "recommend",
    "ScoreItems": "recommend",
    "SimilarItems": "recommend",
    "ForgetUser": "admin",
}
"""What a call needs; others need any token."""
PLAIN: tuple[Scope, ...] = ("read_state", "recommend")
"""Scopes of `serving.tokens`."""
_LOG_S = 1.0
"""Refused calls are logged at most once in so long; the next line says how many were not."""


class TokenEntry(Section):
    """One line of the token file."""

    name: str = Field("", max_length=100)
    token: Token | None = None
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    scopes: tuple[Scope, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_secret(self) -> Self:
        if (self.token is None) == (self.sha256 is None):
            raise ValueError("got token and sha256, or neither; expected one of them")
        return self


class TokenFile(Section):
    """Content of `serving.token_file`."""

    tokens: tuple[TokenEntry, ...]


@dataclass(frozen=True, slots=True)
class _Known:
    digest: bytes
    scopes: frozenset[Scope]


class Access:
    """Decides whether a call may go on. Thread-safe.

    Args:
        settings: `tokens` and `token_file`.
        metrics: counts what is refused.

    Raises:
        ConfigError: the token file can't be read at the start.
    """

    def __init__(self, settings: Serving, metrics: ServingMetrics) -> None:
        self._plain = [_Known(_digest(token.encode()), frozenset(PLAIN)) for token in settings.tokens]
        self._file, self._metrics = settings.token_file, metrics
        self._seen: object = None
        self._said = ""
        self._logged_s, self._unlogged = -_LOG_S, 0
        self._known: tuple[_Known, ...] = (*self._plain,)
        if self._file is not None:
            self._seen = _state(self._file)
            self._known = (*self._plain, *_read(self._file))
        self.guarded = bool(self._plain) or self._file is not None
        kept = {"serving.tokens": bool(self._plain), "serving.token_file": self._file is not None}
        where = " or ".join(name for name, is_set in kept.items() if is_set)
        self._expected = f"expected the metadata 'authorization: Bearer TOKEN' with a token of {where}"

    def follow(self) -> None:
        """Reads the token file again if it changed; one that can't be read leaves the tokens as they are."""
        if self._file is None:
            return
        try:
            now = _state(self._file)
            if now == self._seen:
                return
            self._seen = now
            known = _read(self._file)
        except ConfigError as error:
            if str(error) != self._said:
                LOG.error("%s The tokens read before stay valid.", error)
            self._said = str(error)
            self._metrics.stale_tokens.set(1)
            return
        self._known, self._said = (*self._plain, *known), ""
        self._metrics.stale_tokens.set(0)
        LOG.info("serving.token_file %s: %d tokens", self._file, len(known))

    def refusal(self, rpc: str, metadata: Sequence[tuple[str, str | bytes]]) -> RequestError | None:
        """Why a call may not go on; None = it may.

        Args:
            rpc: name of the method.
            metadata: of the call.
        """
        needed = SCOPES.get(rpc)
        if not self.guarded:
            return None if needed != "admin" else self._refuse(rpc, "no_tokens", b"", _NO_ADMIN)
        given = [
            value.encode() if isinstance(value, str) else value for key, value in metadata if key == "authorization"
        ]
        if not given:
            return self._refuse(rpc, "no_token", b"", Unauthenticated(f"no token was sent; {self._expected}"))
        digests = [_digest(value.removeprefix(b"Bearer ")) if value.startswith(b"Bearer ") else b"" for value in given]
        # every known token is compared, so that the time tells nothing of them
        mine = [known for known in self._known for digest in digests if hmac.compare_digest(known.digest, digest)]
        if not mine:
            known = "it is misspelt, or was taken back" if any(digests) else "it does not begin with 'Bearer '"
            return self._refuse(
                rpc, "unknown_token", digests[0],
                Unauthenticated(f"the token that was sent is not known here, {known}; {self._expected}"),
            )  # fmt: skip
        if needed is not None and not any(needed in known.scopes for known in mine):
            held = ", ".join(sorted({scope for known in mine for scope in known.scopes}))
            return self._refuse(
                rpc, "scope", digests[0], PermissionDenied(f"{rpc} needs scope {needed}; this token has {held}")
            )
        return None

    def _refuse(self, rpc: str, reason: str, digest: bytes, error: RequestError) -> RequestError:
        self._metrics.refused_calls.labels(rpc, reason).inc()
        now_s = time.monotonic()
        if now_s - self._logged_s < _LOG_S:
            self._unlogged += 1
            return error
        shown = f", sha256 of the token {digest.hex()[:8]}..." if digest else ""
        more = f"; {self._unlogged} more since the last line" if self._unlogged else ""
        LOG.warning("refused %s: %s%s%s", rpc, reason, shown, more)
        self._logged_s, self._unlogged = now_s, 0
        return error


_NO_ADMIN = PermissionDenied("this call needs a token of scope admin; the server has none, see serving.token_file")


def exposure(settings: Serving) -> list[str]:
    """What is open further than it looks, in sentences for the log."""
    if _is_loopback(settings.host):
        return []
    where = f"serving.host {settings.host} is reached from other machines"
    open_to_all = not settings.tokens and settings.token_file is None and settings.tls_client_ca is None
    said = []
    if open_to_all:
        said.append(
            f"{where} and calls need no token: everybody who reaches port {settings.port} reads every user's history. "
            "Set serving.token_file or serving.tokens, or serving.host: 127.0.0.1."
        )
    elif settings.tls_certificate is None:
        said.append(
            f"{where} and tokens travel unencrypted: who sees the network can use them. Set serving.tls_certificate "
            "and serving.tls_key."
        )
    return said


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _state(path: Path) -> object:
    """What changes with the file, also where a link is moved to another one."""
    try:
        found = path.stat()
    except OSError as error:
        raise ConfigError(f"serving.token_file {path} can't be read: {error.strerror}.") from None
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev


def _read(path: Path) -> list[_Known]:
    """The tokens in a file.

    Raises:
        ConfigError: it can't be read, or is not a token file; the message holds nothing of its content.
    """
    try:
        entries = TokenFile.model_validate(yaml.load(path.read_bytes(), Loader=yaml.SafeLoader)).tokens
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"serving.token_file {path} can't be read: {error.strerror}.") from None
    except (yaml.YAMLError, ValidationError, ValueError, RecursionError) as error:
        where = ""
        if isinstance(error, ValidationError):
            first = error.errors(include_input=False, include_context=False, include_url=False)[0]
            where = f" ({'.'.join(map(str, first['loc'])) or 'top'}: {first['type']})"
        raise ConfigError(
            f"serving.token_file {path} is not a token file{where}; expected YAML or JSON such as "
            '{"tokens": [{"name": "shop", "token": "...", "scopes": ["recommend", "read_state"]}]}, with scopes of '
            "read_state, recommend and admin, and token or sha256."
        ) from None
    if mode & (stat.S_IRGRP | stat.S_IROTH) and any(entry.token is not None for entry in entries):
        LOG.warning(
            "serving.token_file %s can be read by other users: chmod 600, or give sha256 in place of token", path
        )
    return [
        _Known(
            bytes.fromhex(entry.sha256) if entry.sha256 is not None else _digest((entry.token or "").encode()),
            frozenset(entry.scopes),
        )
        for entry in entries
    ]
