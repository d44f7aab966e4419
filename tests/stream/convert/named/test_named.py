"""Named data sets from small samples in the shape in which they are downloaded, and the bundled games."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from driftline.configs.errors import InputError
from driftline.configs.load import load_settings
from driftline.stream.bundled import GAMES
from driftline.stream.cli import app
from driftline.stream.convert.named import CONVERTERS, checked, converter, write_made
from driftline.stream.convert.named.made import cut, id_of
from driftline.stream.events.files import read_columns, read_items, validate, validate_items
from driftline.stream.replay.log import EventLog

NOON = datetime(2020, 5, 1, 12, tzinfo=UTC)


def rows_of(folder: Path) -> list[tuple[str, str, int, str]]:
    table = pq.read_table(folder / "events.parquet", columns=["user_id", "item_id", "timestamp_ms", "group_id"])
    return [tuple(row.values()) for row in table.to_pylist()]


@pytest.fixture
def ifdb(tmp_path: Path) -> Path:
    """Three evenings of two people, one entry twice, one before 2008; two of the games are listed."""
    minutes = {"ann": [("g1", 0), ("g2", 9), ("g3", 18), ("g1", 20), ("g4", 29)], "bob": [("g1", 5)]}
    entries = [(who, game, NOON + timedelta(minutes=m)) for who, named in minutes.items() for game, m in named]
    entries += [("bob", "g2", NOON + timedelta(days=1)), ("bob", "g9", datetime(1980, 1, 1, tzinfo=UTC))]
    entries.reverse()
    people, games, times = zip(*entries, strict=True)
    folder = tmp_path / "ifdb"
    folder.mkdir()
    log = {
        "userid": people,
        "gameid": games,
        "date_added": pa.array([t.replace(tzinfo=None) for t in times], pa.timestamp("us")),
    }
    pq.write_table(pa.table(log), folder / "playedgames.parquet")
    docs = [
        {"gameid": "g1", "title": "Zork", "author": "A, B", "system_clean": "zil", "tags_clean": "cave, puzzles",
         "doc_text": "Title: Zork. Description: West of a house."},
        {"gameid": "g2", "title": "Home", "author": "x" * 300, "system_clean": "inform", "tags_clean": "inform",
         "doc_text": "Title: Home."},
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(docs), folder / "game_docs.parquet")
    return folder


def test_games_entries_ten_minutes_apart_are_one_sitting_at_its_start(ifdb: Path, tmp_path: Path) -> None:
    made = CONVERTERS["games"].read(ifdb)
    write_made(made, tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    noon = int(NOON.timestamp() * 1000)
    ann, bob = rows[0][0], rows[3][0]
    assert "ann" not in ann
    assert ann != bob
    # the entry of minute 29 is 11 minutes after the last new one: g1 again is no entry
    assert [(who, game, (t - noon) / 60_000) for who, game, t, _ in rows] == [
        (ann, "g1", 0), (ann, "g2", 0), (ann, "g3", 0), (bob, "g1", 5), (ann, "g4", 29), (bob, "g2", 1440),
    ]  # fmt: skip
    assert len({group for *_, group in rows}) == 4
    assert len({group for *_, group in rows[:3]}) == 1


def test_games_have_titles_tags_with_the_system_authors_and_texts(ifdb: Path, tmp_path: Path) -> None:
    write_made(CONVERTERS["games"].read(ifdb), tmp_path / "out")
    assert validate_items(tmp_path / "out" / "items.parquet").ok
    items = read_items(tmp_path / "out" / "items.parquet")
    zork, home = items["g1"], items["g2"]
    assert (zork.title, zork.text, zork.categories, zork.brand) == (
        "Zork",
        "West of a house.",
        ["cave", "puzzles", "zil"],
        "A, B",
    )
    assert (home.text, home.categories, len(home.brand)) == ("", ["inform"], 256)
    assert load_settings(str(tmp_path / "out" / "driftline.yaml")).action("play").positive


def test_songs_have_hashed_ids_and_sessions(tmp_path: Path) -> None:
    rows = [(7, 4, 16, 1_421_163_674, 274), (7, 4, 17, 1_421_163_948, 5), (2, 1, 16, 1_400_000_000, 100)]
    names = ("session_id", "user_id", "song_id", "ts", "playtime")
    path = tmp_path / "sessions_sample_10.parquet.snappy"
    pq.write_table(
        pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), path, compression="snappy"
    )
    write_made(CONVERTERS["songs"].read(tmp_path), tmp_path / "out")
    found = rows_of(tmp_path / "out")
    assert [(who, t, group) for who, _, t, group in found] == [
        ("1", 1_400_000_000_000, "2"), ("4", 1_421_163_674_000, "7"), ("4", 1_421_163_948_000, "7"),
    ]  # fmt: skip
    assert found[0][1] == found[1][1] != found[2][1]
    assert all(len(song) == 10 for _, song, *_ in found)
    settings = load_settings(str(tmp_path / "out" / "driftline.yaml"))
    log = EventLog(read_columns(tmp_path / "out" / "events.parquet"), settings.action)
    assert log.positive.tolist() == [True, True, False]  # five seconds are a skip
    assert settings.model == load_settings("sessions").model


def test_messages_go_from_people_to_people(tmp_path: Path) -> None:
    (tmp_path / "CollegeMsg.txt").write_text("3 4 1082155839\n1 2 1082040961\n")
    write_made(CONVERTERS["messages"].read(tmp_path), tmp_path / "out")
    assert [row[:3] for row in rows_of(tmp_path / "out")] == [
        ("1", "2", 1_082_040_961_000),
        ("3", "4", 1_082_155_839_000),
    ]
    assert validate(tmp_path / "out" / "events.parquet").ok
    (tmp_path / "CollegeMsg.txt").write_text("3,4,1082155839\n")
    with pytest.raises(InputError, match=r"CollegeMsg\.txt, lines of `SENDER RECEIVER UNIX_SECONDS`"):
        CONVERTERS["messages"].read(tmp_path)


@pytest.mark.parametrize("name", ["games", "songs", "news", "messages"])
def test_a_source_that_is_not_there_or_something_else_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected"):
        converter(name).read(tmp_path)
    (tmp_path / "other.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(InputError, match="expected"):
        converter(name).read(tmp_path / "other.parquet")


def test_a_name_that_is_none_is_refused_with_those_that_are() -> None:
    with pytest.raises(InputError, match="got 'film'; expected one of games, songs, news, messages, git"):
        converter("film")


def test_a_long_name_is_cut_between_characters_and_stays_an_id_of_its_own() -> None:
    one, two = "ü" * 200 + "a", "ü" * 200 + "b"
    assert id_of(one) != id_of(two)
    assert 250 < len(id_of(one).encode()) <= 256
    assert cut("short") == id_of("short") == "short"
    assert cut(one).endswith("ü...")


def test_the_bundled_games_are_what_their_notice_says() -> None:
    log = EventLog(read_columns(GAMES.events), load_settings(GAMES.preset).action)
    assert len(log) == int(log.positive.sum()) == 69_334
    assert (len(set(log.user.tolist())), len(log.item_ids)) == (3_147, 9_533)
    assert len(set(log.group_of.tolist())) == 41_235
    items = read_items(GAMES.items)
    assert len(items) == 5_940
    assert set(items) < set(log.item_ids)
    assert all(item.title and not item.text for item in items.values())
    assert GAMES.events.stat().st_size + GAMES.items.stat().st_size < 1_500_000
    notice = (GAMES.events.parent / "NOTICE.md").read_text()
    assert "Creative Commons Attribution 3.0 United States" in notice
    assert "e545934" in notice


HEADER = (
    "user_id,session_id,session_start,session_size,click_article_id,click_timestamp,click_environment,click_deviceGroup,"
    "click_os,click_country,click_region,click_referrer_type"
)
BEGIN_MS = 1_506_826_800_000


def news_folder(folder: Path) -> Path:
    """Two hours as they are offered: sessions of three, two and two clicks; each ends 30 s after the click before."""
    (folder / "clicks").mkdir(parents=True)
    one = [(0, 1, 3, 10, 0), (0, 1, 3, 11, 40_000), (0, 1, 3, 12, 70_000)]
    two = [(7, 2, 2, 10, 3_600_000), (7, 2, 2, 13, 3_630_000), (9, 3, 3, 11, 3_700_000), (9, 3, 3, 12, 3_750_000)]
    for hour, rows in enumerate((one, two)):
        lines = [
            f"{user},{session},{BEGIN_MS},{size},{article},{BEGIN_MS + ms},4,{user % 3 + 1},17,1,{20 + user},2"
            for user, session, size, article, ms in rows
        ]
        (folder / "clicks" / f"clicks_hour_{hour:03}.csv").write_text("\n".join((HEADER, *lines)) + "\n")
    (folder / "articles_metadata.csv").write_text(
        "article_id,category_id,created_at_ts,publisher_id,words_count\n10,281,1506000000000,0,168\n11,7,1506000001000,0,9\n"
    )
    return folder


def test_news_are_clicks_by_session_with_what_is_known_of_the_request(tmp_path: Path) -> None:
    made = CONVERTERS["news"].read(news_folder(tmp_path / "g1"))
    write_made(made, tmp_path / "out")
    found = rows_of(tmp_path / "out")
    assert found[:2] == [("0", "10", BEGIN_MS, "1"), ("0", "11", BEGIN_MS + 40_000, "1")]
    assert len(found) == 7
    assert validate(tmp_path / "out" / "events.parquet").ok
    columns = read_columns(tmp_path / "out" / "events.parquet")
    assert columns.extra is not None
    settings = load_settings(str(tmp_path / "out" / "driftline.yaml"))
    assert settings.signals.context == tuple(columns.extra[3])
    assert settings.signals.half_lives_days == load_settings("news").signals.half_lives_days
    assert columns.extra[3] == {
        "device": "2", "environment": "4", "os": "17", "country": "1", "region": "27", "referrer": "2"
    }  # fmt: skip
    names = pq.read_schema(tmp_path / "out" / "events.parquet").names
    assert not [name for name in names if "size" in name or "start" in name]  # they tell what is to come
    settings = load_settings(str(tmp_path / "out" / "driftline.yaml"))
    assert settings.action("click").positive
    items = read_items(tmp_path / "out" / "items.parquet")
    assert (items["10"].categories, items["10"].valid_from_ms) == (["281"], 1_506_000_000_000)


def test_the_made_up_time_of_a_last_click_is_drawn_from_gaps_between_others(tmp_path: Path) -> None:
    made = CONVERTERS["news"].read(news_folder(tmp_path / "g1"))
    files = write_made(made, tmp_path / "out")
    assert [path.name for path in files] == [
        "events.parquet", "events_drawn.parquet", "items.parquet", "driftline.yaml"
    ]  # fmt: skip
    drawn = {
        (row["group_id"], row["item_id"]): row["timestamp_ms"] - BEGIN_MS
        for row in pq.read_table(tmp_path / "out" / "events_drawn.parquet").to_pylist()
    }
    assert drawn == {
        ("1", "10"): 0, ("1", "11"): 40_000, ("1", "12"): 80_000, ("2", "10"): 3_600_000, ("2", "13"): 3_640_000,
        ("3", "11"): 3_700_000, ("3", "12"): 3_750_000,
    }  # fmt: skip  # the only gap within a session is 40 s; the last session ends with a time of its own
    assert made.notes[0].startswith("2 sessions end with a click stamped 30 s")


def test_news_without_articles_or_with_pointers_in_place_of_files(tmp_path: Path) -> None:
    folder = news_folder(tmp_path / "g1")
    (folder / "articles_metadata.csv").unlink()
    assert CONVERTERS["news"].read(folder).items is None
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:95cfe0\nsize 136098\n"
    (folder / "clicks" / "clicks_hour_001.csv").write_text(pointer)
    with pytest.raises(InputError, match=r"clicks_hour_001\.csv is a pointer of Git LFS.*git lfs pull"):
        CONVERTERS["news"].read(folder)
    (folder / "clicks" / "clicks_hour_001.csv").write_text("user_id,item\n1,2\n")
    with pytest.raises(InputError, match=r"expected CSV with the columns user_id, session_id"):
        CONVERTERS["news"].read(folder)


def plays(**columns: object) -> pa.Table:
    whole = {
        "session_id": [1, 1, 2], "user_id": [7, 7, 8], "song_id": ["a", "b", "c"],
        "ts": [1_390_000_000, 1_390_000_100, 1_390_000_200], "playtime": [200, 20, 90],
    }  # fmt: skip
    return pa.table(whole | columns)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"ts": pa.array([1_390_000_000, None, 1_390_000_200])}, "row 2, column 'timestamp_ms': missing"),
        ({"song_id": ["a", None, "c"]}, "row 2, column 'item_id': missing"),
        ({"user_id": pa.array([7, None, 8])}, "row 2, column 'user_id': missing"),
        ({"playtime": [200.0, float("inf"), 90.0]}, "row 2, column 'value': not finite"),
        ({"ts": [1_390_000_000, 1, 1_390_000_200]}, "row 2, column 'timestamp_ms': out of range: got 1000"),
    ],
)
def test_rows_that_no_reader_would_take_are_left_out_and_said(
    columns: dict[str, object], said: str, tmp_path: Path
) -> None:
    pq.write_table(plays(**columns), tmp_path / "sessions.parquet.snappy")
    made = checked(CONVERTERS["songs"].read(tmp_path))
    write_made(made, tmp_path / "out")
    assert [row[2] for row in rows_of(tmp_path / "out")] == [1_390_000_000_000, 1_390_000_200_000]
    assert validate(tmp_path / "out" / "events.parquet").ok
    assert made.notes[-1].startswith(f"1 of 3 events are left out; as converted, {said}")


def test_times_in_another_unit_are_refused_as_such(tmp_path: Path) -> None:
    pq.write_table(plays(ts=[1_390_000_000_000 + n for n in range(3)]), tmp_path / "sessions.parquet.snappy")
    with pytest.raises(
        InputError, match=r"none of 3 events is right; as converted, row 1, column 'timestamp_ms': looks like micro"
    ):
        checked(CONVERTERS["songs"].read(tmp_path))


@pytest.mark.parametrize(
    ("name", "file", "columns"),
    [
        ("songs", "sessions.parquet.snappy", {"ts": ["x", "y", "z"]}),
        ("songs", "sessions.parquet.snappy", {"ts": [1.5, float("nan"), 3.0]}),
        ("songs", "sessions.parquet.snappy", {"playtime": ["long", "short", "none"]}),
        ("songs", "sessions.parquet.snappy", {"user_id": [[1], [2], [3]]}),
    ],
)
def test_columns_of_another_type_are_refused_with_a_sentence(
    name: str, file: str, columns: dict[str, object], tmp_path: Path
) -> None:
    pq.write_table(plays(**columns), tmp_path / file)
    done = CliRunner().invoke(app, ["convert", name, str(tmp_path), str(tmp_path / "out")])
    assert isinstance(done.exception, InputError)
    assert f"can't be read as {name}: " in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_messages_and_news_without_a_time_are_left_out_and_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "CollegeMsg.txt").write_text("1 2 1082040961\n3 4 \n5 6 1082040962\n")
    made = checked(CONVERTERS["messages"].read(tmp_path))
    assert len(made.events) == 2
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(InputError, match=r"out: can't be made or written: .*; expected a folder .* another OUT"):
        write_made(made, tmp_path / "out")


def test_entries_of_games_that_lack_something_are_left_out(ifdb: Path) -> None:
    table = pq.read_table(ifdb / "playedgames.parquet")
    whole = CONVERTERS["games"].read(ifdb)
    at = table.to_pylist().index({"userid": "bob", "gameid": "g2", "date_added": NOON.replace(tzinfo=None, day=2)})
    for place, name in enumerate(table.column_names):
        values = table[name].to_pylist()
        values[at] = None
        lacking = table.set_column(place, name, pa.array(values, table[name].type))
        pq.write_table(lacking, ifdb / "playedgames.parquet")
        made = CONVERTERS["games"].read(ifdb)
        assert len(made.events) == len(whole.events) - 1
        assert made.notes[-1] == "1 of 8 entries lack person, game or time and are left out"
