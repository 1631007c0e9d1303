# SPDX-License-Identifier: LGPL-2.1-or-later
"""A dump opened with drgn: who ran, on which stack it crashed, which modules there were.

What the dump lacks (lent memory, and what makedumpfile left out) is told for each object that can't be
read, and costs nothing but that object. drgn is the extra ``[analyze]``; it is imported here alone and
only when needed, and it is never allowed to fetch symbols from the network (debuginfod).
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable, Optional, TypeVar

from crashlend.dumps.directory import ranges_of
from crashlend.dumps.symbols import find_vmlinux
from crashlend.errors import CrashlendError
from crashlend.ranges import Ranges

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from crashlend.dumps.directory import Dump

T = TypeVar("T")
PF_KTHREAD = 0x00200000  # include/linux/sched.h
# of Program; all came with the modules of drgn 0.2
NEEDED = ("set_enabled_debug_info_finders", "main_module", "load_debug_info")
# of tasks and modules: no host has more
MOST = 1 << 20


@dataclass(frozen=True)
class Frame:
    """One frame of a stack. ``pc`` is None and ``inline`` true where a function was inlined."""

    name: str
    pc: Optional[int]
    source: str
    inline: bool


@dataclass(frozen=True)
class Task:
    """One task. ``state`` is the letter that ps has."""

    pid: int
    comm: str
    state: str
    kernel_thread: bool


@dataclass(frozen=True)
class Module:
    """A loaded module; ``taints`` are the letters of its taint flags."""

    name: str
    taints: str


@dataclass(frozen=True)
class Crashed:
    """The task that crashed and its stack, innermost frame first. ``command`` is None: not in the dump."""

    pid: int
    comm: str
    cpu: Optional[int]
    stack: tuple[Frame, ...]
    command: Optional[str] = None


@dataclass(frozen=True)
class Unreadable:
    """An object that the dump does not hold, and why. ``address`` is what drgn failed at."""

    what: str
    address: Optional[int]
    why: str


@dataclass(frozen=True)
class Analysis:
    """All that was read. ``cmdline`` is the crashed kernel's own."""

    release: str
    cmdline: str
    vmlinux: str
    crashed: Optional[Crashed]
    tasks: tuple[Task, ...]
    modules: tuple[Module, ...]
    unreadable: tuple[Unreadable, ...]


@dataclass
class Reader:
    """Reads objects of a program, and collects what can't be read."""

    program: Any
    fault: type[Exception]
    explain: Callable[[Optional[int]], str]
    unreadable: list[Unreadable] = field(default_factory=list)

    def get(self, what: str, read: Callable[[], T], default: T) -> T:
        """What ``read`` returns, or the default."""
        try:
            return read()
        except self.fault as error:
            self.note(what, error)
        except Exception as error:  # what a damaged kernel makes drgn raise costs this object alone
            self._odd(what, error)
        return default

    def each(self, what: str, iterate: Callable[[], Iterator[T]]) -> Iterator[T]:
        """The items up to the first that can't be reached."""
        try:
            for count, item in enumerate(iterate()):
                if count >= MOST:
                    self.unreadable.append(Unreadable(what, None, "the list does not end"))
                    return
                yield item
        except self.fault as error:
            self.note(f"{what}: the rest of them", error)
        except Exception as error:  # as above
            self._odd(f"{what}: the rest of them", error)

    def _odd(self, what: str, error: Exception) -> None:
        words = f"drgn: {error}" if str(error) else f"drgn: {type(error).__name__}"
        self.unreadable.append(Unreadable(what, None, words))

    def note(self, what: str, error: Exception) -> None:
        address = getattr(error, "address", None)
        self.unreadable.append(Unreadable(what, address, self.explain(address)))


def analyze(dump: Dump, vmlinux: Optional[Path] = None) -> Analysis:
    """Open the dump and read it.

    Raises:
        CrashlendError: drgn is not installed, the symbols are missing or another kernel's, or the
            dump does not open.

    """
    drgn = import_drgn()
    what = f"cannot analyze {dump.path.name}"
    if dump.vmcore is None:
        raise CrashlendError(what, "there is no dump in it", hint="crashlend dumps show")
    if dump.core is not None and dump.core.flattened:
        raise CrashlendError(what, "it is flattened", hint=f"crashlend dumps recover {dump.vmcore}")
    symbols = vmlinux or find_vmlinux(dump.release)
    if symbols is None:
        raise CrashlendError(
            what,
            f"no debug symbols of {dump.release or 'its kernel'} are here",
            hint="name its vmlinux with --vmlinux; Debian: the package linux-image-RELEASE-dbg",
        )
    program, missing = open_program(dump, symbols)
    return _read_all(Reader(program, drgn.FaultError, missing.why), dump, symbols)


def open_program(dump: Dump, symbols: Path) -> tuple[Any, Missing]:
    """The dump as drgn's Program, and who tells why something is missing.

    Raises:
        CrashlendError: it does not open, or the symbols are another kernel's.

    """
    drgn = import_drgn()
    what = f"cannot analyze {dump.path.name}"
    logging.getLogger("drgn").addHandler(
        logging.NullHandler()
    )  # it would write to stderr by itself
    program = drgn.Program()
    try:
        program.set_core_dump(str(dump.vmcore))
        program.set_enabled_debug_info_finders(["standard"])  # debuginfod is not among them
        program.load_debug_info([str(symbols)])
        lacking = program.main_module().wants_debug_file()
    except Exception as error:  # drgn has no class of its own for what libkdumpfile says
        hint = "crashlend dumps check tells what is wrong with the dump"
        raise CrashlendError(what, f"drgn: {' '.join(str(error).split())}", hint=hint) from error
    if lacking:
        hint = "it must be the vmlinux of this very build, not stripped: compare the build IDs"
        raise CrashlendError(what, f"{symbols} has no symbols of the crashed kernel", hint=hint)
    with suppress(drgn.MissingDebugInfoError):
        program.load_default_debug_info()  # those of modules, where they are installed
    return program, Missing(program, dump)


def import_drgn() -> Any:
    """The module drgn.

    Raises:
        CrashlendError: it is not installed, can't be loaded, or lacks what is used of it here.

    """
    what = "cannot analyze a dump"
    try:
        import drgn
    except ImportError as error:
        hint = "pip install 'crashlend[analyze]', on any machine that has the dump and its vmlinux"
        raise CrashlendError(what, f"drgn: {error}", hint=hint) from error
    lacks = [name for name in NEEDED if not hasattr(drgn.Program, name)]
    if lacks:
        why = f"the drgn that is installed here has no {lacks[0]}()"
        hint = "drgn 0.2 or newer is needed: pip install 'crashlend[analyze]'"
        raise CrashlendError(what, why, hint=hint)
    return drgn


class Missing:
    """Why an address is not in a dump."""

    LENT = "it was lent to the crash kernel"

    def __init__(self, program: Any, dump: Dump) -> None:
        self.program = program
        self.lent = dump.lent
        self.reserved = holes_named(dump, "reservation") | holes_named(dump, "kernel-ranges")
        self.level = dump.level

    def why(self, address: Optional[int]) -> str:
        """In words. drgn tells physical addresses, or those of the kernel's direct mapping."""
        phys = address
        if address is not None and address >> 63:
            from drgn.helpers.linux import virt_to_phys

            phys = None
            with suppress(Exception):  # an address of no mapping that drgn knows
                phys = int(virt_to_phys(self.program, address))
        return explain(phys, self.lent, self.reserved, self.level)


def explain(phys: Optional[int], lent: Ranges, reserved: Ranges, level: Optional[int]) -> str:
    """Why the dump lacks this physical address (None: it is not known), as far as can be told. Pure."""
    if phys is not None and phys in lent:
        return Missing.LENT
    if phys is not None and phys in reserved:
        return "it is the crash kernel's by the boot command line"
    if level:
        return f"left out at dump level {level}, or no memory"
    return "not in the dump"


def holes_named(dump: Dump, why: str) -> Ranges:
    """The ranges that holes.json has for this reason."""
    holes = dump.holes.get("holes")
    found = Ranges()
    for hole in holes if isinstance(holes, list) else []:
        if isinstance(hole, dict) and hole.get("why") == why:
            found |= ranges_of(hole)
    return found


def _read_all(reader: Reader, dump: Dump, symbols: Path) -> Analysis:
    program = reader.program
    release = reader.get("the release", lambda: _text(program["init_uts_ns"].name.release), "")
    cmdline = reader.get("the command line", lambda: _text(program["saved_command_line"]), "")
    return Analysis(
        release=release or dump.release,
        cmdline=cmdline.strip(),
        vmlinux=str(symbols),
        crashed=reader.get("the task that crashed", lambda: _crashed(reader), None),
        tasks=tuple(_tasks(reader)),
        modules=tuple(_modules(reader)),
        unreadable=tuple(reader.unreadable),
    )


def _text(value: Any) -> str:
    data: bytes = value.string_()
    return data.decode("utf-8", "backslashreplace")


def _crashed(reader: Reader) -> Crashed:
    from drgn.helpers.linux import cmdline, cpu_curr, task_cpu

    thread = reader.program.crashed_thread()
    task = thread.object
    pid = int(task.pid)
    cpu = reader.get(f"the CPU of task {pid}", lambda: int(task_cpu(task)), None)
    if pid == 0 and cpu is not None:
        task = cpu_curr(reader.program, cpu)
    words: Optional[list[bytes]] = None
    if not int(task.flags) & PF_KTHREAD and pid:
        words = reader.get(
            f"the command line of task {pid}", lambda: list(cmdline(task) or ()), None
        )
    return Crashed(
        pid=pid,
        comm=reader.get(f"the name of task {pid}", lambda: _text(task.comm), "?"),
        cpu=cpu,
        stack=reader.get("the crashing stack", lambda: _frames(reader, thread.stack_trace()), ()),
        command=None if words is None else b" ".join(words).decode("utf-8", "backslashreplace"),
    )


def _frames(reader: Reader, trace: Any) -> tuple[Frame, ...]:
    frames = []
    for frame in trace:
        source = ""
        with suppress(LookupError):
            file, line, _ = frame.source()
            source = f"{file}:{line}"
        pc = None
        with suppress(LookupError):
            pc = int(frame.pc)
        frames.append(Frame(frame.name or hex(pc or 0), pc, source, bool(frame.is_inline)))
    return tuple(frames)


def _tasks(reader: Reader) -> Iterator[Task]:
    from drgn.helpers.linux import for_each_task, task_state_to_char

    for task in reader.each("tasks", lambda: for_each_task(reader.program)):
        found = reader.get(
            f"the task at {task.value_():#x}",
            lambda task=task: Task(  # type: ignore[misc]
                int(task.pid),
                _text(task.comm),
                task_state_to_char(task),
                bool(int(task.flags) & PF_KTHREAD),
            ),
            None,
        )
        if found is not None:
            yield found


def _modules(reader: Reader) -> Iterator[Module]:
    from drgn.helpers.linux import for_each_module, module_taints

    for module in reader.each("modules", lambda: for_each_module(reader.program)):
        found = reader.get(
            f"the module at {module.value_():#x}",
            lambda module=module: Module(  # type: ignore[misc]
                _text(module.name), module_taints(module)
            ),
            None,
        )
        if found is not None:
            yield found
