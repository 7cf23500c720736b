"""What the benchmarks refuse before anything starts, and what they still tell when a contender fails."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))
import carriers  # noqa: E402
import commandline  # noqa: E402
import early  # noqa: E402
import run  # noqa: E402
import tunnel  # noqa: E402
import wan  # noqa: E402
from commandline import BenchError  # noqa: E402
from wan_proxies import ShadowsocksProxy  # noqa: E402

from tests.support.lab.net import LabError  # noqa: E402

LINES = wan, run, tunnel, early, carriers


@pytest.fixture(autouse=True)
def _sigterm() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def refused(
    module: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *line: str
) -> str:
    """What is said."""
    monkeypatch.setattr(sys, "argv", ["bench", *line])
    with pytest.raises(SystemExit) as ended:
        module.arguments()
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("module", LINES)
@pytest.mark.parametrize("line", [("--rounds", "0"), ("--rounds", "-1"), ("--rounds", "two")])
def test_no_round_is_none(
    module: Any, line: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(module, monkeypatch, capsys, *line)
    assert said.endswith(f"argument --rounds: must be a whole number of at least 1, not {line[1]}")


@pytest.mark.parametrize("module", [wan, run, tunnel])
@pytest.mark.parametrize("place", ["nowhere/x", "."])
def test_a_file_that_cannot_be_written_is_found_out_at_the_start(
    module: Any,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert "cannot be written" in refused(module, monkeypatch, capsys, "--json", str(tmp_path / place))


def test_looking_whether_a_file_can_be_written_makes_none(tmp_path: Path) -> None:
    assert commandline.new_file(str(tmp_path / "x")) == tmp_path / "x"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["--loss", "2"], "--loss: must be a number from 0 to 1, not 2"),
        (["--delay", "-1"], "--delay: must be a number at least 0, not -1"),
        (["--delay", "nan"], "--delay: must be a number at least 0, not nan"),
        (["--rate", "inf"], "--rate: must be a number at least 0, not inf"),
        (["--seconds", "0"], "--seconds: must be a number above 0, not 0"),
        (["--only", "page,pages"], "there is no 'pages'; there are page, fresh,"),
        (["--proxies", ""], "there is no ''; there are cryprq-proxy,"),
        (["--tree", "/proc"], "/proc is no checkout"),
        (["--tell", "delay 0.1"], "say that with the option of the line"),
        (["--tell", "rate 20e6"], "say that with the option of the line"),
        (["--tell", "limit 9000"], "say that with the option of the line"),
        (["--tell", "loss 0.01", "--offload"], "say that with the option of the line"),
        (["--tell", "reorder 0.1 0.1"], "say that with the option of the line"),
        (["--tell", "blackout nan"], "a black-out takes a number of seconds"),
        (["--tell", "off udp"], "is no command of the delay line"),
        (["--delay", "0", "--rate", "0", "--only", "blackout"], "there is no line to be told"),
        (["--delay", "0", "--rate", "0", "--only", "page", "--tell", "udp off"], "no line to be told"),
    ],
)
def test_a_long_line_that_cannot_be_is_refused(
    line: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(wan, monkeypatch, capsys, *line)


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    "error",
    [BenchError("it is gone."), LabError("it is gone."), subprocess.TimeoutExpired("it is gone.", 1)],
)
def test_what_was_measured_is_told_where_a_contender_fails(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[str] = []

    def measure() -> None:
        with commandline.told_at_end(rows, lambda: print("table", rows)):
            rows.append("first")
            fail(error)

    assert commandline.run_to_end(measure) == 1
    told = capsys.readouterr()
    assert told.out == "table ['first']\n"
    assert "it is gone." in told.err


def test_there_is_no_table_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def measure() -> None:
        with commandline.told_at_end([], lambda: print("table")):
            fail(BenchError("no root."))

    assert commandline.run_to_end(measure) == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "ask", [lambda: fail(KeyboardInterrupt()), lambda: signal.raise_signal(signal.SIGTERM)]
)
def test_who_ends_it_is_told_nothing(ask: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    assert commandline.run_to_end(ask) == 130
    assert capsys.readouterr() == ("", "")


def test_the_version_of_what_takes_no_part_is_not_asked_for() -> None:
    assert tunnel.version(tunnel.Bench(1, 1, [tunnel.OURS, tunnel.DIRECT])) == ""


def test_a_benchmark_of_nobody_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ShadowsocksProxy, "missing", staticmethod(lambda: "it is not installed"))
    monkeypatch.setattr(sys, "argv", ["wan", "--proxies", ShadowsocksProxy.name])
    with pytest.raises(BenchError, match="none of the contenders"):
        wan.contenders(wan.arguments())
