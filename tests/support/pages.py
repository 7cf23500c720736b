"""The pages of the documentation, and the tables in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
GLOSSARY = ROOT / "docs" / "glossary.md"
PROTOCOL = ROOT / "docs" / "protocol.md"
THREATS = ROOT / "docs" / "threat-model.md"


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
