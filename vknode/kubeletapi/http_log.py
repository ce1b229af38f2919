"""What aiohttp says to its loggers, without what clients sent.

Its messages quote request lines, headers and WebSocket protocols, where tokens and commands are.
Of each only its kind is logged: the type of the error, and where in the code it came up.

What is no HTTP anybody may send, without showing who they are, as often as they like: that is no
error of the agent's, and told once in a while.
"""

from __future__ import annotations

import logging
import time
import traceback

import structlog
from aiohttp.http_exceptions import HttpProcessingError

_log = structlog.get_logger()

#: Where aiohttp's parts log by themselves, whatever logger a server was given.
_OWN = ("aiohttp.server", "aiohttp.web", "aiohttp.websocket", "aiohttp.internal")
# Seconds between two lines about what is no HTTP.
TELL_EVERY = 10.0


class _KindsOnly(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self._tell_at = 0.0
        self._untold = 0

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        facts: dict[str, object] = {"by": record.name, "line": f"{record.module}:{record.lineno}"}
        if error is not None:
            frames = traceback.extract_tb(error.__traceback__)[-8:]
            facts["error"] = type(error).__name__
            facts["frames"] = [f"{frame.filename}:{frame.lineno}" for frame in frames]
        if isinstance(error, HttpProcessingError):
            self._untold += 1
            if (now := time.monotonic()) >= self._tell_at:
                _log.info("kubelet_api_no_http", refused=self._untold, error=facts["error"])
                self._tell_at, self._untold = now + TELL_EVERY, 0
            return
        say = _log.error if record.levelno >= logging.ERROR and error is not None else _log.warning
        say("kubelet_api_http", **facts)


def quiet_logger() -> logging.Logger:
    """The logger for a server; aiohttp's own, which are the process', are made as quiet."""
    for name in (*_OWN, __name__):
        logger = logging.getLogger(name)
        if not any(isinstance(handler, _KindsOnly) for handler in logger.handlers):
            logger.addHandler(_KindsOnly())
        logger.propagate = False
        logger.setLevel(logging.WARNING)
    return logging.getLogger(__name__)
