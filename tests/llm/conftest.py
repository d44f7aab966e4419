"""Histories in the terms of a gift shop, and the models where they were fetched."""

import pytest

from driftline.configs.settings import LLM, Encoder, Profiles
from driftline.llm.fetch import MINILM, SMOLLM, is_fetched
from driftline.llm.request import CatalogueItem, ProfileRequest, read_request

NOW_MS = 1_290_000_000_000
TITLES = {
    "1": "RED RETROSPOT CAKE STAND",
    "2": "PACK OF 72 RETROSPOT CAKE CASES",
    "3": "JUMBO BAG RED RETROSPOT",
    "4": "60 TEATIME FAIRY CAKE CASES",
    "5": "BAKING SET 9 PIECE RETROSPOT",
    "6": "POSTAGE",
    "7": "WHITE HANGING HEART T-LIGHT HOLDER",
    "8": "HOT WATER BOTTLE TEA AND SYMPATHY",
}
CATALOGUE = {item: CatalogueItem(title) for item, title in TITLES.items()}


def shop_request(user_id="17850", items="12345", **fields) -> ProfileRequest:
    record = {
        "user_id": user_id,
        "as_of_ms": NOW_MS,
        "events": 2 * len(items),
        "domain": "United Kingdom",
        "mean_value": 6.0,
        "items": [{"item_id": i, "count": 2, "last_ms": NOW_MS - n} for n, i in enumerate(items)],
    } | fields
    return read_request(record, CATALOGUE, Profiles())


@pytest.fixture
def request_of_a_baker() -> ProfileRequest:
    return shop_request()


@pytest.fixture(scope="session")
def smollm():
    if not is_fetched(SMOLLM):
        pytest.skip("SmolLM2 was not fetched: run `python -m driftline.llm.fetch`")
    from driftline.llm.smollm import SmolLMClient

    return SmolLMClient(LLM())


@pytest.fixture(scope="session")
def minilm(tmp_path_factory):
    if not is_fetched(MINILM):
        pytest.skip("MiniLM was not fetched: run `python -m driftline.llm.fetch`")
    from driftline.llm.encoder import TextEncoder

    return TextEncoder(Encoder(cache=tmp_path_factory.mktemp("encodings") / "vectors.sqlite"))
