"""base/package_data.py in the tree; tests/test_packages.py has the same from a wheel."""

from __future__ import annotations

import pytest

from cryprq_proxy.base.package_data import read
from tests.support.logged import ROOT


@pytest.mark.parametrize("name", ["exit.toml", "cryprq-exit.service", "sysctl.d/cryprq.conf"])
def test_a_tree_has_them_in_configs(name: str) -> None:
    assert read(name) == (ROOT / "configs" / name).read_text(encoding="utf-8")


def test_what_does_not_come_with_the_program_is_told_by_its_path() -> None:
    with pytest.raises(FileNotFoundError, match=r"configs/no-such\.toml"):
        read("no-such.toml")
