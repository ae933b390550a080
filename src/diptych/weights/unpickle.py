"""An interpreter of pickles as data: tensors and plain values; every other object becomes an inert stub.

Python's pickle module is not used: the opcodes that torch.save writes are interpreted one by one, and none can
import a module, look up an attribute or call a function of the file. A name stays a `Name`; its value is one of
the constructors of `pickled_values`, which are ours, or a `Stub`. A call of a function, or a name from a module that
starts programs, could do nothing here either, but has no place in weights: such a file is refused as what it is.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, BinaryIO

from diptych.weights.pickled_values import CONSTRUCTORS, Array, Name, NumpyType, RefusedPickle, Stub, fill_array

MAX_OPCODES = 2**22
"""Opcodes in one pickle, of which a tensor takes some 50; and values handled in its constructors, its bytes aside."""
FUNCTIONS = {
    *(("torch", name) for name in ("device", "dtype")),
    *(("datetime", name) for name in ("datetime", "date", "time", "timedelta", "timezone")),
    *(("numpy.random._pickle", f"__{name}_ctor") for name in ("randomstate", "generator", "bit_generator")),
    ("collections", "deque"),
    ("copyreg", "_reconstructor"),
}
"""Lower-case names that only construct values; each gives a stub."""
PLAIN = {"bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "range", "set"}
PLAIN |= {"slice", "str", "tuple", "NoneType"}
"""Harmless types of builtins."""
HARMFUL = {
    *("os", "posix", "nt", "posixpath", "ntpath", "sys", "subprocess", "shutil", "socket", "pty", "code", "codeop"),
    *("runpy", "imp", "pkgutil", "zipimport", "webbrowser", "types", "operator", "inspect", "pickle", "_pickle"),
    *("marshal", "shelve", "dill", "dill._dill", "cloudpickle", "cloudpickle.cloudpickle", "joblib", "threading"),
    *("_thread", "signal", "platform", "pdb", "bdb", "timeit", "trace", "cProfile", "profile", "ensurepip", "venv"),
    *("ftplib", "smtplib", "telnetlib", "requests", "tempfile", "glob", "commands", "popen2", "doctest", "pydoc"),
    *("atexit", "sqlite3", "tarfile", "zipfile", "io", "_io", "builtins", "py_compile", "compileall", "pip"),
}
HARMFUL_PACKAGES = {"importlib", "ctypes", "multiprocessing", "concurrent", "asyncio", "urllib", "http", "xmlrpc"}
"""Modules that start programs, open files or make code; no checkpoint has a use for their names."""
OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
OLD_TYPES = {"unicode": "str", "long": "int", "xrange": "range"}
"""Names of Python 2, as in protocol 2."""

MARK = object()
"""Marks the start of a run of values on the stack."""
CONSTANTS: dict[bytes, Callable[[], Any]] = {
    b"N": lambda: None,
    b"\x88": lambda: True,
    b"\x89": lambda: False,
    b")": tuple,
    b"]": list,
    b"}": dict,
    b"\x8f": list,  # a set, of which nothing needs to be hashed
    b"(": lambda: MARK,
}
NUMBERS = {b"K": "<B", b"M": "<H", b"J": "<i", b"G": ">d"}
LONGS = {b"\x8a": "<B", b"\x8b": "<I"}
TEXTS = {b"X": "<I", b"\x8c": "<B", b"\x8d": "<Q"}
BYTES = {b"B": "<I", b"C": "<B", b"\x8e": "<Q", b"\x96": "<Q"}
OLD_TEXTS = {b"U": "<B", b"T": "<I"}
PUTS = {b"q": "<B", b"r": "<I"}
GETS = {b"h": "<B", b"j": "<I"}
TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}
SKIPPED = {b"\x80": 1, b"\x95": 8}
"""The protocol, and the length of a frame."""


class PickleInterpreter:
    """Interprets one pickle from the position of `file`, at most `size` bytes."""

    def __init__(self, file: BinaryIO, size: int, persistent: Callable[[Any], Any]) -> None:
        self.file, self.remaining, self.persistent = file, size, persistent
        self.room = MAX_OPCODES + size
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.steps: dict[bytes, Callable[[], Any]] = {
            b"0": lambda: self.stack.pop() if self.stack else self.pop(),
            b"1": lambda: self.marked() and None,
            b"2": lambda: self.stack.append(self.top()),
            b"\x94": lambda: self.remember(len(self.memo)),
            b"t": lambda: self.stack.append(tuple(self.marked())),
            b"l": lambda: self.stack.append(self.marked()),
            b"d": lambda: self.stack.append(assign_items({}, self.marked())),
            b"\x91": lambda: self.stack.append(self.marked()),
            b"a": lambda: extend_items([self.pop()], self.top()),
            b"e": lambda: extend_items(self.marked(), self.top()),
            b"\x90": lambda: extend_items(self.marked(), self.top()),
            b"s": lambda: self.assign([self.pop(), self.pop()][::-1]),
            b"u": lambda: self.assign(self.marked()),
            b"c": lambda: self.stack.append(checked_name(self.line(), self.line())),
            b"\x93": lambda: self.stack.append(checked_name(*[self.pop(), self.pop()][::-1])),
            b"R": lambda: self.make([self.pop(), self.pop()][::-1]),
            b"\x81": lambda: self.make([self.pop(), self.pop()][::-1]),
            b"\x92": lambda: self.make([self.pop(), self.pop(), self.pop()][:0:-1]),
            b"b": lambda: self.build(self.pop(), self.top()),
            b"Q": lambda: self.stack.append(self.persistent(self.pop())),
        }

    def run(self) -> Any:
        """The value. Raises `RefusedPickle` for what is damaged, and for what is no state dict."""
        for _ in range(MAX_OPCODES):
            if (opcode := self.take(1)) == b".":
                return self.pop()
            self.step(opcode)
        raise RefusedPickle(f"has more than {MAX_OPCODES:,} opcodes, which no state dict has")

    def step(self, opcode: bytes) -> None:
        push = self.stack.append
        if opcode in self.steps:
            self.steps[opcode]()
        elif opcode in CONSTANTS:
            push(CONSTANTS[opcode]())
        elif opcode in NUMBERS:
            push(self.number(NUMBERS[opcode]))
        elif opcode in PUTS:
            self.remember(self.number(PUTS[opcode]))
        elif opcode in GETS:
            if (place := self.number(GETS[opcode])) not in self.memo:
                raise RefusedPickle("is damaged: it refers to a value that is not there")
            push(self.memo[place])
        elif opcode in TEXTS:
            push(self.take(self.number(TEXTS[opcode])).decode("utf-8", "replace"))
        elif opcode in OLD_TEXTS:
            push(self.take(self.number(OLD_TEXTS[opcode])).decode("latin1"))
        elif opcode in BYTES:
            push(self.take(self.number(BYTES[opcode])))
        elif opcode in LONGS:
            push(int.from_bytes(self.take(self.number(LONGS[opcode])), "little", signed=True))
        elif opcode in TUPLES:
            values = [self.pop() for _ in range(TUPLES[opcode])]
            push(tuple(reversed(values)))
        elif opcode in SKIPPED:
            self.take(SKIPPED[opcode])
        else:
            raise RefusedPickle(f"has the opcode {opcode!r}, which torch.save does not write")

    # Bytes

    def take(self, count: int) -> bytes:
        """Exactly `count` bytes. Raises `RefusedPickle` where fewer are left."""
        data = self.file.read(count) if count <= self.remaining else b""
        if len(data) != count:
            raise RefusedPickle("is damaged: it is cut short")
        self.remaining -= count
        return data

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        data = self.file.readline(min(self.remaining, 1024))
        if not data.endswith(b"\n"):
            raise RefusedPickle("is damaged: a name in it has no end")
        self.remaining -= len(data)
        return data[:-1].decode("utf-8", "replace")

    # The stack

    def pop(self) -> Any:
        if not self.stack or (value := self.stack.pop()) is MARK:
            raise RefusedPickle("is damaged: a value is missing")
        return value

    def top(self) -> Any:
        self.stack.append(value := self.pop())
        return value

    def marked(self) -> list[Any]:
        """Pop the values above the last mark."""
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is MARK:
                values = self.stack[place + 1 :]
                del self.stack[place:]
                return values
        raise RefusedPickle("is damaged: a mark is missing")

    def remember(self, place: int) -> None:
        self.memo[place] = self.top()

    # Objects

    def assign(self, values: list[Any]) -> None:
        assign_items(self.top(), values)

    def make(self, call: list[Any]) -> None:
        """Push the result of a constructor call, or a stub."""
        of, arguments = call
        if not isinstance(of, Name) or not isinstance(arguments, tuple):
            raise RefusedPickle("is damaged: it calls what is no class")
        self.spend(arguments)
        if of in CONSTRUCTORS:
            try:
                made = CONSTRUCTORS[of](*arguments)
            except (TypeError, ValueError, RuntimeError, OverflowError):
                raise RefusedPickle(f"is damaged: {of} cannot be made of what it states") from None
        elif is_class(of):
            made = Stub(of)
        else:
            raise RefusedPickle(f"asks for a call of {of}, which no state dict needs, and which diptych never runs")
        self.stack.append(made)

    def build(self, state: Any, target: Any) -> None:
        """Give an object its state: only numpy's need theirs."""
        self.spend(state if isinstance(state, tuple) else ())
        if isinstance(target, Array):
            fill_array(target, state)
        elif isinstance(target, NumpyType) and isinstance(state, tuple) and len(state) > 1:
            target.order = state[1] if type(state[1]) is str else ""

    def spend(self, values: tuple[Any, ...]) -> None:
        """Count the values that a constructor iterates over: a file could repeat the same long list."""
        self.room -= sum(len(value) for value in values if isinstance(value, (list, tuple, dict, str, bytes)))
        if self.room < 0:
            raise RefusedPickle("handles the same values again and again, which no state dict does")


def checked_name(module: Any, name: Any) -> Name:
    """A name, checked against harmful modules."""
    if type(module) is not str or type(name) is not str:
        raise RefusedPickle("is damaged: a name in it is no text")
    module = OLD_MODULES.get(module, module)
    result = Name(module, OLD_TYPES.get(name, name) if module == "builtins" else name)
    plain = module == "builtins" and result.name in PLAIN
    if not plain and (module in HARMFUL or module.partition(".")[0] in HARMFUL_PACKAGES):
        raise RefusedPickle(f"names {result}, which no state dict needs, and which diptych never runs")
    return result


def is_class(of: Name) -> bool:
    """Whether a name is that of a class, or only constructs values; calling it gives a stub."""
    last = of.name.rpartition(".")[2].lstrip("_")
    rebuilt = of.module == "torch._utils" and of.name.startswith("_rebuild_")  # tensors that are quantised, sparse, ...
    plain = of.module == "builtins"
    return last[:1].isupper() or rebuilt or plain or of in FUNCTIONS


def assign_items(target: Any, values: list[Any]) -> Any:
    """Put alternating keys and values into a dict, if the keys are text."""
    if isinstance(target, dict):
        target.update({key: value for key, value in zip(values[::2], values[1::2], strict=False) if type(key) is str})
    elif not isinstance(target, Stub):
        raise RefusedPickle("is damaged: it gives keys to what is no dict")
    return target


def extend_items(values: list[Any], target: Any) -> None:
    if isinstance(target, list):
        target.extend(values)
    elif not isinstance(target, Stub):
        raise RefusedPickle("is damaged: it gives items to what is no list")
