"""What is handed out: the source distribution holds the whole tree, and a wheel made of it all that is needed after."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest

from cryprq_proxy import __version__
from tests.support.logged import ROOT
from tools.manpages import pages

pytestmark = pytest.mark.process


def build(tree: Path, target: str, into: Path) -> Path:
    """The one file that hatchling makes of `tree`: "sdist" or "wheel"."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(into)]
    subprocess.run(command, cwd=tree, check=True, capture_output=True)
    (made,) = into.iterdir()
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def installed(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of an environment with the wheel that the unpacked sdist makes, and the libraries of this one."""
    directory = tmp_path_factory.mktemp("installed")
    with tarfile.open(sdist) as archive:
        archive.extractall(directory / "unpacked", filter="data")
    (unpacked,) = (directory / "unpacked").iterdir()
    wheel = build(unpacked, "wheel", directory / "wheel")
    environment = directory / "environment"
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    offline = ["--disable-pip-version-check", "--no-index", "--no-deps", "--quiet"]
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", *offline, str(wheel)], check=True
    )
    # Files of this kind in there are not read again, so the tree of an editable install stays out.
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin"


def in_git() -> set[str]:
    """The files of this tree that .gitignore lets through."""
    if not (ROOT / ".git").exists():
        pytest.skip("this tree is not a clone, and git cannot say what belongs to it")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return {name for name in listed.split("\0") if name and (ROOT / name).is_file()}


def test_the_sdist_holds_what_git_does(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert held - {"PKG-INFO"} == in_git()


def test_a_wheel_reads_the_files_that_come_with_it(installed: Path) -> None:
    """Every one, byte for byte, from inside of the package."""
    names = sorted(
        str(path.relative_to(ROOT / "configs")) for path in (ROOT / "configs").rglob("*") if path.is_file()
    )
    assert "cryprq-exit.service" in names
    script = (
        "import sys; from cryprq_proxy.base import package_data\n"
        "assert package_data.__file__.startswith(sys.prefix), package_data.__file__\n"
        "for name in sys.argv[1:]: sys.stdout.write(package_data.read(name))"
    )
    python = [str(installed / "python"), "-I", "-c", script, *names]
    read = subprocess.run(python, cwd=installed, check=True, capture_output=True, text=True).stdout
    assert read == "".join((ROOT / "configs" / name).read_text(encoding="utf-8") for name in names)


def test_a_wheel_brings_the_program(installed: Path) -> None:
    told = subprocess.run(
        [installed / "cryprq-proxy", "--version"], check=True, capture_output=True, text=True
    )
    assert told.stdout == f"cryprq-proxy {__version__}\n"


def test_a_wheel_brings_the_man_pages(installed: Path) -> None:
    """Where man looks beside a directory of the PATH."""
    held = {path.name: path.read_text() for path in (installed.parent / "share" / "man").glob("man?/*")}
    assert held == {file.name: text for file, text in pages().items()}
