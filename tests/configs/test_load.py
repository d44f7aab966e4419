"""Settings: presets, files, the environment, origins, and what is said when something is wrong."""

import pytest

from driftline.configs.columns import doubts_of_files
from driftline.configs.environment import RESULTS, strays, told
from driftline.configs.errors import ConfigError
from driftline.configs.files import presets
from driftline.configs.keys import SECRETS, is_secret, leaves, shown
from driftline.configs.load import (
    MODEL_SECTIONS,
    config_sha256,
    differences,
    load,
    load_settings,
    sections_of,
    sections_sha256,
)
from driftline.configs.security import client_options
from driftline.configs.settings import Broker, Settings


def write(tmp_path, text, name="own.yaml"):
    path = tmp_path / name
    path.write_text(text)
    return path


def message(source, environment=None):
    with pytest.raises(ConfigError) as caught:
        load(source, environment or {})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_given_is_the_default_preset(monkeypatch):
    assert load_settings() == load_settings("default") == Settings()


def test_a_file_changes_only_the_keys_that_it_names(tmp_path):
    settings = load_settings(write(tmp_path, "serving: {port: 7000}\n"))
    assert settings.serving.port == 7000
    assert settings.serving.threads == Settings().serving.threads


def test_a_file_that_extends_a_preset_lies_on_top_of_it(tmp_path):
    path = write(tmp_path, "extends: ecommerce\nactions: {view: {weight: 0.9}}\n")
    settings, base = load_settings(path), load_settings("ecommerce")
    assert settings.actions["view"].weight == 0.9
    assert settings.actions["view"].positive == base.actions["view"].positive
    assert settings.actions["purchase"] == base.actions["purchase"]


def test_extends_takes_a_path_beside_the_file(tmp_path):
    write(tmp_path, "serving: {port: 7001, threads: 2}\n", "base.yaml")
    settings = load_settings(write(tmp_path, "extends: base.yaml\nserving: {port: 7002}\n"))
    assert (settings.serving.port, settings.serving.threads) == (7002, 2)


def test_an_empty_group_takes_inherited_entries_away(tmp_path):
    assert load_settings(write(tmp_path, "extends: ecommerce\nactions: {}\n")).actions == {}


def test_an_empty_file_and_an_empty_section_are_the_defaults(tmp_path):
    assert load_settings(write(tmp_path, "")) == Settings()
    assert load_settings(write(tmp_path, "serving:\n  # port: 1\n")) == Settings()


def test_the_environment_overrides_the_file(tmp_path):
    path = write(tmp_path, "serving: {port: 7000}\nstate: {sync: true}\n")
    environment = {
        "DRIFTLINE__SERVING__PORT": "7100",
        "DRIFTLINE__STATE__SYNC": "false",
        "DRIFTLINE__SIGNALS__HALF_LIVES_DAYS": "[1, 2.5]",
        "DRIFTLINE__SERVING__TOKENS": "[a, b]",
        "DRIFTLINE__ACTIONS__VIEW__WEIGHT": "0.25",
        "DRIFTLINE_OTHER": "not ours",
    }
    settings = load(path, environment).settings
    assert settings.serving.port == 7100
    assert settings.state.sync is False
    assert settings.signals.half_lives_days == (1.0, 2.5)
    assert settings.serving.tokens == ("a", "b")
    assert settings.actions["view"].weight == 0.25


def test_the_environment_of_the_process_is_read(monkeypatch):
    monkeypatch.setenv("DRIFTLINE__SERVING__PORT", "7200")
    assert load_settings().serving.port == 7200


def test_every_value_has_an_origin(tmp_path):
    path = write(tmp_path, "# a comment\nserving:\n  port: 7000\nactions:\n  view: {weight: 0.5}\n")
    origins = load(path, {"DRIFTLINE__STATE__SYNC": "false"}).origins
    assert origins["serving.port"] == f"{path}:3"
    assert origins["actions.view.weight"] == f"{path}:5"
    assert origins["state.sync"] == "DRIFTLINE__STATE__SYNC"
    assert origins["serving.threads"] == "default"


def test_equal_settings_have_equal_hashes_wherever_they_came_from(tmp_path):
    path = write(tmp_path, "serving: {port: 7000}\n")
    by_file, by_environment = load(path, {}).settings, load(None, {"DRIFTLINE__SERVING__PORT": "7000"}).settings
    assert config_sha256(by_file) == config_sha256(by_environment)
    assert config_sha256(by_file) != config_sha256(Settings())
    assert len(config_sha256(by_file)) == 64


def test_a_preset_without_a_part_that_a_release_added_goes_on_with_what_was_learnt_before():
    after = load("media", {}).settings
    off = load("media", {"DRIFTLINE__SYSTEMS__LABELS": "off"}).settings
    before, text = (after.model_copy(update={"systems": systems}) for systems in ({}, {"text": "off"}))
    hashes = [sections_sha256(one, MODEL_SECTIONS) for one in (before, off, after, text)]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_a_setting_that_a_release_added_changes_no_hash_while_it_is_off():
    off, on = (load("media", {"DRIFTLINE__MODEL__COPYING": value}).settings for value in ("false", "true"))
    before = {key: value for key, value in sections_of(off, MODEL_SECTIONS).items() if key != "model.copying"}
    hashes = [sections_sha256(one, MODEL_SECTIONS) for one in (load("media", {}).settings, off, on)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert differences(before, sections_of(off, MODEL_SECTIONS)) == ""
    for then in (before, sections_of(off, MODEL_SECTIONS)):
        assert differences(then, sections_of(on, MODEL_SECTIONS)) == "model.copying was false and is true"
        assert differences(sections_of(on, MODEL_SECTIONS), then) == "model.copying was true and is false"


def test_a_secret_is_part_of_no_hash_and_never_shown(tmp_path):
    secrets = {
        "DRIFTLINE__BROKER__SASL_PASSWORD": "one",
        "DRIFTLINE__LLM__API_KEY": "two",
        "DRIFTLINE__SERVING__TOKENS": "[three]",
    }
    settings = load(None, secrets).settings
    assert config_sha256(settings) == config_sha256(Settings())
    values = {key: shown(key, value) for key, value in leaves(settings)}
    assert {key for key, value in values.items() if value == "***"} == {
        "broker.sasl_password", "llm.api_key", "serving.tokens",
    }  # fmt: skip
    assert shown("llm.api_key", "") == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SERVING__TOKENS", "hunter2"),
        ("SERVING__TOKENS", "[hunter2"),
        ("LLM", "{api_key: hunter2"),
        ("BROKER", "{hunter2"),
    ],
)
def test_a_secret_that_is_refused_is_not_shown(name, value):
    told = message(None, {f"DRIFTLINE__{name}": value})
    assert "hunter2" not in told
    assert "***" in told


def test_a_secret_of_a_file_that_is_refused_is_not_shown(tmp_path):
    told = message(write(tmp_path, "broker: {sasl_password: 12345678}\n"))
    assert told.endswith("broker.sasl_password: got ***; expected text; put it in quotes")


@pytest.mark.parametrize("name", ["DRIFTLINE_SERVING_PORT", "DRIFTLINE_SERVING__PORT", "driftline_serving_port"])
def test_a_name_of_the_environment_with_one_underscore_is_not_passed_over(name):
    assert message(None, {name: "1"}).endswith("expected two underscores before each key: DRIFTLINE__SERVING__PORT")


def test_names_that_an_orchestrator_makes_of_a_service_are_passed_over():
    services = {
        "DRIFTLINE_SERVING_SERVICE_HOST": "10.0.0.1",
        "DRIFTLINE_SERVING_PORT": "tcp://10.0.0.1:50551",
        "DRIFTLINE_BROKER_PORT_9092_TCP_ADDR": "10.0.0.2",
        "DRIFTLINE_NAME_X": "y",
    }
    assert load(None, services).settings == Settings()


def test_a_password_may_begin_with_a_bracket():
    environment = {"DRIFTLINE__BROKER__SASL_PASSWORD": "{hunter2", "DRIFTLINE__LLM__API_KEY": "[x]"}
    settings = load(None, environment).settings
    assert (settings.broker.sasl_password, settings.llm.api_key) == ("{hunter2", "[x]")


# ------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("broker", "words"),
    [
        ("{security: SSL}", "got security SSL without bootstrap"),
        ("{bootstrap: 'k:1', security: SASL_SSL, sasl_username: me}", "expected sasl_username and sasl_password"),
        ("{bootstrap: 'k:1', security: SSL, tls_key: a.pem}", "expected tls_certificate and tls_key together"),
        ("{bootstrap: 'k:1', tls_ca: a.pem}", "got tls_* with security PLAINTEXT"),
        ("{bootstrap: 'k:1', sasl_username: me}", "got sasl_username with security PLAINTEXT"),
    ],
)
def test_half_a_way_into_kafka_is_refused(tmp_path, broker, words):
    assert words in message(write(tmp_path, f"broker: {broker}\n"))


def test_a_rule_over_several_keys_names_the_file_that_broke_it(tmp_path):
    path = write(tmp_path, "extends: ecommerce\nmodel: {heads: 3}\n")
    assert message(path).startswith(f"{path}:2: model: heads is 3 and dim is 64")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("signals: {half_lives_days: [30, 1]}", "got half_lives_days [30.0, 1.0]; expected each once, shortest first"),
        ("broker: {heartbeat_s: 9}", "got heartbeat_s 9 with session_timeout_s 10; expected a third of it at most"),
        ("graph: {seed: -1}", "graph.seed: got -1; expected a number at least 0"),
        ("model: {seed: 4294967296}", "model.seed: got 4294967296; expected a number below"),
    ],
)
def test_values_that_would_fail_later_are_refused_by_file_and_line(tmp_path, text, words):
    path = write(tmp_path, text + "\n")
    told = message(path)
    assert told.startswith(f"{path}:1: ")
    assert words in told


@pytest.mark.parametrize("content", [None, "no PEM"])
def test_a_certificate_of_kafka_that_can_not_be_used_is_named(tmp_path, content):
    authority = tmp_path / "ca.pem"
    if content is not None:
        authority.write_text(content)
    with pytest.raises(ConfigError, match=r"broker.tls_ca .*ca.pem.* can't be used: .*Expected PEM files"):
        client_options(Broker(bootstrap="k:1", security="SSL", tls_ca=authority), "k:1")


def test_an_unknown_key_names_the_nearest_one_and_the_line(tmp_path):
    path = write(tmp_path, "serving:\n  prot: 7000\n")
    assert message(path) == f"{path}:2: unknown key 'serving.prot'; did you mean 'serving.port'?"


def test_an_unknown_key_of_an_action_names_the_nearest_one(tmp_path):
    path = write(tmp_path, "actions: {view: {wieght: 1}}\n")
    assert "unknown key 'actions.view.wieght'; did you mean 'actions.view.weight'?" in message(path)


def test_a_key_in_the_wrong_section_is_found_in_the_right_one(tmp_path):
    path = write(tmp_path, "epoch_events: 7\n")
    assert "unknown key 'epoch_events'; did you mean 'state.epoch_events'?" in message(path)


def test_a_key_like_no_other_lists_the_known_ones(tmp_path):
    path = write(tmp_path, "metrics: {qqq: 7}\n")
    assert "known here: host, worker_port, trainer_port" in message(path)


def test_an_unknown_key_of_the_environment_names_the_variable():
    found = message(None, {"DRIFTLINE__SERVING__PROT": "1"})
    assert found == "DRIFTLINE__SERVING__PROT: unknown key 'serving.prot'; did you mean 'serving.port'?"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("serving: {port: many}", "serving.port: got 'many'; expected a whole number"),
        ("serving: {port: 1.5}", "serving.port: got 1.5; expected a whole number"),
        ("serving: {port: 70000}", "serving.port: got 70000; expected a number at most 65535"),
        ("state: {history: 1}", "state.history: got 1; expected a number at least 8"),
        ("broker: {heartbeat_s: 0}", "broker.heartbeat_s: got 0; expected a number above 0"),
        ("broker: {heartbeat_s: .inf}", "broker.heartbeat_s: got inf; expected a finite number"),
        ("broker: {prefix: 5}", "broker.prefix: got 5; expected text; put it in quotes"),
        ("state: {sync: perhaps}", "state.sync: got 'perhaps'; expected true or false"),
        ("signals: {half_lives_days: abc}", "signals.half_lives_days: got 'abc'; expected a list"),
        ("serving: 7", "serving: got 7; expected a group of keys"),
        ("serving: {threads: null}", "serving.threads: got nothing; expected a whole number"),
        ("actions: [view]", "actions: got ['view']; expected a group of keys"),
        ("model: {backbone: lstm}", "model.backbone: got 'lstm'; expected 'hstu', 'sasrec' or 'off'"),
        ("signals: {half_lives_days: [1, two]}", "signals.half_lives_days.1: got 'two'; expected a finite number"),
        ("signals: {half_lives_days: [1, 0]}", "signals.half_lives_days.1: got 0; expected a number above 0"),
        ("model: {dim: 10, heads: 3}", "heads is 3 and dim is 10; expected heads that divide dim"),
        ("model: {gate: {window: 9, min_groups: 10}}", "got window 9 with min_groups 10; expected as many at least"),
        ("serving: {tokens: [one, '']}", "serving.tokens.1: got a blank token; expected text in each, or []"),
        ("serving: {tokens: [' ']}", "serving.tokens.0: got a blank token"),
        ("serving: {tls_key: a.pem}", "expected tls_certificate and tls_key together"),
    ],
)
def test_a_wrong_value_is_told_in_plain_words(tmp_path, text, expected):
    path = write(tmp_path, f"# first line\n{text}\n")
    found = message(path)
    assert found.startswith(f"{path}:2: ")
    assert expected in found


def test_all_mistakes_are_said_at_once_in_the_order_in_which_they_stand(tmp_path):
    base = write(tmp_path, "state: {history: 1}\n", "base.yaml")
    text = """\
extends: base.yaml
goals:
  action_weights: {purchas: 1}
model:
  backbone: hstuu
  dim: 8
  dim: 9
actions:
  purchase: {wieght: 1}
  refund: {weight: -1}
serving: {port: -1, prot: 7}
broker:
  prefix: !!python/object/apply:os.getcwd []
"""
    path = write(tmp_path, text)
    environment = {"DRIFTLINE__SERVING__PROCESES": "2", "DRIFTLINE_STATE_ROOT": "x"}
    with pytest.raises(ConfigError) as caught:
        load(path, environment)
    expected = [
        (f"{base}:1: state.history: got 1", "at least 8"),
        (f"{path}:3: goals.action_weights.purchas: got an action that neither", "did you mean 'purchase'?"),
        (f"{path}:5: model.backbone: got 'hstuu'; expected 'hstu', 'sasrec' or 'off'", "did you mean 'hstu'?"),
        (f"{path}:7: model.dim stands there twice", "keep one"),
        (f"{path}:9: unknown key 'actions.purchase.wieght'", "did you mean 'actions.purchase.weight'?"),
        (f"{path}:10: actions.refund: got weight -1 with positive true", "expected positive: false"),
        (f"{path}:11: serving.port: got -1", "at least 0"),
        (f"{path}:11: unknown key 'serving.prot'", "did you mean 'serving.port'?"),
        (f"{path}:13: got a value of type ", "expected plain YAML"),
        ("environment DRIFTLINE_STATE_ROOT: expected two underscores", "DRIFTLINE__STATE__ROOT"),
        ("DRIFTLINE__SERVING__PROCESES: unknown key", "did you mean 'serving.processes'?"),
    ]
    for fault, (start, words) in zip(caught.value.faults, expected, strict=True):
        assert fault.startswith(start)
        assert words in fault
    told = str(caught.value).splitlines()
    assert told[0] == "11 mistakes in the settings:"
    assert [line.strip() for line in told[1:]] == list(caught.value.faults)


def test_a_goal_may_name_an_action_of_a_preset_and_no_other(tmp_path):
    text = "actions: {sale: {weight: 1}}\ngoals: {action_weights: {sale: 1, like: 1, sael: 2}}\n"
    told = message(write(tmp_path, text))
    assert "own.yaml:2: goals.action_weights.sael: got an action that neither" in told
    assert told.endswith("did you mean 'sale'?")
    assert load(write(tmp_path, text.replace(", sael: 2", "")), {}).settings.goals.action_weights["like"] == 1


def test_variables_that_look_like_settings_and_are_none_are_told():
    environment = {
        "DRIFTLINE_CONFG": "x",
        "DRIFTLINE_CONFIG": "ecommerce",
        "DRIFTLNE__SERVING__PORT": "1",
        "DRIFTLINE_SERVING_SERVICE_HOST": "10.0.0.1",
        "DRIFTLINE_BROKER_PORT_9092_TCP_ADDR": "10.0.0.2",
        "DRIFTLINE_SERVING_PORT": "tcp://10.0.0.1:50551",
        "PYTEST__X": "",
        "PATH": "/bin",
    }
    assert strays(environment) == [
        "environment DRIFTLINE_CONFG is read by nothing; settings are DRIFTLINE__SECTION__KEY; "
        "did you mean 'DRIFTLINE_CONFIG'?",
        "environment DRIFTLNE__SERVING__PORT is read by nothing; did you mean 'DRIFTLINE__SERVING__PORT'?",
    ]


def test_a_missing_file_names_the_presets_and_what_is_near(tmp_path):
    found = message("ecomerce")
    assert found.startswith("settings: got 'ecomerce'; expected a preset (default, ecommerce, media, news, sessions)")
    assert found.endswith("did you mean 'ecommerce'?")
    assert "check the name or the path" in message("no/such/file.yaml")
    (tmp_path / "driftline.yaml").write_text("name: mine\n")
    for wrong in (tmp_path, tmp_path / "driftlin.yml"):
        assert message(wrong).endswith(f"did you mean '{tmp_path / 'driftline.yaml'}'?")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("serving:\n  port: [1\n", 2),
        ("actions:\n  play: {weight: 1.0\n# a word\n\ngoals: {by: value}\n", 2),
        ("signals: {context: [device\nserving: {port: 1}\n", 1),
        ("signals: {\n  context: [a],\n  age_unit_days: 2\n  context_values: 3}\n", 3),
        ("name: a\nserving\n  port: 1\n", 2),
        ("name: a\nport:1\nserving: {}\n", 2),
        ('name: "mine\nserving: {host: "a"}\n', 1),
        ("name: 'mine\nserving: {}\n", 1),
        ("serving:\n  port: 1\n   threads: 2\n", 3),
        ("serving:\n    port: 1\n  threads: 2\n", 3),
        ("name: x\nserving: {port: 1}}\nstate: {}\n", 2),
        ("name: a: b\n", 1),
        ("name: |\n  a\n b\nserving: {}\n", 3),
    ],
)
def test_a_syntax_error_names_the_line_to_mend_and_not_the_one_after_it(tmp_path, text, line):
    path = write(tmp_path, text)
    assert message(path).startswith(f"{path}:{line}: is not YAML: ")


def test_an_unknown_group_and_a_value_below_its_key_are_told_with_the_line_of_the_key(tmp_path):
    path = write(tmp_path, "name: a\nservng:\n  port: 1\nsignals:\n  half_lives_days:\n    - x\n")
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    unknown, list_, *_ = caught.value.faults
    assert unknown.startswith(f"{path}:2: unknown key 'servng'; did you mean 'serving'?")
    assert list_.startswith(f"{path}:5: signals.half_lives_days")


def test_what_is_said_of_files_is_checked_all_at_once_with_what_is_near(tmp_path):
    text = """\
extends: media
event_files:
  map:
    usr_id: listener
    user_id: id
    item_id: id
    timestamp_ms: ""
    action: event
  header: [id, at, id]
  time: ISO8601
  zone: Europe/Berln
  action_below_zero: return
item_files:
  map: {titel: name}
  time: "%d %Q"
  decimals: ","
"""
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    expected = [
        (4, "event_files.map.usr_id: there is no such field; expected any of user_id, ", "did you mean 'user_id'?"),
        (6, "event_files.map.item_id: got 'id', which is user_id already", "expected another column"),
        (7, "event_files.map.timestamp_ms: got no column", "every row must have this field"),
        (9, "event_files.header: names 'id' twice", "expected a name for each column"),
        (10, "event_files.time: got 'ISO8601'; expected s, ms, us, ns, iso, dmy, mdy, 's since", "mean 'iso'?"),
        (11, "event_files.zone: got zone 'Europe/Berln'", "did you mean 'Europe/Berlin'?"),
        (12, "event_files.action_below_zero: column 'event' says the action of each row", "one of the two"),
        (14, "item_files.map.titel: there is no such field", "did you mean 'title'?"),
        (15, "item_files.time: got '%d %Q': ", "expected s, ms"),
        (16, "unknown key 'item_files.decimals'", "did you mean 'item_files.decimal'?"),
    ]
    for fault, (line, start, words) in zip(caught.value.faults, expected, strict=True):
        assert fault.startswith(f"{path}:{line}: {start}"), fault
        assert words in fault


def test_the_time_from_which_a_unit_counts_is_checked(tmp_path):
    text = "name: mine\nextends: media\nevent_files: {time: s since %s}\n"
    for start in ("2018-02-01", "2018/02/01", "2018-02-01 00:00 UTC"):
        assert load(write(tmp_path, text % start), {}).settings.event_files.time == f"s since {start}"
    with pytest.raises(ConfigError, match="'2018-13-01' is no time; expected s, ms"):
        load(write(tmp_path, text % "2018-13-01"), {})
    with pytest.raises(ConfigError, match="'2018W05' is no time"):
        load(write(tmp_path, text % "2018W05"), {})


def test_columns_that_can_hardly_be_meant_are_noted(tmp_path):
    text = """\
extends: media
event_files:
  map: {user_id: id, price: cost, value: cost, timestamp_ms: day+tim}
  header: [id, cost, day, time]
  action_from: {lik: 4, like: 5}
  action: dislike
"""
    path = write(tmp_path, text)
    loaded = load(path, {})
    found = {words for _, words in doubts_of_files(loaded.settings, loaded.origins)}
    assert found == {
        "event_files.map: column 'cost' is price and value",
        "event_files.map.timestamp_ms: 'tim' is not among the names of event_files.header; did you mean 'time'?",
        "event_files.action_from.lik: 'lik' is not under `actions`: a file with such rows is refused; did you mean "
        "'like'?",
    }
    double = write(tmp_path, "event_files: {action_from: {like: 4, love: 4.0}}\n")
    assert "event_files.action_from: got 4 for like and love; expected a least value for each" in message(double)


def test_a_tab_and_a_control_character_are_one_sentence(tmp_path):
    assert "is not YAML" in message(write(tmp_path, "serving:\n\tport: 1\n"))
    assert "is not YAML" in message(write(tmp_path, "serving: \x07\n"))


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_bytes(b"serving: \xff\xfe\n")
    assert "is not UTF-8 at byte 9" in message(path)


def test_a_file_of_something_else_is_refused(tmp_path):
    assert "got ['a', 'b']; expected sections of settings" in message(write(tmp_path, "[a, b]\n"))


def test_a_key_that_stands_there_twice_is_refused(tmp_path):
    path = write(tmp_path, "serving:\n  port: 1\n  port: 2\n")
    assert message(path) == f"{path}:3: serving.port stands there twice; keep one"


def test_a_python_object_in_a_file_is_never_made(tmp_path):
    assert "expected plain YAML" in message(write(tmp_path, "name: !!python/object/apply:os.getcwd []\n"))


def test_files_that_extend_each_other_are_refused(tmp_path):
    write(tmp_path, "extends: b.yaml\n", "a.yaml")
    write(tmp_path, "extends: a.yaml\n", "b.yaml")
    assert "extends itself: a.yaml -> b.yaml -> a.yaml" in message(tmp_path / "a.yaml")


def test_extending_what_is_not_there_names_the_line(tmp_path):
    path = write(tmp_path, "name: x\nextends: shoop\n")
    assert message(path).startswith(f"{path}:2: extends: got 'shoop'; expected a preset")


def test_an_environment_value_that_is_no_list_is_told():
    found = message(None, {"DRIFTLINE__SIGNALS__HALF_LIVES_DAYS": "[a"})
    assert found == "environment DRIFTLINE__SIGNALS__HALF_LIVES_DAYS: got '[a'; expected a list or group as in YAML"
    assert "expected DRIFTLINE__SECTION__KEY" in message(None, {"DRIFTLINE__SERVING____PORT": "1"})


def test_presets_are_those_that_ship():
    assert presets() == ["default", "ecommerce", "media", "news", "sessions"]


def test_a_report_tells_the_variables_that_change_results_and_no_secret():
    environment = {
        "DRIFTLINE__MODEL__COPYING": "false", "DRIFTLINE__LLM__API_KEY": "k", "DRIFTLINE__BROKER__SASL_PASSWORD": "p",
        "driftline__state__groups": "sessions", "DRIFTLINE__SERVING__PORT": "1", "DRIFTLINE_TOKEN": "t", "PATH": "/",
    }  # fmt: skip
    assert told(environment) == [("DRIFTLINE__MODEL__COPYING", "false"), ("driftline__state__groups", "sessions")]
    assert not {section for section in RESULTS if is_secret((section, *SECRETS.get(section, ())))}
