"""A git repository as a log: made by git itself, read back."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from driftline.configs.errors import DriftlineError, InputError
from driftline.configs.load import load_settings
from driftline.stream.convert.named import write_made
from driftline.stream.convert.named.repository import MOST_FILES, NOBODY, convert, history, words_of
from driftline.stream.events.files import read_items, validate

START_S = 1_600_000_000
pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


class Repository:
    """Commits with a clock of their own."""

    def __init__(self, path: Path) -> None:
        self.path, self.t_s = path, START_S
        path.mkdir()
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments: str, author: str = "Ann <ann@example.org>", **more: str) -> str:
        name, _, mail = author.rstrip(">").partition(" <")
        times = {f"GIT_{who}_DATE": f"{self.t_s} +0200" for who in ("AUTHOR", "COMMITTER")}
        who = {
            f"GIT_{of}_{field}": value
            for of in ("AUTHOR", "COMMITTER")
            for field, value in (("NAME", name), ("EMAIL", mail))
        }
        plain = {"HOME": str(self.path), "GIT_CONFIG_NOSYSTEM": "1"}
        done = subprocess.run(
            ["git", *arguments],
            cwd=self.path,
            env=os.environ | times | who | plain | more,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def write(self, **files: str) -> None:
        for name, text in files.items():
            self.put(name, text.encode())

    def put(self, name: str | bytes, data: bytes) -> None:
        path = os.path.join(os.fsencode(self.path), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)

    def commit(self, author: str = "Ann <ann@example.org>") -> str:
        self.t_s += 60
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "-m", "work", author=author)
        return self.git("rev-parse", "HEAD").strip()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


LINES = "".join(f"line {n}\n" for n in range(30))


def seen(repository: Repository) -> list[tuple[str, list[tuple[str, str, str]]]]:
    return [(c.author, [(f.item_id, f.path, f.action) for f in c.changes]) for c in history(repository.path).commits]


def test_a_commit_is_a_group_of_its_author_and_its_files(repository: Repository, tmp_path: Path) -> None:
    repository.write(a="1", b="1")
    first = repository.commit()
    repository.write(a="2")
    second = repository.commit("Bob <bob@example.org>")
    (repository.path / "b").unlink()
    last = repository.commit()
    write_made(convert(repository.path), tmp_path / "out")
    names = ["user_id", "item_id", "timestamp_ms", "action", "group_id"]
    rows = [
        tuple(row.values()) for row in pq.read_table(tmp_path / "out" / "events.parquet", columns=names).to_pylist()
    ]
    times = [(START_S + s) * 1000 for s in (60, 120, 180)]
    assert [row[:4] for row in rows] == [
        ("Ann", "a", times[0], "edit"), ("Ann", "b", times[0], "edit"), ("Bob", "a", times[1], "edit"),
        ("Ann", "b", times[2], "delete"),
    ]  # fmt: skip
    assert [row[4] for row in rows] == [first, first, second, last]
    settings = load_settings(str(tmp_path / "out" / "driftline.yaml"))
    assert settings.action("edit").positive
    assert not settings.action("delete").positive
    assert validate(tmp_path / "out" / "events.parquet").ok
    assert "example.org" not in (tmp_path / "out" / "events.parquet").read_bytes().decode("latin-1")


def test_a_file_keeps_its_id_over_renames_and_its_title_is_the_first_path(
    repository: Repository, tmp_path: Path
) -> None:
    repository.put("old/name.py", LINES.encode())
    repository.commit()
    repository.git("mv", "old/name.py", "name.py")
    repository.put("name.py", (LINES + "one more\n").encode())
    repository.commit()
    repository.put("old/name.py", b"another file, of the old name\n")
    repository.commit()
    assert seen(repository) == [
        ("Ann", [("old/name.py", "old/name.py", "edit")]),
        ("Ann", [("old/name.py", "name.py", "edit")]),
        ("Ann", [("old/name.py (2)", "old/name.py", "edit")]),
    ]
    write_made(convert(repository.path), tmp_path / "out")
    items = read_items(tmp_path / "out" / "items.parquet")
    assert (items["old/name.py"].title, items["old/name.py"].text) == ("old/name.py", "old name py")


def test_a_merge_is_no_event_and_what_it_brings_is(repository: Repository) -> None:
    repository.write(a="1")
    repository.commit()
    repository.git("checkout", "--quiet", "-b", "side")
    repository.write(b="1")
    repository.commit("Bob <bob@example.org>")
    repository.git("checkout", "--quiet", "main")
    repository.write(c="1")
    repository.commit()
    repository.git("merge", "--quiet", "--no-ff", "-m", "merge", "side")
    assert seen(repository) == [
        ("Ann", [("a", "a", "edit")]), ("Bob", [("b", "b", "edit")]), ("Ann", [("c", "c", "edit")]),
    ]  # fmt: skip


ODD = ["with space", "tab\tand\nnewline", "naïve/ünï.txt", 'quo"te\\', "-dash", "\x01header", "M"]


def test_odd_names_and_binary_files_come_through(repository: Repository, tmp_path: Path) -> None:
    for name in ODD:
        repository.put(name, b"x")
    repository.put(b"latin-\xe9", b"x")
    repository.put("picture", bytes(range(256)))
    repository.commit("Zoë Ünal <z@example.org>")
    long = "/".join(["d" * 100] * 3)
    repository.put(long, b"x")
    repository.commit("   <nobody@example.org>".replace("   ", "- "))
    commits = history(repository.path).commits
    assert commits[0].author == "Zoë Ünal"
    assert {f.item_id for f in commits[0].changes} == {*ODD, "latin-\\xe9", "picture"}
    (change,) = commits[1].changes
    assert change.path == long
    assert len(change.item_id) == 256
    write_made(convert(repository.path), tmp_path / "out")
    assert validate(tmp_path / "out" / "events.parquet").ok
    assert len(read_items(tmp_path / "out" / "items.parquet")) == len(ODD) + 3


def test_authors_are_called_as_the_mailmap_says(repository: Repository) -> None:
    repository.write(**{".mailmap": "Ann Smith <ann@example.org> <a@old.example.org>\n"})
    repository.commit("annie <a@old.example.org>")
    assert [author for author, _ in seen(repository)] == ["Ann Smith"]


def test_a_sweeping_commit_moves_names_and_is_no_event(repository: Repository) -> None:
    for n in range(MOST_FILES + 1):
        repository.put(f"f{n}", f"{n} {LINES}".encode())
    repository.commit()
    repository.write(f0="changed")
    repository.commit()
    found = history(repository.path)
    assert [commit.sweeping for commit in found.commits] == [True, False]
    assert f"1 of 2 commits are no events: each names more than {MOST_FILES} files" in found.notes
    assert len(convert(repository.path).events) == 1


def test_the_newest_commits_are_read_up_to_a_limit(repository: Repository) -> None:
    for n in range(5):
        repository.write(a=str(n))
        last = repository.commit()
    found = history(repository.path, 2).commits
    assert len(found) == 2
    assert found[-1].sha == last


def test_bare_repositories_folders_in_one_and_shallow_clones_are_read(repository: Repository, tmp_path: Path) -> None:
    for n in range(4):
        repository.put("sub/a", str(n).encode())
        repository.write(b=str(n))
        repository.commit()
    whole = [commit.sha for commit in history(repository.path).commits]
    repository.git("clone", "--quiet", "--bare", ".", str(tmp_path / "bare"))
    assert [commit.sha for commit in history(tmp_path / "bare").commits] == whole
    assert [commit.sha for commit in history(repository.path / "sub").commits] == whole
    repository.git("clone", "--quiet", "--depth=2", f"file://{repository.path}", str(tmp_path / "shallow"))
    found = history(tmp_path / "shallow")
    assert [commit.sha for commit in found.commits] == whole[-2:]
    assert [commit.sweeping for commit in found.commits] == [True, False]  # the first seems to add every file
    assert "shallow clone" in found.notes[0]


def test_what_is_no_repository_is_refused_with_what_was_expected(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="got no folder; expected that of a git repository"):
        history(tmp_path / "nothing")
    (tmp_path / "plain").mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    with pytest.raises(InputError, match=r"got no git repository .*expected the folder of one, bare or not"):
        history(tmp_path / "plain")
    with pytest.raises(InputError, match="has no commit yet"):
        history(repository.path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DriftlineError, match="the program git was not found"):
        history(repository.path)


def test_a_setting_or_a_hook_of_the_visitor_changes_nothing(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.put("sub/old", LINES.encode())
    repository.commit()
    repository.git("mv", "sub/old", "new")
    repository.commit()
    before = seen(repository)
    assert before[1][1] == [("sub/old", "new", "edit")]
    for name, value in (
        ("log.showRoot", "false"),
        ("diff.renames", "false"),
        ("diff.relative", "true"),
        ("diff.orderFile", "gone"),
    ):
        repository.git("config", name, value)
    other = Repository(tmp_path / "other")
    monkeypatch.setenv("GIT_DIR", str(other.path / ".git"))
    assert seen(repository) == before


def test_a_commit_of_the_future_happens_now_and_one_without_a_name_is_somebody(repository: Repository) -> None:
    repository.write(a="1")
    repository.t_s = 4_000_000_000
    repository.commit()
    tree = repository.git("rev-parse", "HEAD^{tree}").strip()
    raw = f"tree {tree}\nauthor  <x@example.org> 0 +0000\ncommitter c <c@example.org> 0 +0000\n\nwork\n"
    done = subprocess.run(
        ["git", "hash-object", "-t", "commit", "-w", "--literally", "--stdin"],
        cwd=repository.path, input=raw, capture_output=True, text=True, check=True,
    )  # fmt: skip
    repository.git("update-ref", "refs/heads/odd", done.stdout.strip())
    (future,) = history(repository.path).commits
    assert future.t_ms < 4_000_000_000_000
    repository.git("checkout", "--quiet", "odd")
    (odd,) = history(repository.path).commits
    assert odd.author == NOBODY
    assert odd.t_ms == 100_000_000_000


def test_words_of_a_path() -> None:
    assert words_of("stream/demoParts_v2.test.py") == "stream demo parts v 2 test py"
