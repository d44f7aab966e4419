"""One direction of import, held by reading every module: stream > serving, model > graph > configs; llm beside them."""

import ast
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("configs", "graph", "llm", "model", "serving", "stream")
MAY_IMPORT = {
    "configs": set(),
    "graph": {"configs"},
    "llm": {"configs", "graph"},
    "model": {"configs", "graph"},
    "serving": {"configs", "graph", "model"},
    "stream": {"configs", "graph", "llm", "model", "serving"},
}
KAFKA = {"kafka", "aiokafka", "faust", "mode", "noida_db"}
GRPC = {"grpc", "grpc_health", "grpc_reflection", "grpc_status"}
NEVER = {
    "configs": KAFKA | GRPC | {"torch", "rocksdict"},
    "graph": KAFKA | GRPC | {"rocksdict", "transformers", "httpx"},
    "llm": KAFKA | GRPC | {"rocksdict"},
    "model": KAFKA | GRPC | {"rocksdict", "transformers", "httpx"},
    "serving": {"faust", "mode", "transformers", "httpx", "noida_db"},
}


def modules(package):
    return sorted(path for path in (ROOT / package).rglob("*.py") if "proto" not in path.parts)


def imported(path):
    """(line, top-level name) of every import in a module, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "").split(".")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("__import__", "importlib.import_module"):
            names = [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
            yield from ((node.lineno, str(name).split(".")[0]) for name in names)


def offences(package, forbidden):
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules(package)
        for line, name in imported(path)
        if forbidden(name)
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_the_ones_below_it(package):
    allowed = MAY_IMPORT[package] | {package}
    assert offences(package, lambda name: name in PACKAGES and name not in allowed) == []


@pytest.mark.parametrize("package", NEVER)
def test_a_package_stays_clear_of_the_libraries_of_others(package):
    assert offences(package, lambda name: name in NEVER[package]) == []


def test_serving_starts_where_neither_llm_nor_stream_can_be_imported():
    names = [f"serving.{path.stem}" for path in modules("serving") if path.parent.name == "serving"]
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in ("llm", "stream", "faust", "transformers"))
    code = f"import sys; {blocked}; import {', '.join(names)}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_are_absolute(package):
    assert offences(package, lambda name: name.startswith(".")) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_that_runs_imports_tests_or_their_tools(package):
    assert offences(package, lambda name: name in {"tests", "pytest", "hypothesis", "testcontainers"}) == []


def test_everything_imported_is_a_declared_dependency():
    """What is imported is of the standard library, ours, or named in pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    project = tomllib.loads(text)["project"]
    declared = {normal(name) for name in project["dependencies"]}
    provided = packages_distributions()
    missing = set()
    for package in PACKAGES:
        for path in modules(package):
            for line, name in imported(path):
                if name in sys.stdlib_module_names or name in PACKAGES:
                    continue
                owners = {normal(owner) for owner in provided.get(name, [name])}
                if not owners & (declared | TRANSITIVE):
                    missing.add(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert sorted(missing) == []


TRANSITIVE = {"protobuf", "googleapis-common-protos", "mode-streaming"}
"""Part of the interface of a declared dependency (grpcio-status, faust-streaming), released with it."""


def normal(requirement):
    name = requirement
    for sign in "<>=!~[; ":
        name = name.split(sign)[0]
    return name.lower().replace("_", "-")


def test_no_package_marker_in_tests_shadows_a_package():
    assert list((ROOT / "tests").rglob("__init__.py")) == []
