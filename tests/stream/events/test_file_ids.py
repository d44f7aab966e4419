"""Ids, numbers and times of files as people's tools write them: what goes in comes out, or is refused by row."""

import csv
import io
import itertools
import random
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from driftline.configs.errors import InputError
from driftline.stream.events import csvs
from driftline.stream.events.files import read_columns, read_items, read_messages, validate, validate_items
from driftline.stream.events.schema import parse_event

T = 1_600_000_000_000
HEADER, ROW = "user_id,item_id,timestamp_ms", f"007,a,{T}"
IDS = [
    "007", "1e5", "0x1F", "+49", " 12 ", "1_000", "NaN", "null", "None", "true", "2021-01-01", "9" * 30, "17850.0",
    "1,5", "a;b", "a|b", "a\tb", 'q"u', "it's", "'x'", '"', "line\nbreak", "cr\rhere", "both\r\n", "ü", "東京",
    "\u2028", "\x85", "\x00", "\\", 'a\\"', "\ufeffx", "-0", "inf", "=SUM(A1)", "#x", "e\u0301", "１２",
]  # fmt: skip


def events(path):
    """(user, item) of what is sent; each message is an event to the worker too, and validate agrees."""
    messages = [value for _, value in read_messages(path)]
    assert validate(path).ok
    assert len(read_columns(path)) == len(messages)
    found = [parse_event(value) for value in messages]
    return [(event.user_id, event.item_id) for event in found]


def refused(path, message):
    assert not report_of(path)
    for read in (read_columns, lambda path: list(read_messages(path))):
        with pytest.raises(InputError, match=message):
            read(path)


def report_of(path):
    try:
        return validate(path).ok
    except InputError:
        return False


def parquet(path, **columns):
    base = {"user_id": ["007", "u"], "item_id": ["a", "b"], "timestamp_ms": [T, T + 1]}
    pq.write_table(pa.table(base | columns), path / "events.parquet")
    return path / "events.parquet"


def text(path, content, name="events.csv"):
    (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return path / name


@pytest.mark.parametrize(
    ("delimiter", "quote", "end", "quoting"),
    [*itertools.product(",;\t|", "\"'", ["\n", "\r\n", "\r"], [csv.QUOTE_ALL]), (",", '"', "\r\n", csv.QUOTE_MINIMAL)],
)
def test_ids_keep_every_character_through_csv_of_every_dialect(tmp_path, delimiter, quote, end, quoting):
    rows = [(one, other) for one, other in zip(IDS, reversed(IDS), strict=True)]
    content = io.StringIO(newline="")
    writer = csv.writer(content, delimiter=delimiter, quotechar=quote, lineterminator=end, quoting=quoting)
    writer.writerow(["note\n(free text)", "user_id", "item_id", "timestamp_ms"])
    writer.writerows(["x", one, other, T] for one, other in rows)
    bom = "\ufeff" if end == "\n" else ""
    assert events(text(tmp_path, bom + content.getvalue())) == rows


def test_ids_keep_every_character_through_jsonl_and_parquet(tmp_path):
    rows = [{"user_id": one, "item_id": other, "timestamp_ms": T} for one, other in zip(IDS, IDS[::-1], strict=True)]
    expected = [(row["user_id"], row["item_id"]) for row in rows]
    lines = text(tmp_path, b"\r\n".join(map(orjson.dumps, rows)), "events.jsonl")
    assert events(lines) == expected
    ids = [row["user_id"] for row in rows]
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string())):
        users = pa.array([one.encode() for one in ids] if kind == pa.binary() else ids, kind)
        table = pa.table({"user_id": users, "item_id": ids[::-1], "timestamp_ms": [T] * len(ids)})
        pq.write_table(table, tmp_path / "events.parquet", row_group_size=7)
        assert events(tmp_path / "events.parquet") == expected


def test_random_ids_come_out_of_random_csv_as_they_went_in(tmp_path):
    draw = random.Random(11)
    for _ in range(60):
        rows = [("".join(draw.choices(IDS, k=draw.randint(1, 3))), draw.choice(IDS)) for _ in range(draw.randint(1, 9))]
        content = io.StringIO(newline="")
        quoting = draw.choice([csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
        writer = csv.writer(content, delimiter=draw.choice(",;\t|"), lineterminator="\n", quoting=quoting)
        columns = draw.sample(range(3), 3)
        for row in [HEADER.split(","), *((*ids, T) for ids in rows)]:
            writer.writerow([row[i] for i in columns])
        assert events(text(tmp_path, content.getvalue())) == rows


def test_uuids_of_every_kind_of_parquet_column_become_their_text(tmp_path):
    ids = [UUID(int=1), UUID("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")]
    raw = [one.bytes for one in ids]
    for kind in (pa.uuid(), pa.binary(16)):
        path = parquet(tmp_path, user_id=pa.array(raw, kind), event_id=pa.array([None, raw[1]], kind))
        assert [user for user, _ in events(path)] == list(map(str, ids))
        assert list(read_columns(path).event_id) == [None, str(ids[1])]
        marked = {kind for kind, _ in validate(path).warnings}
        assert marked == (set() if kind == pa.uuid() else {"bytes as text"})
    path = parquet(tmp_path, user_id=pa.array([b"abcdefghijklmnop"] * 2, pa.binary(16)))
    assert [user for user, _ in events(path)] == ["abcdefghijklmnop"] * 2
    path = parquet(tmp_path, other=pa.array(raw, pa.uuid()))
    assert [orjson.loads(value)["other"] for _, value in read_messages(path)] == list(map(str, ids))


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (pa.array([Decimal("9" * 38), Decimal(7)], pa.decimal128(38, 0)), ["9" * 38, "7"]),
        (pa.array([2**64 - 1, 5], pa.uint64()), [str(2**64 - 1), "5"]),
        (pa.array([1, -4], pa.int8()).dictionary_encode(), ["1", "-4"]),
    ],
)
def test_whole_numbers_of_exact_types_are_ids_without_a_word(tmp_path, cells, expected):
    path = parquet(tmp_path, user_id=cells)
    assert [user for user, _ in events(path)] == expected
    assert not validate(path).counts


@pytest.mark.parametrize(
    "cells", [pa.array([17850.0, 5.0]), pa.array([Decimal("17850.00"), Decimal("5.00")], pa.decimal128(10, 2))]
)
def test_whole_numbers_with_a_point_are_ids_with_a_warning(tmp_path, cells, caplog):
    path = parquet(tmp_path, user_id=cells)
    assert [user for user, _ in events(path)] == ["17850", "5"]
    assert validate(path).counts == {("number as text", "user_id"): 2}
    assert "taken as '17850' (2 rows)" in caplog.text
    path = text(tmp_path, f'{{"user_id":1e3,"item_id":"a","timestamp_ms":{T}}}', "events.jsonl")
    assert events(path) == [("1000", "a")]
    assert validate(path).counts == {("number as text", "user_id"): 1}


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (pa.array([2.0**53, 1.0]), "digits lost"),  # what DuckDB makes of HUGEINT
        (pa.array(np.array([2**24 + 1, 1], np.float32)), "digits lost"),
        (pa.array([1.5, 1.0]), "not a string"),
        (pa.array([np.nan, 1.0]), "missing"),
        (pa.array([True, False]), "not a string"),
        (pa.array([["a"], ["b"]]), "not a string"),
        (pa.array([{"a": 1}] * 2), "not a string"),
        (pa.array([datetime(2020, 1, 1, tzinfo=UTC)] * 2), "not a string"),
        (pa.array([b"\xff", b"a"]), "not UTF-8"),
    ],
)
def test_what_is_no_id_is_refused_by_row_and_column(tmp_path, cells, kind):
    refused(parquet(tmp_path, user_id=cells), f"row 1, column 'user_id': {kind}")


@pytest.mark.parametrize("number", ["123456789012345678901234567890", "1e300", "9007199254740993.0"])
def test_an_id_of_json_that_is_too_large_a_number_is_refused(tmp_path, number):
    path = text(tmp_path, f'{{"user_id":{number},"item_id":"a","timestamp_ms":{T}}}', "events.jsonl")
    refused(path, "row 1, column 'user_id': digits lost")


def test_integers_beside_numbers_with_a_point_keep_their_digits(tmp_path):
    lines = [f'{{"user_id":{one},"item_id":"a","timestamp_ms":{T}}}' for one in ("9007199254740993", "5.0", '"x"')]
    assert [user for user, _ in events(text(tmp_path, "\n".join(lines), "events.jsonl"))] == [
        "9007199254740993",
        "5",
        "x",
    ]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/London", "+05:30"])
def test_timestamps_of_every_unit_and_zone_are_instants(tmp_path, unit, zone):
    times = pa.array([T, T + 1000], pa.timestamp("ms")).cast(pa.timestamp(unit)).cast(pa.timestamp(unit, zone))
    columns = read_columns(parquet(tmp_path, timestamp_ms=times))
    assert columns.t_ms.tolist() == [T, T + 1000]


def test_int96_times_are_read_and_do_not_wrap_around(tmp_path):
    table = {"user_id": ["u"], "item_id": ["a"]}
    for year, good in ((2020, True), (3500, False)):
        times = pa.array([datetime(year, 1, 1)], pa.timestamp("us"))
        path = tmp_path / "events.parquet"
        pq.write_table(pa.table(table | {"timestamp_ms": times}), path, use_deprecated_int96_timestamps=True)
        if good:
            assert read_columns(path).t_ms.tolist() == [1_577_836_800_000]
        else:
            refused(path, "row 1, column 'timestamp_ms': out of range")


@pytest.mark.parametrize("cell", ["1,5", "1.234,50", "1_000", "١٢", "0x1F", "1 000", "--1", "1e5x"])
@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_text_that_is_no_number_does_not_become_another_one(tmp_path, cell, delimiter):
    content = f"{HEADER},price\n{ROW},12.5\n{ROW},".replace(",", delimiter) + cell + "\n"
    refused(text(tmp_path, content), "row 2, column 'price': (not a number|decimal comma)")


@pytest.mark.parametrize("cell", ["0x1F", "1.6E+12", "2020-09-13T12:26:40Z", "1_600_000_000_000", "1600000000000.5"])
def test_a_text_that_is_no_time_does_not_become_one(tmp_path, cell):
    refused(text(tmp_path, f"{HEADER}\nu,a,{cell}\n"), r"row 1, column 'timestamp_ms': not an? (number|integer)")


def test_decimals_and_odd_types_of_unknown_columns_are_kept_or_named(tmp_path):
    path = parquet(
        tmp_path,
        discount=pa.array([Decimal("0.10")] * 2),
        exact=pa.array([Decimal("12345678901234567890.12")] * 2),
        ns=pa.array([1, 2], pa.timestamp("ns")),
        zone=pa.array([1, 2], pa.timestamp("us", "Mars/Phobos")),
    )
    kept = orjson.loads(next(value for _, value in read_messages(path)))
    assert (kept["discount"], kept["exact"]) == (0.1, "12345678901234567890.12")
    assert kept["ns"].endswith("000000001")
    refused(parquet(tmp_path, length=pa.array([1, 2], pa.duration("s"))), "row 1, column 'length': not JSON")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            f"{HEADER}\n{ROW}\nM\xfcller,b,{T}\n".encode("latin-1"),
            r"row 2, column 'user_id': not UTF-8: got b'M\\xfcller'",
        ),
        (f"{HEADER},gr\xf6\n{ROW},1\n".encode("latin-1"), "the header is not UTF-8"),
        (f"{HEADER}\n{ROW}\nu,b\n", r"row 2: wrong number of fields: got 2 fields in 'u,b' \(line 3\)"),
        (f"{HEADER}\n{ROW},\n", "row 1: wrong number of fields: got 4 fields"),
        (f"{HEADER}\n# a comment\n{ROW}\n", "row 1: wrong number of fields"),
        (f"# made by hand\n{HEADER}\n{ROW}\n", "column 'user_id' is missing: got '# made by hand'"),
        (f"{ROW}\n{ROW}\n", "column 'user_id' is missing: got '007"),
        (f'{HEADER},x\n{ROW},"never\nu,b,{T},y\n', "row 1: quote never closes: got a row up to line 3"),
        (f'{HEADER},x\n{ROW},ok\n{ROW},"a"b\n', "row 2: text after a quote: got a row up to line 3"),
        (f'{HEADER},x\n{ROW},"a \\"q\\" b"\n', "row 1: text after a quote"),
        (f"{HEADER},,\n{ROW},x,y\n", "several columns without a name"),
        (f"{HEADER}\n{ROW}".encode("utf-16-le"), "got a file in UTF-16"),
        (b"PAR1....", "got a Parquet file by its first bytes"),
    ],
)
def test_csv_that_is_not_one_table_is_refused_by_its_place(tmp_path, content, message):
    refused(text(tmp_path, content), message)


def test_a_cell_without_an_end_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(csvs, "MAX_CELL", 1000)
    refused(text(tmp_path, f"{HEADER},x\n{ROW},ok\n{ROW},{'y' * 2000}\n"), "row 2: cell too long")
    monkeypatch.undo()
    assert validate(text(tmp_path, f"{HEADER},x\n{ROW},{'y' * 60_000}\n")).ok


@pytest.mark.parametrize(
    "content", [f"{HEADER},\n{ROW},\n", f"{HEADER},,\n{ROW},,\n", f"\ufeff{HEADER}\r\n\r\n{ROW}\n\n\r"]
)
def test_empty_lines_and_trailing_delimiters_change_nothing(tmp_path, content):
    path = text(tmp_path, content)
    assert events(path) == [("007", "a")]
    assert not validate(path).unknown


def test_rows_that_a_stray_quote_swallowed_are_pointed_out(tmp_path):
    content = f'{HEADER},title\n{ROW},"big\nu,b,{T},x\nu,c,{T},y"\nu,d,{T},z\n'
    assert validate(text(tmp_path, content)).counts == {("rows inside a quoted cell", "title"): 1}


@pytest.mark.parametrize("name", ["Price", " price", "PRICE "])
def test_a_column_that_is_nearly_a_known_one_is_pointed_out(tmp_path, name, caplog):
    for path in (text(tmp_path, f"{HEADER},{name}\n{ROW},5\n"), parquet(tmp_path, **{name: [1, 2]})):
        assert validate(path).counts == {("spelt differently", name): 1}
        read_columns(path)
        assert "expected 'price', if it is meant" in caplog.text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"user_id":"a","user_id":"b","item_id":"a","timestamp_ms":1}', "row 1, column 'user_id': key given twice"),
        ('{"user_id":"a","user_id"\t:"b","item_id":"a:","timestamp_ms":1}', "row 1, column 'user_id': key given twice"),
        ('[{"user_id":"a"},', "row 1: not JSON.*one array of them is no such file"),
        ('[{"user_id":"a"}]', "row 1: not an object.*one array of them is no such file"),
        ('{"user_id":NaN,"item_id":"a","timestamp_ms":1}', "row 1: not JSON"),
        ('{"user_id":"\\ud800","item_id":"a","timestamp_ms":1}', "row 1: not JSON"),
        ('{"user_id":"a","item_id":"a","timestamp_ms":1,"x":' + "[" * 3000 + "]" * 3000 + "}", "row 1: not JSON"),
        (f'{{"user_id":true,"item_id":"a","timestamp_ms":{T}}}', "row 1, column 'user_id': not a string"),
    ],
)
def test_json_that_does_not_say_one_thing_is_refused(tmp_path, line, message):
    refused(text(tmp_path, line + "\n", "events.jsonl"), message)


def test_categories_are_lists_however_a_cell_writes_them(tmp_path, caplog):
    cells = ['"[""tops"", ""basics""]"', "\"['tops', 'basics']\"", "tops|basics", '"[tops, basics]"']
    content = "item_id,categories\n" + "".join(f"{i},{cell}\n" for i, cell in enumerate(cells))
    path = text(tmp_path, content, "items.csv")
    items = read_items(path)
    assert [items[str(i)].categories for i in range(3)] == [["tops", "basics"]] * 3
    assert validate_items(path).counts == {("looks like a list", "categories"): 1}
    assert "row 4, column 'categories': looks like a list" in caplog.text
    numbers = pa.table({"item_id": ["a"], "categories": pa.array([[1, 2]], pa.large_list(pa.int64()))})
    pq.write_table(numbers, tmp_path / "items.parquet")
    assert read_items(tmp_path / "items.parquet")["a"].categories == ["1", "2"]


@pytest.mark.parametrize(
    ("ids", "kind"),
    [
        (["17850.0", "17851.0"], "all ids end in .0"),
        (["1.234E+11", "5E+10"], "all ids have an exponent"),
        (["'a'", "'b'"], "all ids stand in quotes"),
        ([" a", "b "], "all ids begin or end with a space"),
        (["a", "nan"], "an id that says missing"),
    ],
)
def test_suspicious_ids_are_kept_and_pointed_out(tmp_path, ids, kind, caplog):
    path = text(tmp_path, f"{HEADER}\n" + "".join(f"{one},x,{T}\n" for one in ids))
    assert [user for user, _ in events(path)] == ids
    assert validate(path).counts == {(kind, "user_id"): 1}
    assert kind in caplog.text
    assert not validate(text(tmp_path, f"{HEADER}\n{ids[0]},x,{T}\nplain,x,{T}\n")).counts or kind.startswith("an id")
