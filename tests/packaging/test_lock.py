"""The lock holds a release, with its hash, of everything that ``pyproject.toml`` asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def wanted(*extras: str) -> list[Requirement]:
    """What an installation with these extras asks for, extras within extras included."""
    found = []
    for text in [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]:
        requirement = Requirement(text)
        if requirement.name == PROJECT["name"]:
            found += wanted(*requirement.extras)
        else:
            found.append(requirement)
    return found


def locked(name: str) -> dict[str, list[Version]]:
    """The releases in a file of the lock, by canonical name; one name may have several, for different Pythons."""
    found: dict[str, list[Version]] = {}
    for entry in re.split(r"\n(?=\S)", (ROOT / "config" / "locked" / f"{name}.txt").read_text()):
        pinned = re.match(r"([\w.-]+)(?:\[[^]]*\])?==([^ ;]+)", entry)
        assert pinned is not None, entry
        assert "--hash=sha256:" in entry, f"{pinned[1]} has no hash"
        found.setdefault(canonicalize_name(pinned[1]), []).append(Version(pinned[2]))
    return found


@pytest.mark.parametrize(
    ("name", "extras"), [("core", ["build"]), ("dev", ["dev", "bench"]), ("oldest", ["test"])]
)
def test_the_lock_answers_what_the_project_asks(name: str, extras: list[str]) -> None:
    releases = locked(name)
    for requirement in wanted(*extras):
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        found = releases.get(canonicalize_name(requirement.name))
        assert found, f"{requirement} is not locked: run `make lock`"
        assert all(requirement.specifier.contains(version) for version in found), f"{requirement}: {found}"


def test_the_oldest_set_is_as_old_as_the_project_promises() -> None:
    releases = locked("oldest")
    for requirement in wanted():
        (lowest,) = (Version(s.version) for s in requirement.specifier if s.operator == ">=")
        (found,) = releases[canonicalize_name(requirement.name)]
        assert found.release[: len(lowest.release)] == lowest.release, f"{requirement}: locked {found}"
