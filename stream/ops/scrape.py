"""What a process of this machine tells at its `/metrics`."""

from __future__ import annotations

import urllib.request

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""A proxy of the environment does not know this machine's loopback."""


def scraped(port: int, timeout_s: float = 5.0) -> str:
    """The text at a port of this machine, whatever proxies the environment names.

    Raises:
        OSError: nothing answers there.
    """
    with _DIRECT.open(f"http://127.0.0.1:{port}/metrics", timeout=timeout_s) as answer:
        return str(answer.read().decode())


def series(port: int) -> dict[str, float]:
    """What a process of this machine counts, by name with labels; empty where none answers."""
    try:
        lines = scraped(port).splitlines() if port else []
    except OSError:
        return {}
    rows = (line.rsplit(" ", 1) for line in lines if line.startswith(("driftline_", "process_")))
    return {name: float(value) for name, value in rows}
