"""What all tests share: their order, no deadlines of cases, a place that other users of the machine can read."""

from __future__ import annotations

import tempfile
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("shared", deadline=None)  # how long a case takes says nothing beside other work
hypothesis.settings.load_profile("shared")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests go first: the last minutes of two processes are then short ones."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def open_to_others(folder: Path) -> None:
    """Lets every user reach a folder of pytest's."""
    shared = Path(tempfile.gettempdir())
    for path in (folder, *folder.parents):
        if path == shared or not path.is_relative_to(shared):
            return
        path.chmod(0o755)
