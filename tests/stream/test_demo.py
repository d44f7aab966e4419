"""What people see of the demo."""

from __future__ import annotations

import io

from rich.console import Console

from serving.proto.driftline.v1 import recommendation_pb2 as pb
from stream.demo.show import show_purchase


def answer(*titles: str) -> pb.RecommendResponse:
    return pb.RecommendResponse(slate=pb.Slate(item_ids=[title[:2] for title in titles], titles=titles))


def test_a_purchase_names_customer_and_item_and_marks_what_is_new_in_the_list() -> None:
    customer = pb.UserState(user_id="13085", domain="EIRE", profile=pb.Profile(text="Likes [tea].", source="template"))
    seen = io.StringIO()
    before, after = answer("MUG", "CAKE STAND", "JAR"), answer("TEA [RED] POT", "MUG", "JAR")
    show_purchase(Console(file=seen, width=100), customer, "84991", "60 CAKE CASES", before, after)
    first, *lines = seen.getvalue().splitlines()
    assert first == "customer 13085 (EIRE) buys 60 Cake Cases (item 84991)"
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert cells == [["1", "Mug", "Tea [Red] Pot (new)"], ["2", "Cake Stand", "Mug"], ["3", "Jar", "Jar"]]
    assert "Likes [tea]. (template)" in lines[-1]
