"""Files that are not plain ones: packed, pipes, folders, forbidden, changed while they are read."""

import bz2
import gzip
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.conftest import open_to_others

from driftline.configs.errors import InputError
from driftline.stream.bundled import EVENTS
from driftline.stream.events import chunks
from driftline.stream.events.files import read_columns, read_messages, validate

T = 1_600_000_000_000
CSV = b"user_id,item_id,timestamp_ms\n007,a,%d\n" % T
LINE = b'{"user_id":"007","item_id":"a","timestamp_ms":%d}\n' % T


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("events.csv.gz", gzip.compress(CSV, mtime=0)),
        ("events.csv", gzip.compress(CSV, mtime=0)),
        ("events.csv.bz2", bz2.compress(CSV)),
        ("events.jsonl.xz", lzma.compress(LINE)),
        ("events.jsonl.zst", pa.compress(LINE, "zstd", asbytes=True)),
        ("events.tsv", CSV.replace(b",", b"\t")),
    ],
)
def test_packed_text_is_unpacked(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert [key for key, _ in read_messages(tmp_path / name)] == [b"007"]
    assert validate(tmp_path / name).ok


def test_damaged_files_are_refused_with_their_name(tmp_path):
    packed = tmp_path / "events.csv.gz"
    packed.write_bytes(gzip.compress(CSV + os.urandom(20_000).hex().encode())[:-500])
    whole = EVENTS.read_bytes()
    cut, flipped, empty = (tmp_path / f"{name}.parquet" for name in ("cut", "flipped", "empty"))
    cut.write_bytes(whole[: len(whole) // 2])
    flipped.write_bytes(whole[:1000] + bytes(byte ^ 255 for byte in whole[1000:3000]) + whole[3000:])
    empty.touch()
    for path in (packed, cut, flipped, empty):
        with pytest.raises(InputError, match=rf"{path.name}: can't be read as (CSV|PARQUET).*is it damaged\?"):
            read_columns(path)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    (tmp_path / "spark.parquet").mkdir()
    for name, message in (
        ("pipe.csv", "got a pipe or a device; expected a regular file"),
        ("loop.csv", "can't be read: .*symbolic links"),
        ("spark.parquet", r"got a folder.*the parts that Spark and others write"),
        ("x" * 300 + ".csv", "can't be read: .*File name too long"),
    ):
        with pytest.raises(InputError, match=rf"(?i){message}"):
            validate(tmp_path / name)


def test_a_part_of_a_partitioned_table_does_not_lose_its_folders_column(tmp_path):
    folder = tmp_path / "action=purchase"
    folder.mkdir()
    pq.write_table(pa.table({"user_id": ["u"], "item_id": ["a"], "timestamp_ms": [T]}), folder / "part-0.parquet")
    with pytest.raises(InputError, match="column 'action' is missing and the folder is called 'action=purchase'"):
        read_columns(folder / "part-0.parquet")


@pytest.mark.parametrize("change", ["grown", "cut"])
def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path, monkeypatch, change):
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 10)
    path = tmp_path / "events.jsonl"
    path.write_bytes(LINE * 30)
    messages = read_messages(path)
    next(messages)
    path.write_bytes(LINE * (40 if change == "grown" else 20))
    with pytest.raises(InputError, match=r"changed while it was read, from .* bytes"):
        list(messages)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_file_that_this_user_may_not_read_is_called_so(tmp_path):
    path = tmp_path / "events.csv"
    path.write_bytes(CSV)
    path.chmod(0)
    open_to_others(tmp_path)

    def told():
        with pytest.raises(InputError) as refusal:
            validate(path)
        return refusal.value

    assert "this user may not read it" in as_other_user(told)


def as_other_user(act):
    """What a function says to another user, who has every module that it needs already."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setuid(54321)
            os.write(writer, str(act()).encode()[:4000])
        except BaseException as error:  # noqa: BLE001 - a child of pytest must not go on
            os.write(writer, repr(error).encode()[:4000])
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as said:
        return said.read()


THREADS = """
import os, sys
from pathlib import Path
from driftline.configs.errors import InputError
from driftline.stream.events.files import read_columns, read_messages, validate
def native():
    names = [Path(f"/proc/self/task/{task}/comm").read_text().strip() for task in os.listdir("/proc/self/task")]
    return sorted(name for name in names if name != "jemalloc_bg_thd")
before = native()
for name in sys.argv[1:]:
    for read in (validate, read_columns, lambda path: next(read_messages(path))):
        try:
            read(Path(name))
        except InputError:
            pass
assert native() == before, native()
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_reading_starts_no_threads_that_could_abort_a_process_that_ends(tmp_path):
    bad, quote, good = (tmp_path / f"{name}.csv" for name in ("bad", "quote", "good"))
    bad.write_bytes(b"user_id,item_id\nu,a\n")
    quote.write_bytes(CSV + b'"u,a,1\n')
    good.write_bytes(CSV * 2)
    done = subprocess.run(
        [sys.executable, "-c", THREADS, bad, quote, good, EVENTS],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
