"""One way to write an address, everywhere: names, IPv4, IPv6 in brackets, a port; refusals say what stands there."""

import pytest

from driftline.client import Client, InvalidRequest
from driftline.configs.addresses import address, addresses, joined, reachable
from driftline.configs.errors import ConfigError
from driftline.configs.load import load
from driftline.configs.settings import Serving
from driftline.serving.local import local_address

GOOD = [
    (" kafka-1:9092 ", "kafka-1", 9092),
    ("10.0.0.7:1", "10.0.0.7", 1),
    ("[::1]:65535", "::1", 65535),
    ("[fe80::1%eth0]:9092", "fe80::1%eth0", 9092),
    ("kafka_1.shop.internal.:9092", "kafka_1.shop.internal.", 9092),
]
BAD = [
    ("", "no port"),
    ("kafka", "no port"),
    ("[::1]", "no port"),
    ("::1:9092", "several colons"),
    ("::1", "several colons"),
    ("kafka:", "port of 1 to 65535"),
    ("kafka:0", "port of 1 to 65535"),
    ("kafka:65536", "port of 1 to 65535"),
    ("kafka:9x", "port of 1 to 65535"),
    ("kafka:٩", "port of 1 to 65535"),
    (":9092", "expected a host"),
    ("ka fka:9092", "expected a host"),
    ("1.2.3:9092", "expected a host"),
    ("[kafka]:9092", "expected a host"),
    ("PLAINTEXT://kafka:9092", "begins with a scheme"),
    ("unix:/run/kafka", "begins with a scheme"),
    ("user@kafka:9092", "expected a host"),
]


@pytest.mark.parametrize(("text", "host", "port"), GOOD)
def test_an_address_is_taken_apart_and_put_together(text, host, port):
    found = address(text)
    assert (found.host, found.port) == (host, port)
    assert address(str(found)) == found


@pytest.mark.parametrize(("text", "why"), BAD)
def test_what_is_no_address_is_refused_with_what_stands_there(text, why):
    with pytest.raises(ValueError, match=why) as caught:
        address(text)
    assert len(str(caught.value)) < 200
    with pytest.raises(ValueError, match=why):
        addresses(f"kafka-1:9092,{text}")
    with pytest.raises(InvalidRequest, match="expected host:port"):
        Client(text)


@pytest.mark.parametrize("text", [text for text, why in BAD if text])
def test_the_environment_is_held_to_it_when_settings_are_loaded(text):
    with pytest.raises(ConfigError, match=r"DRIFTLINE__BROKER__BOOTSTRAP: broker.bootstrap: got "):
        load(None, {"DRIFTLINE__BROKER__BOOTSTRAP": text})


def test_spaces_in_a_list_of_brokers_and_brackets_of_a_host_are_no_part_of_them():
    found = load(None, {"DRIFTLINE__BROKER__BOOTSTRAP": " [::1]:9092 , kafka-2:9094 "}).settings
    assert found.broker.bootstrap == "[::1]:9092,kafka-2:9094"
    assert load(None, {"DRIFTLINE__SERVING__HOST": "[::]"}).settings.serving.host == "::"
    assert load(None, {"DRIFTLINE__BROKER__BOOTSTRAP": " "}).settings.broker.bootstrap == ""
    for text in ("http://here", "here:50551", "", "[here]", "1.2.3"):
        with pytest.raises(ConfigError, match=r"serving.host: got .*expected a host"):
            load(None, {"DRIFTLINE__SERVING__HOST": f"'{text}'"})


@pytest.mark.parametrize(
    ("host", "at"), [("0.0.0.0", "127.0.0.1:7"), ("::", "[::1]:7"), ("::1", "[::1]:7"), ("shop.local", "shop.local:7")]
)
def test_a_server_that_listens_everywhere_is_found_on_the_loopback(host, at):
    assert local_address(Serving(host=host, port=7)) == at
    assert joined(reachable(host), 7) == at
