"""Where rows come from: formats, packings and dialects give the same events; folders, queries, files that are ready."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from driftline.configs.errors import InputError
from driftline.configs.settings import EventFiles, ItemFiles, Settings
from driftline.stream.bundled import EVENTS as BUNDLED_EVENTS
from driftline.stream.bundled import ITEMS as BUNDLED_ITEMS
from driftline.stream.convert import sources
from driftline.stream.convert.guess import EVENTS, ITEMS
from driftline.stream.convert.run import Plan, is_ready, write_events
from driftline.stream.events import sort
from driftline.stream.events.chunks import Form
from driftline.stream.events.files import raw_chunks, read_columns

ROWS = [{"user": f"u{n % 3}", "sku": f"ü;{n}", "ts": 1_600_000_000 + (n * 7) % 10, "qty": n} for n in range(10)]
EXPECTED = [(r["user"], r["sku"], r["ts"] * 1000, float(r["qty"])) for r in sorted(ROWS, key=lambda row: row["ts"])]


def text(delimiter, quote='"'):
    def cell(value):
        return f"{quote}{value}{quote}" if delimiter in str(value) else str(value)

    return "\n".join([delimiter.join(ROWS[0]), *(delimiter.join(map(cell, row.values())) for row in ROWS)]) + "\n"


def arrow(opener):
    table = pa.Table.from_pylist(ROWS)
    sink = pa.BufferOutputStream()
    with opener(sink, table.schema) as writer:
        writer.write_table(table, 4)
    return sink.getvalue().to_pybytes()


def parquet():
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    return sink.getvalue().to_pybytes()


JSONL = "\n".join(map(json.dumps, ROWS)).encode()


def converted(tmp_path: Path, source: str | Path, **reading: object) -> list[tuple[object, ...]]:
    plan = Plan.of(EVENTS, str(source), EventFiles(**reading))  # type: ignore[arg-type]
    write_events(plan, tmp_path / "out.parquet", Settings())
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    return [(row["user_id"], row["item_id"], row["timestamp_ms"], row["value"]) for row in rows]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", text(",").encode()),
        ("a.csv", text(";").encode()),
        ("a.csv", text(";", "'").encode()),
        ("a.csv", text("|").replace("\n", "\r\n").encode("utf-8-sig")),
        ("a.dat", text("::").encode()),
        ("a.tsv", text("\t").encode()),
        ("a.csv.gz", gzip.compress(text(",").encode())),
        ("a.tsv.bz2", bz2.compress(text("\t").encode())),
        ("a.csv.xz", lzma.compress(text(",").encode())),
        ("a.csv.zst", pa.compress(text(",").encode(), "zstd", asbytes=True)),
        ("a.jsonl", JSONL),
        ("a.json", JSONL),
        ("a.log.gz", gzip.compress(JSONL)),
        ("a.parquet", parquet()),
        ("a", parquet()),
        ("a.arrow", arrow(pa.ipc.new_file)),
        ("a.feather", arrow(pa.ipc.new_file)),
        ("a.arrow", arrow(pa.ipc.new_stream)),
    ],
)
def test_every_format_packing_and_dialect_gives_the_same_events(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert converted(tmp_path, tmp_path / name) == EXPECTED


def test_text_in_other_encodings_and_without_a_header(tmp_path):
    (tmp_path / "a.csv").write_bytes(text(",").encode("utf-16"))
    assert converted(tmp_path, tmp_path / "a.csv", encoding="utf-16") == EXPECTED
    with pytest.raises(InputError, match="--encoding utf-16"):
        Plan.of(EVENTS, str(tmp_path / "a.csv"), EventFiles())
    (tmp_path / "b.csv").write_bytes(text(";").encode("latin-1"))
    assert converted(tmp_path, tmp_path / "b.csv", encoding="latin-1") == EXPECTED
    (tmp_path / "c.data").write_text(text("::").split("\n", 1)[1])
    assert converted(tmp_path, tmp_path / "c.data", header=("user", "sku", "ts", "qty")) == EXPECTED
    with pytest.raises(InputError, match="got 3 names for rows of 4 fields"):
        Plan.of(EVENTS, str(tmp_path / "c.data"), EventFiles(header=("user", "sku", "ts")))


def test_blanks_separate_cells_where_nothing_else_does_and_times_may_count_from_a_time(tmp_path):
    (tmp_path / "edits.txt").write_text("7 19 0\n8 20 36\n")
    header = ("user_id", "item_id", "timestamp_ms")
    with pytest.raises(InputError, match="holds '0', '36', which may count from a time on: --time 's since"):
        Plan.of(EVENTS, str(tmp_path / "edits.txt"), EventFiles(header=header))
    start = 1_517_443_200_000
    rows = converted(tmp_path, tmp_path / "edits.txt", header=header, time="s since 2018-02-01")
    assert rows == [("7", "19", start, None), ("8", "20", start + 36_000, None)]
    for text in ("7 19 0 a,b\n", "    7   19     0 a,b \n", '7 19 0 "a  b"\r\n'):
        (tmp_path / "edits.txt").write_text(text)
        named = {"header": (*header, "comment"), "time": "s since 2018/02/01 UTC"}
        assert converted(tmp_path, tmp_path / "edits.txt", **named) == [("7", "19", start, None)]
    (tmp_path / "edits.txt").write_text("user_id item_id  timestamp\n7 19 1517443200\n")
    assert converted(tmp_path, tmp_path / "edits.txt") == [("7", "19", start, None)]
    (tmp_path / "shop.csv").write_text("user id,item id,date of the order\n7,19,2018-02-01\n")
    assert converted(tmp_path, tmp_path / "shop.csv") == [("7", "19", start, None)]


def test_the_parts_of_a_folder_are_read_by_name_and_a_part_that_differs_is_named(tmp_path):
    folder = tmp_path / "parts"
    for number in (0, 1):
        (folder / "land=AT").mkdir(parents=True, exist_ok=True)
        half = pa.Table.from_pylist(ROWS[5 * number : 5 * number + 5])
        pq.write_table(half, folder / "land=AT" / f"part-{number}.parquet")
    (folder / ".part-0.parquet.crc").write_bytes(b"x")
    assert converted(tmp_path, folder) == EXPECTED
    assert set(pq.read_table(tmp_path / "out.parquet")["domain"].to_pylist()) == {"AT"}
    pq.write_table(pa.table({"user": ["u"], "sku": ["a"]}), folder / "part-2.parquet")
    with pytest.raises(InputError, match=r"part part-2.parquet has no column 'ts', which others have"):
        converted(tmp_path, folder)
    (folder / "more.csv").write_text("a,b\n")
    with pytest.raises(InputError, match="several formats, csv and parquet"):
        converted(tmp_path, folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no file"):
        converted(tmp_path, tmp_path / "empty")


def test_a_query_is_a_source(tmp_path):
    duckdb = pytest.importorskip("duckdb")
    (tmp_path / "a.parquet").write_bytes(parquet())
    query = f"SELECT user, sku, make_timestamp(ts * 1000000) AS at, qty FROM '{tmp_path}/a.parquet'"
    assert converted(tmp_path, query) == EXPECTED
    with duckdb.connect(str(tmp_path / "shop.db")) as shop:
        shop.execute(f"CREATE TABLE sales AS {query}")
    assert converted(tmp_path, f"ATTACH '{tmp_path}/shop.db' AS shop; FROM shop.sales") == EXPECTED
    wide = f"FROM (PIVOT (SELECT *, 'qty' AS what FROM ({query})) ON what USING sum(qty))"
    assert converted(tmp_path, wide) == EXPECTED, "statements of which DuckDB makes several"
    with pytest.raises(InputError, match=r"DuckDB does not answer the query: .*nowhere"):
        converted(tmp_path, "SELECT * FROM nowhere")
    for query in (f"ATTACH '{tmp_path}/shop.db' AS shop", "WITH a AS (SELECT 1) INSERT INTO b FROM a"):
        with pytest.raises(InputError, match=r"(ATTACH|INSERT), is no query; expected a query last: ATT"):
            converted(tmp_path, query)


def test_a_long_query_and_ids_that_are_numbers_here_and_text_there(tmp_path):
    duckdb = pytest.importorskip("duckdb")
    rows = [{"u": 278, "i": "a", "t": 1_600_000_000}, {"u": "278", "i": "b", "t": 1_600_000_060}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    zero = " + ".join(["0"] * 200)
    query = f"SELECT u AS user_id, i AS item_id, t AS timestamp_s, {zero} AS value FROM '{tmp_path}/a.jsonl'"
    assert [user_id for user_id, *_ in converted(tmp_path, query)] == ["278", "278"]
    with duckdb.connect() as connection:
        answer = sources._plain(connection.sql("SELECT 1 AS a, 2 AS a, '\"x\"'::JSON AS b, '{\"k\":1}'::JSON AS b"))
        assert (answer.columns, answer.fetchall()) == (["a", "a", "b", "b"], [(1, 2, "x", '{"k":1}')])


def test_a_file_may_lack_columns_that_the_configuration_names_and_none_that_were_typed(tmp_path):
    (tmp_path / "a.csv").write_text("user_id,sku,ts\nu,a,1600000000\n")
    reading = EventFiles(map={"user_id": "listener", "item_id": "sku", "domain": "country"})
    plan = Plan.of(EVENTS, str(tmp_path / "a.csv"), reading.typed(["item_id"]))
    assert plan.mapping.columns == {"user_id": "user_id", "item_id": "sku", "timestamp_ms": "ts"}
    assert plan.mapping.lacking == {"user_id": "listener", "domain": "country"}
    for strict in (reading, reading.typed(["domain", "user_id"])):
        with pytest.raises(InputError, match="there is no column"):
            Plan.of(EVENTS, str(tmp_path / "a.csv"), strict)


def test_a_file_without_a_single_good_row_says_why(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    with pytest.raises(InputError, match="one array of them is no such file, write its objects one a line"):
        converted(tmp_path, tmp_path / "a.json")
    (tmp_path / "a.csv").write_text("user,sku,ts\n")
    with pytest.raises(InputError, match="got 0 rows; expected a header and rows"):
        converted(tmp_path, tmp_path / "a.csv")
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04...")
    with pytest.raises(InputError, match="got a ZIP file or a spreadsheet"):
        converted(tmp_path, tmp_path / "a.zip")


def test_runs_on_disk_give_the_same_file_as_memory(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text(text(","))
    monkeypatch.setattr("driftline.stream.events.chunks.CHUNK_ROWS", 2)
    monkeypatch.setattr(sort, "RUN_BYTES", 1)
    assert converted(tmp_path, tmp_path / "a.csv") == EXPECTED
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "out.parquet"]


def test_files_in_the_schema_are_read_as_they_are_and_converted_ones_under_any_settings(tmp_path):
    assert is_ready(str(BUNDLED_EVENTS), EVENTS, EventFiles())
    assert is_ready(str(BUNDLED_ITEMS), ITEMS, ItemFiles())
    (tmp_path / "a.csv").write_text(text(","))
    converted(tmp_path, tmp_path / "a.csv")
    told = EventFiles(map={"user_id": "user"}, time="s")
    assert is_ready(str(tmp_path / "out.parquet"), EVENTS, told)
    assert not is_ready(str(BUNDLED_EVENTS), EVENTS, told)
    assert not is_ready(str(tmp_path / "a.csv"), EVENTS, EventFiles())
    assert is_ready(str(tmp_path / "nowhere.csv"), EVENTS, EventFiles()), "its reader says what is wrong"
    items = tmp_path / "items.csv"
    items.write_text("item_id,title,shelf\na,Lamp,3\n")
    assert is_ready(str(items), ITEMS, ItemFiles())
    items.write_text("item_id,name\na,Lamp\n")
    assert not is_ready(str(items), ITEMS, ItemFiles()), "names would be lost"


def test_columns_that_are_not_wanted_are_named_and_not_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(JSONL)
    (chunk,) = raw_chunks(tmp_path / "a.jsonl", {"sku": ""}, (), Form(keeps=False))
    assert (list(chunk.columns), chunk.unknown, chunk.extra) == (["sku"], ["user", "ts", "qty"], None)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_dates_and_times_are_joined_and_what_says_nothing_is_nothing(tmp_path, form):
    rows = [
        {"user": "u", "sku": "a", "day": "2024-01-02", "clock": "10:30", "qty": "\\N", "price": "NA"},
        {"user": "NULL", "sku": "b", "day": "2024-01-01", "clock": "10:30", "qty": "1", "price": "2"},
        {"user": "u", "sku": "NA", "day": "2024-01-01", "clock": "11:00", "qty": "2", "price": "-"},
    ]
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)] if form == "csv" else map(json.dumps, rows)
    (tmp_path / f"a.{form}").write_text("\n".join(lines))
    reading = EventFiles(map={"timestamp_ms": "day+clock"})
    plan = Plan.of(EVENTS, str(tmp_path / f"a.{form}"), reading)
    with pytest.raises(InputError, match=r"1 of 3 rows are not right \(1 missing in 'user'\)"):
        write_events(plan, tmp_path / "out.parquet", Settings())
    assert write_events(plan, tmp_path / "out.parquet", Settings(), tmp_path / "bad").bad == 1
    found = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [(row["item_id"], row["value"], row["price"]) for row in found] == [("NA", 2.0, None), ("a", None, None)]
    assert found[0]["timestamp_ms"] == 1_704_106_800_000


def test_columns_of_the_context_stay_as_text_and_others_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "clicks.csv"
    path.write_text("user,sku,time,device,region,shoe\nu1,a,1700000000000,4,north,39\nu2,b,1700000000001,,south,\n")
    plan = Plan.of(EVENTS, str(path), EventFiles(), ["device", "region", "nowhere"])
    assert plan.mapping.columns["domain"] == "region"  # which takes nothing from the context
    assert plan.mapping.kept == ("device", "region")
    assert plan.mapping.left_out == ["shoe"]
    done = write_events(plan, tmp_path / "events.parquet", Settings())
    assert done.written == 2
    extra = read_columns(tmp_path / "events.parquet").extra
    assert extra is not None
    assert extra.tolist() == [{"device": "4", "region": "north"}, {"region": "south"}]


def written(path: Path, rows: list[dict[str, object]]) -> None:
    """Rows as a file of the format that its name says, with the columns of the first one."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        lines = [rows[0], *(row.values() for row in rows)]
        path.write_text("\n".join(",".join("" if cell is None else str(cell) for cell in line) for line in lines))
    else:
        table = pa.Table.from_pylist(rows)
        with (
            pa.ipc.new_file(path, table.schema)
            if path.suffix == ".arrow"
            else pq.ParquetWriter(path, table.schema) as writer
        ):
            writer.write_table(table)


@pytest.mark.parametrize("lacks", [True, False])
@pytest.mark.parametrize("form", ["parquet", "arrow", "csv", "jsonl"])
def test_the_columns_of_a_folder_are_those_of_all_its_parts(tmp_path: Path, form: str, lacks: bool) -> None:
    folder = tmp_path / "all"
    folder.mkdir()
    base = {"user_id": "u", "item_id": "i", "action": "rate"}
    none = {} if lacks else {"event_id": None, "price": None, "group_id": None, "domain": None}
    written(folder / f"a.{form}", [base | {"timestamp_ms": 1_700_000_000_000 + n, "value": 4.0} | none for n in (0, 1)])
    more = {"event_id": "e", "price": 2.5, "group_id": "g", "domain": "shop"}
    written(folder / f"b.{form}", [base | {"timestamp_ms": 1_700_000_000_002} | more])
    written(folder / f"c.{form}", [base | {"timestamp_ms": 1_700_000_000_003} | more])
    plan = Plan.of(EVENTS, str(folder), EventFiles())
    assert plan.mapping.left_out == []
    done = write_events(plan, tmp_path / "out.parquet", Settings())
    assert done.duplicates == 1, "an id that comes again in another part is still one"
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    found = [(row["value"], *(row[name] for name in more)) for row in rows]
    assert found == [(4.0, None, None, None, None)] * 2 + [(None, "e", 2.5, "g", "shop")] * 2


def test_a_part_that_calls_a_field_otherwise_is_refused(tmp_path: Path) -> None:
    base = {"user_id": "u", "item_id": "i", "timestamp_ms": 1_700_000_000_000}
    written(tmp_path / "a.parquet", [base | {"price": 2.5}])
    written(tmp_path / "b.parquet", [base | {"Preis": 3.5}])
    plan = Plan.of(EVENTS, str(tmp_path), EventFiles())
    with pytest.raises(InputError, match=r"part b.parquet has no column 'price', which others have as price, but 'Pre"):
        write_events(plan, tmp_path / "out.parquet", Settings())


def test_a_column_of_the_schema_that_is_empty_at_first_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SAMPLE_ROWS", 2)
    monkeypatch.setattr(sources, "LEAST_OF_PART", 2)
    base = {"user": "u", "item_id": "i", "timestamp_ms": 1_700_000_000_000, "action": "view"}
    written(tmp_path / "a.csv", [base | {"price": price} for price in (None, None, 2.5)])
    write_events(Plan.of(EVENTS, str(tmp_path / "a.csv"), EventFiles()), tmp_path / "out.parquet", Settings())
    assert pq.read_table(tmp_path / "out.parquet")["price"].to_pylist() == [None, None, 2.5]


@pytest.mark.parametrize("marked", ["utf-8-sig", "utf-16", "utf-32"])
def test_marks_at_the_start_of_a_file_say_its_encoding_whatever_is_told(tmp_path: Path, marked: str) -> None:
    (tmp_path / "a.csv").write_bytes(text(";").encode(marked))
    assert converted(tmp_path, tmp_path / "a.csv", encoding="latin-1") == EXPECTED
    assert Plan.of(EVENTS, str(tmp_path / "a.csv"), EventFiles(encoding="latin-1")).note == ""


def test_utf_8_that_is_read_as_something_else_is_noted(tmp_path: Path) -> None:
    reading = EventFiles(encoding="latin-1")
    (tmp_path / "a.csv").write_bytes(text(";").encode("latin-1"))
    assert Plan.of(EVENTS, str(tmp_path / "a.csv"), reading).note == ""
    (tmp_path / "a.csv").write_bytes(text(";").encode())
    note = Plan.of(EVENTS, str(tmp_path / "a.csv"), reading).note
    assert "a.csv: is UTF-8 by its letters and is read as latin-1: 'ü' becomes 'Ã¼'; leave the encoding out" in note


def test_a_part_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(text(";").encode())
    (tmp_path / "b.csv").write_bytes(text(";").encode("latin-1"))
    with pytest.raises(InputError, match=r"b\.csv: column 'sku' is not UTF-8: .*--encoding cp1252"):
        Plan.of(EVENTS, str(tmp_path), EventFiles())
    (tmp_path / "a.csv").write_bytes(text(";").encode("utf-8-sig"))
    plan = Plan.of(EVENTS, str(tmp_path), EventFiles(encoding="latin-1"))
    assert plan.sample.values["sku"] == [row["sku"] for row in ROWS] * 2, "a mark goes before what is told of all"
