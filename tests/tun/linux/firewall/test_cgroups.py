"""Which control groups the filter is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryprq_proxy.errors import ConfigError
from tun.firewall.filter_settings import Cgroup
from tun.linux.firewall import cgroups, nft
from tun.linux.firewall.cgroups import check_cgroups, find_mount, match, parts_of, present
from tun.linux.firewall.nft import NftError

UNIFIED = "sysfs /sys sysfs rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n"
HYBRID = (
    "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n"
    "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n"
    "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
)


@pytest.mark.parametrize(
    ("mounts", "found"),
    [
        (UNIFIED, "/sys/fs/cgroup"),
        (HYBRID, "/sys/fs/cgroup/unified"),
        ("none /mnt/cgroups cgroup2 rw 0 0\n", None),
        ("", None),
        ("garbage\n\n", None),
    ],
)
def test_the_mount(mounts: str, found: str | None) -> None:
    assert find_mount(mounts) == (None if found is None else Path(found))


def test_paths() -> None:
    assert parts_of("/system.slice/backup.service") == ("system.slice", "backup.service")
    assert parts_of("user.slice/user@1000.service/a\\x2db.scope/")[-1] == "a\\x2db.scope"
    for path in ("", "/", "/a/../b", "/a//b", '/a"b', "/a b", "/a\n", "/.hidden", "a/" * 65):
        with pytest.raises(ConfigError, match="--exclude-cgroup: expected the path"):
            parts_of(path)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in place of the mount of a hybrid machine."""
    mounts = tmp_path / "mounts"
    mounts.write_text(f"none {tmp_path}/unified cgroup2 rw 0 0\n")
    monkeypatch.setattr(cgroups, "MOUNTS", mounts)
    monkeypatch.setattr(cgroups, "NFT_ROOT", tmp_path)
    (tmp_path / "unified" / "a.slice" / "b.service").mkdir(parents=True)
    return tmp_path / "unified"


def test_what_is_there(root: Path) -> None:
    (found,) = present(["/a.slice/b.service", "/a.slice/gone.service"])
    assert found[:2] == ("unified/a.slice/b.service", 2)
    assert found.number == (root / "a.slice" / "b.service").stat().st_ino
    assert match(found) == 'socket cgroupv2 level 2 "unified/a.slice/b.service"'
    assert present([]) == frozenset()


def test_without_a_mount(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "MOUNTS", root / "no such file")
    assert present(["/a.slice"]) == frozenset()
    check_cgroups([])
    with pytest.raises(ConfigError, match="none are mounted below"):
        check_cgroups(["/a.slice"])


def test_a_kernel_that_cannot_is_one_sentence(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scripts: list[str] = []
    monkeypatch.setattr(nft, "check", scripts.append)
    check_cgroups(["/a.slice", "/gone.slice"])
    assert match(Cgroup("/", 1, 0)) in scripts[0]
    assert [record.args for record in caplog.records] == [("gone.slice",)]

    def refuse(script: str) -> None:
        raise NftError("not supported")

    monkeypatch.setattr(nft, "check", refuse)
    with pytest.raises(ConfigError, match=r"cannot tell cgroups apart \(not supported\): use --exclude-uid"):
        check_cgroups(["/a.slice"])
