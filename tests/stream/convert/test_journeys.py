"""Files as others ship them, from the command line to files in the schema: nothing is lost without a word."""

import gzip
import json
import random
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from driftline.configs.errors import InputError
from driftline.configs.load import load_settings
from driftline.stream.cli import app
from driftline.stream.events.files import read_items, validate, validate_items


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """20,000 ratings sorted by user, times in seconds, and titles with commas."""
    folder, rng = tmp_path_factory.mktemp("films"), random.Random(0)
    lines = ["userId,movieId,rating,timestamp"]
    for user in range(1, 201):
        second = rng.randrange(900_000_000, 1_500_000_000)
        lines += [f"{user},{rng.randrange(1, 400)},{rng.randrange(1, 11) / 2},{second + 30 * n}" for n in range(100)]
    (folder / "ratings.csv").write_text("\n".join(lines) + "\n")
    titles = [f'{n},"Film, The {n} (1999)",Drama|War' for n in range(1, 390)]
    (folder / "movies.csv").write_text("\n".join(["movieId,title,genres", *titles]) + "\n")
    return folder


def written(folder):
    return pq.read_table(folder / "events.parquet").to_pylist()


def test_ratings_sorted_by_user_become_events_in_order_of_time(films, tmp_path):
    result = run("import", films / "ratings.csv", "--items", films / "movies.csv", "--action", "rate", "-c", "media",
                 "--out", tmp_path)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "of 20,000 would have come too late" in result.stdout
    assert "10 ids with" in result.stdout
    rows = written(tmp_path)
    source = [line.split(",") for line in (films / "ratings.csv").read_text().splitlines()[1:]]
    expected = sorted(source, key=lambda row: int(row[3]))
    assert [(r["user_id"], r["item_id"], r["value"], r["timestamp_ms"] // 1000) for r in rows] == [
        (user, item, float(value), int(second)) for user, item, value, second in expected
    ]
    assert {row["action"] for row in rows} == {"rate"}
    settings = load_settings(tmp_path / "driftline.yaml")
    assert settings.action("rate").positive_from == 4
    assert settings.event_files.map == {
        "user_id": "userId", "item_id": "movieId", "timestamp_ms": "timestamp", "value": "rating"
    }  # fmt: skip
    assert (settings.event_files.time, settings.event_files.action) == ("s", "rate")
    report = validate(tmp_path / "events.parquet", settings.actions)
    assert report.ok
    assert not report.counts
    assert validate_items(tmp_path / "items.parquet").rows == 389
    assert read_items(tmp_path / "items.parquet")["7"].title == "Film, The 7 (1999)"
    assert read_items(tmp_path / "items.parquet")["7"].categories == ["Drama", "War"]


def test_ratings_without_an_action_are_refused_before_low_ones_count_as_wanted(films, tmp_path):
    result = run("import", films / "ratings.csv", "--out", tmp_path / "out")
    assert isinstance(result.exception, InputError)
    for words in ("'rating' is taken as value (0.5 to 5", "every row counts as wanted", "--action rate",
                  "with -c media, weight 1, counts as wanted from 4 on, ", "--action interact"):  # fmt: skip
        assert words in str(result.exception)
    assert not (tmp_path / "out").exists()
    assert run("import", films / "ratings.csv", "--action", "interact", "--out", tmp_path / "out").exit_code == 0
    told = run("import", films / "ratings.csv", "--action", "rate", "--out", tmp_path / "other")
    assert "counts as wanted whatever its value under configuration 'default'" in told.stderr


def test_validate_takes_the_same_file_and_says_that_most_of_it_would_come_too_late(films):
    result = run("validate", films / "ratings.csv", "--items", films / "movies.csv", "--action", "rate")
    assert result.exit_code == 0, result.output
    assert "would come more than state.late_ms, 60 min, too late" in result.stdout
    assert "ok, but out of order" in result.stdout
    assert "│ user_id      │ userId" in result.stderr


def test_replay_takes_ratings_as_they_are_shipped(films, tmp_path):
    result = run("replay", "--events", films / "ratings.csv", "--items", films / "movies.csv", "--action", "rate",
                 "-c", "media", "--out", tmp_path, "--arms", "popularity", "--no-audit", "--json")  # fmt: skip
    assert result.exit_code == 0, result.output
    metrics = json.loads(result.stdout)
    assert metrics["data"]["events"] == 20_000
    assert pq.read_metadata(tmp_path / "files" / "events.parquet").num_rows == 20_000


def test_a_shops_export_with_semicolons_decimal_commas_and_german_dates(tmp_path):
    zone, rng = ZoneInfo("Europe/Berlin"), random.Random(1)
    start = datetime(2024, 1, 1, tzinfo=zone)
    lines = ["Kundennummer;Datum;Artikelnr;Bezeichnung;Menge;Einzelpreis;Bestellnummer"]
    times = []
    for customer in range(50):
        for order in range(4):
            day = start.replace(month=rng.randrange(1, 13), day=rng.randrange(1, 29), hour=rng.randrange(24))
            times.append(int(day.timestamp() * 1000))
            price = "1.234,50" if order == 0 else "2,5"
            lines.append(f"K{customer};{day:%d.%m.%Y %H:%M};A{order};Löffel, groß {order};2;{price};{customer}-{order}")
    source = tmp_path / "export.csv"
    source.write_bytes("\r\n".join(lines).encode("cp1252"))
    refused = run("import", source, "--zone", "Europe/Berlin", "--out", tmp_path / "out")
    assert isinstance(refused.exception, InputError)
    assert "--encoding cp1252" in str(refused.exception)
    result = run("import", source, "--zone", "Europe/Berlin", "--encoding", "cp1252", "--action", "purchase",
                 "-c", "ecommerce", "--out", tmp_path / "out")  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = written(tmp_path / "out")
    assert [row["timestamp_ms"] for row in rows] == sorted(times)
    assert {row["price"] for row in rows} == {1234.5, 2.5}
    assert {row["group_id"] for row in rows} == {f"{c}-{o}" for c in range(50) for o in range(4)}
    assert read_items(tmp_path / "out" / "items.parquet")["A3"].title == "Löffel, groß 3", "titles of the export itself"
    kept = load_settings(tmp_path / "out" / "driftline.yaml").event_files
    assert (kept.decimal, kept.time, kept.zone, kept.encoding) == (",", "dmy", "Europe/Berlin", "cp1252")
    again = run("validate", source, "-c", tmp_path / "out" / "driftline.yaml")
    assert again.exit_code == 0, again.output


def test_a_podcasts_jsonl_with_nested_context_and_iso_times_in_parts(tmp_path):
    parts = tmp_path / "plays"
    (parts / "country=DE").mkdir(parents=True)
    (parts / "_SUCCESS").touch()
    for number in (0, 1):
        rows = [
            {
                "event": "play" if n % 2 else "skip",
                "at": f"2024-03-{1 + (n * 7 + number) % 28:02}T10:00:00.500{'+02:00' if number else 'Z'}",
                "context": {"listener": {"id": n % 5}, "device": "phone", "seconds_listened": 30 * n},
                "episode": {"id": f"e{n % 7}", "title": f"Episode {n % 7}"},
            }
            for n in range(40)
        ]
        text = "\n".join(map(json.dumps, rows)).encode()
        (parts / "country=DE" / f"part-{number}.jsonl.gz").write_bytes(gzip.compress(text))
    result = run("import", parts, "--map", "item_id=episode.id", "-c", "media", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    rows = written(tmp_path / "out")
    assert len(rows) == 80
    assert {row["domain"] for row in rows} == {"DE"}
    assert {row["user_id"] for row in rows} == set("01234")
    assert {row["action"] for row in rows} == {"play", "skip"}
    assert "context.device" in result.stderr
    first = datetime.fromtimestamp(rows[0]["timestamp_ms"] / 1000, UTC)
    assert first.isoformat() == "2024-03-01T10:00:00.500000+00:00"
    assert (np.diff([row["timestamp_ms"] for row in rows]) >= 0).all()


def test_bad_rows_are_counted_by_reason_and_put_aside_with_their_place(tmp_path):
    source, bad = tmp_path / "orders.csv", tmp_path / "bad.jsonl"
    good = [f"u{n},a,2024-01-{1 + n % 28:02}" for n in range(100)]
    source.write_text("\n".join(["customer,sku,ordered_at", *good, ",a,2024-01-01", "u,b,tomorrow", "u,c", "u,d,"]))
    refused = run("import", source, "--out", tmp_path / "out")
    for words in ("4 of 104 rows are not right", "1 missing in 'customer'", "1 not a time in 'ordered_at'",
                  "1 wrong number of fields", "the first: row 101", "--bad FILE"):  # fmt: skip
        assert words in str(refused.exception)
    assert not (tmp_path / "out").exists()
    result = run("import", source, "--out", tmp_path / "out", "--bad", bad)
    assert result.exit_code == 0, result.output
    assert "4 rows put aside in" in result.stdout
    lines = [json.loads(line) for line in bad.read_text().splitlines()]
    assert {(line["row"], line["problems"][0]["kind"]) for line in lines} == {
        (101, "missing"), (102, "not a time"), (103, "wrong number of fields"), (104, "missing")
    }  # fmt: skip
    empty = next(line for line in lines if line["row"] == 104)["problems"][0]
    assert empty["expected"] == "a time: ISO 8601, UTC where no zone is named"
    assert next(line for line in lines if line["row"] == 102)["read"]["ordered_at"] == "tomorrow"
    assert len(written(tmp_path / "out")) == 100


def test_rows_that_are_not_right_are_sent_by_nobody(tmp_path):
    source = tmp_path / "orders.csv"
    source.write_text("customer,sku,ordered_at\nu,a,2024-01-01\nu,b,tomorrow\n" + "u,a,2024-01-02\n" * 40)
    refused = run("produce", "--events", source)
    assert "'tomorrow'" in str(refused.exception)
    assert "Nothing was sent: --bad FILE" in str(refused.exception)


def test_items_of_another_shop_are_named_with_both_columns_and_an_id_of_each(films, tmp_path):
    items = tmp_path / "wares.csv"
    items.write_text("sku,title\nW-1,Lamp\nW-2,Rug\n")
    result = run("import", films / "ratings.csv", "--items", items, "--action", "rate", "--out", tmp_path / "out")
    checked = run("validate", films / "ratings.csv", "--items", items, "--action", "rate")
    assert (result.exit_code, checked.exit_code) == (0, 0), "they may be items that nobody has taken yet"
    assert "warning: none of the 399 item ids of the events is in the items file" in result.stdout
    assert f"'movieId' of {films / 'ratings.csv'} holds '" in result.stdout
    assert f"'sku' of {items} holds 'W-1'; expected the same ids: name other columns (--map item_id" in result.stdout


def test_an_import_into_the_same_folder_keeps_settings_that_were_changed(films, tmp_path):
    def again(*more):
        return run("import", films / "ratings.csv", "--action", "rate", "--out", tmp_path, *more)

    assert again("-c", "media").exit_code == 0
    config: Path = tmp_path / "driftline.yaml"
    config.write_text(config.read_text() + "state: {history: 64}\n")
    assert again("-c", config).exit_code == 0
    assert load_settings(config).state.history == 64
    assert again("-c", "media").exit_code == 0
    assert "history: 64" in config.with_name("driftline.yaml.old").read_text()


def test_a_shops_order_lines_say_what_is_suspicious_in_them(tmp_path):
    lines = ["Invoice,StockCode,Description,Quantity,InvoiceDate,Price,Customer ID,Country"]
    lines += [
        f"53{n},8{n % 4}A,LAMP {n % 4},{-1 if n == 5 else 6},12/{1 + n}/2009 7:45,2.55,178{n}.0,UK" for n in range(20)
    ]
    lines.append("999,80A,LAMP 0,1,12/24/2099 7:45,2.55,1.0,UK")
    (tmp_path / "lines.csv").write_text("\n".join(lines))
    result = run("import", tmp_path / "lines.csv", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "1 row with a value below 0 in 'Quantity' became 'return' (weight -1, never counts" in result.stderr
    assert "in the future" in result.stdout
    assert "all ids end in .0" in result.stdout
    assert written(tmp_path / "out")[0]["group_id"] == "530"
    assert read_items(tmp_path / "out" / "items.parquet")["83A"].text == "LAMP 3"


@pytest.mark.parametrize("command", ["import", "replay"])
def test_items_that_are_refused_leave_no_file_of_events_and_those_of_before_as_they_were(films, tmp_path, command):
    out = tmp_path / "out"
    files = out / "files" if command == "replay" else out
    (tmp_path / "items.csv").write_text(f"movieId,title\n1,a\n{'x' * 300},too long\n")
    given = [films / "ratings.csv", "--items", tmp_path / "items.csv", "--action", "rate", "-c", "media", "--out", out]
    words = [command, *(["--events"] if command == "replay" else []), *given]
    refused = run(*words)
    assert isinstance(refused.exception, InputError), refused.output
    assert "Nothing was written" in str(refused.exception)
    assert not files.exists()
    files.mkdir(parents=True)
    (files / "events.parquet").write_bytes(b"of before")
    assert isinstance(run(*words).exception, InputError)
    assert (files / "events.parquet").read_bytes() == b"of before"
    assert [path.name for path in files.iterdir()] == ["events.parquet"]


def test_values_below_zero_beside_a_column_of_actions_are_counted_by_action(tmp_path):
    rows = [
        f"u{n},i{n},{1_600_000_000 + n},{'refund' if n in (2, 3) else 'purchase'},{-5 if n < 4 else 5}"
        for n in range(9)
    ]
    (tmp_path / "events.csv").write_text("\n".join(["user,item,ts,what,amount", *rows]))
    options = ["--map", "action=what,value=amount", "-c", "ecommerce"]
    result = run("import", tmp_path / "events.csv", *options, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    assert (
        "4 rows with a value below 0 in 'amount' keep the action that 'what' says: 2 purchase (weight 1"
        in result.stderr
    )
    assert "If they are returns or refunds, name them so in that column" in result.stderr
    assert json.loads(result.stdout)["events"]["below_zero"] == 4
    (tmp_path / "events.csv").write_text("user,item,ts,what,amount\nu,i,1600000000,return,-1\n")
    quiet = run("validate", tmp_path / "events.csv", *options)
    assert "1 row with a value below 0" in quiet.stderr
    assert "name them so" not in quiet.stderr


def test_values_without_an_action_are_told_which_actions_of_the_configuration_go_by_a_value(tmp_path):
    plays = [
        {"listener": f"l{n % 9}", "episode_id": f"e{n}", "started_at": 1_700_000_000 + n, "seconds_listened": 10 * n}
        for n in range(40)
    ]
    (tmp_path / "plays.jsonl").write_text("\n".join(map(json.dumps, plays)))
    said = run("validate", tmp_path / "plays.jsonl", "-c", "media").stderr
    assert "--action play (weight 1, counts as wanted from 30 on, 92% of these) says more" in said
    said = " ".join(run("validate", tmp_path / "plays.jsonl", "-c", "media", "--action", "play").stderr.split())
    assert (
        "each play has weight 1, counts as wanted from 30 on, 92% of these, in the unit of configuration 'media'"
        in said
    )
    assert (
        "--action purchase, play, ... says more" in run("validate", tmp_path / "plays.jsonl", "-c", "ecommerce").stderr
    )


@pytest.fixture
def pieces(tmp_path):
    """A shop's lines, three of ten with a negative number of pieces."""
    lines = ["Kundennr;Artikelnr;Datum;Menge"]
    lines += [f"K{n % 3};A{n};{n + 1}.12.2024 10:00;{'-2' if n in (4, 6, 9) else '3'}" for n in range(9, -1, -1)]
    path = tmp_path / "lines.csv"
    path.write_text("\n".join(lines))
    return path


def test_pieces_that_came_back_are_returns_for_every_command_with_the_same_options(pieces, tmp_path):
    options = ["--time", "dmy", "--action", "purchase", "-c", "ecommerce"]
    said = "3 rows with a value below 0 in 'Menge' became 'return' (weight -1, never counts as wanted), the value"
    result = run("import", pieces, *options, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    assert said in result.stderr
    assert json.loads(result.stdout)["events"]["below_zero"] == 3
    expected = [("return", 2.0) if n in (4, 6, 9) else ("purchase", 3.0) for n in range(10)]
    assert [(row["action"], row["value"]) for row in written(tmp_path / "out")] == expected
    again = run("import", pieces, "-c", tmp_path / "out" / "driftline.yaml", "--out", tmp_path / "again")
    assert said in again.stderr
    assert written(tmp_path / "again") == written(tmp_path / "out")
    assert said in run("validate", pieces, *options).stderr
    assert said in run("produce", "--events", pieces, *options).stderr, "refused afterwards: it is out of order"
    run("replay", "--events", pieces, *options, "--out", tmp_path / "replay", "--arms", "popularity", "--no-audit")
    assert written(tmp_path / "replay" / "files") == written(tmp_path / "out")


def test_another_action_for_values_below_zero_is_said_or_refused_where_nothing_says_what_it_means(pieces, tmp_path):
    def actions(*more):
        result = run("import", pieces, "--time", "dmy", *more, "--out", tmp_path / "out")
        assert result.exit_code == 0, result.output
        rows = written(tmp_path / "out")
        return result.stderr, {(row["action"], row["value"]) for row in rows if row["value"] != 3}

    assert actions()[1] == {("return", 2)}, "a number of pieces is one whether or not the others are called purchases"
    note, kept = actions("--action", "purchase", "--action-below-zero", "purchase")
    assert kept == {("purchase", -2)}
    assert "3 rows with a value below 0 in 'Menge' stayed 'purchase' (weight 1, counts as wanted whatever" in note
    note, kept = actions("--action", "cart")
    assert kept == {("cart", -2)}
    assert "--action-below-zero return makes them returns" in note
    assert actions("--action", "cart", "--action-below-zero", "view")[1] == {("view", 2)}
    assert load_settings(tmp_path / "out" / "driftline.yaml").event_files.action_below_zero == "view"
    for command in (["import", pieces, "--out", tmp_path / "none"], ["validate", pieces]):
        refused = run(*command, "--time", "dmy", "--action-below-zero", "retoure")
        assert isinstance(refused.exception, InputError)
        assert "3 rows have a value below 0 in 'Menge' and would be 'retoure', which" in str(refused.exception)
    assert not (tmp_path / "none").exists()
    pieces.write_text("user,item,ts,action,qty\nu,i,1600000000,buy,-1\n")
    refused = run("validate", pieces, "--action-below-zero", "return")
    assert "column 'action' says the action of each row" in str(refused.exception)
    assert run("import", pieces, "--out", tmp_path / "named").exit_code == 0
    assert [(row["action"], row["value"]) for row in written(tmp_path / "named")] == [("buy", -1)]


def test_what_users_write_of_themselves_and_of_items_does_not_become_items(tmp_path):
    review = {
        "reviewerID": "u",
        "asin": "a",
        "overall": 5,
        "unixReviewTime": 1_600_000_000,
        "summary": "I",
        "name": "Jo",
    }
    (tmp_path / "reviews.json").write_text(json.dumps(review))
    result = run("import", tmp_path / "reviews.json", "--action", "rate", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "left out: summary, name" in result.stderr
    assert not (tmp_path / "out" / "items.parquet").exists()


def test_the_configuration_is_called_after_the_file_unless_it_has_a_name_already(films, tmp_path):
    def named(*more, source=films / "ratings.csv"):
        result = run("import", source, "--action", "rate", "--out", tmp_path / "out", *more)
        assert result.exit_code == 0, result.output
        return load_settings(tmp_path / "out" / "driftline.yaml").name

    packed = tmp_path / "plays.csv.gz"
    packed.write_bytes(gzip.compress((films / "ratings.csv").read_bytes()))
    own = tmp_path / "own.yaml"
    own.write_text("extends: media\nname: podcasts\n")
    assert named("-c", "media") == "ratings"
    assert named(source=packed) == "plays"
    assert named("-c", own) == "podcasts"
    assert named("-c", own, "--name", "shows") == "shows"


def test_ratings_become_actions_by_their_value_in_import_validate_and_replay(films, tmp_path):
    given = ["--action-from", "like=4,rate=2.5", "--action", "dislike", "-c", "media"]
    result = run("import", films / "ratings.csv", *given, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "'like' from 4 on" in result.stderr
    assert "'dislike' below" in result.stderr
    of = {"like": lambda v: v >= 4, "rate": lambda v: 2.5 <= v < 4, "dislike": lambda v: v < 2.5}
    rows = written(tmp_path / "out")
    assert {row["action"] for row in rows} == set(of)
    assert all(of[row["action"]](row["value"]) for row in rows)
    kept = load_settings(tmp_path / "out" / "driftline.yaml").event_files
    assert (kept.action_from, kept.action) == ({"like": 4, "rate": 2.5}, "dislike")
    again = run("import", films / "ratings.csv", "-c", tmp_path / "out" / "driftline.yaml", "--out", tmp_path / "again")
    assert again.exit_code == 0, again.output
    assert written(tmp_path / "again") == rows
    for command in (("validate",), ("replay", "--out", tmp_path / "no", "--events"), ("produce", "--events")):
        twice = run(*command, tmp_path / "out" / "events.parquet", *given)
        assert twice.exit_code, twice.output
        assert "got --action, --action-from for a file that `driftline import` wrote" in str(twice.exception)
    checked = run("validate", films / "ratings.csv", *given)
    assert checked.exit_code == 0, checked.output
    assert "does not set" not in checked.output
    report = run("replay", "--events", films / "ratings.csv", *given, "--arms", "popularity", "--no-audit", "--json",
                 "--out", tmp_path / "report")  # fmt: skip
    assert report.exit_code == 0, report.output
    replayed = pq.read_table(tmp_path / "report" / "files" / "events.parquet").to_pylist()
    assert replayed == rows


def test_actions_by_value_are_refused_where_they_leave_something_open(films, tmp_path):
    def refused(*given, source=films / "ratings.csv"):
        result = run("import", source, *given, "-c", "media", "--out", tmp_path / "out")
        assert result.exit_code, result.output
        return str(result.exception) + result.output

    low = sum(float(line.split(",")[2]) < 4 for line in (films / "ratings.csv").read_text().splitlines()[1:])
    words = (
        f"{low:,} rows have a value below 4, where 'like' begins, or none in 'rating', and nothing says what they are"
    )
    assert words in refused("--action-from", "like=4")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    refused("--action-from", "like=4")
    assert list((tmp_path / "out").iterdir()) == []
    good = tmp_path / "good.csv"
    good.write_text("user_id,item_id,timestamp_ms,rating\nu,i,1600000000000,5\nu,j,1600000000001,\n")
    assert "1 rows have a value below 4, where 'like' begins, or none" in refused(
        "--action-from", "like=4", source=good
    )
    good.write_text(good.read_text().replace(",\n", ",4\n"))
    made = run("import", good, "--action-from", "like=4", "-c", "media", "--out", tmp_path / "good")
    assert made.exit_code == 0, made.output
    for given, expected in (
        ("like=4,rate=4.0", "got 4 for like and rate; expected a least value for each of them"),
        ("like=4,like=2", "got '4' and '2' for like; expected one of them"),
        ("=4", "got '=4'; expected NAME=VALUE"),
    ):
        said = refused("--action-from", given, "--action", "dislike")
        assert expected in " ".join(said.replace("│", "").split())
    both = ("--action", "dislike", "--action-below-zero", "skip")
    assert "which action has a value below 0?" in refused("--action-from", "like=-1", *both)
    assert "which action has a value below 0?" in refused("--action-from", "skip=3", *both)
    assert "rows would be 'hate' by their value" in refused("--action-from", "like=4", "--action", "hate")
    words = " ".join(refused("--action-from", "like=good", "--action", "dislike").replace("│", "").split())
    assert "event_files" not in words
    assert "action_from.like: got 'good'; expected a finite number" in words
    assert "expected NAME=VALUE" in refused("--action-from", "4")
    events = tmp_path / "events.csv"
    events.write_text("user_id,item_id,timestamp_ms,event,rating\nu,i,1600000000000,play,3\n")
    assert "says the action of each row" in refused("--action-from", "like=4", "--map", "action=event", source=events)
    none = ["--map", "value=,action="]
    assert "no column is the value" in refused("--action-from", "like=4", *none, source=events)


def test_columns_of_the_context_are_not_called_left_out_or_unknown_by_validate(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("extends: media\nname: podcasts\nsignals: {context: [device]}\n")
    rows = [{"listener": f"u{n}", "episode_id": "e", "started_at": f"2024-03-0{n + 1}T10:00:00Z", "device": "phone",
             "shelf": 1, "seconds_listened": 40} for n in range(5)]  # fmt: skip
    (tmp_path / "plays.jsonl").write_text("\n".join(map(json.dumps, rows)))
    told = run("validate", tmp_path / "plays.jsonl", "--map", "user_id=listener", "--action", "play", "-c", own)
    assert told.exit_code == 0, told.output
    assert "kept for the context: device" in told.stderr
    assert "left out: shelf\n" in told.stderr
    ready = [{"user_id": "u", "item_id": "e", "timestamp_ms": 1_600_000_000_000, "device": "phone", "shelf": 1}]
    (tmp_path / "ready.jsonl").write_text(json.dumps(ready[0]))
    told = run("validate", tmp_path / "ready.jsonl", "-c", own)
    assert "kept for the context: device\nunknown columns, kept: shelf\n" in told.stdout
    assert "no event has" not in told.stdout
    own.write_text("extends: media\nname: podcasts\nsignals: {context: [device, devize]}\n")
    told = run("validate", tmp_path / "ready.jsonl", "-c", own)
    assert "warning: no event has devize, which signals.context names" in told.stdout
    told = run("validate", tmp_path / "plays.jsonl", "--map", "user_id=listener", "--action", "play", "-c", own)
    assert "has no column devize, which signals.context names" in " ".join(told.stderr.split())


def test_few_rows_with_bad_times_are_bad_rows_not_a_bad_column(tmp_path):
    times = ["29.11.2026 13:05", "29.11.2026 25:05", *[f"29.11.2026 13:0{n}" for n in range(5)], "30.02.2026 13:08"]
    lines = [f"0001;{time};{n};{'zwei' if n == 4 else 2}" for n, time in enumerate(times)]
    (tmp_path / "neu.csv").write_text("\n".join(["Kundennr;Datum;Artikelnr;Menge", *lines]))
    given = ("import", tmp_path / "neu.csv", "--out", tmp_path / "out", "--action", "purchase")
    refused = str(run(*given).exception)
    for words in (
        "3 of 8 rows are not right",
        "2 not a time in 'Datum'",
        "1 not a number in 'Menge'",
        "the first: row 2",
    ):
        assert words in refused
    for more in ((), ("--map", "timestamp_ms=Datum"), ("--time", "dmy")):
        assert run(*given, *more, "--bad", tmp_path / "bad.jsonl").exit_code == 0
        bad = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
        assert [line["row"] for line in bad] == [2, 5, 8]
        assert (tmp_path / "bad.jsonl.old").exists() == bool(more), "the file of the run before stays"
        assert len(written(tmp_path / "out")) == 5


@pytest.mark.parametrize("name", ["Sterne", "Bewertung", "Eindruck", "value"])
def test_a_value_that_looks_like_ratings_is_refused_without_an_action_under_any_name(tmp_path, name):
    rows = [f"u{n % 7};i{n};{1_600_000_000 + n};{n % 5 + 1}{',0' if n % 3 else ''}" for n in range(40)]
    (tmp_path / "a.csv").write_text("\n".join([f"user;sku;ts;{name}", *rows]))
    given = ("import", tmp_path / "a.csv", "--out", tmp_path / "out")
    refused = run(*given, "--map", f"value={name}")
    assert isinstance(refused.exception, InputError), refused.output
    assert f"'{name}' is taken as value (1 to 5 in the first 40 rows) and nothing says what" in str(refused.exception)
    assert run(*given, "--map", f"value={name}", "--action", "interact").exit_code == 0
    if name == "Eindruck":
        said = run(*given).stderr
        assert (
            "nothing says what was done: each row is an 'interact', weight 1, counts as wanted whatever its va" in said
        )
        assert "'Eindruck' may be ratings: --map value=Eindruck --action rate takes them so" in said


def test_events_and_items_have_encodings_of_their_own(tmp_path):
    (tmp_path / "a.csv").write_text("user;sku;ts;Geschäft\nu;1;1600000000;Köln\n", "latin-1")
    (tmp_path / "items.csv").write_text("sku;Bezeichnung\n1;Grüner Veltliner\n", "utf-8")
    options = ("--items", tmp_path / "items.csv", "--map", "domain=Geschäft", "--encoding", "latin-1")
    given = ("import", tmp_path / "a.csv", *options, "--action", "view", "--out", tmp_path / "out")
    for more, encoding in (((), "utf-8"), (("--items-encoding", "cp1252"), "cp1252")):
        (tmp_path / "items.csv").write_text("sku;Bezeichnung\n1;Grüner Veltliner\n", encoding)
        result = run(*given, *more)
        assert result.exit_code == 0, result.output
        assert read_items(tmp_path / "out" / "items.parquet")["1"].title == "Grüner Veltliner"
        assert written(tmp_path / "out")[0]["domain"] == "Köln"
    settings = load_settings(tmp_path / "out" / "driftline.yaml")
    assert (settings.event_files.encoding, settings.item_files.encoding) == ("latin-1", "cp1252")
    (tmp_path / "items.csv").write_text("sku;Bezeichnung\n1;Grüner Veltliner\n", "utf-8")
    assert (
        "items.csv: is UTF-8 by its letters and is read as cp1252" in run(*given, "--items-encoding", "cp1252").stderr
    )


SHOP = "reader,book,when,pieces,paid\n"


def test_rows_that_stand_twice_are_told_where_no_event_id_says_which_are_meant(tmp_path):
    rows = [f"u{n},b{n % 7},2026-07-0{n % 9 + 1} 10:00:00,1,2.5" for n in range(60)]
    plain, numbered = tmp_path / "plain.csv", tmp_path / "numbered.csv"
    plain.write_text(SHOP + "\n".join([*rows, *rows[:3], rows[0]]) + "\n")
    lines = [f"{row},r{n % 60}" for n, row in enumerate([*rows, *rows[:3]])]
    numbered.write_text(SHOP.replace("paid", "paid,receipt") + "\n".join(lines) + "\n")
    told = ("--map", "user_id=reader,item_id=book,timestamp_ms=when,value=pieces,price=paid", "--action", "purchase")
    result = run("import", plain, *told, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert (
        "warning: file: equal in every column that is read to a row before: got twice what 'u0' did with 'b0'"
        in result.stdout
    )
    assert "(4 rows)" in result.stdout
    assert len(written(tmp_path / "out")) == 64, "each counts"
    checked = run("validate", "--events", plain, *told, "--json")
    assert checked.exit_code == 0
    assert any("equal in every column" in example["kind"] for example in json.loads(checked.stdout)["examples"])
    given = f"{told[1]},event_id=receipt"
    result = run("import", numbered, "--map", given, "--action", "purchase", "--out", tmp_path / "other")
    assert "equal in every column" not in result.output
    assert "3 events have the event_id of an earlier one" in result.stdout


def test_items_of_an_earlier_import_and_prices_that_are_none_are_told(tmp_path):
    events, items, out = tmp_path / "events.csv", tmp_path / "items.csv", tmp_path / "out"
    events.write_text(SHOP + "".join(f"u,x{n % 4},2026-07-01 10:00:0{n},1,{n - 2}.5\n" for n in range(6)))
    items.write_text("id,name,price\nx0,A,12.50 EUR\nx1,B,n/a\nx2,C,-5\nx3,D,ask\n")
    given = ("--map", "user_id=reader,item_id=book,timestamp_ms=when,price=paid", "--action", "purchase", "--out", out)
    result = run("import", events, "--items", items, *given)
    assert result.exit_code == 0, result.output
    assert "note: 2 rows have a price below 0 in 'paid'" in result.stderr
    assert "note: 'price' is called as price is and holds '12.50 EUR', 'n/a', '-5'; expected a number" in result.stderr
    assert "earlier import" not in result.stderr
    again = run("import", events, *given)
    assert again.exit_code == 0
    assert f"note: {out / 'items.parquet'} is of an earlier import and stays" in again.stderr


def test_names_of_zones_are_refused_with_what_to_do_and_mixed_ones_are_told(tmp_path):
    events = tmp_path / "events.csv"
    given = ("--map", "user_id=reader,item_id=book,timestamp_ms=when", "--action", "purchase", "--out", tmp_path / "o")

    def of(*times):
        events.write_text(SHOP + "".join(f"u,x,{time},1,2\n" for time in times))
        return run("import", events, *given)

    named = of("10/07/2026 04:47 CEST", "11/07/2026 04:47 CEST")
    refused = run("import", events, *given, "--time", "%d/%m/%Y %H:%M %Z")
    for result in (named, refused):
        assert result.exit_code == 1
        assert "as CEST or Europe/Berlin, can't be read: take them out and say --zone" in str(result.exception)
    mixed = of("2026-07-10T04:47:00+0200", "2026-07-10T04:48:00")
    assert mixed.exit_code == 0
    assert "UTC, where no zone is named, as in some rows" in " ".join(mixed.stderr.replace("│", " ").split())
