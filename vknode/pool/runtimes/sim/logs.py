"""The log of a simulated container, computed anew whenever somebody reads it.

`lines` drives a fresh program from the container's start and gives each line with
its moment, so the log of a container nobody looks at takes no memory, and one of
gigabytes none either.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from vknode.pool.runtimes.base import LogOptions
from vknode.pool.runtimes.sim.behaviour import Behaviour
from vknode.pool.runtimes.sim.shell import Out, Pause, Program, Read, World, command, known
from vknode.pool.v1 import stream_pb2

_PARTIAL = 16 * 1024  # as container runtimes cut long lines
_MOST_PAUSES = 200
_MOST_LINES = 100_000


@dataclass(frozen=True, slots=True)
class Line:
    offset: float  # seconds since the container's start
    stream: int  # 1 or 2
    text: bytes  # without its newline
    whole: bool = True  # False: the rest of the line follows


@dataclass(frozen=True, slots=True)
class End:
    offset: float
    exit_code: int


def container_program(argv: list[str], world: World, behaviour: Behaviour, title: str) -> Program:
    """What a container does from its start to its end."""
    for number in range(1, behaviour.log_lines + 1):
        yield Out(1, f"{behaviour.log_line.replace('{n}', str(number))}\n".encode())
    if behaviour.log_every is not None:
        number = behaviour.log_lines
        while True:
            yield Pause(behaviour.log_every)
            number += 1
            yield Out(1, f"{behaviour.log_line.replace('{n}', str(number))}\n".encode())
    if known(argv):
        return (yield from command(argv, world))
    if not behaviour.log_lines:
        yield Out(1, f"{title}: simulated, nothing really runs\n".encode())
        yield Out(1, f"{title}: ready\n".encode())
    yield Pause(math.inf)
    return 0


def moments(program: Program, world: World, *, stdin: bool = False) -> Iterator[Line | End | float]:
    """Lines and the end, in order of time; a bare number says that nothing comes
    before that offset (inf: never again). With `stdin` a program that reads waits
    for ever, else it finds the input at its end."""
    offset = 0.0
    rest = {1: b"", 2: b""}
    answer: bytes | None = None
    while True:
        try:
            op = program.send(answer)
        except StopIteration as end:
            for stream, text in rest.items():
                if text:
                    yield Line(offset, stream, text, whole=False)
            yield End(offset, int(end.value))
            return
        answer = None
        if isinstance(op, Out):
            *complete, rest[op.fd] = (rest[op.fd] + op.data).split(b"\n")
            for text in complete:
                yield Line(offset, op.fd, text)
            while len(rest[op.fd]) > _PARTIAL:
                yield Line(offset, op.fd, rest[op.fd][:_PARTIAL], whole=False)
                rest[op.fd] = rest[op.fd][_PARTIAL:]
        elif isinstance(op, Pause):
            offset += op.seconds
            world.elapsed = offset
            yield offset
            if math.isinf(offset):
                return
        elif isinstance(op, Read):
            if stdin:
                yield math.inf
                return
            answer = b""


def find_end(program: Program, world: World, *, stdin: bool = False) -> End | None:
    """How the program ends by itself. None: it does not, or only after more pauses or
    lines than are looked at, which counts as never."""
    pauses = lines = 0
    for moment in moments(program, world, stdin=stdin):
        if isinstance(moment, End):
            return moment
        if isinstance(moment, Line):
            lines += 1
        else:
            pauses += 1
        if pauses > _MOST_PAUSES or lines > _MOST_LINES or world.elapsed == math.inf:
            return None
    return None


def format_line(line: Line, started_at: int, options: LogOptions) -> bytes | None:
    """The line as a client gets it; None where the options leave it out."""
    at = started_at + round(line.offset * 1e9)
    if options.since is not None and at < options.since:
        return None
    if options.stream == stream_pb2.LOG_STREAM_STDOUT and line.stream != 1:
        return None
    if options.stream == stream_pb2.LOG_STREAM_STDERR and line.stream != 2:
        return None
    text = line.text + b"\n" if line.whole else line.text
    return rfc3339_nano(at) + b" " + text if options.timestamps else text


def rfc3339_nano(at: int) -> bytes:
    """As a kubelet prints it: nanoseconds, always nine digits, UTC."""
    seconds, nanoseconds = divmod(at, 10**9)
    moment = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{moment}.{nanoseconds:09d}Z".encode()
