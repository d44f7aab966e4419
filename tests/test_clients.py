"""The programs of docs/examples and the calls of docs/clients.md, against a whole system that learnt a small shop."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tests.test_readme import ROOT, blocks

from driftline.client.client import SERVICE
from driftline.configs.addresses import free_port

EXAMPLES, PAGE = ROOT / "docs" / "examples", ROOT / "docs" / "clients.md"
GRPCURL = [line for block in blocks(PAGE, "sh") for line in block.splitlines() if line.startswith("grpcurl ")]
USERS = ["13085", "13089", *(f"user-{n}" for n in range(18))]
ITEMS = ["85123A", "84991", "84992", "21212", *(f"item-{n}" for n in range(36))]
FOUND = {
    "Check": "status",
    "GetModelInfo": "items",
    "GetUserState": "user_state",
    "Recommend": "slate",
    "RecommendBatch": "user_slates",
    "ScoreItems": "scores",
    "SimilarItems": "slate",
    "WatchUserState": "user_state",
}
"""What an answer has, by call."""
DAY_MS = 86_400_000
SETTINGS = """
extends: ecommerce
name: example
broker: {partitions: 3}
model: {backbone: "off"}
graph: {weights: "off", memory_dim: 8, message_dim: 8, time_dim: 4, embed_dim: 8}
ranker: {members: 1, hidden: 8}
trainer: {publish_s: 0.5}
"""


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    """`driftline up` without the language model, some weeks of a small shop read; what `driftline status` says."""
    folder = tmp_path_factory.mktemp("system")
    (folder / "shop.yaml").write_text(SETTINGS)
    now_ms = time.time_ns() // 1_000_000
    events = [
        {
            "user_id": user,
            "item_id": ITEMS[(2 * u + 3 * (n % 4) + i) % len(ITEMS)],
            "group_id": f"{u}-{n}",
            "price": 1.0 + i,
        }
        | {"timestamp_ms": now_ms - (20 - n) * DAY_MS + u * 60_000, "action": "purchase", "value": 2}
        for n in range(12)
        for u, user in enumerate(USERS)
        for i in range(3)
    ]
    items = [{"item_id": item, "title": f"Gift {item}", "categories": ["gift bags"]} for item in ITEMS]
    for name, rows in (("events", events), ("items", items)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DRIFTLINE__")}
    environment["DRIFTLINE__BROKER__EMBEDDED_PORT"] = str(free_port())
    environment["DRIFTLINE__SERVING__PORT"] = str(free_port())
    environment["DRIFTLINE_CONFIG"] = "shop.yaml"

    def driftline(*words, exit_code=0):
        command = [str(Path(sys.executable).with_name("driftline")), *words]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == exit_code, done.stdout + done.stderr
        return done.stdout

    try:
        driftline("up", "--detach", "--without", "profiler")
        driftline("produce", "--events", "events.jsonl", "--items", "items.jsonl")
        deadline = time.monotonic() + 200
        while not (now := json.loads(driftline("status", "--json")))["model_sequence"] or now["model_behind"]:
            assert time.monotonic() < deadline, (folder / ".driftline" / "state" / "up.log").read_text()
            time.sleep(0.5)
        yield now
    finally:
        driftline("down")


def run(command, folder):
    """What a program prints."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def check(printed, events):
    """That a program read its own writes, got a novel list with reasons, and saw the state change."""
    sent, state, *listed, change = printed.splitlines()
    assert re.fullmatch(r"sent: offset \d+", sent)
    assert state == f"state: {events + 1} events, newest lamp-7"
    assert len(listed) == 5
    shown = [re.fullmatch(r"list: (\S+), \w.+", line)[1] for line in listed]
    assert set(shown) <= set(ITEMS)
    assert change == f"change: {events + 2} events, newest {shown[0]}"


@pytest.mark.slow
def test_the_example_in_python_does_what_it_says(system, tmp_path):
    check(run([sys.executable, EXAMPLES / "shop.py", "13085", system["bootstrap"], system["address"]], tmp_path), 36)


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """The example in TypeScript, with the packages of its lock, built; a skip that says why where that can't be."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("no Node.js: node and npm are not on the path")
    folder = tmp_path_factory.mktemp("node")
    for path in (EXAMPLES / "typescript").iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-timeout=60000", "--fetch-retries=1"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    if re.search(r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|E40[34]|E50\d", done.stderr):
        pytest.skip(f"npm's packages can't be had: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_example_in_typescript_compiles_and_does_what_it_says(node, system):
    run(["npm", "run", "build"], node)
    protos = ROOT / "serving" / "proto"
    user = "user-2"  # whose hash is one of those of which a murmur2 that is not Java's makes another partition
    check(run(["node", "build/shop.js", user, system["bootstrap"], system["address"], protos], node), 36)


def test_the_lock_of_the_example_names_no_registry():
    lock = json.loads((EXAMPLES / "typescript" / "package-lock.json").read_text())
    packages = {name: one for name, one in lock["packages"].items() if name}
    assert packages
    assert all("resolved" not in one and one["integrity"] for one in packages.values())


@pytest.fixture(scope="module")
def reflected(system):
    """A channel, what reflection lists, and the types that it describes."""
    with grpc.insecure_channel(system["address"]) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        yield channel, database, DescriptorPool(database)


def parsed(line):
    """(body, what is asked) of a line of grpcurl, whose options are all known here."""
    words = shlex.split(line)[1:]
    body = {}
    while words[0].startswith("-"):
        option = words.pop(0)
        assert option in ("-plaintext", "-d", "-H", "-max-time"), line
        if option != "-plaintext":
            value = words.pop(0)
            body = json.loads(value) if option == "-d" else body
    assert words.pop(0) == "127.0.0.1:50551", line
    return body, words


@pytest.mark.slow
@pytest.mark.parametrize("line", GRPCURL)
def test_every_call_of_the_page_is_answered_by_reflection(reflected, line):
    channel, database, pool = reflected
    body, (what, *rest) = parsed(line)
    if what == "list":
        assert SERVICE in database.get_services()
        return
    if what == "describe":
        (name,) = rest
        assert pool.FindServiceByName(name) if name == SERVICE else pool.FindMessageTypeByName(name)
        return
    service, _, name = what.partition("/")
    method = pool.FindServiceByName(service).FindMethodByName(name)
    kind = channel.unary_stream if method.server_streaming else channel.unary_unary
    call = kind(
        f"/{what}",
        request_serializer=GetMessageClass(method.input_type).SerializeToString,
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    request = ParseDict(body, GetMessageClass(method.input_type)())
    if name == "ForgetUser":
        with pytest.raises(grpc.RpcError) as refused:
            call(request, timeout=10)
        assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED  # no token of this system has its scope
        return
    answer = call(request, timeout=10)
    found = MessageToDict(next(answer) if method.server_streaming else answer, preserving_proto_field_name=True)
    if method.server_streaming:
        answer.cancel()
    expected = {"GetUserState": "user_state", "WatchUserState": "user_state", "Recommend": "slate", "Check": "status"}
    expected |= {
        "RecommendBatch": "user_slates",
        "ScoreItems": "scores",
        "SimilarItems": "slate",
        "GetModelInfo": "items",
    }
    assert found[expected[method.name]]
    slates = [found["slate"]] if "slate" in found else [one["slate"] for one in found.get("user_slates", ())]
    assert all(slate["item_ids"] for slate in slates)


def test_the_page_has_a_call_of_every_rpc():
    from driftline.v1 import recommendation_pb2 as pb

    called = {parsed(line)[1][0].rpartition("/")[2] for line in GRPCURL}
    assert {method.name for method in pb.DESCRIPTOR.services_by_name["RecommendationService"].methods} <= called
