"""The API's definition: generated code is current, lint holds, nothing that was promised is taken back."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from grpc_tools import protoc

from driftline.v1 import recommendation_pb2 as pb

REPO = Path(__file__).parents[2]
PROTO = "driftline/v1/recommendation.proto"


def buf(*arguments):
    """Runs buf from the environment's scripts or the path; skips in words where there is none."""
    found = shutil.which("buf", path=sysconfig.get_path("scripts")) or shutil.which("buf")
    if found is None:
        pytest.skip("buf is not installed: pip install buf-bin")
    return subprocess.run([found, *arguments], cwd=REPO / "serving/proto", capture_output=True, text=True, check=False)


def test_the_committed_code_is_what_the_proto_generates(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", sysconfig.get_path("scripts"), prepend=os.pathsep)  # for the plugin that types the stubs
    kinds = ("python", "pyi", "grpc_python", "mypy_grpc")
    options = [f"-I{REPO / 'serving/proto'}", *(f"--{kind}_out={tmp_path}" for kind in kinds)]
    assert protoc.main(["protoc", *options, f"{REPO / 'serving/proto'}/{PROTO}"]) == 0
    made = {path.name: path.read_text() for path in (tmp_path / "driftline/v1").iterdir()}
    assert len(made) == len(kinds)
    for name, text in made.items():
        assert (REPO / "client/driftline/v1" / name).read_text() == text, f"{name} is old: make proto"


def test_the_proto_passes_buf_lint_and_format():
    for arguments in (("lint",), ("format", "--diff", "--exit-code")):
        result = buf(*arguments)
        assert result.returncode == 0, result.stdout + result.stderr


def test_the_service_has_the_eight_rpcs():
    service = pb.DESCRIPTOR.services_by_name["RecommendationService"]
    assert {method.name: method.server_streaming for method in service.methods} == {
        "GetUserState": False,
        "WatchUserState": True,
        "Recommend": False,
        "RecommendBatch": False,
        "ScoreItems": False,
        "SimilarItems": False,
        "GetModelInfo": False,
        "ForgetUser": False,
    }


def test_every_message_numbers_its_fields_without_gaps_and_names_the_next_one():
    text = (REPO / "serving" / "proto" / PROTO).read_text()
    for name, message in pb.DESCRIPTOR.message_types_by_name.items():
        numbers = sorted(field.number for field in message.fields)
        assert numbers == list(range(1, len(numbers) + 1)), name
        comment = re.search(rf"((?:^//.*\n)+)message {name} ", text, re.MULTILINE)
        assert comment is not None, name
        assert f"Next free number: {len(numbers) + 1}." in comment[1], name


def test_every_answer_carries_its_provenance():
    carriers = {name for name, one in pb.DESCRIPTOR.message_types_by_name.items() if "provenance" in one.fields_by_name}
    responses = {name for name in pb.DESCRIPTOR.message_types_by_name if name.endswith("Response")}
    assert responses - carriers == {"RecommendBatchResponse", "ForgetUserResponse"}  # one changes, answers from nothing
    assert "UserSlate" in carriers


def test_every_time_says_its_unit():
    times = [
        f"{name}.{field.name}"
        for name, message in pb.DESCRIPTOR.message_types_by_name.items()
        for field in message.fields
        if re.search(r"time|watermark|_age|interval|created|adopted|valid_from", field.name)
        and field.type != field.TYPE_MESSAGE
        and not field.name.endswith("_ms")
    ]
    assert times == []


def test_models_that_only_score_do_not_load_the_compiler_of_torch():
    code = (
        "import sys, driftline.serving.engine_scorer\n"
        "from driftline.configs.settings import Graph, Model\n"
        "from driftline.graph.learn import GraphLearner\n"
        "from driftline.model.sequence import SequenceLearner\n"
        "SequenceLearner(Model(dim=8), text_dim=4), GraphLearner(Graph(), 4)\n"
        "print([name for name in ('torch._dynamo', 'sympy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_serving_process_loads_neither_llm_nor_stream():
    code = (
        "import driftline.serving.server, driftline.client, driftline.serving.show, driftline.serving.bench, sys\n"
        "print([name for name in sys.modules if name.startswith(('driftline.llm', 'driftline.stream'))])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
