"""How often Python looks for garbage in circles. Nothing is imported here: this comes before all that takes long."""

from __future__ import annotations

import gc


def collect_rarely(objects: int = 50_000) -> None:
    """Lets Python look after so many new objects, and older ones rarely; by default it looks after 700.

    That was a tenth of the start of a process, whose modules are all there to stay, and a quarter of a backfill: events
    and rows are in no circles.
    """
    gc.set_threshold(objects, 20, 20)
