"""A git repository as a log: who changed which files together.

    author (by .mailmap) = user    file = item    commit = group    edit, delete = action    time of the commit = time

Merges are left out. A file keeps its id, its first path, over renames that `git log -M` finds; its title is its path.
Commits of very many files (the first import, a formatter) say nothing of what somebody works on: they move names and
are no events. Only the program `git` is asked, for what is on disk: nothing is fetched, no e-mail address is read.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from driftline.configs.errors import DriftlineError, InputError
from driftline.stream.convert.named.made import Made, id_of
from driftline.stream.events.schema import EARLIEST_MS

MOST_FILES = 100
"""Of a commit that is an event."""
ACTIONS: dict[str, Any] = {
    "edit": {"weight": 1.0, "positive": True},
    "delete": {"weight": -1.0, "positive": False},
}
HEADER = "\x01"
"""Before the fields of a commit; no status of a file begins so."""
FORMAT = f"--format={HEADER}%H%x00%ct%x00%aN"
OWN_SETTINGS = ("log.showRoot=true", "log.showSignature=false", "log.follow=false")
OF_ANOTHER = ("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE")
"""Variables by which a caller that is a git hook would name its own repository."""
NOBODY = "(no name)"


@dataclass(frozen=True, slots=True)
class Change:
    """What a commit did to a file: its id, its path from then on, and edit or delete."""

    item_id: str
    path: str
    action: str = "edit"


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit that is no merge.

    Attributes:
        sha: its name.
        t_ms: time of the commit, not that of its author, which may lie years before it got here.
        author: name by .mailmap.
        changes: one a file.
        sweeping: it names too many files, or files that were there before, to be an event.
    """

    sha: str
    t_ms: int
    author: str
    changes: tuple[Change, ...]
    sweeping: bool


@dataclass(frozen=True, slots=True)
class History:
    """The commits of a repository in order of time, and what people should know of them."""

    commits: Sequence[Commit]
    notes: Sequence[str]


def history(path: Path, limit: int | None = None) -> History:
    """The newest commits that lead to HEAD.

    Args:
        path: of the repository, bare or not, or of a folder in it.
        limit: commits at most, merges not counted; None = all.

    Raises:
        InputError: there is no repository, or no commit in it.
        DriftlineError: there is no git.
    """
    if shutil.which("git") is None:
        raise DriftlineError("the program git was not found; install it, and see that it is on the PATH")
    if not path.is_dir():
        raise InputError(f"{path}: got no folder; expected that of a git repository")
    try:
        shallow = _git(path, "rev-parse", "--is-shallow-repository").strip() == "true"
    except InputError as error:
        raise InputError(f"{path}: got no git repository ({error}); expected the folder of one, bare or not") from None
    if not _git(path, "rev-parse", "--quiet", "--verify", "HEAD", check=False):
        raise InputError(f"{path}: HEAD of this git repository has no commit yet; expected at least one")
    notes = []
    cut: set[str] = set()
    if shallow:
        file = Path(_git(path, "rev-parse", "--path-format=absolute", "--git-path", "shallow").strip())
        cut = set(file.read_text().split()) if file.is_file() else set()
        notes.append(f"{path} is a shallow clone: what came before is missing; git fetch --unshallow brings it")
    # without their blobs only whole files can be compared, and none may be fetched
    partial = bool(
        _git(path, "config", "--get-regexp", r"^(remote\..*\.promisor|extensions\.partialclone)$", check=False)
    )
    if partial:
        notes.append(f"{path} is a partial clone: only renames without a change are followed")
    options = [
        "--reverse",
        "-z",
        "--no-merges",
        FORMAT,
        "--name-status",
        "--no-ext-diff",
        "--no-relative",
        "-O/dev/null",
    ]
    options += ["--find-renames=100%" if partial else "--find-renames"]
    options += [f"--max-count={limit}"] if limit is not None else []
    out = _git(path, "log", *options, "HEAD", "--")
    commits = sorted(commits_of(out, cut), key=lambda commit: commit.t_ms)
    if sweeping := sum(commit.sweeping for commit in commits):
        notes.append(
            f"{sweeping:,} of {len(commits):,} commits are no events: each names more than {MOST_FILES} files"
            f"{' or begins a history that is cut' if cut else ''}"
        )
    return History(commits, notes)


def commits_of(out: str, cut: set[str] | None = None) -> Iterator[Commit]:
    """The commits of an output of `git log`, parents before children.

    Args:
        out: fields with NUL between them.
        cut: commits whose parents are missing: they seem to add every file.
    """
    names = Names()
    tokens = iter(out.split("\0"))
    now_ms = int(time.time() * 1000)
    head: tuple[str, int, str] | None = None
    changes: dict[str, Change] = {}

    def done() -> Iterator[Commit]:
        if head is not None:
            yield Commit(*head, tuple(changes.values()), len(changes) > MOST_FILES or head[0] in (cut or ()))

    for token in tokens:
        if token.startswith(HEADER):
            yield from done()
            t_ms = min(max(int(next(tokens)) * 1000, EARLIEST_MS), now_ms)
            head, changes = (token[1:], t_ms, id_of(next(tokens).strip() or NOBODY)), {}
            continue
        status = token.lstrip("\n")[:1]
        if not status:
            continue
        old = next(tokens)
        change = names.apply(status, old, next(tokens) if status in "RC" else old)
        changes[change.item_id] = change
    yield from done()


class Names:
    """Which file a path means, as commits rename and delete them."""

    def __init__(self) -> None:
        self._ids: dict[str, str] = {}
        self._given: set[str] = set()

    def apply(self, status: str, old: str, new: str) -> Change:
        """One file of a commit: letter of `git log --name-status`, path before and after."""
        if status == "R":
            self._ids[new] = self._ids.pop(old) if old in self._ids else self._new(old)
        elif new not in self._ids:
            self._ids[new] = self._new(new)
        return Change(self._ids[new], new, "delete" if status == "D" else "edit")

    def _new(self, path: str) -> str:
        """The id of a file that was not seen before; a path that another file had first gets a number."""
        found, n = id_of(path), 2
        while found in self._given:
            found, n = id_of(f"{path} ({n})"), n + 1
        self._given.add(found)
        return found


def convert(path: Path) -> Made:
    """A whole repository as a data set.

    Raises:
        InputError: as `history`.
    """
    found = history(path)
    return Made(events_of(found.commits), items_of(first_paths(found.commits)), found.notes, actions=ACTIONS)


def events_of(commits: Sequence[Commit]) -> pa.Table:
    """The rows of commits, one a file."""
    rows = [(c.author, f.item_id, c.t_ms, f.action, c.sha) for c in commits if not c.sweeping for f in c.changes]
    columns = list(zip(*rows, strict=True)) or [()] * 5
    fields = ("user_id", "item_id", "timestamp_ms", "action", "group_id")
    types = (pa.string(), pa.string(), pa.int64(), pa.string(), pa.string())
    return pa.table({name: pa.array(c, kind) for name, c, kind in zip(fields, columns, types, strict=True)})


def first_paths(commits: Sequence[Commit]) -> dict[str, str]:
    """The first path of every file: a later one would tell of the future."""
    found: dict[str, str] = {}
    for commit in commits:
        for change in commit.changes:
            found.setdefault(change.item_id, change.path)
    return found


def items_of(paths: dict[str, str], gone: frozenset[str] = frozenset()) -> pa.Table:
    """Files as items.

    Args:
        paths: by id.
        gone: ids of files that are deleted.
    """
    return pa.table(
        {
            "item_id": pa.array(list(paths), pa.string()),
            "title": pa.array(list(paths.values()), pa.string()),
            "text": pa.array([words_of(path) for path in paths.values()], pa.string()),
            "available": pa.array([item_id not in gone for item_id in paths], pa.bool_()),
        }
    )


def words_of(path: str) -> str:
    """The words of a path: stream/demoParts.py = stream demo parts py."""
    return " ".join(re.findall(r"[^\W\d_]+|\d+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", path))).lower()


def _git(path: Path, *arguments: str, check: bool = True) -> str:
    """What git prints; bytes that are not UTF-8 as escapes.

    Raises:
        InputError: it fails and `check`; its last line.
    """
    environment = {name: value for name, value in os.environ.items() if name not in OF_ANOTHER}
    environment |= {"GIT_NO_LAZY_FETCH": "1", "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    settings = [part for setting in OWN_SETTINGS for part in ("-c", setting)]
    command = ["git", "-C", str(path), "--no-pager", *settings, *arguments]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode and check:
        said = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
        raise InputError(f"git {arguments[0]}: {said.splitlines()[0]:.300}")
    return done.stdout.decode(errors="backslashreplace")
