"""Says how far a long job is: one rewritten line on a terminal, a plain line now and
then in a log. Times left are estimates and are printed as such."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from pathlib import Path
from typing import TextIO


def spell(seconds: float) -> str:
    """A duration for people: `45 s`, `3 min 20 s`."""
    whole = max(0, round(seconds))
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


class Progress:
    """Thread-safe progress output. `plain_every` is in seconds. What is shown is also
    written to the file `mirror`, for a process that waits for this one."""

    def __init__(self, stream: TextIO | None = None, plain_every: float = 20.0) -> None:
        self.mirror: Path | None = None
        self._stream = stream if stream is not None else sys.stderr
        self._tty = self._stream.isatty()
        self._plain_every = plain_every
        self._last_plain = float("-inf")
        self._open_line = False
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """A line that stays."""
        with self._lock:
            self._close_line()
            print(text, file=self._stream, flush=True)

    def update(self, text: str) -> None:
        """A line that the next one replaces; without a terminal, printed seldom."""
        with self._lock:
            if self.mirror is not None:
                with contextlib.suppress(OSError):
                    self.mirror.write_text(text)
            if self._tty:
                print(f"\r\x1b[K{text}", end="", file=self._stream, flush=True)
                self._open_line = True
            elif time.monotonic() - self._last_plain >= self._plain_every:
                self._last_plain = time.monotonic()
                print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """End a rewritten line, so that what follows starts at the margin."""
        with self._lock:
            self._close_line()

    def _close_line(self) -> None:
        if self._open_line:
            print(file=self._stream, flush=True)
            self._open_line = False
