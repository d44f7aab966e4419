"""Which column is meant: found by name and contents, and refused with the alternatives where it is told wrong."""

import pytest

from driftline.configs.errors import InputError
from driftline.configs.settings import EventFiles, ItemFiles
from driftline.stream.convert.guess import EVENTS, ITEMS, mapping_of
from driftline.stream.convert.names import EVENT_NAMES, plain_name, rank
from driftline.stream.convert.numbers import OPEN, sign_of, with_point
from driftline.stream.convert.sources import Sample
from driftline.stream.events.checks import check_column

SECONDS = [1_600_000_000, 1_600_000_060]
FILMS = {"userId": ["1", "2"], "movieId": ["7", "8"], "rating": ["3.5", "4"], "timestamp": list(map(str, SECONDS))}


def mapping(columns, reading=None, kind=EVENTS):
    rows = max(map(len, columns.values()))
    files = (EventFiles if kind is EVENTS else ItemFiles)(**(reading or {}))
    return mapping_of(kind, Sample(list(columns), columns, rows), files, "log.csv")


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (FILMS, ("userId", "movieId", "timestamp", "rating")),
        ({"sku": ["a"], "customer": ["c"], "created_at": ["2024-01-01"]}, ("customer", "sku", "created_at", None)),
        ({"product_id": [1], "User ID": [5], "ts": SECONDS, "qty": [2, 1]}, ("User ID", "product_id", "ts", "qty")),
        ({"Kunden-Nr.": ["K1"], "Artikel": ["a"], "Datum": ["31.12.2024"], "Menge": ["2"]},
         ("Kunden-Nr.", "Artikel", "Datum", "Menge")),
        ({"ctx.user.id": ["u"], "ctx.id": ["x"], "episode_id": ["e"], "when": SECONDS},
         ("ctx.user.id", "episode_id", "when", None)),
        ({"reviewerID": ["u"], "asin": ["a"], "overall": [5.0], "unixReviewTime": SECONDS},
         ("reviewerID", "asin", "unixReviewTime", "overall")),
        ({"user_id:token": ["u"], "item_id:token": ["i"], "rating:float": [3.0], "timestamp:float": SECONDS},
         ("user_id:token", "item_id:token", "timestamp:float", "rating:float")),
        ({"uid": ["u"], "iid": ["i"], "logged": SECONDS}, ("uid", "iid", "logged", None)),
    ],
)  # fmt: skip
def test_columns_are_found_by_their_names(columns, expected):
    found = mapping(columns).columns
    assert tuple(found.get(field) for field in ("user_id", "item_id", "timestamp_ms", "value")) == expected


LANGUAGES = {
    "user_id": "Kundennr. | Kunden-Nr | Debitor | N° client | Id_client | Código cliente | Cliente | Klantnr | Klant",
    "item_id": "Art.-Nr. | Artikelnr | Produkt-ID | Code article | Réf. produit | Artículo | Id producto | Artikelcode",
    "timestamp_ms": "Bestelldatum | Belegdatum | Date de commande | Date achat | Fecha | Fecha pedido | Besteldatum",
    "value": "Menge | Stückzahl | Quantité | Qté | Cantidad | Unidades | Aantal | Hoeveelheid",
    "price": "Einzelpreis | Bruttopreis | Prix unitaire | Prix TTC | Precio | Precio unitario | Stuksprijs | Prijs",
    "group_id": "Bestellnr | Bestell-Nr. | Bestellnummer | Rechnungsnr | Auftragsnr | N° commande | "
    "Numéro de commande | Commande | Facture | Pedido | Nº pedido | Factura | "
    "Bestelnummer | Ordernr | Factuurnummer | Warenkorb-ID",
    "title": "Bezeichnung | Produktbezeichnung | Libellé | Désignation | Título | Nombre | Productnaam | Naam",
    "categories": "Warengruppe | Kategorie | Catégorie | Famille | Categoría | Familia | Productgroep | Categorie",
    "brand": "Marke | Hersteller | Marque | Fabricant | Marca | Merk | Fabrikant",
    "text": "Beschreibung | Produktbeschreibung | Descriptif | Descripción | Omschrijving",
}
"""What German, French, Spanish and Dutch exports call fields."""


@pytest.mark.parametrize(("field", "names"), LANGUAGES.items())
def test_columns_are_found_in_the_languages_of_exports(field, names):
    kind = EVENTS if field in EVENTS.columns else ITEMS
    cells = {"timestamp_ms": "31.12.2024", "value": "2", "price": "2,50"}
    base = {"user_id": ["c"], "item_id": ["a"]} | ({"timestamp_ms": SECONDS} if kind is EVENTS else {})
    base.pop(field, None)
    for name in names.split(" | "):
        found = mapping({**base, name: [cells.get(field, "x")]}, kind=kind)
        assert (found.columns.get(field), found.others) == (name, {}), name


@pytest.mark.parametrize("kind", [EVENTS, ITEMS])
def test_no_name_of_a_column_stands_for_two_fields(kind):
    names = [name for field in kind.names.values() for name in field.split()]
    assert [name for name in names if names.count(name) > 1] == []
    assert all(plain_name(name) == name for name in names)


def test_a_notation_that_does_not_fit_is_named_with_the_column_that_was_found():
    columns = {"user": ["u"], "item": ["i"], "Bestelldatum": ["31.12.2024 10:00"]}
    with pytest.raises(InputError) as refused:
        mapping(columns, {"time": "s"})
    assert (
        "column 'Bestelldatum' holds '31.12.2024 10:00', which is no time in seconds, as --time s says; it looks like "
        "day, month, year: --time dmy; without --time it is guessed"
    ) in str(refused.value)
    with pytest.raises(InputError, match="no column was found for timestamp_ms"):
        mapping({"user": ["u"], "item": ["i"], "colour": ["red"]}, {"time": "s"})


def test_what_a_column_holds_counts_more_than_its_name():
    columns = {"user": ["u"], "item": ["i"], "timestamp": ["none"], "created": ["2024-01-01"], "value": ["high"]}
    found = mapping(columns)
    assert found.columns == {"user_id": "user", "item_id": "item", "timestamp_ms": "created"}
    assert found.left_out == ["timestamp", "value"]
    ids = {"user": ["u", "u"], "item": ["i", "j"], "ts": SECONDS, "event_id": ["1", "1"]}
    assert "event_id" not in mapping(ids).columns, "events of one id are dropped, so ids that repeat are not taken"


def test_further_candidates_are_named():
    assert mapping({**FILMS, "customer": ["a", "b"]}).others == {"user_id": ["customer"]}


def test_items_have_their_own_names():
    columns = {
        "id": [1, 2],
        "product_name": ["Lamp", "Rug"],
        "genres": ["a|b", "c"],
        "maker": ["x"],
        "in_stock": [1, 0],
    }
    found = mapping(columns, kind=ITEMS)
    assert found.columns == {
        "item_id": "id", "title": "product_name", "categories": "genres", "available": "in_stock"
    }  # fmt: skip
    assert found.left_out == ["maker"]


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"user": "userId"}, "there is no field 'user'; did you mean 'user_id'?"),
        ({"user_id": "userID"}, "there is no column 'userID'; did you mean 'userId'? The columns are userId, movieId"),
        ({"timestamp_ms": "rating"}, "'rating' holds '3.5', '4'; expected a time; 'timestamp' could be it"),
        ({"value": "genre"}, "'genre' holds 'Drama', 'War'; expected a number; 'userId', 'movieId', 'rating'"),
        ({"user_id": "movieId", "item_id": "movieId"}, "'movieId' is mapped to user_id and item_id"),
        ({"item_id": "empty"}, "'empty' holds nothing; expected an id; 'userId', 'movieId'"),
        ({"user_id": ""}, "no column was found for user_id"),
    ],
)
def test_a_column_that_is_told_wrong_is_refused_with_what_could_be_meant(told, words):
    with pytest.raises(InputError) as refused:
        mapping({**FILMS, "genre": ["Drama", "War"], "empty": []}, {"map": told})
    assert words in str(refused.value)


def test_a_missing_column_is_named_with_those_that_could_be_it():
    with pytest.raises(InputError) as refused:
        mapping({"who": ["a"], "what": ["b"], "on": ["2024-01-01"]})
    message = str(refused.value)
    assert "no column was found for user_id: got who, what, on; 'who', 'what'" in message
    assert "--map user_id=COLUMN; none was found for item_id either: --map item_id=COLUMN" in message
    with pytest.raises(InputError, match=r"'timestamp' is called so, but holds 'x'"):
        mapping({"user": ["a"], "item": ["b"], "timestamp": ["x"]})
    with pytest.raises(InputError, match="day and month can't be told apart; say which comes first: --time dmy"):
        mapping({"user": ["a"], "item": ["b"], "date": ["01/02/2024"]})
    with pytest.raises(InputError, match=r"the first line holds no names of columns: .* --header user_id"):
        mapping({"196": ["186"], "242": ["302"], "3": ["3"], "881250949": ["891717742"]})


def test_a_date_and_a_time_in_columns_of_their_own_are_joined():
    columns = {"user": ["u"], "item": ["i"], "Datum": ["31.12.2024"], "Uhrzeit": ["23:59"]}
    assert mapping(columns).left_out == ["Uhrzeit"]
    found = mapping(columns, {"map": {"timestamp_ms": "Datum+Uhrzeit"}})
    assert (found.left_out, found.clocks["timestamp_ms"].how) == ([], "dmy")
    assert found.parts["timestamp_ms"] == ["Datum", "Uhrzeit"]
    with pytest.raises(InputError, match=r"there is no column 'Datum\+Zeit'"):
        mapping(columns, {"map": {"timestamp_ms": "Datum+Zeit"}})


def test_a_field_can_be_told_to_have_no_column_and_all_events_an_action():
    columns = {**FILMS, "event": ["a", "b"]}
    assert mapping(columns).columns["action"] == "event"
    assert "action" not in mapping(columns, {"map": {"action": ""}}).columns
    told = mapping(columns, {"action": "rate"})
    assert (told.action, "action" in told.columns) == ("rate", False)


def test_of_nested_fields_the_last_parts_count_but_not_the_bare_id():
    assert rank("context.user.id", EVENT_NAMES["user_id"]) is not None
    assert rank("context.id", EVENT_NAMES["user_id"] + " id") is None
    assert rank("User-ID", EVENT_NAMES["user_id"]) == 0


@pytest.mark.parametrize(
    ("values", "sign"),
    [
        (["12,50", "3"], ","),
        (["1.234,50"], ","),
        (["1,234.50"], "."),
        (["1.234.567"], ","),
        (["1,234,567"], "."),
        (["12.5", "3"], ""),
        (["1,234", "2,345"], OPEN),
        (["1,234", "2,5"], ","),
        (["a,b"], ""),
        ([1.5], ""),
    ],
)
def test_the_decimal_sign_is_taken_where_it_can_be_no_other(values, sign):
    assert sign_of(values) == sign


def test_numbers_are_rewritten_only_where_the_sign_is_known():
    assert [with_point(text, ",") for text in ("1.234,5", "2,5", "7", "1.234", "1.5")] == [
        "1234.5", "2.5", "7", "1234", "1.5"
    ]  # fmt: skip
    assert [with_point(text, ".") for text in ("1,234.5", "2.5", "2,5")] == ["1234.5", "2.5", "2,5"]
    assert with_point("1,234", "") == "1,234"
    prices = {"user": ["u"], "item": ["i"], "ts": SECONDS, "price": ["1,234"]}
    with pytest.raises(InputError, match="is a comma before decimals, or between thousands"):
        mapping(prices)
    assert mapping(prices, {"decimal": ","}).columns["price"] == "price"
    assert mapping({**prices, "price": [1], "place": ["1,234"]}).columns["price"] == "price"


def test_an_items_region_or_country_is_left_out_and_its_shop_a_domain():
    columns = {"Artikelnr": ["1"], "Bezeichnung": ["Riesling"], "Region": ["Mosel"], "Land": ["DE"]}
    assert mapping(columns, kind=ITEMS).left_out == ["Region", "Land"]
    assert mapping({**columns, "Filiale": ["K"]}, kind=ITEMS).columns["domain"] == "Filiale"
    assert mapping(columns, {"map": {"domain": "Region"}}, ITEMS).columns["domain"] == "Region"
    events = {"user": ["u"], "item": ["i"], "ts": SECONDS, "region": ["north"]}
    assert mapping(events).columns["domain"] == "region"


@pytest.mark.parametrize(
    "cells", [["ja", "nein"], ["J", "N"], ["oui", "non"], ["Sí", "No"], ["si", "no"], ["yes", "Y"]]
)
def test_yes_and_no_are_flags(cells):
    for reading in ({}, {"map": {"available": "Lieferbar"}}):
        assert mapping({"sku": ["1"], "Lieferbar": cells}, reading, ITEMS).columns["available"] == "Lieferbar"
    array, problems = check_column("Lieferbar", "flag", cells, range(1, 3), False)
    assert (array.to_pylist(), problems) == ([True, cells[1] == "Y"], [])


def test_what_is_no_flag_is_refused_with_what_is_one():
    with pytest.raises(InputError) as refused:
        mapping({"sku": ["77"], "Lieferbar": ["bald"]}, {"map": {"available": "Lieferbar"}}, ITEMS)
    words = "'Lieferbar' holds 'bald'; expected true or false, 1 or 0, yes or no (ja, oui, si; nein, non)"
    assert f"{words}; no other column could be it" in str(refused.value)


def test_a_named_column_is_taken_by_most_of_what_it_holds():
    columns = {"user": ["u"], "item": ["i"], "ts": SECONDS, "Menge": ["1", "zwei", "3"], "price": ["a", "b", "3"]}
    found = mapping(columns)
    assert found.columns["value"] == "Menge"
    assert found.left_out == ["price"]
