"""Environments for packages that are measured and not depended on: each gets one of its own, made on first use."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from tests.services import ROOT

FOLDER = ROOT / "build" / "benchmarks"


def environment(name: str, requirements: Sequence[str]) -> Path:
    """The interpreter of an environment that has the packages.

    Raises:
        subprocess.CalledProcessError: they cannot be installed.
    """
    folder = FOLDER / name
    interpreter = folder / "bin" / "python"
    stamp = folder / "requirements.json"
    wanted = json.dumps([sys.version, *requirements])
    if not stamp.exists() or stamp.read_text() != wanted:
        venv.create(folder, clear=True, with_pip=True)
        command = [
            interpreter,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            *requirements,
        ]
        subprocess.run(command, check=True)
        stamp.write_text(wanted)
    return interpreter


def installed(interpreter: Path, package: str) -> str:
    """The version of a package there."""
    script = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run(
        [interpreter, "-c", script], check=True, capture_output=True, text=True
    ).stdout.strip()
