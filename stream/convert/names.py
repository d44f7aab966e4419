"""What columns are called that hold fields of the schema: lower case, letters and digits alone, likeliest first."""

from __future__ import annotations

import re
import unicodedata

EVENT_NAMES = {
    "user_id": """userid user uid customerid customer customerno customernumber custid clientid client memberid member
        accountid visitorid subscriberid listenerid listener viewerid playerid readerid reviewerid personid profileid
        kundennummer kundenid kundennr kunde kdnr debitorennummer debitorennr debitor idclient numeroclient numclient
        nclient noclient codeclient acheteur idcliente clienteid numerocliente numcliente nrocliente codigocliente
        codcliente cliente klantnummer klantnr klantid klant debiteurnummer debiteurnr username userpseudoid
        anonymousid authorid author""",
    "item_id": """itemid item movieid productid product sku articleid article artikelnummer artikelid artikelnr artikel
        parentasin asin isbn stockcode trackid track songid episodeid podcastid showid contentid videoid gameid appid
        bookid newsid listingid variantid productsku ean gtin adid artistid recipeid courseid jobid pageid iid
        objectid documentid materialnummer materialnr artnr produktnummer produktnr produktid produkt codearticle
        idarticle numeroarticle refarticle referencearticle codeproduit idproduit refproduit referenceproduit produit
        codigoarticulo codarticulo idarticulo articulo codigoproducto codproducto idproducto productoid producto
        artikelcode productnummer productnr productcode""",
    "timestamp_ms": """timestampms timestamp ts eventtime eventtimestamp eventts time datetime createdat occurredat
        unixtime unixreviewtime unixtimestamp epoch orderdate orderedat orderts purchasedate purchasedat invoicedate
        bestelldatum kaufdatum rechnungsdatum datum zeitstempel zeitpunkt zeit playedat listenedat watchedat viewedat
        startedat sentat receivedat loggedat reviewtime date createdon created when at t updatedat bestellzeitpunkt
        bestellzeit auftragsdatum belegdatum buchungsdatum erstelltam datecommande datedecommande dateachat datedachat
        datefacture datevente horodatage fechapedido fechadepedido fechacompra fechadecompra fechafactura fechaventa
        fechahora fecha besteldatum orderdatum aankoopdatum factuurdatum tijdstip datumtijd""",
    "action": """action eventtype event eventname actiontype interactiontype interaction behavior behaviour verb aktion
        type""",
    "event_id": "eventid eventuuid messageid",
    "value": """value rating stars score overall quantity qty menge anzahl stueck watchseconds secondswatched
        secondslistened listenedseconds playseconds watchtime playtime playduration dwelltime duration seconds
        durations progressseconds playcount hoursplayed stueckzahl bestellmenge liefermenge quantite qte cantidad
        unidades aantal hoeveelheid sterne bewertung etoiles estrellas puntuacion valoracion calificacion sterren
        beoordeling waardering""",
    "price": """price unitprice itemprice productprice preis einzelpreis stueckpreis verkaufspreis saleprice priceeach
        artikelpreis bruttopreis nettopreis prixunitaire prixvente prixdevente prixttc prixht prix preciounitario
        preciounidad precioventa precio pvp stuksprijs eenheidsprijs verkoopprijs prijs""",
    "group_id": """groupid basketid orderid ordernumber orderno invoice invoiceno invoicenumber invoiceid transactionid
        bestellnummer bestellnr bestellid bestellungid auftragsnummer auftragsnr auftragid belegnummer belegnr
        rechnungsnummer rechnungsnr bonnummer bonnr numerocommande numerodecommande numcommande ncommande nocommande
        idcommande refcommande referencecommande commande numerofacture numfacture facture numeropedido
        numerodepedido numpedido nropedido npedido nopedido idpedido codigopedido pedido numerofactura numfactura
        factura bestelnummer bestelnr bestellingid ordernummer ordernr factuurnummer factuurnr warenkorbid idpanier
        panier idcarrito carrito winkelwagenid cartid sessionid session usersession visitid""",
    "domain": """domain country market countrycode region shop shopid storeid store locale land laendercode markt
        filiale codepays pays magasin pais tienda landcode winkel""",
}
ITEM_NAMES = {
    "item_id": EVENT_NAMES["item_id"] + " id",
    "title": """title name movietitle producttitle productname itemname itemtitle articlename displayname titel
        bezeichnung artikelbezeichnung produktname artikelname episodetitle tracktitle trackname songtitle
        headline booktitle produktbezeichnung produkttitel artikeltitel titre libelle libellearticle libelleproduit
        designation nomproduit nomarticle nom titulo nombreproducto nombrearticulo nombre denominacion productnaam
        artikelnaam artikelomschrijving naam""",
    "text": """text description productdescription longdescription shortdescription summary overview plot synopsis
        abstract beschreibung langtext body produktbeschreibung artikelbeschreibung kurzbeschreibung descriptif
        descripcion productomschrijving omschrijving beschrijving""",
    "categories": """categories category genres genre tags topics topic categoryname categorycode productcategory
        categorypath kategorie kategorien warengruppe department subject section productgroup
        produktgruppe artikelgruppe categorie famille rayon categoria categorias familia productgroep
        artikelgroep""",
    "brand": """brand brandname marke manufacturer hersteller vendor publisher artist studio label show showtitle
        podcast author director marque fabricant editeur marca fabricante editorial merk fabrikant uitgever""",
    "price": EVENT_NAMES["price"],
    "domain": "domain market shop shopid storeid store markt filiale magasin tienda winkel",  # no place of origin
    "available": """available isavailable instock isinstock active isactive verfuegbar lieferbar enabled disponible
        beschikbaar leverbaar""",
    "valid_from_ms": """validfromms validfrom availablefrom publishedat publishdate published releasedat releasedate
        launchdate""",
}
QUANTITIES = (
    "quantity", "qty", "menge", "anzahl", "stueck", "stueckzahl", "bestellmenge", "liefermenge", "quantite", "qte",
    "cantidad", "unidades", "aantal", "hoeveelheid",
)  # fmt: skip
"""Names of values that are numbers of pieces: those below 0 came back."""
RATINGS = (
    "rating", "stars", "score", "overall", "sterne", "bewertung", "etoiles", "estrellas", "puntuacion", "valoracion",
    "calificacion", "sterren", "beoordeling", "waardering",
)  # fmt: skip
"""Names of values that say how much somebody liked an item, low ones that he didn't."""
OF_PEOPLE = (
    "name",
    "nom",
    "nombre",
    "naam",
    "displayname",
    "author",
    "artist",
    "subject",
    "body",
    "summary",
    "abstract",
)
"""Names of columns that, among events, may well say something about the user."""
PLAIN = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss"})
_TYPE = re.compile(r":(token|float)(_seq)?$")
"""What RecBole's files have behind each name."""
_OTHERS = re.compile(r"[^a-z0-9]+")


def plain_name(name: str) -> str:
    """A name in lower case, letters without accents and digits alone."""
    name = unicodedata.normalize("NFC", _TYPE.sub("", name.strip("\ufeff ").lower())).translate(PLAIN)
    return _OTHERS.sub("", unicodedata.normalize("NFKD", name))


def rank(name: str, names: str) -> int | None:
    """Place of a column's name among those of a field, 0 = likeliest; None = it is not among them.

    Of a nested field the whole path counts, then its last parts: `context.user.id` is also `user.id`, not `id`.
    """
    order = {known: i for i, known in enumerate(names.split())}
    parts = [plain_name(part) for part in name.split(".")]
    for start in range(len(parts)):
        joined = "".join(parts[start:])
        if joined in order and not (start and joined == "id"):
            return order[joined] + 100 * start
    return None
