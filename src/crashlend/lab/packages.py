# SPDX-License-Identifier: LGPL-2.1-or-later
"""Debian packages of any suite, without root and without touching the machine's own apt.

Each suite has a private apt below the lab's cache: lists, archives, logs and an *empty* dpkg
status, so that apt resolves dependencies as if nothing were installed. Where the packages come
from and how to reach it (mirror, proxy, login) is read from the machine's apt configuration at
run time. apt checks every signature, against the Debian archive keyring alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Callable, NamedTuple

from crashlend.errors import CrashlendError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Say = Callable[[str], None]

MAX_AGE_SECONDS = 7 * 24 * 3600
RETRY_SECONDS = 3600
ARCHITECTURE = "amd64"
_KEYRINGS = (
    "/usr/share/keyrings/debian-archive-keyring.pgp",
    "/usr/share/keyrings/debian-archive-keyring.gpg",
)
_TARGET_FIELDS = ("REPO_URI", "ORIGIN", "LABEL", "RELEASE")
_NO_DIRECTORIES = ("Etc::parts", "Etc::sourceparts", "Etc::preferencesparts", "Etc::trustedparts")
_NO_FILES = ("Etc::main", "Etc::preferences", "Etc::trusted")
_GET_APT = "install the packages apt and dpkg (Fedora, Arch and others have them as well)"
_SET_MIRROR = "set CRASHLEND_LAB_MIRROR='ADDRESS [SECURITY-ADDRESS]' to a mirror of the archive"


def silent(_message: str) -> None:
    """Swallow progress messages: the default of every ``say``."""


def cache_directory() -> Path:
    """Where the lab keeps what it fetched: $CRASHLEND_LAB_CACHE, else below the user's cache."""
    own = os.environ.get("CRASHLEND_LAB_CACHE")
    if own:
        return Path(own).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "crashlend" / "lab"


@contextmanager
def locked(path: Path, say: Say = silent) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path``; say so when another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say(f"waiting for another crashlend (it holds {path})")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file of the cache: whole, or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as file:
        file.write(data)
    Path(file.name).replace(path)


def find_tool(name: str, hint: str = "") -> str:
    """The path of a program, also where a user's PATH lacks the sbin directories.

    Raises:
        CrashlendError: it is not installed; ``hint`` says which package has it.

    """
    path = os.environ.get("PATH", os.defpath)
    found = shutil.which(name, path=f"{path}:/usr/local/sbin:/usr/sbin:/sbin")
    if found is None:
        raise CrashlendError(f"cannot run {name}", "it is not installed", hint=hint)
    return found


# --- where the packages come from -------------------------------------------------------------


class IndexTarget(NamedTuple):
    """One line of ``apt-get indextargets``: a repository that the machine's apt knows."""

    uri: str
    origin: str
    label: str
    release: str


class Archives(NamedTuple):
    """The Debian archive and, where known, the one of its security updates."""

    main: str
    security: str | None


def parse_indextargets(text: str) -> list[IndexTarget]:
    """Read lines of ``REPO_URI|ORIGIN|LABEL|RELEASE``; apt leaves ``$(NAME)`` for what is unset."""
    targets = []
    for line in text.splitlines():
        words = ["" if word.startswith("$(") else word for word in line.strip().split("|")]
        if len(words) == len(_TARGET_FIELDS) and words[0]:
            targets.append(IndexTarget(*words))
    return targets


def choose_archives(targets: Sequence[IndexTarget]) -> Archives | None:
    """Pick the Debian archive and its security updates; None when apt knows no Debian archive.

    Before the machine's first ``apt-get update`` no Release file says who the origin is; then the
    address must end the way that mirrors' addresses do.
    """
    usable = [t for t in targets if not t.uri.startswith("cdrom:")]
    main = security = None
    for target in usable:
        guess = target.uri.rstrip("/").rsplit("/", 1)[-1] if not target.origin else ""
        is_main = (target.origin, target.label) == ("Debian", "Debian") or guess == "debian"
        is_security = target.label == "Debian-Security" or guess == "debian-security"
        if is_main and main is None:
            main = target.uri
        elif is_security and security is None:
            security = target.uri
    return Archives(main, security) if main else None


def machine_archives() -> Archives:
    """The archives that this machine uses, or those of $CRASHLEND_LAB_MIRROR."""
    words = os.environ.get("CRASHLEND_LAB_MIRROR", "").split()
    if words:
        return Archives(words[0], words[1] if len(words) > 1 else None)
    line = "|".join(f"$({name})" for name in _TARGET_FIELDS)
    apt_get = find_tool("apt-get", _GET_APT)
    words = [apt_get, "indextargets", "--format", line, "Created-By: Packages"]
    archives = choose_archives(parse_indextargets(run_tool(words, "cannot read apt's sources")))
    if archives is None:
        why = "this machine's apt configuration names no Debian archive"
        raise CrashlendError("cannot fetch Debian packages", why, hint=_SET_MIRROR)
    return archives


def sources_list(suite: str, archives: Archives, keyring: Path) -> str:
    """The one-line sources of a suite: the archive and, for a release, its security updates."""
    options = f"[arch={ARCHITECTURE} signed-by={keyring}]"
    lines = [f"deb {options} {archives.main} {suite} main"]
    if archives.security and suite not in ("sid", "experimental") and "-" not in suite:
        # Bullseye was the first to name them SUITE-security; nothing older is of use here.
        lines.append(f"deb {options} {archives.security} {suite}-security main")
    return "".join(f"{line}\n" for line in lines)


def _keyring() -> Path:
    own = os.environ.get("CRASHLEND_LAB_KEYRING")
    for name in [own] if own else _KEYRINGS:
        if Path(name).is_file():
            return Path(name).absolute()
    raise CrashlendError(
        "cannot check signatures of Debian packages",
        f"there is no {own or _KEYRINGS[-1]}",
        hint="install the package debian-archive-keyring, or set CRASHLEND_LAB_KEYRING=FILE",
    )


# --- what apt says ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Package:
    """One version of one package, as apt offers it."""

    name: str
    version: str
    architecture: str
    depends: tuple[str, ...] = ()

    @property
    def file_name(self) -> str:
        """The name of the .deb file as apt writes it."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.architecture}.deb"


def parse_simulation(text: str) -> list[Package]:
    """The packages that ``apt-get --simulate install`` would install, in its order."""
    pattern = re.compile(r"^Inst (\S+) (?:\[\S+\] )?\((\S+) .*\[(\w+)\]\)", re.MULTILINE)
    found = [Package(n.partition(":")[0], v, a) for n, v, a in pattern.findall(text)]
    return list(dict.fromkeys(found))


def parse_show(text: str) -> list[Package]:
    """The stanzas of ``apt-cache show``; ``depends`` has the first name of each alternative."""
    packages = []
    for stanza in re.split(r"\n\s*\n", text):
        fields = dict(re.findall(r"^([A-Za-z0-9-]+): *(.*)$", stanza, re.MULTILINE))
        if "Package" not in fields or "Version" not in fields:
            continue
        words = f"{fields.get('Pre-Depends', '')},{fields.get('Depends', '')}".split(",")
        names = [re.split(r"[\s|:(]", word.strip(), maxsplit=1)[0] for word in words]
        packages.append(
            Package(
                fields["Package"],
                fields["Version"],
                fields.get("Architecture", ARCHITECTURE),
                tuple(name for name in names if name),
            )
        )
    return packages


def inherited_settings(dump: str) -> str:
    """Of ``apt-config dump`` what says how to reach a mirror: proxies, timeouts, date checks.

    The rest stays behind on purpose: hooks of the machine (``docker-clean`` empties the system's
    cache after each download) and paths. Index targets would fetch more than ``Packages``.
    """
    lines = re.findall(r'^Acquire::(?!IndexTargets|Languages)\S+ "[^"]*";$', dump, re.MULTILINE)
    return "".join(f"{line}\n" for line in lines)


@dataclass(frozen=True)
class Suite:
    """The packages of one Debian suite ("bookworm", "trixie-backports", "sid" ...).

    ``say`` gets one line of progress at a time. Methods raise :class:`CrashlendError` when a tool,
    a package or the mirror is missing.
    """

    name: str
    say: Say = field(default=silent, compare=False)

    @property
    def directory(self) -> Path:
        """The private apt of this suite."""
        return cache_directory() / "apt" / self.name

    @property
    def archives(self) -> Path:
        """The .deb files that were fetched."""
        return self.directory / "debs"

    def update(self, max_age_seconds: float = MAX_AGE_SECONDS) -> None:
        """Fetch the package lists, unless those here are younger than ``max_age_seconds``.

        Lists that cannot be refreshed are better than none: they stay in use, and that is said.
        """
        with locked(self.directory / "lock", self.say):
            stamp = self.directory / "updated"
            failed = self.directory / "failed"
            if _age_seconds(stamp) <= max_age_seconds:
                return
            if stamp.exists() and _age_seconds(failed) <= RETRY_SECONDS:
                return  # said when it failed
            try:
                self._configure()
                self.say(f"fetching the package lists of {self.name}")
                words = ["update", "--quiet", "-o", "APT::Update::Error-Mode=any"]
                self._apt("apt-get", words, f"cannot fetch the package lists of {self.name}")
            except CrashlendError as error:
                if not stamp.exists():
                    raise
                failed.touch()
                self.say(f"{error}; going on with those of {_age_seconds(stamp) / 86400:.0f} d ago")
                return
            failed.unlink(missing_ok=True)
            stamp.touch()

    def find(self, pattern: str) -> list[str]:
        """The names of the packages in this suite that match ``pattern`` from start to end."""
        self.update()
        regexp = re.compile(pattern)
        names = self._apt("apt-cache", ["pkgnames"], f"cannot read the lists of {self.name}")
        return sorted(name for name in names.split() if regexp.fullmatch(name))

    def candidates(self, names: Iterable[str]) -> list[Package]:
        """The newest version of each named package; unknown names are left out."""
        self.update()
        wanted = sorted(set(names))
        if not wanted:
            return []
        what = f"cannot look up packages of {self.name}"
        words = ["show", "--quiet", "--no-all-versions", *wanted]
        # apt-cache exits with 100 when one of the names is unknown
        shown = parse_show(self._apt("apt-cache", words, what, codes=(0, 100)))
        return [package for package in shown if package.name in wanted]

    def resolve(self, names: Sequence[str], *, with_dependencies: bool = True) -> list[Package]:
        """The named packages (or .deb files), if asked with all that they depend on.

        Recommended packages are not followed.
        """
        self.update()
        if with_dependencies:
            return self._resolve_all(names)
        found = self.candidates(names)
        missing = sorted(set(names) - {package.name for package in found})
        if missing:
            why = "no such package"
            raise CrashlendError(f"{self.name} cannot supply {' '.join(missing)}", why)
        return found

    def _resolve_all(self, names: Sequence[str]) -> list[Package]:
        # apt takes seconds for this; the answer stays the same until the lists change
        key = hashlib.sha256(" ".join(names).encode()).hexdigest()[:16]
        known = self.directory / f"resolved-{key}"
        if _age_seconds(known) < _age_seconds(self.directory / "updated"):
            return parse_simulation(known.read_text())
        what = f"{self.name} cannot supply {' '.join(names)}"
        words = ["--simulate", "--no-install-recommends", "install", *names]
        text = self._apt("apt-get", words, what)
        write_atomically(known, text.encode())
        return parse_simulation(text)

    def download(self, names: Sequence[str], *, with_dependencies: bool = False) -> list[Path]:
        """The .deb files of the named packages; fetches those which are not here."""
        return self.fetch(self.resolve(names, with_dependencies=with_dependencies))

    def fetch(self, packages: Sequence[Package]) -> list[Path]:
        """The .deb files of exactly these packages; touches no network when all are here."""
        paths = [self.archives / package.file_name for package in packages]
        with locked(self.directory / "lock", self.say):
            missing = [p for p, path in zip(packages, paths) if not path.exists()]
            if missing:
                self.archives.mkdir(parents=True, exist_ok=True)
                self._fetch_missing(missing)
        return paths

    def _fetch_missing(self, packages: Sequence[Package]) -> None:
        names = ", ".join(package.name for package in packages[:4])
        more = f" and {len(packages) - 4} more" if len(packages) > 4 else ""
        self.say(f"fetching {names}{more} from {self.name}")
        what = f"cannot fetch packages of {self.name}"
        with tempfile.TemporaryDirectory(prefix="partial-", dir=self.directory) as scratch:
            words = ["download", "--quiet", *(f"{p.name}={p.version}" for p in packages)]
            self._apt("apt-get", words, what, directory=Path(scratch))
            for package in packages:
                path = Path(scratch, package.file_name)
                if not path.exists():
                    raise CrashlendError(what, f"apt-get download left no {package.file_name}")
                path.rename(self.archives / package.file_name)

    def _configure(self) -> None:
        here = self.directory
        for name in ("state/lists/partial", "cache/archives/partial", "log", "none"):
            (here / name).mkdir(parents=True, exist_ok=True)
        (here / "status").write_text("")
        (here / "none.conf").write_text("")
        (here / "sources.list").write_text(sources_list(self.name, machine_archives(), _keyring()))
        dump = run_tool([find_tool("apt-config", _GET_APT), "dump"], "cannot read apt's settings")
        paths = {
            "State": "state",
            "State::status": "status",
            "Cache": "cache",
            "Log": "log",
            # the machine's settings came through the dump; logins are read where they are
            **dict.fromkeys(_NO_DIRECTORIES, "none"),
            **dict.fromkeys(_NO_FILES, "none.conf"),
            "Etc::sourcelist": "sources.list",
        }
        own = [f'Dir::{key} "{here / value}";\n' for key, value in paths.items()]
        own += [
            'Dir::Cache::srcpkgcache "";\n',
            f'APT::Architecture "{ARCHITECTURE}";\n',
            f'APT::Architectures {{ "{ARCHITECTURE}"; }};\n',
            'Acquire::Languages "none";\n',
            # apt's own user cannot write below a private cache when root runs this
            'APT::Sandbox::User "root";\n',
        ]
        (here / "apt.conf").write_text(inherited_settings(dump) + "".join(own))

    def _apt(
        self,
        tool: str,
        words: Sequence[str],
        what: str,
        *,
        codes: tuple[int, ...] = (0,),
        directory: Path | None = None,
    ) -> str:
        environment = {**os.environ, "APT_CONFIG": str(self.directory / "apt.conf"), "LC_ALL": "C"}
        command = [find_tool(tool, _GET_APT), *words]
        return run_tool(command, what, environment=environment, codes=codes, directory=directory)


def unpack(deb: Path, into: Path, *, without: Sequence[str] = ()) -> None:
    """Unpack the files of a package below ``into``, without root and without its scripts.

    Args:
        deb: the package.
        into: an existing directory; symlinks to directories in it (merged /usr) are kept.
        without: tar patterns of paths to leave out, such as ``./usr/share/doc``.

    """
    dpkg_deb = find_tool("dpkg-deb", _GET_APT)
    # Not dpkg-deb -x: it replaces the symlink /lib by a directory when the package has one.
    tar = [find_tool("tar"), "-x", "-p", "--no-same-owner", "--keep-directory-symlink"]
    tar += [f"--exclude={pattern}" for pattern in without]
    what = f"cannot unpack {deb.name}"
    with subprocess.Popen([dpkg_deb, "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as source:
        run_tool([*tar, "-C", str(into)], what, stdin=source.stdout)
        if source.stdout:
            source.stdout.close()
    if source.returncode:
        hint = f"remove {deb} and try again"
        raise CrashlendError(what, f"dpkg-deb exited with {source.returncode}", hint=hint)


def _age_seconds(stamp: Path) -> float:
    try:
        return time.time() - stamp.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def run_tool(
    command: Sequence[str],
    what: str,
    *,
    environment: dict[str, str] | None = None,
    codes: tuple[int, ...] = (0,),
    directory: Path | None = None,
    stdin: IO[bytes] | None = None,
) -> str:
    """Run a program to its end and give its output.

    Raises:
        CrashlendError: ``what`` failed: the exit code is not in ``codes``.

    """
    done = subprocess.run(
        command,
        stdin=stdin or subprocess.DEVNULL,
        capture_output=True,
        env=environment,
        cwd=directory,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode in codes:
        return done.stdout
    why, hint = explain_apt(done.stderr)
    raise CrashlendError(what, why or f"{command[0]} exited with {done.returncode}", hint=hint)


def explain_apt(stderr: str) -> tuple[str, str]:
    """Of apt's complaints the first that matters, and what to do about it."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E: ")] or lines
    for line in lines:
        if "NO_PUBKEY" in line or "EXPKEYSIG" in line:
            hint = (
                "the Debian keyring is too old for this suite: upgrade the package "
                "debian-archive-keyring, or set CRASHLEND_LAB_KEYRING=FILE to a newer one"
            )
            return line[3:], hint
    why = (errors[0][3:] if errors[0].startswith(("E: ", "W: ")) else errors[0]) if errors else ""
    if "does not have a Release file" in why or "404" in why:
        return why, f"the mirror may not carry this suite (any more): {_SET_MIRROR}"
    if "Could not resolve" in stderr or "Could not connect" in stderr:
        return why, "check the network and the proxy in apt's configuration"
    return why, ""
