# SPDX-License-Identifier: LGPL-2.1-or-later
"""What runs as root on a production host needs the standard library alone, from 3.9 on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import crashlend

SOURCE = Path(crashlend.__file__).parent.parent
PROGRAM = """\
import importlib, json, pkgutil, sys
sys.path.insert(0, sys.argv[1])
import crashlend
def walk(package):  # walk_packages() imports every package, the lab's, too
    for m in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if m.name.split(".")[1] not in ("lab", "__main__"):
            yield m.name
            module = importlib.import_module(m.name)
            if m.ispkg:
                yield from walk(module)
names = list(walk(crashlend))
known = getattr(sys, "stdlib_module_names", None)
foreign = sorted({m.split(".")[0] for m in sys.modules} - set(known or ()) - {"crashlend"}
                 - {"__main__", "__mp_main__"}) if known else []
lab = sorted(m for m in sys.modules if m.startswith("crashlend.lab."))
print(json.dumps({"names": names, "foreign": foreign, "lab": lab}))
"""


def python39() -> str:
    """A Python 3.9 of this machine, or the reason to skip."""
    places = [Path(found) for found in [shutil.which("python3.9")] if found]
    homes = [Path.home() / ".pyenv", Path("/opt/pyenv")]
    for home in homes:
        try:
            places += sorted(home.glob("versions/3.9*/bin/python3.9"))
        except OSError:
            continue
    for place in places:
        if subprocess.run([place, "-c", ""], capture_output=True).returncode == 0:
            return str(place)
    pytest.skip("no python3.9 on PATH or in pyenv")


@pytest.fixture(params=["this", "3.9"])
def python(request: pytest.FixtureRequest) -> str:
    return sys.executable if request.param == "this" else python39()


def isolated(python: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run Python without site-packages, environment or current directory."""
    return subprocess.run([python, "-S", "-I", *args], capture_output=True, text=True, timeout=60)


def test_every_core_module_imports_without_site_packages(python: str) -> None:
    """Each module outside lab/ imports in isolation; no other package and no lab comes along."""
    done = isolated(python, "-c", PROGRAM, str(SOURCE))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["foreign"] == []
    assert found["lab"] == []
    assert {"crashlend.plan", "crashlend.system.loading", "crashlend.cli.main"} <= set(
        found["names"]
    )


def crashlend_in(python: str, *args: str) -> subprocess.CompletedProcess[str]:
    program = (
        f"import sys; sys.path.insert(0, {str(SOURCE)!r})\n"
        "from crashlend.cli.main import main\nraise SystemExit(main(sys.argv[1:]))"
    )
    return isolated(python, "-c", program, *args)


def test_help_lists_the_verbs(python: str) -> None:
    """``crashlend --help`` works on the bare interpreter and tells the exit codes."""
    done = crashlend_in(python, "--help")
    assert done.returncode == 0, done.stderr
    assert {"plan", "load", "unload", "status", "snapshot"} <= set(done.stdout.split())
    assert "11 refused by policy" in " ".join(done.stdout.split())


@pytest.mark.parametrize("verb", ["plan", "load", "unload", "reload", "status", "snapshot"])
def test_help_of_every_verb_works(python: str, verb: str) -> None:
    """``crashlend VERB --help`` works on the bare interpreter."""
    done = crashlend_in(python, verb, "--help")
    assert done.returncode == 0, done.stderr
    assert f"crashlend {verb}" in done.stdout


def test_dataclass_hints_resolve(python: str) -> None:
    """Facts go through JSON on the bare interpreter: its annotations mean something there."""
    program = (
        f"import sys; sys.path.insert(0, {str(SOURCE)!r}); import json, pathlib\n"
        "from crashlend.facts import Facts, read_facts\n"
        "from crashlend.hostfiles import TreeFiles\n"
        "from crashlend.jsonable import from_json, to_json\n"
        "f = read_facts(TreeFiles(pathlib.Path('/nonexistent')))\n"
        "assert from_json(Facts, json.loads(json.dumps(to_json(f)))) == f\n"
    )
    done = isolated(python, "-c", program)
    assert done.returncode == 0, done.stderr
