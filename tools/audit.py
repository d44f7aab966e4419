"""Audits the locks for known vulnerabilities and says what came of it: `audit.py PIP_AUDIT`. Ends with 0 or 1.

pip-audit calls a package that its server does not know one without vulnerabilities, and so all of them where a mirror
answers that has no advisories. Here only what was really looked up counts as audited.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOCKS = ("requirements.lock", "requirements-dev.lock", "requirements-torch.lock", "tools/requirements.lock")
TIMEOUT_S = 300


def main(pip_audit: str) -> int:
    """Prints a line or more; 1 if something vulnerable is locked."""
    text, code = verdict(*asked(pip_audit))
    print(text, file=sys.stderr)
    return code


def asked(pip_audit: str) -> tuple[Mapping[str, Any] | None, str]:
    """What pip-audit found, or None and why it could not say."""
    with tempfile.TemporaryDirectory() as scratch:
        pins, out = Path(scratch) / "pins.txt", Path(scratch) / "audit.json"
        pins.write_text("".join(f"{pin}\n" for pin in locked()), "utf-8")
        command = [pip_audit, "--requirement", str(pins), "--no-deps", "--disable-pip", "--format", "json"]
        try:
            done = subprocess.run(
                [*command, "--progress-spinner", "off", "--output", str(out)],
                capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
            )  # fmt: skip
            return json.loads(out.read_bytes()), ""
        except subprocess.TimeoutExpired:
            return None, f"no answer within {TIMEOUT_S} s"
        except FileNotFoundError as error:
            if error.filename == pip_audit:
                return None, "pip-audit could not be installed"
            return None, (done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1]


def locked() -> set[str]:
    """Every `name==version` of the locks."""
    lines = (line for name in LOCKS for line in (ROOT / name).read_text("utf-8").splitlines())
    return {line.split(" ")[0] for line in lines if line[:1].isalnum()}


def verdict(found: Mapping[str, Any] | None, why: str) -> tuple[str, int]:
    """A text for people, and the exit code."""
    if found is None:
        return f"audit SKIPPED, nothing was audited: {why}", 0
    packages = found["dependencies"]
    skipped = [one["name"] for one in packages if "skip_reason" in one]
    audited = len(packages) - len(skipped)
    bad = [
        f"  {one['name']} {one['version']}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or 'no version'}"
        for one in packages
        for flaw in one.get("vulns", ())
    ]
    if not audited:
        return f"audit SKIPPED, nothing was audited: no server of advisories knows the {len(packages)} packages", 0
    said = f"audit: {audited} packages looked up, {len(bad)} known vulnerabilities"
    if skipped:
        said += f"; NOT audited: {', '.join(sorted(skipped))}"
    return "\n".join([said, *bad]), int(bool(bad))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
