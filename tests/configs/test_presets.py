"""Presets and every other YAML file: they load, each key is commented, default.yaml is what the schema says."""

from pathlib import Path

import pytest
import yaml

from driftline.configs.files import PRESETS, presets
from driftline.configs.keys import leaves
from driftline.configs.load import load_settings
from driftline.configs.reference import FILE, default_yaml
from driftline.configs.settings import Action, Settings

ROOT = Path(__file__).parents[2]


def yaml_files():
    folders = ("configs", "docker", "tests")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.y*ml"))


@pytest.mark.parametrize("path", yaml_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_yaml_file_loads(path):
    assert list(yaml.safe_load_all(path.read_text("utf-8")))


@pytest.mark.parametrize("name", presets())
def test_a_preset_loads_and_bears_its_name(name):
    assert load_settings(name).name == name


def test_default_yaml_is_what_the_schema_says():
    """After a change of configs/settings.py run `python -m driftline.configs.reference`."""
    assert FILE.read_text("utf-8") == default_yaml()


def test_default_yaml_changes_no_default():
    assert load_settings("default") == Settings()


def test_every_key_of_the_schema_stands_in_default_yaml():
    tree = yaml.safe_load(FILE.read_text("utf-8"))
    for key, _ in leaves(Settings()):
        node = tree
        for name in key.split("."):
            assert name in node, key
            node = node[name]


def test_every_key_of_the_schema_has_a_description():
    def missing(model, prefix):
        for name, info in model.model_fields.items():
            inner = info.annotation
            if isinstance(inner, type) and hasattr(inner, "model_fields"):
                yield from missing(inner, f"{prefix}{name}.")
            elif not info.description:
                yield f"{prefix}{name}"

    assert list(missing(Settings, "")) + list(missing(Action, "actions.*.")) == []


@pytest.mark.parametrize("name", ["ecommerce", "media", "sessions", "news"])
def test_every_line_of_a_preset_is_commented(name):
    above = ""
    for line in (PRESETS / f"{name}.yaml").read_text("utf-8").splitlines():
        assert not line or "# " in line or above.startswith("#"), line
        above = line


def test_a_shop_wants_purchases_and_takes_returns_back():
    shop = load_settings("ecommerce")
    wanted = {name for name, action in shop.actions.items() if action.positive}
    assert wanted == {"interact", "purchase"}
    assert shop.action("return").weight < 0
    assert shop.action("view").weight < shop.action("cart").weight < shop.action("purchase").weight


@pytest.mark.parametrize(
    ("action", "value", "wanted"),
    [
        ("rate", 4.0, True),
        ("rate", 3.5, False),
        ("rate", None, True),
        ("play", 30.0, True),
        ("play", 29.0, False),
        ("play", float("nan"), True),
        ("skip", None, False),
        ("something new", 1.0, True),
    ],
)
def test_media_wants_what_was_watched_or_rated_well(action, value, wanted):
    assert load_settings("media").action(action).wanted(value) is wanted


def test_interest_in_media_fades_faster_than_in_a_shop():
    shop, media = load_settings("ecommerce"), load_settings("media")
    assert media.signals.half_lives_days < shop.signals.half_lives_days
    assert media.signals.user_half_life_days < shop.signals.user_half_life_days
    assert media.model.max_len < shop.model.max_len


@pytest.mark.parametrize("name", presets())
def test_half_lives_run_from_short_to_long(name):
    half_lives = load_settings(name).signals.half_lives_days
    assert list(half_lives) == sorted(set(half_lives))


@pytest.mark.parametrize("name", ["ecommerce", "media", "sessions", "news"])
def test_the_prompts_of_a_preset_exist(name):
    assert (PRESETS / "prompts" / f"{load_settings(name).profiles.prompts}.yaml").is_file()
