"""The console script, and `python -m cryprq_proxy`: Ctrl-C while the program loads ends it without a word.

The modules take a good part of a second on a small machine. An interrupt in them would be a traceback, or would be
dropped where Python calls something whose exceptions nobody can take, with a few words on standard error.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Final, NoReturn
else:
    import _signal as signal  # without what `signal` loads

INTERRUPTED: Final = 130
"""The exit code that a shell gives to what SIGINT has ended."""
_AGAIN_SECONDS: Final = 0.02


def main() -> NoReturn:
    """What runs in the end is cli.main()."""
    sys.unraisablehook = _interrupt_again
    usual = signal.getsignal(signal.SIGINT)
    # A background job of a shell ignores it.
    taken = usual is signal.default_int_handler
    if taken:
        signal.signal(signal.SIGINT, _end)
    from .cli import main as run

    try:
        if taken:
            signal.signal(signal.SIGINT, usual)
        run()
    except KeyboardInterrupt:
        _end()
    finally:
        if taken:
            # What the interpreter still does would end with a traceback as well.
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _end(*_: object) -> NoReturn:
    os._exit(INTERRUPTED)


def _interrupt_again(dropped: sys.UnraisableHookArgs) -> None:
    """A Ctrl-C that came inside of a finalizer comes once more behind it, instead of being dropped."""
    if issubclass(dropped.exc_type, KeyboardInterrupt):
        import _thread
        import threading

        # At once it would be dropped as well: this function is a part of the finalizer.
        threading.Timer(_AGAIN_SECONDS, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(dropped)


if __name__ == "__main__":
    main()
