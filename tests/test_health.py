# SPDX-License-Identifier: LGPL-2.1-or-later
"""What has gone wrong since the load with devices that write late."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from build import GIB, pci_function
from build import facts as build_facts
from crashlend.facts import EndlessWriter, Refusal
from crashlend.health import find_problems

CARD, DISK = "0000:00:02.0", "0000:00:04.0"
HOST = replace(
    build_facts(
        files={
            **pci_function(CARD, 0x030000, "bochs"),
            **pci_function(DISK, 0x010802, "nvme"),
        }
    ),
    crash_loaded=True,
)
GPU = EndlessWriter("GPU", "i915", CARD, "it follows notifiers", "2 open files")


def state(*off: str, setting: str = "wait=10", lent: bool = True) -> dict[str, Any]:
    loaded = {
        "step": "loaded",
        "lender": "cma",
        "lent": [[4 * GIB, 5 * GIB]] if lent else [],
        "bus_masters": list(off),
        "settings": {"dma_quiesce": setting},
    }
    return {"blocks": {}, "loaded": loaded}


def told(facts: Any, state: dict[str, Any]) -> list[str]:
    return [p for p in find_problems(facts, state) if "no wait ends" in p or "PCI function" in p]


def test_a_writer_that_came_into_use_after_the_load_is_a_problem() -> None:
    """Unless its bus mastering will be switched off, or nothing is lent."""
    busy = replace(HOST, endless_writers=(GPU,))
    (problem,) = told(busy, state())
    assert "i915 (0000:00:02.0)" in problem
    assert "bus-masters-off" in problem
    assert told(busy, state(CARD, DISK, setting="wait=10,bus-masters-off")) == []
    assert told(busy, state(lent=False)) == []
    assert told(replace(busy, privileged=False), state()) == []
    assert told(HOST, state()) == []


def test_a_host_that_must_not_lend_any_more_is_a_problem() -> None:
    """A guest with encrypted memory may start after the load; of another lender it is none."""
    guests = replace(HOST, refusals=(Refusal("any", "SEV guests may be running"),))
    (problem,) = [p for p in find_problems(guests, state()) if "SEV" in p]
    assert "--lend 0" in problem
    xen = replace(HOST, refusals=(Refusal("movable", "under Xen"),))
    assert [p for p in find_problems(xen, state()) if "Xen" in p] == []
    assert [p for p in find_problems(guests, state(lent=False)) if "SEV" in p] == []


def test_a_function_that_came_after_the_load_is_a_problem_where_all_are_to_be_off() -> None:
    """The list that purgatory has is that of the load."""
    (problem,) = told(HOST, state(CARD, setting="wait=10,bus-masters-off"))
    assert f"PCI function {DISK}" in problem
    assert "reload" in problem
    assert told(HOST, state(CARD, DISK, setting="bus-masters-off")) == []
    assert told(HOST, state(setting="wait=10")) == []
