"""Systems that are switched as a whole: their overlays, and what is said of switches that there are not."""

from itertools import product

import pytest

from driftline.configs.errors import ConfigError
from driftline.configs.load import load, load_settings, switched
from driftline.configs.settings import Settings
from driftline.configs.switches import arms_of, refuse_evaluation, systems


def write(tmp_path, text):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(("name", "arm"), [(n, arm) for n in systems() for arm in arms_of(n)])
def test_every_arm_of_every_system_is_settings(name, arm):
    settings = switched(Settings(), {name: arm})
    assert settings.systems[name] == arm
    assert load("default", {f"DRIFTLINE__SYSTEMS__{name.upper()}": arm}).settings == settings


def test_every_system_is_on_and_off():
    assert all({"on", "off"} <= set(arms_of(name)) for name in systems())
    assert {found.row for found in systems().values() if found.row} == {6, 11}


def test_a_switch_lies_over_the_file_and_under_the_environment(tmp_path):
    path = write(tmp_path, "systems: {hstu: off}\nmodel: {backbone: sasrec}\n")
    assert load(path, {}).settings.model.backbone == "off"
    assert load(path, {"DRIFTLINE__MODEL__BACKBONE": "hstu"}).settings.model.backbone == "hstu"
    assert load(path, {}).origins["model.backbone"].endswith("systems/hstu.yaml:5")


def test_a_variable_may_hold_all_switches_and_an_empty_group_takes_those_of_a_preset_away(tmp_path):
    path = write(tmp_path, "systems: {hstu: off}\n")
    settings = load(path, {"DRIFTLINE__SYSTEMS": "{dynllm: placebo}"}).settings
    assert (settings.systems, settings.model.backbone) == ({"dynllm": "placebo", "profiles": "placebo"}, "hstu")
    over = tmp_path / "over.yaml"
    over.write_text("extends: own.yaml\nsystems: {}\n")
    assert load(over, {}).settings == Settings()


@pytest.mark.parametrize("order", [("dynllm", "profiles"), ("profiles", "dynllm")])
def test_what_is_named_overrules_what_a_system_switches(tmp_path, order):
    said = {"dynllm": "placebo", "profiles": "on"}
    path = write(tmp_path, "systems:\n" + "".join(f"  {name}: {said[name]}\n" for name in order))
    assert load_settings(path).systems == switched(Settings(), {name: said[name] for name in order}).systems == said


def test_a_system_that_is_off_leaves_its_ingredients_off():
    off = switched(Settings(), {"dynllm": "off"})
    assert (off.graph.weights, off.systems["profiles"], off.serving.follow_profiles) == ("off", "off", False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("systems:\n  hstv: off\n", "own.yaml:2: systems.hstv: got a system that is not known here; expected any of"),
        ("systems:\n  hstv: off\n", "did you mean 'hstu'"),
        ("systems: {hstu: template}\n", "own.yaml:1: systems.hstu: got 'template'; expected any of on, off, placebo"),
        ("systems: {hstu: true}\n", "own.yaml:1: systems.hstu: got True; expected"),
        ("systems: {hstu: {on: 1}}\n", "systems.hstu"),
        ("systems: on\n", "systems: got 'on'; expected a group of keys"),
    ],
)
def test_a_switch_that_there_is_not_is_told_with_its_place(tmp_path, text, said):
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text), {})
    assert said in str(caught.value)
    with pytest.raises(ConfigError, match=r"systems\.hstv: got a system"):
        switched(Settings(), {"hstv": "on"})


def test_a_live_process_refuses_what_only_a_replay_can_tell():
    for name, arm in product(("profiles", "text", "hstu"), ("on", "off")):
        refuse_evaluation({name: arm})
    refuse_evaluation({"hstu": "placebo"})
    with pytest.raises(ConfigError, match=r"systems\.profiles: got placebo.*takes on or off or template"):
        refuse_evaluation(switched(Settings(), {"dynllm": "placebo"}).systems)


def test_the_settings_name_every_system_that_they_switch():
    words = Settings.model_fields["systems"].description
    assert [name for name in systems() if f"{name}," not in words] == []
