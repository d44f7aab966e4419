"""A peer's process, from the engine's side: rows in, then questions in and scores out, over two pipes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from driftline.stream.replay.peers.side import serve

SERVE = Path(serve.__file__)
HIDDEN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
"""What would bring the engine's packages into another environment."""
FIXED = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
"""One thread and no GPU: the same sums in the same order, and processor time that can be compared."""


class Peer:
    """A process that serves one model. It ends when this object goes, or the process that holds it does.

    Args:
        python: of the environment.
        file, model: file of models and the name in it.
    """

    def __init__(self, python: Path, file: Path, model: str) -> None:
        kept = {name: value for name, value in os.environ.items() if name not in HIDDEN}
        self._name = f"{file.stem} {model}"
        self._child = subprocess.Popen(
            [str(python), "-s", str(SERVE), str(file), model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=kept | FIXED,
            process_group=0,  # Ctrl-C is the parent's alone
        )
        if self._child.stdin is None or self._child.stdout is None:
            raise RuntimeError("a child with pipes has none")
        self._to, self._from = self._child.stdin, self._child.stdout
        self.close = weakref.finalize(self, _end, self._child)
        """Ends the process."""
        self.cpu_s = 0.0
        """CPU seconds that the process has used until its last answer, its start included."""

    def ask(
        self,
        message: Mapping[str, Any],
        arrays: Mapping[str, serve.Array],
        said: Callable[[int, int], None] = lambda done, total: None,
    ) -> dict[str, serve.Array]:
        """The arrays that answer a message; `said` gets (done, total) of what takes long.

        Raises:
            RuntimeError: the model failed, or the process ended.
        """
        with contextlib.suppress(BrokenPipeError):  # why it ended is in the other pipe
            serve.write(self._to, message, arrays)
        while (got := serve.read(self._from)) is not None:
            answer, found = got
            if "said" in answer:
                said(*answer["said"])
                continue
            if "error" in answer:
                raise RuntimeError(f"peer {self._name} failed at {message['do']!r}: {answer['error']}; see stderr")
            self.cpu_s = answer["cpu_s"]
            return found
        code = self._child.wait()
        raise RuntimeError(f"peer {self._name} ended with exit code {code} at {message['do']!r}; see stderr")


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):  # something unsent was left in it
                pipe.close()
