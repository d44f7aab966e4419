"""`driftline query forget`: the service writes the request, and says where it lies."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner

from driftline.serving.server import Server
from driftline.stream.cli import app
from driftline.stream.process.forget import forgotten_user


def test_the_service_is_asked_to_forget_a_user(world: Any) -> None:
    world.create_topics()
    tokens = world.root / "tokens.yaml"
    tokens.write_text("tokens: [{token: of-privacy, scopes: [admin]}]")
    tokens.chmod(0o600)
    serving = {
        "port": 0,
        "token_file": tokens,
        "snapshots": world.root / "snapshots",
        "follow_profiles": False,
        "follow_items": False,
    }
    made = world.settings.model_copy(update={"serving": world.settings.serving.model_copy(update=serving)})
    with Server(made) as server:
        address = ["--address", f"127.0.0.1:{server.port}", "--token", "of-privacy"]
        told = CliRunner().invoke(app, ["query", "forget", "u7", *address])
        data = CliRunner().invoke(app, ["query", "forget", "u8", *address, "--json"])
    assert "the request to forget u7 is in partition 0 at offset 0" in told.stdout, told.output
    assert json.loads(data.stdout) == {"user_id": "u8", "partition": 0, "offset": 1}
    assert [forgotten_user(record) for record in world.log()] == ["u7", "u8"]
