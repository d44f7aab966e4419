"""README and docs: every command, file and test that they name exists, and they name no machine."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest
import typer
import yaml

from driftline.client import errors as client_errors
from driftline.configs import errors
from driftline.configs.addresses import free_port
from driftline.configs.load import load
from driftline.stream.cli import app, command
from driftline.stream.events.topics import TOPICS
from driftline.stream.ops import doctor

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
COMMANDS = typer.main.get_command(app)


def ids(path):
    return str(path.relative_to(ROOT))


def blocks(page, language):
    """The text of every fenced block of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def command_lines(program):
    """(page, words) of each call of a program: in shell blocks, after a `$ ` in output, and in running text."""
    for page in PAGES:
        text = page.read_text("utf-8")
        lines = [line.split(" # ")[0] for block in blocks(page, "sh") for line in block.splitlines()]
        lines += re.findall(r"^\$ (.+)$", text, re.MULTILINE)
        lines += re.findall(r"`([^`\n]+)`", text)
        for line in lines:
            try:
                words = shlex.split(line)
            except ValueError:  # running text may show a single quote
                words = line.split()
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words = words[1:]
            if words[:1] == [program]:
                yield page, words[1:]


def resolved(words):
    """The command of a driftline call and the words after its name."""
    command = COMMANDS
    while words and words[0] in getattr(command, "commands", ()):
        command, words = command.commands[words[0]], words[1:]
    return command, words


DRIFTLINE = sorted({(ids(page), " ".join(words)) for page, words in command_lines("driftline") if words})


@pytest.mark.parametrize(("page", "line"), DRIFTLINE)
def test_every_driftline_command_exists_with_its_options(page, line):
    command, words = resolved(line.split())
    if hasattr(command, "commands"):  # `driftline query|recommend` in running text names a family
        assert command is not COMMANDS, f"{page}: no command `driftline {line}`"
        return
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    known |= set(command.make_context(command.name, [], resilient_parsing=True).help_option_names)
    for word in words:
        if word.startswith("-") and not word.lstrip("-").isdigit():
            assert word.split("=")[0] in known, f"{page}: `driftline {line}` has no option {word}"


def test_the_readme_names_commands():
    assert len(DRIFTLINE) > 10


@pytest.fixture
def typed(tmp_path, monkeypatch):
    """Runs a command of the README in an empty folder that has the bundled shop; (its words, what it printed)."""
    (tmp_path / "stream").mkdir()
    (tmp_path / "stream" / "bundled").symlink_to(ROOT / "stream" / "bundled")
    for name in [name for name in os.environ if name.startswith("DRIFTLINE")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DRIFTLINE__BROKER__EMBEDDED_PORT", str(free_port()))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "100")

    def run(line, *more):
        words = [str(Path(sys.executable).with_name("driftline")), *shlex.split(line)[1:], *more]
        result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, f"{line}: {result.stderr}"
        return result.stdout

    return run


def shown(command):
    """(line, what README shows below it) of the first call of a command."""
    text = (ROOT / "README.md").read_text("utf-8")
    line, output = re.search(rf"^\$ (driftline {command} .+)\n((?:(?!```).+\n)*)", text, re.MULTILINE).groups()
    return line, output


@pytest.mark.slow
def test_validate_and_produce_print_what_the_readme_shows(typed):
    line, output = shown("validate")
    assert typed(line) == output
    line, output = shown("produce")
    assert typed(line).rpartition(", ")[0] == output.rpartition(", ")[0]  # the rate is that of the machine


@pytest.fixture
def rated(tmp_path):
    """Ratings of 40 users as MovieLens ships them, in the folder in which commands are typed."""
    ratings = [
        (user, user * n % 40, 1 + n % 5, 900_000_000 + 997 * user + 600 * n) for user in range(40) for n in range(30)
    ]
    lines = ["userId,movieId,rating,timestamp", *(",".join(map(str, row)) for row in ratings)]
    (tmp_path / "ratings.csv").write_text("\n".join(lines))
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n" + "".join(f"{n},Film {n},Drama\n" for n in range(40)))


def own_data(page):
    """The lines about own data of a page."""
    (block,) = [block for block in blocks(page, "sh") if block.startswith("driftline import ratings.csv")]
    return [line.split(" # ")[0].strip() for line in block.splitlines()]


@pytest.mark.slow
def test_own_data_go_the_way_that_is_shown_as_typed(typed, rated, tmp_path):
    for line in own_data(ROOT / "docs" / "own-data.md"):
        more = ["--arms", "popularity", "--no-audit"] if line.startswith("driftline replay") else []
        printed = typed(line, *more)
    assert printed.startswith("sent 1,200 events and 40 items")
    assert (tmp_path / "mine" / "report" / "report.html").is_file()


@pytest.mark.slow
def test_own_data_are_recommended_from_as_the_readme_shows(typed, rated, monkeypatch):
    monkeypatch.setenv("DRIFTLINE__SERVING__PORT", str(free_port()))
    *before, recommend = own_data(ROOT / "README.md")
    try:
        for line in before:
            printed = typed(line, *(["--without", "profiler"] if line.startswith("driftline up") else []))
        assert printed.startswith("sent 1,200 events and 40 items")
        deadline = time.monotonic() + 600  # only a part that hangs takes so long: one that ends ends the system
        while not json.loads(typed("driftline status --json"))["model_sequence"]:
            assert time.monotonic() < deadline, "no model"
            time.sleep(0.5)
        answer = json.loads(typed(recommend, "--json"))
    finally:
        typed("driftline down")
    assert answer["provenance"]["served_from"] == "SERVED_FROM_MODEL"
    assert len(answer["slate"]["item_ids"]) == 10
    assert all(answer["slate"]["titles"]), "items that were sent before the events"
    assert answer["request_time"] == "newest_event"


@pytest.mark.slow
def test_the_replay_of_the_readme_prints_a_row_for_each_arm_and_writes_its_files(typed, tmp_path):
    line, output = shown("replay")
    printed = typed(line, "--limit", "1500").splitlines()
    arms = [  # without ", void", which some are of so short a log
        [row.split("│")[1].split(",")[0].strip() for row in rows if row.startswith("│")]
        for rows in (printed, output.splitlines())
    ]
    assert arms[0] == arms[1]
    assert printed[-1] == output.splitlines()[-1]
    assert all((tmp_path / name).stat().st_size for name in printed[-1].split(", "))


def test_the_configuration_of_the_readme_is_shown_with_its_origins(typed, tmp_path):
    (tmp_path / "garden.yaml").write_text(blocks(ROOT / "README.md", "yaml")[0])
    (line,) = [
        line for block in blocks(ROOT / "README.md", "sh") for line in block.splitlines() if " show --origin" in line
    ]
    assert "name = garden-centre    garden.yaml:2" in typed(line)


def test_packages_makefile_doctor_and_readme_name_the_same_pythons():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    listed = [line.rsplit(" ", 1)[1] for line in project["classifiers"] if ":: Python :: 3." in line]
    (oldest, newest), minors = (
        (doctor.OLDEST_PYTHON, doctor.NEWEST_PYTHON),
        [int(name.split(".")[1]) for name in listed],
    )
    assert minors == list(range(oldest[1], newest[1] + 1))
    assert project["requires-python"] == f">=3.{minors[0]},<3.{minors[-1] + 1}"
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert " ".join(f"python{name}" for name in listed) in makefile
    assert f"not {oldest} <= sys.version_info[:2] <= {newest}" in makefile
    assert f"need Python {', '.join(listed[:-1])} or {listed[-1]}," in (ROOT / "README.md").read_text("utf-8")


def test_every_make_target_exists():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    for page, words in command_lines("make"):
        named = [word for word in words if re.fullmatch(r"[a-z]+", word)]
        assert set(named) <= targets, f"{ids(page)}: make {words}"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_link_leads_somewhere(page):
    text = page.read_text("utf-8")
    anchors = {
        re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        if target.startswith("#"):
            assert target[1:] in anchors, target
        else:
            assert (page.parent / target.split("#")[0]).exists(), target


def test_the_readme_shows_every_folder_of_the_stream_and_none_that_is_gone():
    text = (ROOT / "README.md").read_text("utf-8")
    (tree,) = re.findall(r"^```\n(stream/\n.*?)^```", text, re.MULTILINE | re.DOTALL)
    named = re.findall(r"[\w.]+(?=/[ ,\n])", tree)[1:]
    assert sorted(named) == sorted(path.parent.name for path in (ROOT / "stream").glob("*/__init__.py"))
    files = re.findall(r"\w+\.py", tree)
    assert sorted(files) == sorted(path.name for path in (ROOT / "stream").glob("*.py") if path.stem != "__init__")


def test_every_test_that_the_docs_name_exists():
    written = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        written |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    for page in PAGES:
        named = set(re.findall(r"`(test_\w+)`", page.read_text("utf-8")))
        assert named <= written, f"{ids(page)}: {sorted(named - written)}"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_no_page_names_a_path_of_a_machine(page):
    text = page.read_text("utf-8")
    assert re.findall(r"(?<![\w.])/(?:work|root|home|Users|tmp|opt|mnt)/\S*", text) == []


def test_yaml_examples_are_valid_configurations(tmp_path):
    found = [text for page in PAGES for text in blocks(page, "yaml")]
    assert found
    for text in found:
        path = tmp_path / "own.yaml"
        path.write_text(text)
        secrets = {"DRIFTLINE__BROKER__SASL_PASSWORD": "secret"}  # the pages leave them to the environment
        assert load(path, secrets).settings.name == yaml.safe_load(text)["name"]


def test_python_examples_compile():
    for page in PAGES:
        for text in blocks(page, "python"):
            compile(text, str(page), "exec")


def test_settings_that_the_docs_name_exist():
    known = set(load(None, {}).origins)
    sections, topics = {key.split(".")[0] for key in known}, {topic.name for topic in TOPICS}
    for page in PAGES:
        for name in re.findall(r"`([a-z]+\.[a-z_0-9]+)`", page.read_text("utf-8")):
            section = name.split(".")[0]
            if section in sections - {"name"} and name not in topics and not name.endswith(".json"):
                assert name in known, f"{ids(page)}: no setting {name}"


def test_the_page_of_exit_codes_says_each_code_its_word_and_its_exceptions_and_no_other():
    rows = re.findall(
        r"^\| (\d+) \| ([^|]+) \| ([^|]*)\|", (ROOT / "docs/exit-codes.md").read_text("utf-8"), re.MULTILINE
    )
    assert {int(code): word for code, word, _ in rows} == errors.EXIT_CODES
    named = {name: int(code) for code, _, raised in rows for name in re.findall(r"`(\w+)`", raised)}
    kinds = [kind for module in (errors, client_errors) for kind in vars(module).values() if isinstance(kind, type)]
    assert named == {kind.__name__: kind.exit_code for kind in kinds if hasattr(kind, "exit_code")}
    assert command.INTERRUPTED_EXIT_CODE == errors.INTERRUPTED_EXIT_CODE


def test_operations_lists_every_topic_with_its_policy():
    text = (ROOT / "docs" / "operations.md").read_text("utf-8")
    for topic in TOPICS:
        assert re.search(rf"\| `{re.escape(topic.name)}` \| .* \| {'compact' if topic.compact else 'delete'} \|", text)


def test_the_picture_of_the_dataflow_is_well_formed():
    tree = ElementTree.parse(ROOT / "docs" / "images" / "dataflow.svg")
    words = {element.text for element in tree.iter() if element.text}
    assert {"worker", "trainer", "profiler", "serve", "replay"} <= words
