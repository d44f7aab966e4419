"""The process of a peer: reads rows to fit and questions from its standard input, answers on its standard output.

It runs in the environment of the peers, where there is nothing of driftline; numpy is all that it needs itself. The
engine's side imports the messages from here. Of a model it asks two things:

    fit(rows, seed, tell)   learn anew from these rows alone; `tell(done, total)` says how far it is
    score(query)            [rows.items] float32, NaN for items that it does not know; None = it can't say for this user

What a model can't say is answered with what was taken most in the last 30 days of the rows.

A message is a line of JSON, then the bytes of its arrays in the order in which the line names them:
{"do": "score", ..., "arrays": [["items", "<i4", 7], ["times", "<i8", 7]]}.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
DAY_MS = 86_400_000
POPULAR_MS = 30 * DAY_MS


@dataclass(frozen=True)
class Rows:
    """What may be learnt: wanted rows, in order of arrival.

    Attributes:
        user, item: [n] int32 dense indices; t_ms: [n] int64; weight: [n] float32 of the action.
        group: [n] int64, equal for rows of one basket.
        items: number of items that are known by now.
        now_ms: moment of the fit; all rows are of before.
    """

    user: Array
    item: Array
    t_ms: Array
    weight: Array
    group: Array
    items: int
    now_ms: int


@dataclass(frozen=True)
class Query:
    """One question.

    Attributes:
        t_ms: when it is asked.
        items: [h] int32, what the user took until now, oldest first; items that came after the fit are left out.
        times: [h] int64, when, unix milliseconds.
        groups: [h] int64, equal for rows of one basket.
    """

    t_ms: int
    items: Array
    times: Array
    groups: Array


def write(pipe: IO[bytes], message: Mapping[str, Any], arrays: Mapping[str, Array] | None = None) -> None:
    """Sends a message."""
    given = {name: np.ascontiguousarray(array) for name, array in (arrays or {}).items()}
    shapes = [[name, array.dtype.str, len(array)] for name, array in given.items()]
    pipe.write(json.dumps({**message, "arrays": shapes}).encode() + b"\n")
    for array in given.values():
        pipe.write(array.tobytes())
    pipe.flush()


def read(pipe: IO[bytes]) -> tuple[dict[str, Any], dict[str, Array]] | None:
    """The next message and its arrays; None at the end of the pipe, also in the middle of one."""
    line = pipe.readline()
    if not line.endswith(b"\n"):
        return None
    message = json.loads(line)
    arrays = {}
    for name, dtype, length in message.pop("arrays"):
        size = np.dtype(dtype).itemsize * length
        data = pipe.read(size)
        if len(data) < size:
            return None
        arrays[name] = np.frombuffer(data, dtype)
    return message, arrays


def load(file: Path, name: str) -> Any:
    """A fresh model of a file: what its `MODELS` makes for the name."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file}: expected a file of Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module.MODELS[name]()


def popular(rows: Rows) -> Array:
    """[items] how often each item was taken in the last 30 days of the rows."""
    late = rows.item[rows.t_ms >= rows.now_ms - POPULAR_MS]
    return np.bincount(late, minlength=rows.items).astype(np.float32)


def serve(model: Any, source: IO[bytes], sink: IO[bytes]) -> None:
    """Answers until the source ends. With every answer goes the CPU time of this process until then."""
    counts: Array = np.zeros(0, np.float32)

    def tell(done: int, total: int) -> None:
        write(sink, {"said": [done, total]})

    while (got := read(source)) is not None:
        message, arrays = got
        if message["do"] == "fit":
            rows = Rows(**arrays, items=message["items"], now_ms=message["now_ms"])
            counts = popular(rows)
            model.fit(rows, message["seed"], tell)
            scores = None
        else:
            scores = model.score(Query(message["t_ms"], **arrays))
        answer = {"scores": np.asarray(counts if scores is None else scores, np.float32)}
        write(sink, {"cpu_s": time.process_time()}, answer if message["do"] == "score" else None)


def end_with(parent: int) -> None:
    """Ends this process when its parent has gone, also in the middle of a fit."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(0)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def main() -> None:
    """`python serve.py FILE NAME`. What libraries print goes to stderr: it is no message."""
    end_with(os.getppid())
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        serve(load(Path(sys.argv[1]), sys.argv[2]), sys.stdin.buffer, sink)
    except BrokenPipeError:  # the replay has gone
        os._exit(0)
    except Exception as error:  # noqa: BLE001 - the replay says it, whatever it is
        traceback.print_exc()
        write(sink, {"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
