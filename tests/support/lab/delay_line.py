"""A long cable between two hosts of the lab: bench/delayline.py, with a delay, a rate and losses, which obeys."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.lab.net import Lab, LabError, Namespace

SCRIPT = Path(__file__).parents[3] / "bench" / "delayline.py"


class DelayLine:
    """Makes both devices, and sets them up; they are TAP devices and go with the line, which ends with `one`."""

    def __init__(
        self, lab: Lab, one: Namespace, device: str, other: Namespace, far: str, *options: str
    ) -> None:
        """`options` are those of the script, for both directions. Raises LabError."""
        ends = [f"{one.name}:{device}", f"{other.name}:{far}"]
        log = one.directory / "line.log"
        with log.open("w") as errors:
            self.process = one.popen(
                [sys.executable, str(SCRIPT), *ends, *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            raise LabError(f"the delay line did not start: {log.read_text()[-1000:].strip()}")
        lab.link_up((one, device), (other, far))

    def tell(self, command: str) -> None:
        """A command of bench/line.py, such as "blackout 3" or "loss 0.01", from now on. Raises LabError."""
        if self.process.stdin is None or self.process.poll() is not None:
            raise LabError(f"no delay line runs that could be told {command!r}")
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
