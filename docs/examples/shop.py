"""An application of driftline: sends an item and an event, reads its own write, asks for a list, and follows.

python shop.py USER KAFKA SERVICE     # needs driftline-client and kafka-python
"""

from __future__ import annotations

import json
import sys
import time
import uuid

from kafka import KafkaProducer

from driftline.client import Client


def main(user_id: str, bootstrap: str, address: str) -> None:
    """Prints a line for each step."""
    producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all")

    def send(topic: str, key: str, record: dict[str, object]) -> int:
        """Offset at which the broker has the record; the key decides on the partition."""
        return producer.send(topic, key=key.encode(), value=json.dumps(record).encode()).get(timeout=10).offset

    def took(item_id: str) -> int:
        """The user buys an item; with an id of its own, an event that is sent twice counts once."""
        event = {"user_id": user_id, "item_id": item_id, "action": "purchase", "value": 1}
        times = {"timestamp_ms": time.time_ns() // 1_000_000, "event_id": str(uuid.uuid4())}
        return send("interactions", user_id, event | times)

    # 1. An item of the catalogue, and an event that names it.
    send("items", "lamp-7", {"item_id": "lamp-7", "title": "Reading lamp", "categories": ["lamps"], "price": 24.5})
    offset = took("lamp-7")
    print(f"sent: offset {offset}")

    # 2. The user's state with that event in it: the stream's first message waits until it is applied.
    with Client(address) as client:
        changes = client.watch(user_id, history=3, min_user_state_version=offset + 1)
        state = next(changes).user_state
        print(f"state: {state.counters.events} events, newest {state.history.item_ids[0]}")

        # 3. What to show next, and why; never from a state older than the purchase.
        answer = client.recommend(user_id, k=5, which="novel", min_user_state_version=offset + 1)
        for item_id, reasons in zip(answer.slate.item_ids, answer.slate.item_reasons, strict=True):
            print(f"list: {item_id}, {', '.join(reasons.reasons)}")

        # 4. Each further event is a message on the open stream.
        took(answer.slate.item_ids[0])
        state = next(changes).user_state
        print(f"change: {state.counters.events} events, newest {state.history.item_ids[0]}")
    producer.close()


if __name__ == "__main__":
    main(*sys.argv[1:4])
