"""One format of log lines, and whose."""

import subprocess
import sys

CODE = """
import logging
from driftline.configs.logs import log_to_stderr
log_to_stderr()
logging.getLogger("driftline.stream.app").info("ours")
logging.getLogger("driftline.stream.app").info("[^-%s]: Starting...", "WorkerApp")
logging.getLogger("driftline.stream.app").error("[^-%s]: Crashed", "WorkerApp")
logging.getLogger("kafka.client").info("theirs")
logging.getLogger("kafka.client").warning("theirs, of use")
"""


def test_a_line_has_time_level_and_words_and_libraries_speak_from_warnings_on():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    lines = [line.split(" ", 3) for line in done.stderr.splitlines()]
    assert [line[3] for line in lines] == ["INFO ours", "ERROR [^-WorkerApp]: Crashed", "WARNING theirs, of use"]
    assert all(len(day) == 10 and time.count(":") == 2 for day, time, _, _ in lines)
    assert {zone for _, _, zone, _ in lines} == {"UTC"}
    assert done.stdout == ""
