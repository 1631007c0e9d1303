# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which modules the crash kernel inserts when: three lists in the initramfs."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from crashlend.capture.modules import Want
from crashlend.capture.pstore import find_pstore
from crashlend.capture.watchdogs import watchdog_wants

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from crashlend.capture.modules import Module, ModuleTree


class Insert(NamedTuple):
    """A module to insert with these parameters."""

    module: Module
    parameters: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """What init reads: the file, and the parameters behind it."""
        return " ".join((f"/lib/modules/{self.module.name}.ko", *self.parameters)) + "\n"


class ModuleLists(NamedTuple):
    """``watchdogs`` before anything else, ``modules`` for the targets, ``pstore`` at the end."""

    watchdogs: tuple[Insert, ...]
    modules: tuple[Insert, ...]
    pstore: tuple[Insert, ...]


def module_lists(
    root: Path, tree: ModuleTree, wants: Iterable[Want], *, watchdogs: bool, pstore: bool
) -> ModuleLists:
    """The lists for targets that take ``wants``; each module is in one of them.

    Watchdogs come first, because production's may be counting already. The driver of pstore comes
    last, and only when there is nothing else left: it calls firmware.
    """
    early = tree.closure(watchdog_wants(root, tree)) if watchdogs else ()
    known = {module.name for module in early}
    middle = [module for module in tree.closure(wants) if module.name not in known]
    known |= {module.name for module in middle}
    last: list[Insert] = []
    for backend in find_pstore(root) if pstore else ():
        want = Want(backend.name, "production's pstore", optional=True)
        for module in tree.closure((want,)):
            if module.name not in known:
                own = module.name == backend.name
                last.append(Insert(module, backend.parameters if own else ()))
    return ModuleLists(
        tuple(Insert(module) for module in early),
        tuple(Insert(module) for module in middle),
        tuple(last),
    )
