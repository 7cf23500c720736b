"""Install this program as people do, and try what each of them gets.

    python -m tools.installs [--only WORD]

Each CPython of CPYTHONS that this machine has, each installer (pip, pipx, uv), each source (a wheel, an sdist, this
tree). All goes into one temporary directory, the installers too; their caches and settings are the caller's. What is
installed beside the program is the newest that pyproject.toml lets in, not what requirements.txt pins: that is what
a person gets.

Tried is, outside of the tree and with nothing but the plain name on the PATH: the version, the files of configs/ and
the man pages byte for byte, completion, and the demo, which answers at http://cryprq.test/ through its own exit's link.
A CPython that is not here is said by a line that begins with LEFT OUT.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import IO, Final

from cryprq_proxy import __version__

TREE: Final = Path(__file__).parents[1]
PROGRAM: Final = "cryprq-proxy"
CPYTHONS: Final = ("3.12", "3.13", "3.14")
INSTALLERS: Final = ("pip", "pipx", "uv")
SOURCES: Final = ("wheel", "sdist", "tree")
PATIENCE: Final = 300.0
"""Of one command, in seconds; an installer may have to download everything."""

_OWN_PAGE: Final = "http://cryprq.test/"
_FILES: Final = """
import sys
from pathlib import Path
from cryprq_proxy.base import package_data
assert package_data.__file__.startswith(sys.prefix), package_data.__file__
configs, man = Path(sys.argv[1]), Path(sys.argv[2])
for file in configs.rglob("*"):
    if file.is_file():
        name = str(file.relative_to(configs))
        assert package_data.read(name) == file.read_text(encoding="utf-8"), name + " differs"
for page in man.iterdir():
    installed = Path(sys.prefix, "share", "man", "man" + page.suffix[1:], page.name)
    assert installed.read_bytes() == page.read_bytes(), page.name + " differs"
"""


class InstallError(Exception):
    """An installation does not work; the text says where, and what was printed there."""


@dataclass(frozen=True, slots=True)
class Installation:
    """One of those to try."""

    cpython: str
    installer: str
    source: str

    def __str__(self) -> str:
        return f"CPython {self.cpython} {self.installer} {self.source}"


@dataclass(frozen=True, slots=True)
class Bench:
    """What all of them need: the temporary directory, with the installers in it, each CPython and each source."""

    directory: Path
    tools: Path
    cpythons: dict[str, str]
    sources: dict[str, Path]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.installs", description="Try all installations.")
    parser.add_argument("--only", default="", help='those that have this in their name: "uv", "3.13 pip "')
    only = parser.parse_args().only
    cpythons = {version: found for version in CPYTHONS if (found := find(version)) is not None}
    for version in CPYTHONS:
        if version not in cpythons:
            print(f"LEFT OUT: installing on CPython {version}, which is not installed")
    chosen = [one for one in installations(cpythons) if only in str(one)]
    if not chosen:
        sys.exit(f"tools.installs: no installation has {only!r} in its name")
    with tempfile.TemporaryDirectory(prefix="cryprq-installs-") as directory:
        try:
            failed = list(try_all(prepare(Path(directory), cpythons), chosen))
        except InstallError as error:
            sys.exit(f"tools.installs: {error}")
    if failed:
        sys.exit(f"tools.installs: {len(failed)} of {len(chosen)} failed")


def installations(cpythons: Iterable[str]) -> list[Installation]:
    return [Installation(*parts) for parts in product(cpythons, INSTALLERS, SOURCES)]


def find(version: str) -> str | None:
    """The path of this CPython, "3.13". PYENV_VERSION lets a pyenv shim through, whatever .python-version names."""
    said = f"import sys; print(sys.executable, sys.implementation.name, {version!r} == '%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run(
            [f"python{version}", "-c", said],
            env={**os.environ, "PYENV_VERSION": version},
            capture_output=True, text=True, check=True, timeout=PATIENCE,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    path, implementation, same = done.stdout.rsplit(maxsplit=2)
    return path if (implementation, same) == ("cpython", "True") else None


def prepare(directory: Path, cpythons: dict[str, str]) -> Bench:
    """Installers and packages, ready in `directory`. Raises InstallError."""
    tools = directory / "tools"
    run([sys.executable, "-m", "venv", str(tools)])
    run([str(tools / "bin/pip"), "install", "--quiet", "--upgrade", "pip", "pipx", "uv"])
    sources = {"tree": TREE}
    for kind in ("wheel", "sdist"):
        run([sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(directory / kind)], cwd=TREE)
        (sources[kind],) = (directory / kind).iterdir()
    # Once, so that not all of them make it at the same time.
    run([str(tools / "bin/pipx"), "upgrade-shared"], env=pipx_environment(directory, directory))
    return Bench(directory, tools, cpythons, sources)


def try_all(bench: Bench, chosen: list[Installation]) -> Iterator[Installation]:
    """Print a line for each, and yield those that failed."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        begun = {one: pool.submit(try_one, bench, one) for one in chosen}
        for one, future in begun.items():
            try:
                print(f"{one}: {future.result():.1f} s", flush=True)
            except InstallError as error:
                print(f"{one}: {error}", flush=True)
                yield one


def try_one(bench: Bench, one: Installation) -> float:
    """The seconds that it took. Raises InstallError."""
    start = time.monotonic()
    home = bench.directory / str(one).replace(" ", "-")
    home.mkdir()
    bin_directory, python = install(bench, one, home)
    environment = clean_environment(home, bin_directory)
    program = shutil.which(PROGRAM, path=environment["PATH"])
    if program is None or Path(program).parent != bin_directory:
        raise InstallError(f"{PROGRAM} is not in {bin_directory}")
    told = run([PROGRAM, "--version"], cwd=home, env=environment)
    if told != f"{PROGRAM} {__version__}\n":
        raise InstallError(f"it says {told!r} of its version")
    run(
        [str(python), "-I", "-c", _FILES, str(TREE / "configs"), str(TREE / "docs/man")],
        cwd=home,
        env=environment,
    )
    if PROGRAM not in run([PROGRAM, "completion", "bash"], cwd=home, env=environment):
        raise InstallError("its completion for bash does not complete it")
    try_demo(home, environment)
    shutil.rmtree(home)
    return time.monotonic() - start


def install(bench: Bench, one: Installation, home: Path) -> tuple[Path, Path]:
    """The directory in which the program is then, and the Python that runs it. Raises InstallError."""
    python, source = bench.cpythons[one.cpython], str(bench.sources[one.source])
    tool = str(bench.tools / "bin" / one.installer)
    if one.installer == "pip":
        environment = home / "venv"
        run([python, "-m", "venv", "--without-pip", str(environment)])
        run([tool, "--python", str(environment / "bin/python"), "install", "--quiet", "--no-compile", source])
        return environment / "bin", environment / "bin/python"
    if one.installer == "pipx":
        command = [tool, "install", "--backend", "pip", "--pip-args=--no-compile", "--python", python, source]
        run(command, cwd=home, env=pipx_environment(bench.directory, home))
        return home / "bin", home / "pipx/venvs" / PROGRAM / "bin/python"
    places = {"UV_TOOL_DIR": str(home / "tools"), "UV_TOOL_BIN_DIR": str(home / "bin")}
    run(
        [tool, "tool", "install", "--quiet", "--python", python, source],
        cwd=home,
        env={**os.environ, **places},
    )
    return home / "bin", home / "tools" / PROGRAM / "bin/python"


def pipx_environment(shared: Path, home: Path) -> dict[str, str]:
    places = {
        "PIPX_SHARED_LIBS": shared / "pipx-shared",
        "PIPX_HOME": home / "pipx",
        "PIPX_BIN_DIR": home / "bin",
        "PIPX_MAN_DIR": home / "share/man",
    }
    return {**os.environ, **{name: str(place) for name, place in places.items()}}


def clean_environment(home: Path, bin_directory: Path) -> dict[str, str]:
    """Of somebody who has only this: nothing of the caller's Python, and no proxy."""
    return {"HOME": str(home), "PATH": f"{bin_directory}:/usr/bin:/bin", "LANG": "C.UTF-8"}


def try_demo(home: Path, environment: dict[str, str]) -> None:
    """The own page comes through the demo's proxy, and Ctrl-C ends it. Raises InstallError."""
    with (
        (home / "demo.log").open("w+") as log,
        subprocess.Popen(
            [PROGRAM, "demo", "--listen", "127.0.0.1:0"],
            stdout=subprocess.PIPE, stderr=log, text=True, cwd=home, env=environment,
            executable=shutil.which(PROGRAM, path=environment["PATH"]),
        ) as demo,
    ):  # fmt: skip
        assert demo.stdout is not None
        try:
            page = own_page(demo.stdout)
        except (OSError, InstallError) as error:
            demo.kill()
            demo.wait()
            raise InstallError(f"the demo: {error}\n{_text(log)}") from error
        demo.send_signal(signal.SIGINT)
        try:
            code = demo.wait(PATIENCE)
        except subprocess.TimeoutExpired as error:
            demo.kill()
            raise InstallError(f"Ctrl-C does not end the demo\n{_text(log)}") from error
        if code or PROGRAM not in page or "Traceback" in _text(log):
            raise InstallError(f"the demo ended with {code} and shows {page[:200]!r}\n{_text(log)}")


def own_page(printed: IO[str]) -> str:
    """What the demo that prints these lines answers itself. Raises OSError and InstallError."""
    for line in printed:
        if listening := re.search(r"listens on (127\.0\.0\.1:\d+)", line):
            handler = urllib.request.ProxyHandler({"http": f"http://{listening[1]}"})
            # Only what runs no scripts is answered: fronts/own_page.py knows it by its name.
            request = urllib.request.Request(_OWN_PAGE, headers={"User-Agent": f"{PROGRAM}/{__version__}"})
            with urllib.request.build_opener(handler).open(request, timeout=PATIENCE) as answer:
                return str(answer.read().decode())
    raise InstallError("it ended without a word on where it listens")


def run(command: list[str], cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """What `command` prints, found by the PATH of `env`. Raises InstallError."""
    try:
        done = subprocess.run(
            command,
            executable=shutil.which(command[0], path=env["PATH"]) if env else None,
            cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=PATIENCE,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise InstallError(f"{' '.join(command[:3])} takes longer than {PATIENCE:.0f} s") from error
    if done.returncode:
        raise InstallError(f"{' '.join(command[:3])} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def _text(log: IO[str]) -> str:
    log.seek(0)
    return log.read()


if __name__ == "__main__":
    main()
