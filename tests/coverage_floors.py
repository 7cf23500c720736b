"""Compare the coverage of the unit tests with the floor of each package. Floors rise, and never fall.

    python -m tests.coverage_floors .coverage.json

The figures are percents of lines, as pytest-cov writes them to JSON. Parts that only root or another
process reaches count as not covered: tests/e2e and tests/lab reach them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FLOORS = {
    "cryprq_proxy": 97,
    "cryprq_proxy/base": 97,
    "cryprq_proxy/carriers": 96,
    "cryprq_proxy/client": 96,
    "cryprq_proxy/commands": 84,
    "cryprq_proxy/config": 97,
    "cryprq_proxy/crypto": 98,
    "cryprq_proxy/doctor": 55,
    "cryprq_proxy/exit": 97,
    "cryprq_proxy/fronts": 96,
    "cryprq_proxy/lane": 98,
    "cryprq_proxy/outbound": 93,
    "cryprq_proxy/pairing": 94,
    "cryprq_proxy/process": 94,
    "cryprq_proxy/recovery": 97,
    "cryprq_proxy/rules": 98,
    "cryprq_proxy/service": 94,
    "cryprq_proxy/session": 98,
    "cryprq_proxy/web": 97,
    "tun": 97,
    "tun/device": 97,
    "tun/dns": 97,
    "tun/firewall": 97,
    "tun/leaktest": 94,
    "tun/linux": 89,
    "tun/macos": 92,
    "tun/resolver": 96,
    "tun/routing": 96,
}
"""A point below what was measured, since a few lines depend on timing."""


def package_of(path: str) -> str:
    """`cryprq_proxy/carriers/dial/race.py` counts for carriers, modules beside the packages for cryprq_proxy."""
    parts = Path(path).parts
    return "/".join(parts[:2]) if len(parts) > 2 else parts[0]


def percents(files: Mapping[str, Any]) -> dict[str, float]:
    """The coverage of each package."""
    covered: dict[str, int] = {}
    possible: dict[str, int] = {}
    for path, file in files.items():
        package, summary = package_of(path), file["summary"]
        covered[package] = covered.get(package, 0) + summary["covered_lines"]
        possible[package] = possible.get(package, 0) + summary["num_statements"]
    return {package: 100 * covered[package] / total for package, total in possible.items() if total}


def below(figures: Mapping[str, float], floors: Mapping[str, int]) -> list[str]:
    """What is wrong, a line each: below its floor, without a floor, or without a package."""
    wrong = [
        f"{package}: {figures[package]:.1f} % is below the floor of {floor} %"
        for package, floor in floors.items()
        if package in figures and figures[package] < floor
    ]
    wrong += [f"{package}: give it a floor" for package in sorted(figures.keys() - floors.keys())]
    return wrong + [f"{package}: no such package" for package in sorted(floors.keys() - figures.keys())]


def main() -> int:
    figures = percents(json.loads(Path(sys.argv[1]).read_text("utf-8"))["files"])
    for package, percent in sorted(figures.items()):
        print(f"{package:28} {percent:5.1f} %  (floor {FLOORS.get(package, 0)} %)")
    wrong = below(figures, FLOORS)
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
