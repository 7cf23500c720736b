"""What configs/modules-load.d and configs/sysctl.d set."""

from __future__ import annotations

from tests.support.logged import ROOT


def lines(directory: str) -> list[str]:
    """All lines that are no comment, of each file in that directory."""
    files = sorted((ROOT / "configs" / directory).glob("*.conf"))
    assert files
    return [line for file in files for line in file.read_text().splitlines() if line and line[0] != "#"]


def sysctls() -> dict[str, list[str]]:
    """The settings of configs/sysctl.d, and the words of each."""
    found = [line.split(" = ") for line in lines("sysctl.d")]
    keys = {key: value.split() for key, value in found}
    assert len(keys) == len(found)
    return keys
