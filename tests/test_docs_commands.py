"""Every command in a shell block or after a `$` of README and docs parses; those that take seconds are run as typed."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.test_readme import PAGES, ROOT, blocks, ids, resolved

from driftline.configs.addresses import free_port
from driftline.configs.load import load
from driftline.llm.prompts import load_prompts

NOT_RUN = {
    "up": "runs until Ctrl-C",
    "status": "exit code 1 where nothing runs",
    "worker": "runs until Ctrl-C",
    "trainer": "runs until Ctrl-C",
    "serve": "runs until Ctrl-C",
    "profiler -c": "runs until Ctrl-C",
    "watch": "asks a running service",
    "query": "asks a running service",
    "recommend": "asks a running service",
    "similar": "asks a running service",
    "score": "asks a running service",
    "withdraw": "needs the record of an item in a topic",
    "dlq show": "needs a dead letter",
    "snapshot rollback": "needs a snapshot",
    "snapshot release": "needs a snapshot",
    "chaos": "takes minutes",
    "demo": "takes minutes",
    'import "SELECT': "needs DuckDB, which is an extra",
    "replay --events mine/events.parquet -c mine/driftline.yaml --session": "the ratings of the page have no sessions",
}
"""How a line begins that is not run, and why."""
OTHER_PROGRAMS = {
    "make": "test_every_make_target_exists",
    "docker": "tests/docker reads the file; there may be no engine",
    "echo": "pipes into a program of Apache Kafka",
    "grpcurl": "tests/test_clients.py makes the same calls by reflection",
    "cut": "run by a shell, as driftline reads what it writes",
}
LESS = {
    "replay": ["--limit", "1500", "--arms", "popularity", "--no-audit"],
    "generate": ["--users", "50", "--items", "40", "--events", "2000"],
    "profiler": ["--most", "2"],
}
"""What is added to a command so that it takes seconds: the last value of an option counts."""


def typed_lines(page):
    """The lines that a reader would type, in the order of the page."""
    text = page.read_text("utf-8")
    found = re.findall(r"^```sh\n(.*?)^```|^\$ ([^\n]+)$", text, re.MULTILINE | re.DOTALL)
    for block, one in found:
        yield from (line.split(" # ")[0].strip() for line in (block or one).splitlines() if line.strip())


LINES = [(page, line) for page in PAGES for line in typed_lines(page)]


def without_variables(line):
    """(variables, words) of a line."""
    words = shlex.split(line)
    variables = {}
    while words and re.fullmatch(r"\w+=.*", words[0]):
        name, _, value = words.pop(0).partition("=")
        variables[name] = value
    return variables, words


def reason(line):
    """Why a line of driftline is not run, "" if it is."""
    rest = line[line.index("driftline ") + len("driftline ") :]
    return next((why for start, why in NOT_RUN.items() if f"{rest} ".startswith(f"{start} ")), "")


@pytest.mark.parametrize(("page", "line"), LINES, ids=lambda value: value if isinstance(value, str) else ids(value))
def test_every_line_that_is_shown_parses_with_its_values(page, line):
    variables, words = without_variables(line)
    assert load(None, {name: value for name, value in variables.items() if name.startswith("DRIFTLINE__")})
    if words[0] in OTHER_PROGRAMS:
        return
    assert words[0] == "driftline", f"{ids(page)}: {line}: say in OTHER_PROGRAMS how it is checked"
    command, arguments = resolved(words[1:])
    assert not hasattr(command, "commands") or arguments == ["--help"], line
    assert command.make_context(command.name, list(arguments))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a small file for every one that the pages speak of."""
    for name in [name for name in os.environ if name.startswith("DRIFTLINE")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DRIFTLINE__BROKER__EMBEDDED_PORT", str(free_port()))
    monkeypatch.setenv("DRIFTLINE__LLM__CLIENT", "template")
    bundled = ROOT / "stream" / "bundled"
    events = pq.read_table(bundled / "events.parquet").slice(0, 3000)
    items = pq.read_table(bundled / "items.parquet")
    places = ("stream/bundled", "mine", "out/made", ".")
    for place in places:
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        pq.write_table(events, tmp_path / place / "events.parquet")
        pq.write_table(items, tmp_path / place / "items.parquet")
    ratings = [f"{user},{n % 7},{1 + n % 5},{900_000_000 + 97 * n}" for user in range(9) for n in range(40)]
    (tmp_path / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *ratings]))
    (tmp_path / "movies.csv").write_text("movieId,title\n" + "".join(f"{n},Film {n}\n" for n in range(7)))
    (tmp_path / "december.csv").write_text("userId,movieId,rating,timestamp\n1,1,4,1000000000\n2,2,5,1000000000\n")
    till = "Kundennr;Artikelnr;Datum;Menge;Geschäft\n1;1;31.12.2025 10:00;2;Köln\n"
    (tmp_path / "till.csv").write_text(till, "cp1252")
    (tmp_path / "views.csv").write_text("Kundennr;Artikelnr;Zeitpunkt\n1;1;31.12.2025 09:00\n")
    (tmp_path / "wines.csv").write_text("Artikelnr;Bezeichnung\n1;Grüner Veltliner\n", "cp1252")
    edits = "user_id,item_id,timestamp,state_label,comma_separated_list_of_features\n" + "0,0,0.0,0,-0.17,0.5\n" * 2
    (tmp_path / "wikipedia.csv").write_text(edits)
    (tmp_path / "shop.yaml").write_text("extends: ecommerce\nname: shop\n")
    (tmp_path / "all").mkdir()
    pq.write_table(events, tmp_path / "all" / "till.parquet")
    (tmp_path / "items.jsonl").write_text('{"item_id": "85123A", "title": "Holder"}\n')
    (tmp_path / "garden.yaml").write_text(blocks(ROOT / "README.md", "yaml")[0])
    (tmp_path / "mine" / "driftline.yaml").write_text(blocks(ROOT / "docs/own-data.md", "yaml")[0])
    repository(tmp_path / "path" / "to" / "repository")
    return tmp_path


def repository(path):
    """A git repository with some commits of two people."""
    path.mkdir(parents=True)
    git = ["git", "-C", str(path), "-c", "commit.gpgsign=false", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    for n in range(30):
        (path / f"part{n % 7}.py").write_text(f"{n}\n")
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "-c", f"user.name=Ada {n % 2}", "commit", "--quiet", "-m", f"Part {n}"], check=True)


def run(folder, line):
    """Runs a line as typed, with less to do."""
    variables, words = without_variables(line)
    command = [str(Path(sys.executable).with_name("driftline")), *words[1:], *LESS.get(words[1], [])]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | variables, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
    noise = [one for one in done.stderr.splitlines() if re.search(r"Warning|WARNING|I0000|\[mode|absl", one)]
    assert noise == [], f"{line}: a library speaks on stderr"


RUN = sorted({page for page, line in LINES if "driftline " in line and not reason(line)})


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=ids)
def test_what_a_page_shows_runs_as_typed(folder, page):
    for text in blocks(page, "yaml prompts"):
        (folder / "garden-prompts.yaml").write_text(text)
        (folder / "garden.yaml").write_text(blocks(page, "yaml")[0])
    for line in typed_lines(page):
        if line.startswith("cut "):
            subprocess.run(line, shell=True, cwd=folder, check=True)
        if line.startswith(("driftline ", "DRIFTLINE")) and not reason(line):
            run(folder, line)


def test_no_reason_is_left_of_a_line_that_is_gone():
    shown = [line for _, line in LINES if "driftline " in line]
    used = {why for line in shown if (why := reason(line))}
    assert used == set(NOT_RUN.values())
    for start in NOT_RUN:
        assert any(f"driftline {start}" in line for line in shown), start
    assert set(OTHER_PROGRAMS) <= {without_variables(line)[1][0] for _, line in LINES}


def test_the_prompt_file_that_is_shown_is_one(tmp_path):
    (text,) = blocks(ROOT / "docs/prompts.md", "yaml prompts")
    path = tmp_path / "garden-prompts.yaml"
    path.write_text(text)
    assert load_prompts(str(path)).crowd
