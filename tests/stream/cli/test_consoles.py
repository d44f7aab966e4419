"""What people read commands through: consoles of any encoding and width, pipes, closed and full outputs."""

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest

T = 1_600_000_000_000


@pytest.fixture
def files(tmp_path):
    events, items = tmp_path / "größe.csv", tmp_path / "items.csv"
    events.write_text(f"user_id,item_id,timestamp_ms,東京\n17850.0,007,{T},é\n17851.0,008,{T},é\n", "utf-8")
    items.write_text('item_id,title\n7,"Tür 😀"\n8,b\n', "utf-8")
    return [str(events), "--items", str(items)]


def run(command, **env):
    """Exit code, bytes of stdout and text of stderr of a shell command line in which `driftline` is the command."""
    python = f"{sys.executable} -m driftline.stream.cli"
    done = subprocess.run(
        ["bash", "-c", "set -o pipefail; " + command[0].replace("driftline", python, 1), "bash", *command[1:]],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | env,
        capture_output=True, check=False,
    )  # fmt: skip
    told = done.stderr.decode(errors="replace")
    assert "Traceback" not in told
    assert "Exception ignored" not in told
    return done.returncode, done.stdout, told


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-16"])
def test_no_command_ends_for_the_encoding_of_its_console(files, encoding):
    code, printed, _ = run(['driftline validate --events "$@"', *files], PYTHONIOENCODING=encoding, COLUMNS="20")
    assert code == 0
    assert "0 of 2 item ids" in printed.decode(encoding)
    code, printed, _ = run(['driftline validate --events "$@" --json', *files], PYTHONIOENCODING=encoding)
    found = json.loads(printed.decode(encoding))
    assert found["events"]["unknown_columns"] == ["東京"]
    assert found["events"]["path"] == files[0]


def test_a_plain_c_locale_is_enough_for_report_and_help(files):
    plain = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code, printed, _ = run(['driftline validate --events "$@"', *files], **plain)
    assert (code, printed.isascii()) == (0, True)
    code, printed, _ = run(["driftline --help"], **plain)
    assert (code, printed.isascii()) == (0, True)


@pytest.mark.parametrize("where", [">&-", "2>&-", "<&- >&- 2>&-", "--json >&-"])
def test_a_closed_output_changes_nothing_but_what_is_seen(files, where):
    assert run([f'driftline validate --events "$@" {where}', *files])[0] == 0


@pytest.mark.parametrize("options", ["", "--json"])
def test_a_reader_that_has_gone_ends_a_command_quietly(files, options):
    code, _, told = run([f'driftline validate --events "$@" {options} | true', *files])
    assert code in (0, 1)
    assert not told


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_the_output_is_one_sentence(files):
    code, _, told = run(['driftline validate --events "$@" > /dev/full', *files])
    assert (code, told.count("driftline: ")) == (1, 1)
    assert "expected room on its disk" in told


def test_a_file_whose_name_is_not_utf8_can_be_checked(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.csv"
    with open(path, "wb") as file:
        file.write(b"user_id,item_id,timestamp_ms\nu,a,%d\n" % T)
    code, printed, _ = run([f"driftline validate --json --events '{os.fsencode(tmp_path).decode()}'/$'\\xff'.csv"])
    assert (code, json.loads(printed)["path"]) == (0, os.fsdecode(path))


def test_items_that_do_not_join_are_told_with_numbers_by_validate_replay_and_produce(files, caplog, tmp_path):
    from pathlib import Path

    from driftline.configs.settings import Settings
    from driftline.stream.events.produce import ItemWatch, event_messages
    from driftline.stream.replay.source import Options, read

    events, items = Path(files[0]), Path(files[2])
    code, printed, _ = run(['driftline validate --events "$@" --json', *files])
    report = json.loads(printed)
    assert (code, report["ok"]) == (0, True)
    assert report["join"] == {"item_ids": 2, "in_items": 0, "rows": 2, "rows_in_items": 0}
    kinds = {problem["kind"]: problem["warning"] for problem in report["events"]["problems"]}
    assert kinds == {"all ids end in .0": True, "items do not join": True}
    words = "none of the 2 item ids of the events is in the items file, so no event has a title, a category or a price"
    assert words in run(['driftline validate --events "$@"', *files])[1].decode()
    read(Options(events, tmp_path / "out", items), Settings())
    assert words in caplog.text
    assert "but for leading zeros, 2 more would join" in caplog.text
    assert "all ids end in .0" in caplog.text
    caplog.clear()
    next(event_messages(events, watch=ItemWatch(items).see))
    assert words in caplog.text  # before anything is sent
    items.write_text("item_id\n007\n008\n")
    caplog.clear()
    watch = ItemWatch(items)
    list(event_messages(events, watch=watch.see))
    watch.end()
    assert "items file" not in caplog.text


def test_times_say_that_they_are_of_utc_whatever_the_zone_of_the_machine():
    code = (
        "import logging; from driftline.configs.logs import log_to_stderr;"
        "from driftline.stream.cli.common import when;"
        "log_to_stderr(); logging.getLogger('driftline').warning('hot');"
        "print(when(1_290_672_000_000), when(-1), when(10**17))"
    )
    before_s = int(time.time())
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"TZ": "Asia/Tokyo"}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "2010-11-25 08:00:00 UTC never 100000000000000000 ms\n"
    stamp, _, rest = done.stderr.partition(",")
    assert rest[3:] == " UTC WARNING hot\n"
    assert 0 <= datetime.fromisoformat(stamp).replace(tzinfo=UTC).timestamp() - before_s < 120
