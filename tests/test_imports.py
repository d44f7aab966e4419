"""One direction of import, held by reading every module: stream > serving, model > graph > configs; llm beside them.

Within stream/ too: see STREAM.
"""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("client", "configs", "graph", "llm", "model", "serving", "stream")
"""As in `driftline.client`; `v1` are the generated messages."""
FOLDERS = {"client": ROOT / "client" / "driftline" / "client"} | {name: ROOT / name for name in PACKAGES[1:]}
MAY_IMPORT = {
    "client": {"v1"},
    "configs": set(),
    "graph": {"configs"},
    "llm": {"configs", "graph"},
    "model": {"configs", "graph"},
    "serving": {"client", "configs", "graph", "model", "v1"},
    "stream": {"client", "configs", "graph", "llm", "model", "serving", "v1"},
}
STREAM = (
    *("bundled", "durable", "exits", "headway", "kafka", "events", "convert", "state", "process", "owned", "ops"),
    *("epochs", "app", "worker", "backfill", "learn", "generate", "replay", "profile", "system", "demo", "bench"),
    *("chaos", "cli"),
)
"""Folders and modules of stream/: each imports what stands before it only, inside functions and for types too."""
FOR_TYPES = {("owned", "epochs")}
"""What belongs to a worker is handed the worker, and names its type for mypy; nothing is imported when it runs."""
KAFKA = {"kafka", "aiokafka", "faust", "mode", "noida_db"}
GRPC = {"grpc", "grpc_health", "grpc_reflection", "grpc_status"}
NEVER = {
    "configs": KAFKA | GRPC | {"torch", "rocksdict"},
    "graph": KAFKA | GRPC | {"rocksdict", "transformers", "httpx"},
    "llm": KAFKA | GRPC | {"rocksdict"},
    "model": KAFKA | GRPC | {"rocksdict", "transformers", "httpx"},
    "serving": {"faust", "mode", "transformers", "httpx", "noida_db"},
}


PEERS = FOLDERS["stream"] / "replay" / "peers" / "side"
"""What other recommenders run in, away from the engine's packages."""


def modules(package):
    return sorted(FOLDERS[package].rglob("*.py"))


def imported(path):
    """(line, name) of every import in a module, those inside functions too: its first part, of ours the first two."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, part_of(alias.name)) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + part_of(node.module or "")
        elif is_import_by_name(node):
            names = [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
            yield from ((node.lineno, part_of(str(name))) for name in names)


def is_import_by_name(node):
    return isinstance(node, ast.Call) and ast.unparse(node.func) in ("__import__", "importlib.import_module")


def part_of(name):
    parts = name.split(".")
    return ".".join(parts[:2] if parts[0] == "driftline" else parts[:1])


def parts_of_stream(node, for_types=False):
    """(line, name, whether mypy alone reads it) of what a tree imports of stream/: the name of its folder or module."""
    for_types = for_types or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    names = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    elif is_import_by_name(node):
        names = [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
    for name in map(str, names):
        package, _, inner = name.partition("driftline.stream.")
        if not package and inner:
            yield node.lineno, inner.split(".")[0], for_types
    for child in ast.iter_child_nodes(node):
        yield from parts_of_stream(child, for_types)


def wrong_way(importer, source):
    """The imports of a module of stream/ that go to what stands after it."""
    for line, name, for_types in parts_of_stream(ast.parse(source)):
        goes_up = name not in STREAM[: STREAM.index(importer) + 1]
        if goes_up and not (for_types and (importer, name) in FOR_TYPES):
            yield f"{line} imports {name}"


def offences(package, forbidden):
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules(package)
        for line, name in imported(path)
        if forbidden(name)
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_the_ones_below_it(package):
    allowed = {f"driftline.{name}" for name in MAY_IMPORT[package] | {package}}
    assert offences(package, lambda name: name.split(".")[0] == "driftline" and name not in allowed) == []


def test_the_parts_of_stream_import_in_one_direction():
    found = []
    for path in modules("stream"):
        inner = path.relative_to(FOLDERS["stream"])
        importer = inner.parts[0].removesuffix(".py")
        if importer != "__init__":
            found += [f"{path.relative_to(ROOT)}:{what}" for what in wrong_way(importer, path.read_text("utf-8"))]
    assert found == []


def test_the_order_of_stream_names_every_part_once():
    parts = [path.name.removesuffix(".py") for path in FOLDERS["stream"].iterdir() if path.suffix in {"", ".py"}]
    assert sorted(STREAM) == sorted(set(parts) - {"__init__", "__pycache__"})


@pytest.mark.parametrize(
    "source",
    [
        "import driftline.stream.learn.loop",
        "from driftline.stream import learn",
        "def later():\n    from driftline.stream.learn import loop",
        "if TYPE_CHECKING:\n    from driftline.stream.learn import loop",
        "importlib.import_module('driftline.stream.learn.loop')",
        "from driftline.stream.app import WorkerApp",
    ],
)
def test_an_import_that_closes_a_circle_in_stream_is_found(source):
    assert len(list(wrong_way("owned", source))) == 1
    assert list(wrong_way("cli", source)) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_ours_is_imported_by_its_whole_name(package):
    assert offences(package, lambda name: name in PACKAGES) == []


def test_the_client_needs_grpc_and_protobuf_alone():
    ours = {"driftline.client", "driftline.v1"}
    foreign = {name for path in modules("client") for _, name in imported(path)} - ours - set(sys.stdlib_module_names)
    assert foreign == {"grpc", "google"}
    project = tomllib.loads((ROOT / "client" / "pyproject.toml").read_text("utf-8"))["project"]
    assert {normal(name) for name in project["dependencies"]} == {"grpcio", "protobuf"}


@pytest.mark.parametrize("package", NEVER)
def test_a_package_stays_clear_of_the_libraries_of_others(package):
    assert offences(package, lambda name: name in NEVER[package]) == []


BLOCKED = ("driftline.llm", "driftline.stream", "faust", "transformers")


def test_serving_starts_where_neither_llm_nor_stream_can_be_imported():
    names = [f"driftline.serving.{path.stem}" for path in modules("serving") if path.parent.name == "serving"]
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in BLOCKED)
    code = f"import sys; {blocked}; import {', '.join(names)}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_are_absolute(package):
    assert offences(package, lambda name: name.startswith(".")) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_that_runs_imports_tests_or_their_tools(package):
    assert offences(package, lambda name: name in {"tests", "pytest", "hypothesis", "testcontainers"}) == []


def test_what_runs_in_the_environment_of_peers_imports_what_is_locked_for_it_and_nothing_of_ours():
    lock = (PEERS.parent / "requirements.lock").read_text("utf-8")
    locked = {normal(name).replace("-", "_") for name in re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)} | {"torch"}
    found = {name for path in PEERS.glob("*.py") for _, name in imported(path)} - set(sys.stdlib_module_names)
    assert found - locked == set()
    assert {"numpy", "implicit", "lightgbm", "rectools"} <= found


def test_everything_imported_is_a_declared_dependency():
    """What is imported is of the standard library, ours, or named in pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    project = tomllib.loads(text)["project"]
    declared = {normal(name) for name in [*project["dependencies"], *project["optional-dependencies"]["sql"]]}
    provided = packages_distributions()
    missing = set()
    for package in PACKAGES:
        for path in modules(package):
            if path.parent == PEERS:
                continue
            for line, name in imported(path):
                if name in sys.stdlib_module_names or name.startswith("driftline."):
                    continue
                owners = {normal(owner) for owner in provided.get(name, [name])}
                if not owners & (declared | TRANSITIVE):
                    missing.add(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert sorted(missing) == []


TRANSITIVE = {"protobuf", "googleapis-common-protos", "mode-streaming", "llvmlite"}
"""Part of the interface of a declared dependency (grpcio-status, faust-streaming, numba), released with it."""


def normal(requirement):
    name = requirement
    for sign in "<>=!~[; ":
        name = name.split(sign)[0]
    return name.lower().replace("_", "-")


def test_no_package_marker_in_tests_shadows_a_package():
    assert list((ROOT / "tests").rglob("__init__.py")) == []
