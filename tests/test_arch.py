# SPDX-License-Identifier: LGPL-2.1-or-later
"""An architecture is one module with the three hooks of the series and little else."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType

import pytest

from crashlend import arch
from crashlend.arch import x86_64
from crashlend.errors import CrashlendError

HOOKS = ("reserve_lent", "include_in_memory_map", "exclude_from_vmcore")


def test_a_new_architecture_needs_only_these(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module with the functions of the protocol, and a row in one table, is an architecture."""
    wanted = {n for n in vars(arch.Architecture) if not n.startswith("_")} | {"RAM"}
    module = ModuleType("another_arch")
    for name in wanted:
        setattr(module, name, getattr(x86_64, name))
    monkeypatch.setitem(sys.modules, "another_arch", module)
    monkeypatch.setitem(arch.MODULES, "another", "another_arch")
    found = arch.for_machine("another")
    assert all(callable(getattr(found, hook)) for hook in HOOKS)


@pytest.mark.parametrize("name", [n for n in vars(arch.Architecture) if not n.startswith("_")])
def test_x86_64_supplies_the_protocol(name: str) -> None:
    """Each function of the protocol is there with the same parameters."""
    ours, asked = getattr(x86_64, name), getattr(arch.Architecture, name)
    if callable(asked):
        assert list(inspect.signature(ours).parameters) == [
            p for p in inspect.signature(asked).parameters if p != "self"
        ]


def test_unknown_machine_is_refused() -> None:
    """A machine without a module is named in the error."""
    with pytest.raises(CrashlendError, match="sparc64"):
        arch.for_machine("sparc64")
