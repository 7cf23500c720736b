"""Runs first in every process that takes its Linux for macOS: as startup/ does in all others, and then darwin.py."""

import runpy
from pathlib import Path

from tests.support.macos.darwin import become_darwin

runpy.run_path(str(Path(__file__).resolve().parents[2] / "startup" / "sitecustomize.py"))
become_darwin()
