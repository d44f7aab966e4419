"""Freed arrays go back to the system.

The C library raises its own bound for what it maps apart each time a large array is freed, up to 32 MB; from then on
large arrays come and go on one heap, small ones that stay keep it from shrinking, and a process that learns for an
hour grew to five times what it uses. A fixed bound ends that, for a few page faults.
"""

from __future__ import annotations

import ctypes

MAPPED_BYTES = 1_000_000
"""Arrays of this size and more are mapped apart: freed, they are gone."""
TRIMMED_BYTES = 16_000_000
"""Free memory that the end of the heap may keep."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def return_freed_memory() -> None:
    """Fixes the bounds for this process; does nothing where the C library is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, TRIMMED_BYTES)
