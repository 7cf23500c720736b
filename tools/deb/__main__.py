"""Build dist/cryprq-proxy_VERSION_ARCHITECTURE.deb.

    python -m tools.deb [--into DIRECTORY]

    /usr/lib/cryprq-proxy/                  a CPython of its own, the libraries, the program (as the wheel has it)
    /usr/bin/cryprq-proxy
    /usr/share/man, bash-completion, zsh, fish
    /usr/share/doc/cryprq-proxy/            copyright, changelog, the samples of configs/

There are no units in it: `service install` writes them, with the user and the directories that they need, and the
scripts of the package have that done anew in an upgrade, and undone before a removal.

Debian 12 has no CPython that is new enough, and libraries of machine code fit one CPython only: so the package brings
the CPython that builds it, and is the same on each Debian. It runs where the C library is not older than that of the
machine which builds: build on the oldest Debian that is to have it. From Debian come the C library and OpenSSL
(Depends says what), and with them their security updates; those of CPython come with a new package.

Two builds of one commit by one CPython are the same bytes: all times are that of the commit (SOURCE_DATE_EPOCH). It is
packed by zstd, which Debian reads from 12 on: by xz it is a sixth smaller, and takes eight times as long to build.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from email.utils import formatdate
from pathlib import Path
from textwrap import indent
from typing import Final

from cryprq_proxy import __version__
from tools.deb import interpreter, libraries
from tools.deb.errors import PackageError

TREE: Final = Path(__file__).parents[2]
PROGRAM: Final = "cryprq-proxy"
HOME: Final = f"usr/lib/{PROGRAM}"
SCRIPT: Final = f"""\
#!/{HOME}/bin/python3 -IB
import sys

from cryprq_proxy.cli import main

sys.exit(main())
"""
COMPLETIONS: Final = {
    "bash": f"bash-completion/completions/{PROGRAM}",
    "zsh": f"zsh/vendor-completions/_{PROGRAM}",
    "fish": f"fish/vendor_completions.d/{PROGRAM}.fish",
}
_NO_SCRIPTS: Final = ("control", "md5sums")
NEEDED: Final = ("dpkg-deb", "dpkg-shlibdeps", "strip", "readelf")

_IMPORT_ALL: Final = """
import importlib, pkgutil, cryprq_proxy, tun
for package in cryprq_proxy, tun:
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
print(cryprq_proxy.__version__)
"""
_CONTROL: Final = """\
Package: {program}
Version: {version}
Architecture: {architecture}
Maintainer: {maintainer}
Installed-Size: {kibibytes}
Depends: {depends}
Recommends: ca-certificates, nftables
Section: net
Priority: optional
Description: SOCKS and HTTP proxy over a post-quantum-hybrid link to your own exit
 A local proxy, and with --tun a route for the whole computer, whose traffic
 leaves from a server of your own over one encrypted link. The package has both
 sides: the client and the exit.
 .
 Nothing is started at installation: cryprq-proxy(1) says how to begin.
"""
_CHANGELOG: Final = """\
{program} ({version}) unstable; urgency=medium

  * What has changed is in NEWS.md.gz.

 -- {maintainer}  {when}
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.deb", description="Build the Debian package.")
    parser.add_argument("--into", type=Path, default=TREE / "dist", help="where the package goes")
    into = parser.parse_args().into.resolve()
    try:
        missing = [name for name in NEEDED if shutil.which(name) is None]
        if missing:
            raise PackageError(f"{missing[0]} is not installed: apt-get install dpkg-dev binutils")
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="cryprq-deb-") as directory:
            print(build(Path(directory), into))
    except PackageError as error:
        sys.exit(f"tools.deb: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"tools.deb: {error.cmd[0]} failed:\n{error.stderr or ''}")


def build(work: Path, into: Path) -> Path:
    """The package, made in the empty directory `work`. Raises PackageError and CalledProcessError."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or _time_of_commit()
    root = work / "root"
    home = root / HOME
    packages = home / interpreter.LIBRARY / "site-packages"
    interpreter.copy_to(home)
    libraries.copy_to(packages)
    interpreter.loosen(home)
    _unpack_wheel(work / "wheel", packages, root / "usr")
    _check(home)
    _compile(home, root)
    _write(root / "usr/bin" / PROGRAM, SCRIPT, 0o755)
    _documents(packages / "cryprq_proxy/data", root / "usr/share", epoch)
    _completions(root / "usr/share", home)
    _control(root, work)
    return _pack(root, into, epoch)


def _unpack_wheel(directory: Path, packages: Path, usr: Path) -> None:
    """The program and its files into `packages`, and what a wheel shares, the man pages, into `usr`."""
    _run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)], cwd=TREE)
    (wheel,) = directory.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory)
    (shared,) = directory.glob("*.data/data")
    shutil.copytree(shared, usr, dirs_exist_ok=True)
    shutil.rmtree(shared.parent)
    wheel.unlink()
    shutil.copytree(directory, packages, dirs_exist_ok=True)


def _compile(home: Path, root: Path) -> None:
    """Bytecode for everything: nobody but root could write it later, and what root wrote would stay behind.

    Unchecked, because only dpkg changes a source here, and then the bytecode too.
    """
    command = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    _run([*command, "-s", str(root), "-p", "/", str(home / "lib")], PYTHONHASHSEED="0")


def _documents(data: Path, share: Path, epoch: str) -> None:
    documents = share / "doc" / PROGRAM
    holder, _, text = (TREE / "LICENSE").read_text().partition("Copyright ")[2].partition("\n\n")
    licence = indent(text.strip().replace("\n\n", "\n.\n"), " ")
    copied = (Path(__file__).with_name("copyright")).read_text()
    _write(documents / "copyright", copied.replace("@HOLDER@", holder).replace("@TEXT@", licence))
    _compressed(documents / "NEWS.md.gz", (TREE / "CHANGELOG.md").read_bytes())
    when = formatdate(int(epoch), usegmt=True).replace("GMT", "+0000")
    changes = _CHANGELOG.format(program=PROGRAM, version=__version__, maintainer=_maintainer(), when=when)
    _compressed(documents / "changelog.gz", changes.encode())
    shutil.copytree(data, documents / "examples")
    for page in share.glob("man/man?/*"):
        _compressed(page.with_name(f"{page.name}.gz"), page.read_bytes())
        page.unlink()


def _completions(share: Path, home: Path) -> None:
    """Printed by the program that is packed."""
    for shell, place in COMPLETIONS.items():
        command = [*_packed(home), "-m", "cryprq_proxy", "completion", shell]
        _write(share / place, _run(command))


def _packed(home: Path) -> list[str]:
    return [str(home / "bin/python3"), "-IB"]


def _check(home: Path) -> None:
    """Import all that is packed. Raises PackageError, for instance where a part of the standard library is missing."""
    done = subprocess.run([*_packed(home), "-c", _IMPORT_ALL], capture_output=True, text=True, check=False)
    if done.returncode or done.stdout != f"{__version__}\n":
        raise PackageError(f"the packed program does not run: {done.stdout}{done.stderr}")


def _control(root: Path, work: Path) -> None:
    control = root / "DEBIAN"
    files = sorted(path for path in root.rglob("*") if path.is_file())
    text = _CONTROL.format(
        program=PROGRAM,
        version=__version__,
        architecture=_run(["dpkg", "--print-architecture"]).strip(),
        maintainer=_maintainer(),
        kibibytes=sum(-(-path.stat().st_size // 1024) for path in files),
        depends=_depends(root, work),
    )
    _write(control / "control", text)
    sums = (f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(root)}\n" for path in files)
    _write(control / "md5sums", "".join(sums))
    for script in Path(__file__).with_name("scripts").iterdir():
        _write(control / script.name, script.read_text(), 0o755)


def _maintainer() -> str:
    """Whoever builds it, by the variables that Debian's own tools know."""
    name, mail = (
        os.environ.get("DEBFULLNAME", f"{PROGRAM} authors"),
        os.environ.get("DEBEMAIL", "cryprq@example.org"),
    )
    return f"{name} <{mail}>"


def _depends(root: Path, work: Path) -> str:
    """What the machine code needs of Debian. Debian 13 says that its libssl3t64 is libssl3 too, and so of others whose
    names have changed with the width of time_t."""
    _write(work / "debian/control", f"Source: {PROGRAM}\n\nPackage: {PROGRAM}\nArchitecture: any\n")
    files = [str(path) for path in interpreter.elf_files(root)]
    own = sorted({str(path.parent) for path in root.rglob("*.so*")})
    command = ["dpkg-shlibdeps", "-O", "--ignore-missing-info", *(f"-l{path}" for path in own)]
    found = re.search(r"^shlibs:Depends=(.*)$", _run([*command, *files], cwd=work), re.MULTILINE)
    if found is None:
        raise PackageError("dpkg-shlibdeps did not say what the package depends on")
    return found[1]


def _pack(root: Path, into: Path, epoch: str) -> Path:
    for path in [root, *root.rglob("*")]:
        if not path.is_symlink():
            runs = path.parent.name == "bin" or (
                path.parent.name == "DEBIAN" and path.name not in _NO_SCRIPTS
            )
            path.chmod(0o755 if path.is_dir() or runs else 0o644)
        os.utime(path, (int(epoch), int(epoch)), follow_symlinks=False)
    told = _run(
        ["dpkg-deb", "--root-owner-group", "-Zzstd", "-z12", "--build", str(root), str(into)],
        SOURCE_DATE_EPOCH=epoch,
    )
    return Path(re.findall(r"'([^']+\.deb)'", told)[0])


def _time_of_commit() -> str:
    """In seconds since 1970. A tree without git has its newest change instead."""
    try:
        return _run(["git", "log", "-1", "--format=%ct"], cwd=TREE).strip()
    except (OSError, subprocess.CalledProcessError):
        return str(int((TREE / "CHANGELOG.md").stat().st_mtime))


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _compressed(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data, mtime=0))


def _run(command: list[str], cwd: Path | None = None, **environment: str) -> str:
    environ: Mapping[str, str] = os.environ | environment
    return subprocess.run(command, cwd=cwd, env=environ, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
