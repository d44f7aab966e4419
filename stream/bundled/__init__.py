"""The bundled shop: a year of invoices of a gift wholesaler as events and items (see NOTICE.md)."""

from __future__ import annotations

from pathlib import Path

EVENTS = Path(__file__).parent / "events.parquet"
ITEMS = Path(__file__).parent / "items.parquet"
PROFILES = Path(__file__).parents[2] / "configs" / "profiles" / "online_retail.jsonl.gz"
"""Profiles that a language model wrote for this shop; optional."""
