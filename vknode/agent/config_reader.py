"""Reads a YAML mapping field by field and collects everything that is wrong with it.

Every problem is one line `file: field.path: what is wrong; fix`. All are collected, so that a
person repairs a file once. Values of fields are quoted only where they are names and numbers,
never file contents.
"""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml


class ConfigError(Exception):
    """The configuration cannot be used. `problems` has one line each."""

    def __init__(self, file: Path, problems: Sequence[str]) -> None:
        self.file = file
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key given twice; YAML libraries silently take the last."""


def _unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    seen: set[str] = set()
    for key_node, _ in node.value:
        key = getattr(key_node, "value", None)
        if isinstance(key, str):
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
    return loader.construct_mapping(node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def load_yaml(file: Path) -> Any:
    """Parses the file. Raises `ConfigError`; an empty file is an empty mapping."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(file, [f"{file}: there is no such file; check the path"]) from None
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise ConfigError(file, [f"{file}: cannot be read ({why}); check its mode"]) from None
    except UnicodeDecodeError:
        raise ConfigError(file, [f"{file}: is not UTF-8 text; save it as UTF-8"]) from None
    try:
        # A SafeLoader, which bandit does not see.
        document = yaml.load(text, Loader=_UniqueKeyLoader)  # nosec B506
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(
            file, [f"{file}: is not valid YAML{where}: {error.problem}; correct it there"]
        ) from None
    except yaml.YAMLError:
        raise ConfigError(file, [f"{file}: is not valid YAML; correct it"]) from None
    return {} if document is None else document


class Reader:
    """One mapping of the file. Each getter takes a key, checks it and reports problems.

    A getter that finds a problem returns the default, so that reading goes on; call `finish`
    of each reader (unknown keys) and then `raise_problems` of any.
    """

    def __init__(self, file: Path, value: Any, path: str = "", problems: list[str] | None = None):
        self.file = file
        self.path = path
        self.problems: list[str] = [] if problems is None else problems
        self._asked: list[str] = []
        self._values: dict[str, Any] = {}
        if isinstance(value, dict):
            for key, item in value.items():
                if isinstance(key, str):
                    self._values[key] = item
                else:
                    self.problem(str(key), "is not a text key", "quote it")
        elif value is not None:
            self.problem("", f"is {_kind(value)}, not a mapping", "write `key: value` lines")

    # -- problems --------------------------------------------------------------------------

    def field(self, key: str) -> str:
        return ".".join(part for part in (self.path, key) if part)

    def problem(self, key: str, what: str, fix: str) -> None:
        field = self.field(key)
        where = f"{self.file}: {field}" if field else f"{self.file}"
        self.problems.append(f"{where}: {what}; {fix}")

    def finish(self) -> None:
        """Reports the keys that no getter asked for."""
        for key in self._values:
            if key in self._asked:
                continue
            close = difflib.get_close_matches(key, self._asked, n=1, cutoff=0.6)
            if not close:  # a different spelling of case is closer than difflib thinks
                close = [a for a in self._asked if a.lower() == key.lower().replace("_", "")]
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(self._asked)}"
            self.problem(key, "is not a known key", hint)

    def raise_problems(self) -> None:
        if self.problems:
            raise ConfigError(self.file, self.problems)

    # -- getters ---------------------------------------------------------------------------

    def has(self, key: str) -> bool:
        return self._values.get(key) is not None

    def removed(self, key: str, why: str, fix: str) -> None:
        """A key of an earlier version: told what to do instead, not that it is unknown."""
        if key in self._values:
            del self._values[key]
            self.problem(key, f"was removed: {why}", fix)

    def is_empty(self, key: str) -> bool:
        """Whether the key is there with an empty text (not: left out)."""
        return self._values.get(key) == ""

    def _take(self, key: str) -> Any:
        self._asked.append(key)
        return self._values.get(key)

    def _typed(self, key: str, types: type | tuple[type, ...], name: str) -> Any:
        value = self._take(key)
        if value is None:
            return None
        # bool is an int to Python, not to a person
        if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
            self.problem(key, f"is {_kind(value)}, not {name}", f"write {name}")
            return None
        return value

    def text(
        self,
        key: str,
        default: str = "",
        *,
        required: bool = False,
        check: Callable[[str], bool] | None = None,
        expected: str = "",
    ) -> str:
        value = self._typed(key, str, "a text")
        if value is None or value == "":
            if required and not self.reported(key):
                self.problem(key, "is missing", f"write {expected or 'a text'}")
            return default
        if check is not None and not check(value):
            self.problem(key, f"{value!r} is not {expected}", f"write {expected}")
            return default
        return str(value)

    def choice(self, key: str, default: str, allowed: Sequence[str]) -> str:
        value = self._typed(key, str, "a text")
        if value is None:
            return default
        if value not in allowed:
            close = difflib.get_close_matches(value, allowed, n=1)
            fix = f"did you mean {close[0]!r}?" if close else f"write {' or '.join(allowed)}"
            self.problem(key, f"{value!r} is not one of {', '.join(allowed)}", fix)
            return default
        return str(value)

    def number(self, key: str, default: float, low: float, high: float) -> float:
        value = self._typed(key, (int, float), "a number")
        if value is None:
            return default
        if not low <= value <= high:
            self.problem(key, f"{value} is out of range", f"write {low:g} to {high:g}")
            return default
        return float(value)

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        value = self._typed(key, int, "a whole number")
        if value is None:
            return default
        if not low <= value <= high:
            self.problem(key, f"{value} is out of range", f"write {low} to {high}")
            return default
        return int(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self._typed(key, bool, "true or false")
        return default if value is None else bool(value)

    def port_range(self, key: str, default: tuple[int, int]) -> tuple[int, int] | None:
        """`FIRST-LAST`, both part of it; None for 0, which leaves the choice to the kernel."""
        value = self._typed(key, (str, int), "a range of ports")
        if value is None:
            return default
        fix = f"write FIRST-LAST, such as {default[0]}-{default[1]}, or 0 for any free ports"
        text = str(value).strip()
        if text == "0":
            return None
        ends = [part.strip() for part in text.split("-")]
        if len(ends) != 2 or not all(e.isascii() and e.isdigit() and len(e) < 6 for e in ends):
            self.problem(key, f"{value!r} is not a range of ports", fix)
            return default
        first, last = (int(end) for end in ends)
        if first > last:
            self.problem(key, f"{value!r} ends before it begins", f"write {last}-{first}")
            return default
        if first < 1 or last > 65535:
            self.problem(key, f"{value!r} is not within 1 to 65535", fix)
            return default
        return first, last

    def path_to(self, key: str, what: str, *, required: bool = False) -> Path | None:
        """A readable file, relative to the configuration file's folder."""
        value = self._typed(key, str, "a path")
        if not value:
            if required and not self.reported(key):
                self.problem(key, "is missing", f"name {what}")
            return None
        path = self.file.absolute().parent / str(value)
        if not path.exists():
            self.problem(key, f"{path} does not exist", f"name {what}")
        elif not path.is_file() or not os.access(path, os.R_OK):
            self.problem(key, f"{path} cannot be read", "it must be a file with a fitting mode")
        return path

    def folder(self, key: str) -> Path | None:
        """A folder that is there or can be made, relative to the configuration file's folder."""
        value = self._typed(key, str, "a path")
        if not value:
            return None
        path = self.file.absolute().parent / str(value)
        if path.exists() and not path.is_dir():
            self.problem(key, f"{path} is not a folder", "name a folder")
        return path

    def shown_folder(self, key: str, what: str) -> Path | None:
        """A folder that can be listed, or is not there yet. Absolute: what is shown of a host
        should be seen in the file itself."""
        value = self._typed(key, str, "a path")
        if not value:
            return None
        path = Path(value)
        if not path.is_absolute():
            self.problem(key, f"{value!r} is not an absolute path", f"name {what}")
            return None
        try:
            is_folder = stat.S_ISDIR(path.stat().st_mode)
        except FileNotFoundError:
            return path
        except (OSError, ValueError):
            self.problem(key, f"{path} cannot be looked at", f"name {what}")
        else:
            if not is_folder:
                self.problem(key, f"{path} is not a folder", f"name {what}")
            elif not os.access(path, os.R_OK | os.X_OK):
                self.problem(key, f"{path} cannot be read", "give it a fitting mode")
            else:
                return path
        return None

    def section(self, key: str) -> Reader:
        """The mapping under `key`; an empty one when it is missing."""
        return Reader(self.file, self._take(key), self.field(key), self.problems)

    def sections(self, key: str) -> list[Reader]:
        """The list of mappings under `key`."""
        value = self._typed(key, list, "a list")
        return [
            Reader(self.file, item, f"{self.field(key)}[{index}]", self.problems)
            for index, item in enumerate(value or ())
        ]

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._typed(key, list, "a list of texts")
        found: list[str] = []
        for index, item in enumerate(value or ()):
            if isinstance(item, str) and item:
                found.append(item)
            else:
                self.problem(f"{key}[{index}]", f"is {_kind(item)}, not a text", "write a text")
        return tuple(found)

    def text_mapping(self, key: str) -> dict[str, str]:
        value = self._typed(key, dict, "a mapping of texts")
        found: dict[str, str] = {}
        for name, item in (value or {}).items():
            if isinstance(name, str) and isinstance(item, str):
                found[name] = item
            else:
                self.problem(
                    f"{key}[{name}]", f"is {_kind(item)}, not a text", "write it in quotes"
                )
        return found

    def reported(self, key: str) -> bool:
        """Whether something is wrong with the key already, or with a part of it."""
        start = f"{self.file}: {self.field(key)}"
        return any(
            problem.startswith(start) and problem[len(start)] in ":.[" for problem in self.problems
        )


def duplicates(names: Iterable[str]) -> list[str]:
    """Names that occur more than once, each once, in order."""
    seen: set[str] = set()
    twice: list[str] = []
    for name in names:
        if name in seen and name not in twice:
            twice.append(name)
        seen.add(name)
    return twice


def _kind(value: Any) -> str:
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "a mapping",
        type(None): "empty",
    }
    return names.get(type(value), f"a {type(value).__name__}")
