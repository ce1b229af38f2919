"""What a simulated command does: a few programs and enough of sh for tests.

Theory of operation: a command is a generator. It yields what it wants done
(`Out`, `Pause`, `READ`) and returns its exit code; whoever drives it keeps the
time. An exec drives it in real time. A container's log drives a fresh one from
the container's start up to now, as often as somebody reads, so that a resting
container costs neither memory nor a timer. So a command must be deterministic:
its only inputs are its `World` and what is sent into `READ`.

The shell knows lists (`;`, newline, `&&`, `||`), quotes, `$NAME`, `${NAME}`, `$?`,
`>&2`, `< FILE`, `while … do … done`, `until`, `exit`, and `trap … TERM`. Anything
else is said to be beyond the simulation, with exit code 127 as for an unknown program.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

from vknode.pool.runtimes.sim.durations import parse_duration

CHUNK = 64 * 1024


@dataclass(frozen=True, slots=True)
class Out:
    fd: int  # 1 or 2
    data: bytes


@dataclass(frozen=True, slots=True)
class Pause:
    seconds: float  # inf: until killed


@dataclass(frozen=True, slots=True)
class Read:
    """Wants input; b"" sent back is its end."""


READ = Read()
Op = Out | Pause | Read
Program = Generator[Op, bytes | None, int]


@dataclass(slots=True)
class World:
    """What a command can see."""

    env: dict[str, str] = field(default_factory=dict)
    hostname: str = "sim"
    # Content of a file, or None where there is none.
    file: Callable[[str], bytes | None] = lambda path: None
    # Names in a directory, or None where there is none.
    listing: Callable[[str], list[str] | None] = lambda path: None
    start: float = 0.0  # epoch seconds of the command's start
    tty: bool = False
    elapsed: float = 0.0  # kept by the driver: seconds since the start


@dataclass(frozen=True, slots=True)
class Trap:
    """What SIGTERM does: ignored, or an exit with this code."""

    exit_code: int | None


class _Exit(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def command(argv: Sequence[str], world: World) -> Program:
    """The program for an argv. Never raises; an unknown one returns 127."""
    try:
        return (yield from _dispatch(list(argv), world))
    except _Exit as end:
        return end.code


def known(argv: Sequence[str]) -> bool:
    """Whether the simulation has an idea of this command."""
    if not argv:
        return False
    name = argv[0].rpartition("/")[2]
    return name in _PROGRAMS or name in _SHELLS


def find_trap(argv: Sequence[str]) -> Trap | None:
    """The trap for SIGTERM that a shell command line sets first."""
    if len(argv) >= 3 and argv[0].rpartition("/")[2] in _SHELLS and argv[1] == "-c":
        for action, signals in re.findall(
            r"trap\s+(''|\"\"|'[^']*'|\"[^\"]*\")\s+([^;\n]+)", argv[2]
        ):
            if "TERM" not in signals and "15" not in signals.split():
                continue
            body = action[1:-1].strip()
            if not body:
                return Trap(None)
            code = re.search(r"exit\s*(\d*)\s*$", body)
            return Trap(int(code[1] or 0) % 256 if code else None)
    return None


def _dispatch(argv: list[str], world: World) -> Program:
    name = argv[0].rpartition("/")[2]
    if name in _SHELLS:
        return (yield from _shell(argv, world))
    program = _PROGRAMS.get(name)
    if program is None:
        yield Out(
            2, f"sim: {argv[0]}: not found; a simulated container has only {_names()}\n".encode()
        )
        return 127
    return (yield from program(argv, world))


def _names() -> str:
    return ", ".join(sorted({*_PROGRAMS, "sh"}))


# --- programs -------------------------------------------------------------------


def _echo(argv: list[str], world: World) -> Program:
    words = argv[1:]
    newline = True
    escapes = False
    while words and re.fullmatch(r"-[ne]+", words[0]):
        newline &= "n" not in words[0]
        escapes |= "e" in words[0]
        words = words[1:]
    text = " ".join(words)
    if escapes:
        text = _unescape(text)
    yield Out(1, (text + ("\n" if newline else "")).encode())
    return 0


def _printf(argv: list[str], world: World) -> Program:
    if len(argv) < 2:
        return 1
    words = iter(argv[2:])
    text = re.sub(
        r"%([sd%])",
        lambda found: "%" if found[1] == "%" else next(words, ""),
        _unescape(argv[1]),
    )
    yield Out(1, text.encode())
    return 0


def _unescape(text: str) -> str:
    return re.sub(
        r"\\([nt\\r])", lambda found: {"n": "\n", "t": "\t", "\\": "\\", "r": "\r"}[found[1]], text
    )


def _cat(argv: list[str], world: World) -> Program:
    code = 0
    for path in argv[1:] or ["-"]:
        if path == "-":
            while data := (yield READ):
                yield Out(1, data)
            continue
        content = world.file(path)
        if content is None:
            yield Out(2, f"cat: can't open '{path}': No such file or directory\n".encode())
            code = 1
            continue
        for start in range(0, len(content), CHUNK):
            yield Out(1, content[start : start + CHUNK])
    return code


def _wc(argv: list[str], world: World) -> Program:
    paths = [word for word in argv[1:] if not word.startswith("-")]
    chars = lines = words = 0
    if paths:
        content = world.file(paths[0])
        if content is None:
            yield Out(2, f"wc: {paths[0]}: No such file or directory\n".encode())
            return 1
        chars, lines, words = len(content), content.count(b"\n"), len(content.split())
    else:
        inside = False
        while data := (yield READ):
            chars += len(data)
            lines += data.count(b"\n")
            words += len(data.split()) - (1 if inside and not data[:1].isspace() else 0)
            inside = not data[-1:].isspace()
    wanted = {"-c": str(chars), "-l": str(lines), "-w": str(words)}
    flags = [word for word in argv[1:] if word in wanted]
    numbers = [wanted[flag] for flag in flags] or [str(lines), str(words), str(chars)]
    yield Out(1, (" ".join(numbers + paths[:1]) + "\n").encode())
    return 0


def _true(argv: list[str], world: World) -> Program:
    yield from ()
    return 0


def _false(argv: list[str], world: World) -> Program:
    yield from ()
    return 1


def _sleep(argv: list[str], world: World) -> Program:
    total = 0.0
    for word in argv[1:]:
        if word in ("infinity", "inf"):
            total = math.inf
            continue
        try:
            total += parse_duration(word)
        except ValueError:
            yield Out(2, f"sleep: invalid number '{word}'\n".encode())
            return 1
    yield Pause(total)
    return 0


def _hostname(argv: list[str], world: World) -> Program:
    yield Out(1, f"{world.hostname}\n".encode())
    return 0


def _env(argv: list[str], world: World) -> Program:
    yield Out(1, "".join(f"{name}={value}\n" for name, value in world.env.items()).encode())
    return 0


def _printenv(argv: list[str], world: World) -> Program:
    if len(argv) == 1:
        return (yield from _env(argv, world))
    for name in argv[1:]:
        if name not in world.env:
            return 1
        yield Out(1, f"{world.env[name]}\n".encode())
    return 0


def _date(argv: list[str], world: World) -> Program:
    now = world.start + world.elapsed
    yield Out(1, (time.strftime("%a %b %e %H:%M:%S UTC %Y", time.gmtime(now)) + "\n").encode())
    return 0


def _ls(argv: list[str], world: World) -> Program:
    for path in [word for word in argv[1:] if not word.startswith("-")] or ["/"]:
        names = world.listing(path)
        if names is None:
            yield Out(2, f"ls: {path}: No such file or directory\n".encode())
            return 1
        yield Out(1, "".join(f"{name}\n" for name in names).encode())
    return 0


def _pwd(argv: list[str], world: World) -> Program:
    yield Out(1, b"/\n")
    return 0


def _test(argv: list[str], world: World) -> Program:
    if len(argv) >= 3 and argv[1] in ("-f", "-e", "-s", "-r"):
        return 0 if world.file(argv[2]) is not None else 1
    yield from ()
    return 1


def _seq(argv: list[str], world: World) -> Program:
    try:
        numbers = [int(word) for word in argv[1:3]]
    except ValueError:
        numbers = []
    if not numbers:
        yield Out(2, b"seq: it takes one or two whole numbers\n")
        return 1
    first, last = (1, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])
    for number in range(first, last + 1):
        yield Out(1, f"{number}\n".encode())
    return 0


_PROGRAMS: dict[str, Callable[[list[str], World], Program]] = {
    "echo": _echo,
    "printf": _printf,
    "cat": _cat,
    "wc": _wc,
    "true": _true,
    ":": _true,
    "false": _false,
    "sleep": _sleep,
    "hostname": _hostname,
    "env": _env,
    "printenv": _printenv,
    "date": _date,
    "ls": _ls,
    "pwd": _pwd,
    "test": _test,
    "seq": _seq,
}
_SHELLS = ("sh", "bash", "ash")

# --- the shell ------------------------------------------------------------------

_TOKEN = re.compile(
    r"""(?P<space>[ \t]+)|(?P<op>&&|\|\||>&2|1>&2|2>&1|>/dev/null|;|\n|<)|(?P<bad>[|&()>`])|"""
    r"""(?P<word>(?:'[^']*'|"(?:[^"\\]|\\.)*"|\\.|[^\s;&|()<>`'"\\])+)"""
)


class _Beyond(Exception):
    """The script uses something that the simulation does not have."""


def _tokens(script: str) -> list[tuple[str, str]]:
    found, position = [], 0
    while position < len(script):
        match = _TOKEN.match(script, position)
        if match is None or match.lastgroup == "bad":
            raise _Beyond(script[position : position + 10])
        if match.lastgroup != "space":
            found.append((match.lastgroup or "", match.group()))
        position = match.end()
    return found


def _shell(argv: list[str], world: World) -> Program:
    if len(argv) >= 3 and argv[1] in ("-c", "-ec", "-exc"):
        return (yield from _script(argv[2], world))
    return (yield from _interactive(world))


def _interactive(world: World) -> Program:
    """Lines from standard input, one after another."""
    buffer, code = b"", 0
    if world.tty:
        yield Out(1, b"/ # ")
    while data := (yield READ):
        if world.tty:
            yield Out(1, data.replace(b"\r", b"\n"))
            if b"\x04" in data:
                break
            data = data.replace(b"\r", b"\n")
        buffer += data
        while b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            code = yield from _script(line.decode(errors="replace"), world)
            if world.tty:
                yield Out(1, b"/ # ")
    if buffer and not world.tty:
        code = yield from _script(buffer.decode(errors="replace"), world)
    return code


def _script(script: str, world: World) -> Program:
    try:
        tokens = _tokens(script.strip())
        program = _Parser(tokens).program()
    except _Beyond as beyond:
        yield Out(2, f"sh: beyond the simulation: {beyond}\n".encode())
        return 127
    return (yield from _run_list(program, world, _Status()))


@dataclass(slots=True)
class _Status:
    code: int = 0
    variables: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Simple:
    words: list[str]
    redirect_input: str | None = None
    to_stderr: bool = False
    silent: bool = False


@dataclass(slots=True)
class _Loop:
    condition: list[_Item]
    body: list[_Item]
    until: bool


@dataclass(slots=True)
class _Item:
    connector: str  # what stands before it: ";", "&&" or "||"
    what: _Simple | _Loop


class _Parser:
    """Recursive descent over the tokens of one script."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self._tokens = tokens
        self._at = 0

    def program(self) -> list[_Item]:
        items = self._list(())
        if self._at < len(self._tokens):
            raise _Beyond(self._tokens[self._at][1])
        return items

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "")

    def _list(self, ends: tuple[str, ...]) -> list[_Item]:
        items: list[_Item] = []
        connector = ";"
        while True:
            kind, text = self._peek()
            if kind == "end" or (kind == "word" and text in ends):
                return items
            if kind == "op" and text in (";", "\n", "&&", "||"):
                connector = text if text in ("&&", "||") else ";"
                self._at += 1
                continue
            items.append(_Item(connector, self._item()))
            connector = ";"

    def _item(self) -> _Simple | _Loop:
        _, text = self._peek()
        if text in ("if", "for", "case", "function", "{", "[[", "do", "done", "then"):
            raise _Beyond(text)
        if text in ("while", "until"):
            self._at += 1
            condition = self._list(("do",))
            self._at += 1
            body = self._list(("done",))
            if self._peek()[1] != "done":
                raise _Beyond("a loop without done")
            self._at += 1
            return _Loop(condition, body, text == "until")
        simple = _Simple([])
        while True:
            kind, text = self._peek()
            if kind == "end" or (kind == "op" and text in (";", "\n", "&&", "||")):
                return simple
            self._at += 1
            if kind == "op":
                if text == "<":
                    simple.redirect_input = self._peek()[1]
                    self._at += 1
                elif text in (">&2", "1>&2"):
                    simple.to_stderr = True
                elif text == ">/dev/null":
                    simple.silent = True
                continue
            simple.words.append(text)


def _run_list(items: list[_Item], world: World, status: _Status) -> Program:
    for item in items:
        if (item.connector == "&&" and status.code) or (item.connector == "||" and not status.code):
            continue
        if isinstance(item.what, _Loop):
            yield from _run_loop(item.what, world, status)
        else:
            status.code = yield from _run_simple(item.what, world, status)
    return status.code


def _run_loop(loop: _Loop, world: World, status: _Status) -> Program:
    while True:
        before = world.elapsed
        code = yield from _run_list(loop.condition, world, status)
        if (code == 0) == loop.until:
            status.code = 0
            return 0
        yield from _run_list(loop.body, world, status)
        if world.elapsed == before:
            yield Pause(0.001)  # no loop may spin for ever at one moment


def _run_simple(simple: _Simple, world: World, status: _Status) -> Program:
    words = [_expand(word, world, status) for word in simple.words]
    while words and (found := re.fullmatch(r"([A-Za-z_]\w*)=(.*)", words[0], re.DOTALL)):
        status.variables[found[1]] = found[2]
        words = words[1:]
    if not words:
        return 0
    if words[0] == "exit":
        raise _Exit(int(words[1]) % 256 if len(words) > 1 and words[1].isdecimal() else status.code)
    if words[0] in ("trap", "set", "export", "wait"):
        return 0
    if words[0] == "exec":
        words = words[1:]
        if words:
            raise _Exit((yield from _dispatch(words, world)))
        return 0
    program = _dispatch(words, world)
    if simple.redirect_input is not None:
        path = _expand(simple.redirect_input, world, status)
        content = world.file(path)
        if content is None:
            yield Out(2, f"sh: can't open {path}: no such file\n".encode())
            return 1
        program = _with_input(program, content)
    if simple.to_stderr or simple.silent:
        program = _redirected(program, simple.silent)
    return (yield from program)


def _with_input(program: Program, content: bytes) -> Program:
    pieces = [content[at : at + CHUNK] for at in range(0, len(content), CHUNK)]
    answer: bytes | None = None
    while True:
        try:
            op = program.send(answer)
        except StopIteration as end:
            return int(end.value)
        if isinstance(op, Read):
            answer = pieces.pop(0) if pieces else b""
        else:
            answer = yield op


def _redirected(program: Program, silent: bool) -> Program:
    answer: bytes | None = None
    while True:
        try:
            op = program.send(answer)
        except StopIteration as end:
            return int(end.value)
        answer = None
        if not isinstance(op, Out):
            answer = yield op
        elif not silent:
            yield Out(2, op.data)


_PIECE = re.compile(r"'([^']*)'|\"((?:[^\"\\]|\\.)*)\"|\\(.)|([^'\"\\]+)", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+)|(\?))")


def _expand(word: str, world: World, status: _Status) -> str:
    """Quotes removed, variables replaced."""

    def value(found: re.Match[str]) -> str:
        if found[3]:
            return str(status.code)
        name = found[1] or found[2]
        return status.variables.get(name, world.env.get(name, ""))

    result = []
    for single, double, escaped, plain in _PIECE.findall(word):
        if double:
            result.append(re.sub(r"\\([\"\\$`])", r"\1", _VARIABLE.sub(value, double)))
        else:
            result.append(single or escaped or _VARIABLE.sub(value, plain))
    return "".join(result)
