"""The pages of the documentation, and the tables in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
CHANGELOG = ROOT / "CHANGELOG.md"
SECURITY = ROOT / "SECURITY.md"
"""What is supported, and how to report a fault; docs/security.md is about the program."""
ARCHITECTURE = ROOT / "docs" / "architecture.md"
GLOSSARY = ROOT / "docs" / "glossary.md"
PROTOCOL = ROOT / "docs" / "protocol.md"
THREATS = ROOT / "docs" / "threat-model.md"
SYSTEM_WIDE = ROOT / "docs" / "system-wide.md"
UPGRADE = ROOT / "docs" / "uninstall-and-upgrade.md"
MANUAL = [
    ROOT / "docs" / f"{name}.md"
    for name in (
        "quick-start",
        "applications",
        "rules",
        "system-wide",
        "exits-and-carriers",
        "operations",
        "troubleshooting",
        "uninstall-and-upgrade",
        "security",
    )
]
"""What a person reads who runs the program, in the order of the README."""


def table(page: Path, *heads: str) -> list[list[str]]:
    """The cells, without back-ticks, of the one table whose header begins with `heads`."""
    found: list[list[str]] = []
    lines = iter(page.read_text().splitlines())
    for line in lines:
        if line.startswith("| " + " | ".join(heads) + " |"):
            next(lines)
            for row in lines:
                if not row.startswith("|"):
                    break
                cells = re.split(r"(?<!\\)\|", row.strip().strip("|"))
                found.append([cell.strip().replace("`", "").replace("\\|", "|") for cell in cells])
            return found
    raise AssertionError(f"{page.name} has no table with the columns {heads}")
