"""A child of a supervisor: tied to its life first, then the module that it is to be, whose imports take seconds.

    python -P -m driftline.stream.ops.child driftline.stream.worker ecommerce

A child holds one end of a pipe to the supervisor and ends when that closes. On Linux the kernel ends it besides, also
while an import keeps all threads of Python waiting.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
import threading

from driftline.configs.errors import UNEXPECTED_EXIT_CODE

PIPE = "DRIFTLINE_SUPERVISOR_PIPE"
PR_SET_PDEATHSIG = 1


def end_with_supervisor() -> None:
    """Ends this process when its supervisor is gone; without one it does nothing."""
    number = os.environ.pop(PIPE, "")
    if not number:
        return

    def wait() -> None:
        os.read(int(number), 1)
        os._exit(UNEXPECTED_EXIT_CODE)

    threading.Thread(target=wait, name="supervisor", daemon=True).start()
    if sys.platform == "linux":  # of a supervisor that was gone before this call the pipe tells
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    end_with_supervisor()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
