"""What a caller asks of a list beyond its length: keyword arguments of `recommend`, `recommend_batch`, `similar`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from driftline.client.requests import made
from driftline.v1 import recommendation_pb2 as pb


class Steering(TypedDict, total=False):
    """Each may be left out; an item must pass all that are given. Lists hold 100 names at most, `excluded` 10,000 ids.

    A list is filled to its length wherever the model knows enough items that pass; the answer's `provenance.reasons`
    say `few_match` where it does not, and `unknown_category`, `unknown_brand`, `unknown_domain` for names of no item.
    """

    excluded: Sequence[str]
    """Ids of items never to return."""
    domain: str
    """Of the request: items that belong to another one are left out, those that belong to none are not."""
    categories: Sequence[str]
    """Only items that are in one of these."""
    excluded_categories: Sequence[str]
    """No items that are in one of these."""
    brands: Sequence[str]
    """Only items of one of these."""
    excluded_brands: Sequence[str]
    """No items of one of these."""
    domains: Sequence[str]
    """Only items that belong to one of these."""
    min_price: float | None
    """Only items of at least this price; one without a price passes no bound."""
    max_price: float | None
    """Only items of at most this price."""
    diversity: float | None
    """How far apart the items are to be, 0 (by score alone) to 1; None = as the service is configured."""
    min_model_sequence: int
    """Oldest model that may answer, by `provenance.model_sequence`."""


def steered(
    *,
    excluded: Sequence[str] = (),
    domain: str = "",
    categories: Sequence[str] = (),
    excluded_categories: Sequence[str] = (),
    brands: Sequence[str] = (),
    excluded_brands: Sequence[str] = (),
    domains: Sequence[str] = (),
    min_price: float | None = None,
    max_price: float | None = None,
    diversity: float | None = None,
    min_model_sequence: int = 0,
) -> dict[str, Any]:
    """The fields of a request for a list.

    Raises:
        InvalidRequest: a value is of another type.
    """
    names = {
        "categories": categories,
        "excluded_categories": excluded_categories,
        "brands": brands,
        "excluded_brands": excluded_brands,
        "domains": domains,
    }
    bounds = {"min_price": min_price, "max_price": max_price}
    given = {name: value for name, value in bounds.items() if value is not None}
    fields: dict[str, Any] = {"excluded_item_ids": excluded, "domain": domain, "min_model_sequence": min_model_sequence}
    if given or any(names.values()):
        fields["filter"] = made(pb.ItemFilter, **names, **given)
    return fields if diversity is None else {**fields, "diversity": diversity}
