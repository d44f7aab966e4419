"""Whether a client gets further than the first answer of a Kafka cluster.

A client asks a bootstrap address where the brokers are and from then on talks to those places (`advertised.listeners`).
Where they name a container, another network or a wrong port, the first answer comes and everything after it hangs.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from queue import Empty, SimpleQueue

from driftline.configs.addresses import Address

_AGAIN_S = 0.2


def unreachable(places: Sequence[Address], timeout_s: float) -> str:
    """Waits until one of some brokers can be connected to; "" then, else why the last one tried can not.

    Args:
        places: where the brokers say that they are; with none there is nothing to find out.
        timeout_s: for all of them together.
    """
    deadline, why = time.monotonic() + timeout_s, ""
    while places:
        why = _one_round(places, deadline) or ""
        if not why or time.monotonic() + _AGAIN_S > deadline:
            break
        time.sleep(_AGAIN_S)
    return why


def _one_round(places: Sequence[Address], deadline: float) -> str:
    """Tries all at once: a place that swallows packets, or a name that is looked up for long, holds up no other."""
    outcomes: SimpleQueue[str] = SimpleQueue()
    for place in places:
        threading.Thread(target=_try, args=(place, deadline, outcomes), daemon=True).start()
    why = "no answer in time"
    for _ in places:
        try:
            why = outcomes.get(timeout=max(0.01, deadline - time.monotonic()))
        except Empty:
            return "no answer in time"
        if not why:
            return ""
    return why


def _try(place: Address, deadline: float, outcomes: SimpleQueue[str]) -> None:
    try:
        with socket.create_connection((place.host, place.port), max(0.01, deadline - time.monotonic())):
            outcomes.put("")
    except TimeoutError:
        outcomes.put("no answer in time")
    except socket.gaierror as error:
        outcomes.put(f"the name is not known here: {error.strerror}")
    except OSError as error:
        outcomes.put(error.strerror or str(error))
