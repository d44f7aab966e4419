"""The built distributions in environments of their own, beside an application whose modules have driftline's names."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from driftline.configs.addresses import free_port

ROOT = Path(__file__).parents[1]
FOLDERS = ("configs", "graph", "llm", "model", "serving", "stream")
SOURCES = ("LICENSE", "README.md", "pyproject.toml", "src", "client", *FOLDERS)
APPLICATION = (*FOLDERS, "app", "bench", "client", "demo", "events", "learn", "process", "replay", "state", "worker")
"""Modules that an application may well have: packages of driftline, and folders and files within them."""
FOREIGN = ("aiokafka", "faust", "grpc", "kafka", "torch", "v1")
"""A script of one of these names in the working directory is nobody's business but its own."""
STARTED_S = 180.0

EVENT = '{{"user_id": "u{}", "item_id": "i{}", "timestamp_ms": {}}}\n'
SHOP = """
import client, configs, graph, llm, model, serving, stream
from driftline.client import Client

named = {module.__name__: module.OF for module in (client, configs, graph, llm, model, serving, stream)}
assert set(named.values()) == {"the application"}, named
with Client(serving.TARGET) as service:
    state = service.user_state("u1", history=10).user_state
    print(state.counters.events, sorted(state.history.item_ids))
"""
TYPED = """
import grpc

from driftline.client import Client, ClientError, InvalidRequest
from driftline.v1 import recommendation_pb2 as pb
from driftline.v1 import recommendation_pb2_grpc as pb_grpc


def bought(client: Client, user_id: str) -> list[str]:
    state: pb.UserState = client.user_state(user_id, history=10).user_state
    return list(state.history.item_ids)


def listed(client: Client, user_id: str) -> list[str]:
    try:
        return list(client.recommend(user_id, k=5, which="novel").slate.item_ids)
    except InvalidRequest:
        return []
    except ClientError as error:
        raise SystemExit(error.exit_code) from None


def model_of(channel: grpc.Channel) -> str:
    answer: pb.GetModelInfoResponse = pb_grpc.RecommendationServiceStub(channel).GetModelInfo(pb.GetModelInfoRequest())
    return answer.provenance.model_version
"""


def built(source: Path, to: Path, kind: str) -> Path:
    """A distribution of a source tree, made by the backend that its pyproject.toml names."""
    to.mkdir(parents=True, exist_ok=True)
    code = f"import sys, setuptools.build_meta as backend; print(backend.build_{kind}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code, str(to)], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return to / done.stdout.splitlines()[-1]


def contents(wheel: Path) -> dict[str, bytes]:
    """Every file of a wheel but the list of them."""
    with zipfile.ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist() if not name.endswith("/RECORD")}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, links as links: what a build leaves behind stays out of the checkout."""
    to = tmp_path_factory.mktemp("sources")
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, to / name, symlinks=True, ignore=unwanted)
        else:
            shutil.copy(ROOT / name, to / name)
    return to


@pytest.fixture(scope="module")
def engine(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(sources, tmp_path_factory.mktemp("engine"), "wheel")


@pytest.fixture(scope="module")
def client(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(sources / "client", tmp_path_factory.mktemp("client"), "wheel")


@pytest.fixture(scope="module")
def bin_folder(engine: Path, client: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the installed commands lie: a fresh environment with the wheels, the libraries those of this one."""
    home = tmp_path_factory.mktemp("environment")
    packages = installed(home, engine, client)
    (packages / "libraries.pth").write_text(
        "".join(f"{path}\n" for path in libraries())
    )  # no .pth file of theirs counts
    return home / "bin"


@pytest.fixture(scope="module")
def client_alone(client: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the client and the two libraries that it needs."""
    home = tmp_path_factory.mktemp("client-alone")
    packages = installed(home, client)
    for name in ("google", "grpc", "typing_extensions.py"):
        (found,) = {path / name for path in libraries() if (path / name).exists()}
        (packages / name).symlink_to(found)
    return home / "bin" / "python"


def installed(home: Path, *wheels: Path) -> Path:
    """Makes an environment with some wheels and nothing else; where its packages lie."""
    venv.create(home, with_pip=False, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "--disable-pip-version-check"]
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile"]
    subprocess.run([*pip, "install", *options, *map(str, wheels)], check=True, capture_output=True)
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(home), "platbase": str(home)}))


def libraries() -> list[Path]:
    """Where the packages lie that the tests run with."""
    return sorted({Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("platlib"))})


class Application:
    """Runs programs in the folder of an application, its modules first on the path of all of them."""

    def __init__(self, folder: Path, bin_folder: Path) -> None:
        self.folder, self.bin = folder, bin_folder
        self.started: list[subprocess.Popen[str]] = []
        (folder / "modules").mkdir()
        for name in APPLICATION:
            self._trap(folder / "modules", name)
        for name in (*APPLICATION, *FOREIGN):
            self._trap(folder, name)
        self.environment = plain() | {"PYTHONPATH": str(folder / "modules"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        self.environment["NUMBA_DISABLE_JIT"] = "1"  # a new place has no machine code yet: a minute, for nine events
        self.environment["DRIFTLINE__BROKER__EMBEDDED_PORT"] = str(free_port())

    @staticmethod
    def _trap(folder: Path, name: str) -> None:
        """A module that nobody but its application may import; every second one is a package."""
        path = folder / f"{name}.py" if len(name) % 2 else folder / name / "__init__.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"raise ImportError('driftline imported {name} of the application')\n")

    def start(self, *command: str) -> subprocess.Popen[str]:
        path = str(self.bin / command[0])
        process = subprocess.Popen(
            [path, *command[1:]],
            cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.started.append(process)
        return process

    def run(self, *command: str) -> str:
        (out,) = self.run_all(command)
        return out

    def run_all(self, *commands: tuple[str, ...]) -> list[str]:
        """What some commands print that run beside each other."""
        processes = [self.start(*command) for command in commands]
        ended = [process.communicate(timeout=STARTED_S) for process in processes]
        assert [process.returncode for process in processes] == [0] * len(commands), ended
        return [out for out, _ in ended]


@pytest.fixture
def application(tmp_path: Path, bin_folder: Path) -> Iterator[Application]:
    made = Application(tmp_path, bin_folder)
    yield made
    for process in made.started:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=STARTED_S)


def end(process: subprocess.Popen[str]) -> str:
    """What a process wrote to stderr; it must end in order."""
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=STARTED_S)
    assert process.returncode == 0, err
    return err


def test_the_source_distribution_holds_files_in_place_of_links_and_builds_the_same_wheel(
    sources: Path, engine: Path, tmp_path: Path
) -> None:
    with tarfile.open(built(sources, tmp_path, "sdist")) as archive:
        assert [entry.name for entry in archive if entry.issym() or entry.islnk()] == []
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert contents(built(unpacked, tmp_path / "again", "wheel")) == contents(engine)


def test_the_wheels_hold_every_file_that_a_program_reads_and_no_file_twice(engine: Path, client: Path) -> None:
    names = {wheel: set(contents(wheel)) for wheel in (engine, client)}
    kept = {
        f"driftline/{path.relative_to(ROOT).as_posix()}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name != "buf.yaml"
    }
    assert kept - names[engine] == set()
    assert {name for name in names[engine] if name.startswith("driftline/")} - kept == set()
    kept = {path.relative_to(ROOT / "client").as_posix() for path in (ROOT / "client" / "driftline").rglob("*.py*")}
    assert {name for name in kept if "__pycache__" not in name} - names[client] == set()
    assert names[engine] & names[client] == set()
    assert "driftline/__init__.py" not in names[engine] | names[client]


def test_the_client_alone_is_typed_for_an_application_that_is_checked_strictly(
    client_alone: Path, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(TYPED)
    (tmp_path / "wrong.py").write_text(TYPED.replace("k=5", "k='5'"))
    options = ["--strict", "--python-version", "3.10", "--python-executable", str(client_alone)]
    untyped = ["--disable-error-code", "import-untyped"]  # grpc brings no types of its own
    command = [sys.executable, "-m", "mypy", *options, *untyped, "--cache-dir", "cache"]
    checked = {
        name: subprocess.run([*command, name], cwd=tmp_path, env=plain(), capture_output=True, text=True)
        for name in ("shop.py", "wrong.py")
    }
    assert checked["shop.py"].returncode == 0, checked["shop.py"].stdout + checked["shop.py"].stderr
    assert 'incompatible type "str"; expected "int"' in checked["wrong.py"].stdout


def test_the_client_alone_loads_nothing_but_grpc_and_protobuf(client_alone: Path) -> None:
    code = "import sys, driftline.client as c; print(c.__file__, *{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([client_alone, "-c", code], env=plain(), capture_output=True, text=True)
    place, *loaded = done.stdout.split()
    assert Path(place).is_relative_to(client_alone.parents[1]), done.stderr
    assert {n for n in loaded if n.strip("_") not in sys.stdlib_module_names and not n.startswith(("_", "cython"))} <= {
        "driftline", "google", "grpc", "typing_extensions", "sitecustomize",
    }  # fmt: skip


SOURCES_OF_THE_CLIENT = sorted((ROOT / "client").rglob("driftline/**/*.py*"))


def test_the_client_is_written_in_python_3_10() -> None:
    sources = [path for path in SOURCES_OF_THE_CLIENT if path.suffix in (".py", ".pyi")]
    assert len(sources) >= 7
    for path in sources:
        ast.parse(path.read_text("utf-8"), str(path), feature_version=(3, 10))


def test_a_python_3_10_takes_the_client(tmp_path: Path) -> None:
    """Compiled in any case, loaded where that Python has grpc and protobuf."""
    pyenv = sorted(Path.home().glob(".pyenv/versions/3.10.*/bin/python3.10"))
    found = next((str(path) for path in pyenv), None) or shutil.which("python3.10")
    if found is None:
        pytest.skip("no python3.10 is on the path, none is in ~/.pyenv")
    sources = [str(path) for path in SOURCES_OF_THE_CLIENT if path.suffix == ".py"]
    code = f"""
from importlib.util import find_spec
for path in {sources}:
    compile(open(path, encoding="utf-8").read(), path, "exec")
if find_spec("grpc") and find_spec("google"):
    import driftline.client
"""
    environment = plain() | {"PYTHONPATH": str(ROOT / "client"), "PYTHONPYCACHEPREFIX": str(tmp_path)}
    done = subprocess.run([found, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def plain() -> dict[str, str]:
    """The environment without what steers Python or driftline."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("DRIFTLINE", "PYTHON", "MYPY"))}


@pytest.mark.slow
def test_an_application_with_modules_of_all_our_names_runs_command_worker_and_client(
    application: Application, client_alone: Path
) -> None:
    events, port = application.folder / "events.jsonl", free_port()
    events.write_text("".join(EVENT.format(n % 3, n, 1_600_000_000_000 + n) for n in range(9)))
    application.environment["DRIFTLINE__SERVING__PORT"] = str(port)
    worker = application.start("driftline", "worker")
    serving = application.start("driftline", "serve")
    application.run("driftline", "produce", "--events", str(events))
    code = "import driftline.stream, driftline.client.client as c; print(*driftline.stream.__path__, c.__file__)"
    places, named, shown, checked = application.run_all(
        ("python", "-P", "-c", code),
        ("driftline", "--version"),
        ("driftline", "config", "show", "--json", "-c", "ecommerce"),
        ("driftline", "validate", "--events", str(events)),
    )
    for place in places.split():
        assert Path(place).is_relative_to(application.bin.parent), "not what was installed"
    assert named == f"driftline {version('driftline')}\n"
    assert json.loads(shown)["name"] == "ecommerce"
    assert "9 rows" in checked

    shop, answer = shop_of(application, port), "3 ['i1', 'i4', 'i7']\n"
    until = time.monotonic() + STARTED_S
    while asked(application, "python", shop, worker, serving) != answer:
        assert time.monotonic() < until, "the events are not in the state"
        time.sleep(0.2)
    assert asked(application, str(client_alone), shop, worker, serving) == answer
    state = json.loads(application.run("driftline", "state", "hash", "--json"))
    assert (state["users"], state["next_offset"]) == (3, {"0": 9})
    assert "driftline imported" not in end(serving) + end(worker)


def shop_of(application: Application, port: int) -> Path:
    """A program that has its own `serving`, `graph`, ... and asks driftline's client."""
    front = application.folder / "front"
    front.mkdir()
    for name in (*FOLDERS, "client"):
        (front / f"{name}.py").write_text("OF = 'the application'\n")
    (front / "serving.py").write_text(f"OF = 'the application'\nTARGET = '127.0.0.1:{port}'\n")
    (front / "shop.py").write_text(SHOP)
    return front / "shop.py"


def asked(application: Application, python: str, shop: Path, *parts: subprocess.Popen[str]) -> str:
    """What the shop prints; nothing while the service does not answer yet."""
    for part in parts:
        assert part.poll() is None, part.communicate()
    process = application.start(python, str(shop))
    out, err = process.communicate(timeout=STARTED_S)
    assert process.returncode == 0 or "no driftline service answers" in err, err
    return out


RECORDS = """#!{python}
import json, os, sys, time
own = {{name: value for name, value in os.environ.items() if "PIP_" in name}}
with open({log!r}, "a") as file:
    print(json.dumps([sys.argv[1:], own]), file=file)
if "requirements-torch.lock" in sys.argv:
    time.sleep(2.6)
"""


def test_set_up_numbers_its_steps_says_that_a_long_one_goes_on_and_installs_into_its_environment(
    tmp_path: Path,
) -> None:
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "stamps").mkdir()
    (tmp_path / "venv" / "stamps" / "venv").touch()
    log = tmp_path / "log"
    script = tmp_path / "venv" / "bin" / "python"  # in place of the environment's: what it is asked for takes minutes
    script.write_text(RECORDS.format(python=sys.executable, log=str(log)))
    script.chmod(0o755)
    given = {"PIP_USER": "1", "PIP_TARGET": "elsewhere", "PIP_REQUIRE_HASHES": "1", "PIP_INDEX_URL": "mirror"}
    command = ["make", "setup", f"VENV={tmp_path / 'venv'}", "TICK=1"]
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # of `make test`
    done = subprocess.run(command, cwd=ROOT, env=outside | given, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    steps = [line for line in done.stderr.splitlines() if "so far" not in line]
    assert [line.split(":")[0] for line in steps] == [f"set-up {n}/5" for n in range(2, 6)]
    assert int(steps[0].split()[2]) > 50
    assert "set-up 2/5: 2 s so far" in done.stderr
    assert done.stdout == ""
    called = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(called) == 5
    assert {name for _, names in called for name in names} & given.keys() == {"PIP_INDEX_URL"}
    failing = script.read_text() + "sys.exit(3)"
    script.write_text(failing)
    (tmp_path / "venv" / "stamps" / "packages").unlink()
    assert subprocess.run(command, cwd=ROOT, env=outside, capture_output=True, timeout=60).returncode == 2
    assert not (tmp_path / "venv" / "stamps" / "packages").exists()
