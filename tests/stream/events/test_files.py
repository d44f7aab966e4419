import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from driftline.configs.errors import InputError
from driftline.configs.settings import Settings
from driftline.stream.bundled import EVENTS, ITEMS
from driftline.stream.events import chunks
from driftline.stream.events.files import count_rows, read_columns, read_items, read_messages, validate, validate_items
from driftline.stream.replay.log import EventLog

ROWS = [
    {"user_id": "u1", "item_id": "a", "timestamp_ms": 1_600_000_000_000, "action": "view", "value": 1.5, "shelf": "x"},
    {"user_id": "u2", "item_id": "b", "timestamp_ms": 1_600_000_000_001, "price": 9.5, "group_id": "g1"},
    {"user_id": "u1", "item_id": "ü,\"q\"", "timestamp_ms": 1_600_000_000_000, "event_id": "e1", "domain": "DE"},
]  # fmt: skip
NAMES = ["user_id", "item_id", "timestamp_ms", "action", "event_id", "value", "price", "group_id", "domain", "shelf"]


def write(path, rows, names=NAMES):
    match path.suffix:
        case ".parquet":
            pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), path)
        case ".csv":
            pa.csv.write_csv(pa.table({name: [row.get(name) for row in rows] for name in names}), path)
        case _:
            path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def cells(column):
    codes, names = column
    return [names[code] if code >= 0 else None for code in codes]


@pytest.fixture(params=[".parquet", ".csv", ".jsonl"])
def suffix(request):
    return request.param


def test_the_three_formats_give_the_same_columns(tmp_path, suffix):
    columns = read_columns(write(tmp_path / f"events{suffix}", ROWS))
    # sorted by time, equal times in the order of the file
    assert cells(columns.user_id) == ["u1", "u1", "u2"]
    assert cells(columns.item_id) == ["a", 'ü,"q"', "b"]
    assert cells(columns.action) == ["view", "interact", "interact"]
    assert cells(columns.group_id) == [None, None, "g1"]
    assert columns.value[0] == 1.5
    assert columns.price[2] == 9.5
    assert list(columns.event_id) == [None, "e1", None]
    assert list(columns.extra) == [{"shelf": "x"}, None, None]


def test_the_three_formats_give_the_same_messages_in_the_order_of_the_file(tmp_path, suffix):
    messages = list(read_messages(write(tmp_path / f"events{suffix}", ROWS)))
    assert [key for key, _ in messages] == [b"u1", b"u2", b"u1"]
    decoded = [orjson.loads(value) for _, value in messages]
    assert decoded[0] == ROWS[0]
    assert decoded[1] == ROWS[1]
    assert decoded[2]["item_id"] == 'ü,"q"'


def test_a_limit_reads_the_first_rows_of_the_file(tmp_path, suffix):
    assert len(read_columns(write(tmp_path / f"events{suffix}", ROWS), limit=2)) == 2


@pytest.mark.parametrize(
    ("change", "column", "kind"),
    [
        ({"user_id": None}, "user_id", "missing"),
        ({"item_id": "x" * 257}, "item_id", "too long"),
        ({"timestamp_ms": -5}, "timestamp_ms", "out of range"),
        ({"timestamp_ms": None}, "timestamp_ms", "missing"),
        ({"timestamp_ms": 4_102_444_800_001}, "timestamp_ms", "out of range"),
        ({"action": "x" * 65}, "action", "too long"),
        ({"value": 1e35}, "value", "out of range"),
        ({"price": -1e35}, "price", "out of range"),
    ],
)
def test_a_wrong_cell_is_named_by_file_row_and_column(tmp_path, suffix, change, column, kind):
    path = write(tmp_path / f"events{suffix}", [ROWS[0], ROWS[1] | change, ROWS[2]])
    with pytest.raises(InputError, match=rf"events{suffix}: row 2, column '{column}': {kind}"):
        read_columns(path)
    report = validate(path)
    assert not report.ok
    assert {key: n for key, n in report.counts.items() if key not in report.warnings} == {(kind, column): 1}
    assert next(problem.row for problem in report.examples if problem.kind == kind) == 2


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_an_empty_optional_text_is_absent(tmp_path, suffix):
    empty = dict.fromkeys(("action", "event_id", "group_id", "domain"), "")
    path = write(tmp_path / f"events{suffix}", [ROWS[0] | empty, ROWS[1] | {"event_id": ""}])
    assert not validate(path).counts
    columns = read_columns(path)
    assert cells(columns.action) == ["interact", "interact"]
    assert [cells(columns.group_id), cells(columns.domain)] == [[None, "g1"], [None, None]]
    assert columns.event_id is None
    (_, first), _ = read_messages(path)
    assert orjson.loads(first).keys() == {"user_id", "item_id", "timestamp_ms", "value", "shelf"}


def test_unknown_fields_that_no_event_can_hold_are_named(tmp_path):
    nested = b'{"user_id":"u","item_id":"i","timestamp_ms":1600000000000,"x":' + b"[" * 300 + b"]" * 300 + b"}\n"
    (tmp_path / "events.jsonl").write_bytes(orjson.dumps(ROWS[0]) + b"\n" + nested)
    columns = {name: [row.get(name) for row in ROWS[:2]] for name in NAMES[:3]} | {"picture": [None, b"\xff"]}
    pq.write_table(pa.table(columns), tmp_path / "events.parquet")
    for path, column in ((tmp_path / "events.jsonl", "x"), (tmp_path / "events.parquet", "picture")):
        assert validate(path).counts[("not JSON", column)] == 1
        for read in (read_columns, lambda path: list(read_messages(path))):
            with pytest.raises(InputError, match=f"row 2, column '{column}': not JSON"):
                read(path)


def not_utf8(*cells):
    """Bytes that a file calls strings."""
    validity, offsets, data = pa.array(cells, pa.binary()).buffers()
    return pa.StringArray.from_buffers(len(cells), offsets, data, validity)


BAD = not_utf8(b"1600000000000", b"\xff", b"1600000000000")


@pytest.mark.parametrize(
    ("column", "kind", "cells"),
    [
        *((name, "not UTF-8", BAD) for name in ("user_id", "timestamp_ms", "action", "value", "domain")),
        ("user_id", "not UTF-8", BAD.cast(pa.large_string())),
        ("user_id", "not UTF-8", pa.array([b"a", b"\xff", b"c"])),
        ("shelf", "not JSON", BAD),
        ("shelf", "not JSON", pa.ListArray.from_arrays([0, 1, 2, 3], BAD)),
    ],
)
def test_a_string_of_a_parquet_file_that_is_not_utf8_is_named_by_row_and_column(tmp_path, column, kind, cells):
    path = tmp_path / "events.parquet"
    good = {"user_id": ["u", "v", "w"], "item_id": ["a", "b", "c"], "timestamp_ms": [1_600_000_000_000] * 3}
    pq.write_table(pa.table(good | {column: cells}), path)
    report = validate(path)
    assert report.counts == {(kind, column): 1}
    for read in (read_columns, lambda path: list(read_messages(path))):
        with pytest.raises(InputError, match=rf"row 2, column '{column}': {kind}: got b'\\xff'"):
            read(path)


def test_a_string_of_another_file_that_is_not_utf8_is_named_too(tmp_path):
    path = tmp_path / "events.csv"
    path.write_bytes(b"user_id,item_id,timestamp_ms\nu,a,1600000000000\nu,\xff,1600000000000\n")
    with pytest.raises(InputError, match="row 2, column 'item_id': not UTF-8"):
        read_columns(path)
    path = tmp_path / "items.parquet"
    for column, cells in (("title", BAD), ("categories", pa.ListArray.from_arrays([0, 1, 2, 3], BAD))):
        pq.write_table(pa.table({"item_id": ["a", "b", "c"], column: cells}), path)
        with pytest.raises(InputError, match=f"row 2, column '{column}': not UTF-8"):
            read_items(path)


def test_a_row_that_is_too_large_for_an_event_is_named(tmp_path):
    path = write(tmp_path / "events.jsonl", [ROWS[0], ROWS[1] | {"shelf": "x" * 65_536}])
    assert validate(path).counts[("too large", "")] == 1
    with pytest.raises(InputError, match=r"row 2: too large: got 65\d{3} bytes as JSON; expected at most 65536"):
        list(read_messages(path))


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_number_that_is_not_finite_is_named(tmp_path, suffix):
    path = write(tmp_path / f"events{suffix}", [ROWS[0], ROWS[1] | {"value": float("inf")}])
    with pytest.raises(InputError, match="row 2, column 'value': not finite"):
        read_columns(path)


@pytest.mark.parametrize("cell", ["soon", "12.5", "1e400", True, [1]])
def test_a_time_that_is_no_integer_is_named(tmp_path, cell):
    path = write(tmp_path / "events.jsonl", [ROWS[0], ROWS[1] | {"timestamp_ms": cell}])
    with pytest.raises(InputError, match=r"row 2, column 'timestamp_ms'.*expected unix milliseconds"):
        read_columns(path)


def test_a_csv_cell_that_is_no_number_is_named(tmp_path):
    path = tmp_path / "events.csv"
    path.write_text("user_id,item_id,timestamp_ms,price\nu,a,1600000000000,\nu,b,1600000000000,cheap\n")
    with pytest.raises(InputError, match="row 2, column 'price': not a number: got 'cheap'"):
        read_columns(path)


def test_whole_numbers_are_taken_as_ids_and_fractions_are_not(tmp_path):
    path = write(tmp_path / "events.jsonl", [{"user_id": 7, "item_id": "a", "timestamp_ms": 1_600_000_000_000}])
    assert cells(read_columns(path).user_id) == ["7"]
    path = write(tmp_path / "bad.jsonl", [{"user_id": 7.5, "item_id": "a", "timestamp_ms": 1_600_000_000_000}])
    with pytest.raises(InputError, match=r"column 'user_id': not a string: got 7\.5"):
        read_columns(path)


def test_rows_that_can_not_be_read_are_reported_and_the_rest_is_checked(tmp_path):
    path = tmp_path / "events.jsonl"
    good = orjson.dumps(ROWS[0])
    path.write_bytes(b"\n".join([good, b"{broken", b"[1]", b"\xff\xfe", good, b'{"user_id":"u","item_id":""}']))
    report = validate(path)
    assert report.rows == 6
    kinds = {kind: n for (kind, _), n in report.counts.items()}
    assert kinds == {"not JSON": 2, "not an object": 1, "empty": 1, "missing": 1}
    assert [problem.row for problem in report.examples if problem.kind == "not JSON"] == [2, 4]


@pytest.mark.parametrize("chunk_rows", [2, 65_536])
def test_rows_after_lines_that_can_not_be_read_keep_the_number_of_their_line(tmp_path, monkeypatch, chunk_rows):
    monkeypatch.setattr(chunks, "CHUNK_ROWS", chunk_rows)
    good, wrong = ROWS[0], ROWS[0] | {"item_id": ""}
    lines = [
        "{x",
        good,
        wrong,
        "",
        "{y",
        "[1]",
        wrong,
        "",
        "",
        wrong | {"e": 1},
        good | {"timestamp_ms": 5},
        good,
        "{z",
    ]
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n".join(orjson.dumps(line) if isinstance(line, dict) else line.encode() for line in lines))
    report = validate(path)
    assert report.rows == len(lines)
    found = {kind: [problem.row for problem in report.examples if problem.kind == kind] for kind, _ in report.counts}
    assert found.pop("not JSON") + found.pop("not an object") == [1, 4, 5, 8, 9, 6]
    assert found == {"empty": [3, 7, 10], "out of range": [11]}


@pytest.mark.parametrize("chunk_rows", [3, 65_536])
def test_rows_after_csv_rows_that_can_not_be_read_keep_their_number(tmp_path, monkeypatch, chunk_rows):
    monkeypatch.setattr(chunks, "CHUNK_ROWS", chunk_rows)
    good, wrong, broken = "u,a,1600000000000", "u,a,soon", "u"
    rows = [broken, broken, good, wrong, good, broken, '"a\nb",a,soon', *[good] * 40, wrong, broken, broken]
    path = tmp_path / "events.csv"
    path.write_text("\n".join(["user_id,item_id,timestamp_ms", *rows]) + "\n")
    report = validate(path)
    assert report.rows == len(rows)
    found = {kind: [problem.row for problem in report.examples if problem.kind == kind] for kind, _ in report.counts}
    assert found["wrong number of fields"] == [1, 2, 6, 49, 50]
    assert found["not a number"] == [4, 7, 48]
    path.write_text("user_id,item_id,timestamp_ms\nu\nu\n")
    assert validate(path).counts == {("wrong number of fields", ""): 2}


def test_a_line_that_is_not_json_says_what_stands_there_and_what_should(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"user_id": "u1",\n\n')
    cut_off, empty = map(str, validate(path).examples)
    expected = "expected one JSON object a line (unexpected end of data at character"
    assert cut_off.startswith(f"""row 1: not JSON: got '{{"user_id": "u1",'; {expected} """)
    assert empty.startswith("row 2: not JSON: got an empty line; expected one JSON object a line (")


def test_rows_are_counted_where_that_needs_no_reading(tmp_path, suffix):
    assert count_rows(write(tmp_path / f"events{suffix}", ROWS)) == (3 if suffix == ".parquet" else None)
    (tmp_path / "bad.parquet").write_bytes(b"not parquet")
    assert count_rows(tmp_path / "bad.parquet") is None
    assert count_rows(tmp_path / "nowhere.parquet") is None


@pytest.mark.parametrize("name", ["user_id", "timestamp_ms"])
def test_a_required_cell_without_a_value_is_called_empty(tmp_path, suffix, name):
    path = write(tmp_path / f"events{suffix}", [ROWS[0], ROWS[0] | {name: None}])
    (problem,) = validate(path).examples
    got = "null, or no such field" if suffix == ".jsonl" else "an empty cell"
    assert (problem.row, problem.column, problem.kind, problem.got) == (2, name, "missing", got)


def test_an_events_file_without_rows_is_not_ok(tmp_path, suffix):
    report = validate(write(tmp_path / f"events{suffix}", []))
    assert not report.ok
    assert report.counts == {("no rows", ""): 1}


def test_a_csv_row_with_too_few_fields_is_reported(tmp_path):
    path = tmp_path / "events.csv"
    path.write_text("user_id,item_id,timestamp_ms\nu,a,1600000000000\nu\nu,b,1600000000000\n")
    report = validate(path)
    assert report.counts == {("wrong number of fields", ""): 1}
    assert report.examples[0].row == 2


def test_suspicious_rows_are_warnings_and_the_file_stays_good(tmp_path):
    ahead = {"user_id": "u", "item_id": "a", "timestamp_ms": 4_102_444_800_000}
    rows = [ROWS[1] | {"event_id": "e"}, ROWS[0] | {"event_id": "e"}, ahead]
    report = validate(write(tmp_path / "events.jsonl", rows))
    assert report.ok
    kinds = {kind: n for (kind, _), n in report.counts.items()}
    assert kinds == {"duplicate": 1, "earlier than a row above": 1, "in the future": 1}
    assert report.unknown == ["shelf"]


@pytest.mark.parametrize(("unit", "per_ms"), [("seconds", 1 / 1000), ("microseconds", 1000), ("nanoseconds", 10**6)])
def test_a_row_in_another_unit_is_named_wherever_it_stands_and_no_reader_takes_it(tmp_path, suffix, unit, per_ms):
    other = ROWS[0] | {"timestamp_ms": int(1_600_000_000_000 * per_ms)}
    for rows in ([other, ROWS[0]], [ROWS[0], other]):
        path = write(tmp_path / f"events{suffix}", rows)
        report = validate(path)
        assert not report.ok
        assert report.counts == {(f"looks like {unit}", "timestamp_ms"): 1}
        for reader in (read_columns, lambda path: list(read_messages(path))):
            with pytest.raises(InputError, match=f"looks like {unit}: got 1600000.*; expected unix milliseconds such"):
                reader(path)


def test_an_item_may_be_valid_from_the_beginning_of_time(tmp_path):
    rows = [{"item_id": "a", "valid_from_ms": 0}, {"item_id": "b", "valid_from_ms": 1_600_000_000_000_000}]
    report = validate_items(write(tmp_path / "items.jsonl", rows))
    assert report.counts == {("looks like microseconds", "valid_from_ms"): 1}


def test_an_items_file_is_checked_by_row_and_a_repeated_item_is_a_warning(tmp_path):
    rows = [{"item_id": "a", "price": 1.5}, {"item_id": "a", "shelf": 3}]
    report = validate_items(write(tmp_path / "items.jsonl", rows))
    assert (report.ok, report.rows, report.unknown) == (True, 2, ["shelf"])
    assert report.counts == {("duplicate", "item_id"): 1}
    report = validate_items(write(tmp_path / "items.jsonl", [*rows, {"item_id": None}, {"item_id": "b", "price": "x"}]))
    assert not report.ok
    assert [(p.row, p.kind) for p in report.examples if p.kind != "duplicate"] == [(3, "missing"), (4, "not a number")]


def test_actions_that_the_configuration_does_not_set_are_counted_and_the_file_stays_good(tmp_path, suffix):
    rows = [ROWS[1], *(ROWS[1] | {"action": action} for action in ("wishlist", "", "view", "wishlist"))]
    path = write(tmp_path / f"events{suffix}", rows)
    assert validate(path, {"interact", "view"}).unknown_actions == {"wishlist": 2}
    report = validate(path, {"view"})
    assert report.as_json()["unknown_actions"] == {"interact": 2, "wishlist": 2}
    assert report.ok
    assert not report.counts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("events.txt", b"x", r"got a file of type '.txt'; expected .parquet, .arrow, .csv or .jsonl"),
        ("events.parquet", b"not parquet", "can't be read as PARQUET"),
        ("events.csv", b"", "got an empty file; expected a header"),
        ("events.csv", b"\xef\xbb\xbf", "got an empty file; expected a header"),
        ("events.csv", b"\nuser_id,item_id\n", "got an empty first line; expected a header"),
        ("events.csv", b"user,item\n1,2\n", "column 'user_id' is missing"),
        ("events.csv", b"User_ID, item_id\nu,a\n", "'User_ID' must be spelt 'user_id'"),
        ("events.csv", b"user_id,item_id,timestamp_ms\n", "got 0 rows"),
        ("events.jsonl", b"", "got 0 rows"),
        ("events.csv", b"user_id,item_id,user_id\nu,a,v\n", "got 2 columns 'user_id'; expected each name once"),
        ("events.csv", "user_id,item_id\nu,a\n".encode("utf-16"), "got a file in UTF-16; expected UTF-8"),
        ("events.jsonl", b"\xfe\xff" + "{}\n".encode("utf-16-be"), "got a file in UTF-16; expected UTF-8"),
        ("events.jsonl", b'{"user_id":"u"}\n', "column 'item_id' is missing"),
    ],
)
def test_a_bad_file_gives_one_clear_message(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_columns(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="there is no such file"):
        read_columns(tmp_path / "nowhere.csv")


def test_items_are_read_with_their_lists_and_flags(tmp_path):
    path = tmp_path / "items.csv"
    path.write_text("item_id,title,categories,available,price,valid_from_ms\na,Lamp,home|light,false,3.5,5\nb,,,,,\n")
    items = read_items(path)
    assert list(items["a"].categories) == ["home", "light"]
    assert items["a"].available is False
    assert items["a"].valid_from_ms == 5
    assert not items["b"].title
    assert items["b"].available
    assert items["b"].price is None
    path = tmp_path / "items.jsonl"
    path.write_bytes(b'{"item_id":"a","categories":["home"]}\n{"item_id":"b","categories":3}\n')
    with pytest.raises(InputError, match="row 2, column 'categories': not a list of strings"):
        read_items(path)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_a_null_among_categories_is_named(tmp_path, suffix):
    rows = [{"item_id": "a", "categories": ["x"]}, {"item_id": "b", "categories": ["x", None]}, {"item_id": "c"}]
    path = write(tmp_path / f"items{suffix}", rows, ["item_id", "categories"])
    assert validate_items(path).counts == {("not a list of strings", "categories"): 1}
    with pytest.raises(InputError, match=r"row 2, column 'categories': not a list of strings: got \['x', None\]"):
        read_items(path)


def test_the_bundled_shop_is_what_its_notice_says():
    log = EventLog(read_columns(EVENTS), Settings().action)
    assert len(log) == 404_804
    assert int(log.positive.sum()) == 394_965
    assert len(set(log.group_of[log.positive].tolist())) == 19_179
    assert len(set(log.user[log.positive].tolist())) == 4_314
    assert len(set(log.item[log.positive].tolist())) == 4_017
    items = read_items(ITEMS)
    assert set(items) == set(log.item_ids)
    assert all(item.title for item in items.values())
    assert EVENTS.stat().st_size + ITEMS.stat().st_size < 4_000_000
    assert "CC BY 4.0" in (EVENTS.parent / "NOTICE.md").read_text()


def test_a_byte_order_mark_of_utf_8_is_no_part_of_the_first_row(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"user_id": "u", "item_id": "i", "timestamp_ms": 1600000000000}\n', "utf-8-sig")
    assert validate(path).ok
