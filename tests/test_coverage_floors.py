"""The figures of the coverage report by package, and what is said about them."""

from __future__ import annotations

import pytest

from tests.coverage_floors import below, package_of, percents


@pytest.mark.parametrize(
    ("path", "package"),
    [
        ("cryprq_proxy/carriers/dial/race.py", "cryprq_proxy/carriers"),
        ("cryprq_proxy/cli.py", "cryprq_proxy"),
        ("tun/dns/names.py", "tun/dns"),
    ],
)
def test_a_file_counts_for_its_package(path: str, package: str) -> None:
    assert package_of(path) == package


def test_the_lines_of_all_files_count() -> None:
    summary = {"covered_lines": 3, "num_statements": 4}
    empty = {"covered_lines": 0, "num_statements": 8}
    assert percents({"tun/a.py": {"summary": summary}, "tun/b.py": {"summary": empty}}) == {"tun": 25.0}


def test_what_is_below_its_floor_or_unknown_is_told() -> None:
    assert below({"tun": 80.0}, {"tun": 80}) == []
    assert below({"tun": 79.9, "new": 5.0}, {"tun": 80, "gone": 1}) == [
        "tun: 79.9 % is below the floor of 80 %",
        "new: give it a floor",
        "gone: no such package",
    ]
