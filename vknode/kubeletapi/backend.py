"""What the kubelet API needs from the agent's pod store and the pools: one protocol.

The composition root implements `PodBackend`; nothing here knows of pools or of the agent. All
data moves as bytes in pieces of at most 64 KiB, and every call that moves data is awaited, which
is the backpressure: no side may read ahead without bound.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal, Protocol

ContainerState = Literal["waiting", "running", "terminated"]


@dataclass(frozen=True, slots=True)
class ContainerView:
    """What a Pod's status says of one container (init and ephemeral ones too).

    state:          None if there is no status for it yet
    waiting_reason: for example `ContainerCreating`; only with state "waiting"
    started:        the newest instance has run, so that it may have a log: always so for
                    "running", and for "terminated" unless it never started
    has_previous:   `lastState` tells of an instance that ran before the present state
    tty:            its spec asks for a terminal
    """

    name: str
    state: ContainerState | None = None
    waiting_reason: str = ""
    started: bool = False
    has_previous: bool = False
    tty: bool = False


@dataclass(frozen=True, slots=True)
class PodView:
    """One Pod of one of our nodes, with every container of its spec."""

    namespace: str
    name: str
    uid: str
    node: str
    containers: Mapping[str, ContainerView]


class LogStream(StrEnum):
    """Which of a container's streams; the values are those of `PodLogOptions.stream`."""

    ALL = "All"
    STDOUT = "Stdout"
    STDERR = "Stderr"


@dataclass(frozen=True, slots=True)
class LogOptions:
    """A request for a container's log, already validated.

    follow:      go on until the container has ended
    previous:    the instance before the newest one
    tail_lines:  only so many last lines; 0 is none of those that are there; None is all
    since:       only lines of this time (UTC) or later
    limit_bytes: end after so many bytes, at least 1; the server cuts exactly, the backend may
                 stop at or after it
    timestamps:  RFC 3339 time with nanoseconds and a space before each line
    """

    container: str
    follow: bool = False
    previous: bool = False
    tail_lines: int | None = None
    since: datetime | None = None
    limit_bytes: int | None = None
    timestamps: bool = False
    stream: LogStream = LogStream.ALL


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """A command to run in a running container. `stderr` is never set together with `tty`."""

    container: str
    command: tuple[str, ...]
    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool


@dataclass(frozen=True, slots=True)
class AttachRequest:
    """The streams of a running container. `stderr` is never set together with `tty`."""

    container: str
    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool


@dataclass(frozen=True, slots=True)
class Stdout:
    data: bytes


@dataclass(frozen=True, slots=True)
class Stderr:
    data: bytes


@dataclass(frozen=True, slots=True)
class Exit:
    """The command's exit code; after it nothing comes."""

    code: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The container that was attached to has ended, and with it its streams; nothing more
    comes. Its exit code is in the Pod's status."""


SessionEvent = Stdout | Stderr | Exit | Ended


class BackendError(Exception):
    """The backend cannot do what was asked. The text is shown to the user as it is."""


class ExecSession(Protocol):
    """A running command, or a container that is attached to. Input and output are used by two
    tasks at the same time.

    Once the command no longer reads its input, the three input calls return without an error
    and without effect: how it ended is told by the output side.
    """

    async def write_stdin(self, data: bytes) -> None:
        """Returns when the next piece may be given. Raises `BackendError`."""

    async def close_stdin(self) -> None:
        """End of file on the command's input; comes at most once."""

    async def resize(self, width: int, height: int) -> None:
        """Columns and rows of the terminal; only with a TTY."""

    def __aiter__(self) -> AsyncIterator[SessionEvent]:
        """The output in order, then `Exit` or `Ended`. Raises `BackendError`, also if it cannot
        start."""


class ForwardedConnection(Protocol):
    """A TCP connection into a Pod. Both directions are used by two tasks at the same time, and
    close apart from each other; what is written after its end has no effect."""

    async def write(self, data: bytes) -> None:
        """Returns when the next piece may be given. Raises `BackendError`."""

    async def close_write(self) -> None:
        """No more will be written."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """What comes back, until the Pod's side sends no more. Raises `BackendError`."""


class PodBackend(Protocol):
    def lookup(self, namespace: str, name: str) -> PodView | None:
        """The Pod of that name that is bound to one of our nodes now, from memory."""

    def pods_json(self, node: str | None) -> Iterable[bytes]:
        """Every Pod of a node (None: of all our nodes) as a JSON object of v1 Pod."""

    def open_logs(self, pod: PodView, options: LogOptions) -> AsyncGenerator[bytes, None]:
        """The text of a container's log, ready for the user.

        The first piece comes as soon as the log is found and may be empty. Raises
        `BackendError` from the iteration. The server closes the generator (`aclose`) when the
        client has gone, and the pool's stream must end with it. Where the newest instance has
        not started but an older one has run, `previous=False` means that older one.
        """

    def open_exec(
        self, pod: PodView, request: ExecRequest
    ) -> AbstractAsyncContextManager[ExecSession]:
        """Starts a command. Leaving the context ends what is left of it.

        Raises `BackendError` on entering, or from the session's output.
        """

    def open_attach(
        self, pod: PodView, request: AttachRequest
    ) -> AbstractAsyncContextManager[ExecSession]:
        """Joins a running container's own streams. Leaving the context leaves it running.

        Raises `BackendError` on entering, or from the session's output.
        """

    def open_port_forward(
        self, pod: PodView, port: int
    ) -> AbstractAsyncContextManager[ForwardedConnection]:
        """Connects to a port of the Pod. Leaving the context ends the connection.

        Raises `BackendError` on entering where nobody listens.
        """
