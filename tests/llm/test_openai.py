"""The endpoint client against a real HTTP server on this machine."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tests.llm.conftest import shop_request

from driftline.configs.errors import EndpointError
from driftline.configs.settings import LLM, Profiles
from driftline.llm.generator import ProfileGenerator
from driftline.llm.openai import OpenAIClient

ANSWER = "Customer: keen home baker\nInterests: fairy cake cases\nCategories: baking\nProduct lines: retrospot"


class Endpoint(ThreadingHTTPServer):
    """Answers in the order of a script: a status, "slow", "break" or "garbage"; then always with 200."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[object] = []
        self.models: dict | int = {"data": [{"id": "other"}, {"id": "tiny:latest"}]}
        self.requests: list[tuple[dict, dict]] = []
        self.lock = threading.Lock()

    def handle_error(self, request, client_address):
        pass  # a client that went away is part of these tests


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append((dict(self.headers), body))
            step = self.server.script.pop(0) if self.server.script else 200
        if step == "slow":
            time.sleep(1.0)
            step = 200
        if step == "break":
            self.close_connection = True
            return
        data = b"<html>" if step == "garbage" else json.dumps({"choices": [{"message": {"content": ANSWER}}]}).encode()
        self.send_response(step if isinstance(step, int) else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        body = self.server.models
        data = json.dumps(body).encode() if isinstance(body, dict) else b""
        self.send_response(body if isinstance(body, int) else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def endpoint():
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def make(endpoint):
    clients = []

    def make_client(**settings):
        url = f"http://127.0.0.1:{endpoint.server_port}/v1"
        client = OpenAIClient(LLM(**({"base_url": url, "model": "tiny", "backoff_s": 0.01} | settings)))
        clients.append(client)
        return client

    yield make_client
    for client in clients:
        client.close()


def profile_of(client):
    return ProfileGenerator(client, Profiles()).generate([shop_request()])[0]


def test_a_profile_from_an_endpoint_is_stamped_with_its_model(endpoint, make):
    profile = profile_of(make(api_key="secret"))
    assert profile.source == "openai:tiny"
    assert profile.model == "tiny"
    assert profile.facets["interests"] == "fairy cake cases"
    headers, body = endpoint.requests[0]
    assert headers["Authorization"] == "Bearer secret"
    assert body["model"] == "tiny"
    assert body["messages"][-1]["content"].startswith("Bought: ")
    assert "keen home baker" in body["messages"][0]["content"]


def test_a_check_tells_whether_the_endpoint_has_the_model(endpoint, make):
    at = f"http://127.0.0.1:{endpoint.server_port}/v1"
    assert make().check() == f"tiny at {at}"
    with pytest.raises(EndpointError, match=r"has no model 'large'; set llm.model to one of its own: other, tiny$"):
        make(model="large").check()
    endpoint.models = 401
    with pytest.raises(EndpointError, match=r"answered 401; check llm.base_url and llm.api_key"):
        make().check()
    endpoint.models = 404
    assert make().check() == f"answers at {at}; it tells no list of models"
    with pytest.raises(EndpointError, match=r"nothing answers at llm.base_url 'http://127.0.0.1:9/v1'"):
        make(base_url="http://127.0.0.1:9/v1").check()


@pytest.mark.parametrize("fault", [500, 503, 429, "break"])
def test_a_passing_fault_of_the_endpoint_is_tried_again(endpoint, make, fault):
    endpoint.script = [fault, fault]
    client = make()
    assert profile_of(client).source == "openai:tiny"
    assert len(endpoint.requests) == 3
    assert client.retried == 2


def test_waits_between_tries_double(endpoint):
    endpoint.script = [500, 500, 500]
    waits = []
    settings = LLM(base_url=f"http://127.0.0.1:{endpoint.server_port}/v1", backoff_s=0.25)
    client = OpenAIClient(settings, sleep=waits.append)
    profile_of(client)
    client.close()
    assert waits == [0.25, 0.5, 1.0]


def test_when_the_tries_are_used_up_the_profile_is_the_template_s(endpoint, make):
    endpoint.script = [500] * 3
    client = make(retries=2)
    assert profile_of(client).source == "template"
    assert client.failed == 1


def test_an_endpoint_that_is_too_slow_is_given_up(endpoint, make):
    endpoint.script = ["slow"]
    client = make(timeout_s=0.2, retries=0)
    started = time.monotonic()
    assert profile_of(client).source == "template"
    assert time.monotonic() - started < 0.9


def test_an_answer_that_is_no_completion_gives_the_template(endpoint, make):
    endpoint.script = ["garbage"]
    assert profile_of(make()).source == "template"


@pytest.mark.parametrize("status", [401, 404])
def test_a_wrong_key_or_model_is_one_clear_message(endpoint, make, status):
    endpoint.script = [status]
    with pytest.raises(EndpointError, match=rf"answered {status}.*check llm.base_url, llm.model and llm.api_key"):
        profile_of(make())


def test_answers_come_in_the_order_of_the_prompts(endpoint, make):
    profiles = ProfileGenerator(make(), Profiles()).generate([shop_request(user_id=str(i)) for i in range(20)])
    assert [profile.user_id for profile in profiles] == [str(i) for i in range(20)]


def test_nobody_listening_gives_the_template():
    client = OpenAIClient(LLM(base_url="http://127.0.0.1:9/v1", retries=1, backoff_s=0.0))
    assert profile_of(client).source == "template"
    client.close()


def test_an_endpoint_of_this_machine_is_asked_without_the_proxies_of_the_environment(endpoint, make, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert make().check().startswith("tiny at ")
    assert make(base_url=f"http://localhost:{endpoint.server_port}/v1").check().startswith("tiny at ")
    with pytest.raises(EndpointError, match=r"nothing answers at llm.base_url 'http://llm\.example/v1'"):
        make(base_url="http://llm.example/v1").check()


def test_a_socks_proxy_for_an_endpoint_elsewhere_is_refused_in_words(make, monkeypatch):
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:9")
    assert make().check().startswith("tiny at ")
    with pytest.raises(EndpointError, match=r"SOCKS proxy of all_proxy .*no_proxy, or set https_proxy"):
        make(base_url="https://llm.example/v1")
