# SPDX-License-Identifier: LGPL-2.1-or-later
"""Network targets in the crash kernel's /init, against stand-ins for its programs.

The stand-in for ssh runs what it is told in a shell of this machine, so that what the other side is
asked to do is done. Of HTTP both sides are real: curl, and a server of Python's.
"""

from __future__ import annotations

import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from capture_shell import STUBS, executable, needs_busybox, shell

pytestmark = needs_busybox
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

SSH = """
for word; do last=$word; done
[ -e refuse ] && { cat refuse >&2; exit 255; }
exec sh -c "$last"
"""
MAKEDUMPFILE = """
[ -e wrong ] && { echo "it went wrong" >&2; exit 1; }
printf 'flat dump'
[ -e late ] && { echo "it went wrong" >&2; exit 1; }
exit 0
"""
# The network is up, and the server is this machine.
UP = """
network_up() { NET_DEVICE=eth0; }
network_address() { echo "$TARGET_ADDRESS"; }
TARGET_HOST=server TARGET_ADDRESS=127.0.0.1 NET_NOTE=''
usleep() { sleep 0.1; }
"""
USE_SSH = f"""{STUBS}{UP}
STARTED=$(now)
TARGET_KIND=ssh TARGET_SPEC=ssh://u@server/d TARGET_SSH_CONFIG=/none TARGET_PATH="$PWD/it's"
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    executable(tmp_path / "bin/ssh", SSH)
    executable(tmp_path / "bin/makedumpfile", MAKEDUMPFILE)
    return tmp_path


def test_ssh_makes_private_directories_and_final_names(here: Path) -> None:
    """A second dump of the same name gets a number; a quote in a path is a character."""
    (here / "report").write_text("{}\n")
    text = f"""{USE_SSH}
    ssh_open && ssh_begin host-time && ssh_put report capture.json && ssh_dump -l -d 31
    echo "$VMCORE $VMCORE_BYTES $DUMP_EXIT"
    ssh_begin host-time && echo "$SSH_PLACE"
    """
    told = shell(text, here).splitlines()
    assert told == [f"server:{here}/it's/host-time/vmcore.flat 9 0", f"{here}/it's/host-time-1"]
    place = here / "it's/host-time"
    assert sorted(path.name for path in place.iterdir()) == ["capture.json", "vmcore.flat"]
    assert (place / "vmcore.flat").read_text() == "flat dump"
    assert (place / "capture.json").read_text() == "{}\n"
    assert place.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in place.iterdir()} == {0o600}


def test_room_is_what_the_other_side_says_or_nothing(here: Path) -> None:
    """Nothing is no reason to leave anything out, as 0 would be."""
    executable(here / "bin/df", "[ -e answer ] && cat answer")
    assert shell(f"{USE_SSH}\nssh_room", here) == ""
    (here / "answer").write_text(
        "Filesystem 1024-blocks Used Available\n/dev/x 900 100 800 12% /\n"
    )
    assert shell(f"{USE_SSH}\nssh_room", here) == "800\n"


def test_a_file_that_does_not_come_whole_keeps_its_honest_name(here: Path) -> None:
    """A connection that breaks ends the other side's input as if all had come."""
    (here / "report").write_text("whole\n")
    text = f"""{USE_SSH}
    mkdir -p "$TARGET_PATH"; SSH_PLACE=$TARGET_PATH
    size_of() {{ echo 7; }}
    ssh_put report capture.json || echo "no: $WHY"
    """
    assert "cannot save capture.json" in shell(text, here)
    assert [path.name for path in (here / "it's").iterdir()] == ["capture.json.incomplete"]


@pytest.mark.parametrize("when", ["wrong", "late"])
def test_a_dump_that_fails_is_never_renamed(here: Path, when: str) -> None:
    """Whatever makedumpfile has written before; its own words are the reason."""
    (here / when).touch()
    text = f"""{USE_SSH}
    ssh_open && ssh_begin n; ssh_dump -d 31; echo "$? $WHY [$VMCORE]"
    """
    assert shell(text, here) == "1 makedumpfile ended with 1: it went wrong []\n"
    names = [path.name for path in (here / "it's/n").iterdir()]
    assert set(names) <= {"vmcore.flat.incomplete"}


def test_what_ssh_says_is_the_reason(here: Path) -> None:
    """The last line of it, with what was odd about the network."""
    (here / "refuse").write_text("@@@@\nHost key verification failed.\n")
    text = f"""{USE_SSH}
    NET_NOTE='no DHCP answer'
    ssh_open; echo "$? $WHY"
    """
    expected = "1 ssh://u@server/d: Host key verification failed. (no DHCP answer)\n"
    assert shell(text, here) == expected


def test_a_server_that_goes_away_is_to_blame_and_not_makedumpfile(here: Path) -> None:
    """Makedumpfile dies of SIGPIPE then; the ladder goes on with another target (stalled)."""
    executable(here / "bin/makedumpfile", "while :; do echo; done")
    text = f"""{USE_SSH}
    SSH_PLACE=$PWD
    ssh_sink() {{ sleep 1; echo "Connection closed" >&2; exit 255; }}
    ssh_dump -d 31; echo "$? $WHY"; cat stalled
    """
    assert shell(text, here).splitlines() == [
        "1 ssh://u@server/d: Connection closed",
        "ssh://u@server/d: Connection closed",
    ]


def test_a_server_that_has_no_room_may_still_take_less(here: Path) -> None:
    """Then it is not the end of this target."""
    executable(here / "bin/makedumpfile", "while :; do echo; done")
    text = f"""{USE_SSH}
    SSH_PLACE=$PWD
    ssh_sink() {{ sleep 1; echo "cat: write error: No space left on device" >&2; exit 1; }}
    ssh_dump -d 31; [ -e stalled ] || grep -c 'No space' makedumpfile.log
    """
    assert shell(text, here) == "1\n"


def test_no_room_for_a_pipe_is_not_the_end_of_init(here: Path) -> None:
    """A redirection of exec that fails ends a shell: other targets would never have their turn."""
    text = f"""{USE_SSH}
    SSH_PLACE=$PWD
    mkfifo() {{ return 1; }}
    ssh_dump -d 31; echo "$? $DUMP_EXIT $WHY"
    """
    assert shell(text, here) == f"1 null cannot make a pipe in {here}\n"


def test_a_server_that_takes_nothing_is_given_up(here: Path) -> None:
    """After STALL_TIMEOUT both ends are killed, and the reason says so."""
    executable(here / "bin/makedumpfile", "while :; do echo; done")
    text = f"""{USE_SSH}
    SSH_PLACE=$PWD STALL_TIMEOUT=1
    ssh_sink() {{ exec sleep 50; }}
    ssh_dump -d 31; echo "$? $DUMP_EXIT $WHY"
    """
    assert shell(text, here) == "1 137 ssh://u@server/d: nothing was taken for 1 s\n"


def test_a_dump_that_takes_too_long_is_not_the_end_of_its_server(here: Path) -> None:
    """Less of it may do, by the same way; and files can be put there still."""
    executable(here / "bin/makedumpfile", "exec sleep 50")
    (here / "report").write_text("{}\n")
    text = f"""{USE_SSH}
    SSH_PLACE=$PWD DUMP_TIMEOUT=1
    ssh_dump -d 31; echo "$? $(dump_fault) [$PIPE_LOST] $WHY"
    ssh_put report capture.json && echo put
    """
    told = shell(text, here).splitlines()
    assert told == ["1 time [] ssh://u@server/d: the dump took longer than 1 s", "put"]


def test_a_stream_has_what_a_file_has(here: Path) -> None:
    """A compression that is missing is left out, and the library of threads is there before them."""
    executable(
        here / "bin/makedumpfile",
        """
        case " $* " in *" -z "*) echo "makedumpfile: invalid option -- 'z'" >&2; exit 1 ;; esac
        printf '%s' "<$LD_PRELOAD>"
        """,
    )
    (here / "lib.so").touch()
    text = f"""{USE_SSH}
    SSH_PLACE=$PWD COMPRESSIONS='-z -l' THREADS=2 THREAD_LIBRARY=$PWD/lib.so
    dump_once 31; echo "$DUMP_ARGS $VMCORE_BYTES"
    """
    shown = shell(text, here)
    assert shown == f"-l --num-threads 2 -d 31 -F {len(str(here)) + 9}\n"
    assert (here / "vmcore.flat").read_text() == f"<{here}/lib.so>"


def test_what_sends_may_be_killed_for_memory(here: Path) -> None:
    """Init is not, and what it starts would not be either."""
    text = f"""{USE_SSH}
    SSH_PLACE=$PWD
    ssh_sink() {{ cat >/dev/null; cat /proc/self/oom_score_adj; }}
    echo 7 >/proc/self/oom_score_adj
    pipe_dump ssh_sink -d 31; cat sink.out
    """
    assert shell(text, here) == "0\n"


def test_a_server_that_takes_nothing_leaves_time_for_the_others(here: Path) -> None:
    """At the end of the whole time it is given up, however long one may stand still."""
    text = f"""{USE_SSH}
    STALL_TIMEOUT=300 TOTAL_TIMEOUT=1
    pipe_written() {{ echo 7; }}
    sleep 50 & pipe_guard $! $!; cat stalled; dump_fault
    """
    assert shell(text, here).splitlines() == ["nothing was taken, and no time was left", "stall"]


def test_what_only_fills_the_pipe_does_not_move_the_deadline(here: Path) -> None:
    """Each start of makedumpfile would give a server that takes nothing as long again."""
    text = f"""{USE_SSH}
    STALL_TIMEOUT=1
    pipe_written() {{ echo 65536; }}
    sleep 50 & pipe_guard $! $!; cat stalled; [ -e grown ] || echo not moved
    """
    assert shell(text, here) == "nothing was taken for 1 s\nnot moved\n"


class Store(http.server.BaseHTTPRequestHandler):
    """Takes PUT as an object store does: with a length, a token and a signature."""

    stored: ClassVar[dict[str, bytes]] = {}

    def do_HEAD(self) -> None:
        self.send_response(403)
        self.end_headers()

    def do_PUT(self) -> None:
        length = self.headers["Content-Length"]
        if length is None:
            self._answer(501, "<Error>NotImplemented</Error>")
            return
        data = self.rfile.read(int(length))
        if self.headers["Authorization"] != "Bearer s3cret":
            self._answer(401, "no such token\n")
            return
        self.stored[self.path] = data
        self._answer(201, "")

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def store() -> Iterator[int]:
    """A server on loopback; its port."""
    Store.stored = {}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def use_http(port: int, path: str, token: str = "s3cret") -> str:
    return f"""{STUBS}{UP}
    STARTED=$(now)
    echo 'header = "Authorization: Bearer {token}"' >curl.headers
    TARGET_KIND=http TARGET_SPEC=http://server/b TARGET_HTTP_CONFIG=$PWD/curl.headers HOST=host
    TARGET_HTTP_PORT={port} TARGET_URL='http://server:{port}{path}'
    mount() {{ [ ! -e no-room ]; }}
    umount() {{ rm -r spool; }}
    """


@needs_curl
def test_http_puts_a_dump_of_known_length(here: Path, store: int) -> None:
    """Each file under its name, the signature in every address; any answer to HEAD will do."""
    (here / "report").write_text("{}\n")
    text = f"""{use_http(store, "/b/{name}/{file}?sig=a%2Fb[1-2]")}
    http_open && http_begin host-time && http_put report capture.json && http_dump -d 31
    echo "$? $VMCORE_BYTES $VMCORE"
    http_close; ls
    """
    told = shell(text, here).splitlines()
    assert told[0] == f"0 9 http://server:{store}/b/host-time/vmcore.flat"
    assert Store.stored == {
        "/b/host-time/capture.json?sig=a%2Fb[1-2]": b"{}\n",
        "/b/host-time/vmcore.flat?sig=a%2Fb[1-2]": b"flat dump",
    }
    assert "curl.conf" not in told
    assert "spool" not in "".join((here / "said").read_text())


@needs_curl
def test_one_signed_address_takes_the_dump_alone(here: Path, store: int) -> None:
    """What else there is is not sent, and that is said."""
    (here / "report").write_text("{}\n")
    text = f"""{use_http(store, "/one?sig=1")}
    http_open && http_begin n && http_put report capture.json && http_dump -d 31; echo $?
    """
    assert shell(text, here) == "0\n"
    assert Store.stored == {"/one?sig=1": b"flat dump"}
    assert "capture.json is not sent" in (here / "said").read_text()


@needs_curl
def test_the_servers_status_and_words_are_the_reason(here: Path, store: int) -> None:
    """Neither the token nor the signature is in what is said."""
    text = f"""{use_http(store, "/b/?sig=s1gned", "wr0ng")}
    http_begin n; SERVER=127.0.0.1
    http_dump -d 31; echo "$? $WHY [$VMCORE]"; cat stalled
    """
    told = shell(text, here)
    assert told.startswith("1 http://server/b: HTTP status 401: no such token []\n")
    said = told + (here / "said").read_text() + (here / "log").read_text()
    assert "s1gned" not in said
    assert "wr0ng" not in said


@needs_curl
def test_without_room_the_dump_is_sent_without_its_length(here: Path, store: int) -> None:
    """An object store refuses that in so many words."""
    (here / "no-room").touch()
    text = f"""{use_http(store, "/b/{file}")}
    http_begin n; SERVER=127.0.0.1
    http_dump -d 31; echo "$? $WHY"
    """
    assert (
        shell(text, here).splitlines()[-1] == "1 http://server/b: HTTP status 501: NotImplemented"
    )
    assert Store.stored == {}


def test_a_server_that_does_not_answer_is_asked_twice(here: Path) -> None:
    """A network that has just come up may lose what is sent first; other errors come at once."""
    executable(
        here / "bin/curl",
        "echo >>asked; [ -e asked.twice ] && exit 0; echo 'curl: (28) slow' >&2; "
        "touch asked.twice; exit 28",
    )
    text = f"""{use_http(1, "/b/{file}")}
    http_open; echo $?; grep -c . said
    """
    assert shell(text, here) == "0\n1\n"
    executable(here / "bin/curl", "echo 'curl: (60) bad' >&2; echo >>asked; exit 60")
    (here / "asked").unlink()
    text = f"""{use_http(1, "/b/{file}")}
    http_open; echo "$WHY"; wc -l <asked
    """
    assert shell(text, here).split("\n")[0] == "http://server/b: curl: (60) bad"
    assert (here / "asked").read_text() == "\n"


@needs_curl
def test_a_server_that_is_not_there_is_known_at_once(here: Path) -> None:
    """Curl's own words, without the address."""
    text = f"""{use_http(1, "/b/{file}?sig=s1gned")}
    TARGET_TIMEOUT=10
    http_open; echo "$? $WHY"
    """
    told = shell(text, here)
    assert told.startswith("1 http://server/b: curl: (7) Failed to connect")
    assert "s1gned" not in told


# busybox takes its own programs first: these have to be functions
MOUNT = """
mount() {
  printf '%s\\n' "$*" >>mounts
  case $* in *vers=3*) return 0 ;; esac
  echo "mount: Protocol not supported" >&2
  return 32
}
"""


def use_nfs(versions: str, address: str = "192.0.2.9") -> str:
    return f"""{STUBS}{UP}{MOUNT}
    TARGET_KIND=nfs TARGET_SPEC=nfs://server/e TARGET_NFS_EXPORT=/e TARGET_NFS_VERSIONS='{versions}'
    TARGET_NFS_OPTIONS=port=2050 TARGET_ADDRESS='{address}'
    ip() {{ printf '    inet 192.0.2.5/24 brd x scope global eth0\\n    inet6 fd00::5/64 scope global \\n'; }}
    """


def test_nfs_tries_versions_until_one_is_known(here: Path) -> None:
    """The kernel gets text options: addresses, bounds in time, no locks for version 3."""
    told = shell(f"{use_nfs('4.2 3')}\nnfs_open; echo $? $TARGET_MOUNTED", here)
    assert told == f"0 {here}/target\n"
    first, second = (here / "mounts").read_text().splitlines()
    assert first == (
        "-t nfs4 -o vers=4.2,addr=192.0.2.9,soft,timeo=600,retrans=2,proto=tcp,"
        f"clientaddr=192.0.2.5,port=2050 192.0.2.9:/e {here}/target"
    )
    assert "nolock,mountvers=3,mountproto=tcp" in second
    assert "soft" in second


def test_nfs_over_ipv6(here: Path) -> None:
    """Brackets around the address, and the protocol's own name."""
    shell(f"{use_nfs('4.1 3', 'fd00::9')}\nnfs_open", here)
    first, second = (here / "mounts").read_text().splitlines()
    assert "proto=tcp6,clientaddr=fd00::5" in first
    assert "[fd00::9]:/e" in first
    assert "mountproto=tcp6" in second


def test_an_nfs_server_that_refuses_is_named(here: Path) -> None:
    """The last version that was tried, and mount's own words."""
    told = shell(f"{use_nfs('4.2 4.1')}\nnfs_open; echo $? $WHY", here)
    assert told == (
        "1 cannot mount nfs://server/e (NFS version 4.1): mount: Protocol not supported\n"
    )


USE_NET = f"""{STUBS}
TARGET_HOST=server TARGET_ADDRESS=192.0.2.9 TARGET_NET_NAME=eth0 TARGET_NET_CARDS=m TARGET_NET_BOND=''
TARGET_NET_VLAN='' TARGET_NET_MAC='' TARGET_NET_MTU=1500 TARGET_NET_DHCP=1
TARGET_NET_ADDRESSES=192.0.2.5/24 TARGET_NET_ROUTES=default,192.0.2.1 TARGET_NET_DNS=203.0.113.1
TARGET_NET_TIMEOUT=1
network_device() {{ NET_DEVICE=eth0; }}
network_resolvers() {{ :; }}
ip() {{ echo "ip $*" >>ips; }}
"""
UDHCPC = """
udhcpc() {{
  ip=192.0.2.77 mask=26 router='192.0.2.65 192.0.2.66' dns=203.0.113.9 staticroutes='' \\
  hostname='$(reboot)' sh {script} bound
}}
"""


@pytest.mark.parametrize(
    ("why", "lost"), [("the dump took longer than 1 s", ""), ("the dump had not grown", "1")]
)
def test_nfs_that_takes_too_long_is_not_lost(here: Path, why: str, lost: str) -> None:
    """A level that leaves out more may do on the same server; one that stands still will not."""
    text = f"""{use_nfs("4.2")}
    directory_dump() {{ echo '{why}' >stalled; DUMP_EXIT=137; return 1; }}
    stat() {{ :; }}
    : >makedumpfile.log
    nfs_dump -d 31; echo "$? [$NFS_LOST]"
    """
    assert shell(text, here) == f"1 [{lost}]\n"


# One second passes with each look at the clock; of two cards those in "there" exist.
TWO_CARDS = """
now() { NOW=$(($(cat clock) + 100)); echo $NOW | tee clock; }
usleep() { :; }
network_card() { case $there in *$1*) echo "eth-$1" ;; *) return 1 ;; esac; }
echo 0 >clock
TARGET_NET_CARDS='one two' TARGET_NET_NAME=bond0 TARGET_NET_TIMEOUT=30 net_until=3000
"""


@pytest.mark.parametrize(("there", "missing"), [("two", "one"), ("one", "two")])
def test_a_bond_does_with_the_cards_that_are_there(here: Path, there: str, missing: str) -> None:
    """A card that is missing, whichever, leaves two thirds of the time for the rest."""
    told = shell(
        f"{STUBS}{TWO_CARDS} there={there}; network_cards; echo $? $cards; cat clock", here
    )
    assert told.splitlines()[0] == f"0 eth-{there}"
    assert 1000 <= int(told.splitlines()[1]) <= 1200
    assert f"no network card has the address {missing} (bond0)" in (here / "said").read_text()


def test_no_card_at_all_is_the_reason(here: Path) -> None:
    """Waited for to the end, and remembered for the report."""
    told = shell(f"{STUBS}{TWO_CARDS} there=''; network_cards; echo $? $REASON; cat clock", here)
    assert told.splitlines()[0] == "1 no network card has the address one two (bond0)"
    assert int(told.splitlines()[1]) >= 3000


@pytest.mark.parametrize("client", ["", "ff9f6e8524"])
def test_the_server_is_asked_as_production_asked(here: Path, client: str) -> None:
    """By production's client identifier, where that is known; for production's address always."""
    asks = 'udhcpc() { echo " $* "; return 1; }'
    shell(f"{USE_NET}\n{asks}\nTARGET_NET_CLIENT={client}; network_up", here)
    words = (here / "log").read_text()
    assert " -r 192.0.2.5 " in words
    assert (f" -x 0x3d:{client} " in words) is bool(client)
    assert ("-x" in words) is bool(client)


def test_a_lease_is_taken_as_it_is(here: Path, tmp_path: Path) -> None:
    """Address, router and resolver; production's routes come behind. What is new is said."""
    from crashlend.capture.targets.network import _UDHCPC

    executable(tmp_path / "udhcpc-script", _UDHCPC.split("\n", 1)[1])
    udhcpc = UDHCPC.format(script=tmp_path / "udhcpc-script")
    told = shell(f"{USE_NET}{udhcpc}\nnetwork_up; echo $? $NET_DNS $NET_NOTE", here)
    assert told == "0 203.0.113.9 DHCP gave 192.0.2.77, and not 192.0.2.5\n"
    lines = (here / "ips").read_text().splitlines()
    assert lines[0] == "ip addr add 192.0.2.77/26 dev eth0"
    assert "ip route add default via 192.0.2.65 dev eth0" in lines


def test_without_an_answer_the_last_address_is_tried(here: Path) -> None:
    """And the reason of whatever fails then says so."""
    told = shell(
        f"{USE_NET}\nudhcpc() {{ return 1; }}\nnetwork_up; echo $? $NET_DNS; network_why none", here
    )
    assert told == (
        "0 203.0.113.1\nno answer (no DHCP answer on eth0 within 5 s, tried with the last address)"
    )
    assert "ip addr add 192.0.2.5/24 dev eth0" in (here / "ips").read_text()


def test_without_an_answer_and_an_address_the_target_is_given_up(here: Path) -> None:
    """The next one over the same interface is not kept waiting again."""
    text = f"""{USE_NET}
    udhcpc() {{ echo >>asked; return 1; }}
    TARGET_NET_ADDRESSES=''
    network_up; echo "$? $WHY"
    network_up; echo "$? $WHY"
    wc -l <asked
    """
    told = shell(text, here).splitlines()
    assert told[:2] == ["1 no DHCP answer on eth0 within 5 s"] * 2
    assert told[2].strip() == "1"


@pytest.mark.parametrize(
    ("answer", "address"),
    [
        (
            "Server:\\t\\t192.0.2.1\\nAddress:\\t192.0.2.1:53\\n\\nName:\\tserver\\nAddress: 192.0.2.30",
            "192.0.2.30",
        ),
        (
            "Server: x\\nAddress 1: 192.0.2.1 x\\n\\nName: server\\nAddress 1: 192.0.2.9 server",
            "192.0.2.9",
        ),
        ("Name: server\\nAddress: 2001:db8::9\\nAddress: 192.0.2.31", "192.0.2.31"),
        ("Name: server\\nAddress: 192.0.2.8\\nAddress: 192.0.2.9", "192.0.2.9"),
        ("** server can not find server: NXDOMAIN", "192.0.2.9"),
        ("", "192.0.2.9"),
    ],
)
def test_names_are_asked_for_again(here: Path, answer: str, address: str) -> None:
    """In the words of old and new busyboxes; without an answer the address at load time counts."""
    lookup = f"nslookup() {{ printf '{answer}\\n'; }}"
    told = shell(f"{USE_NET}\n{lookup}\nNET_DNS=203.0.113.1 NET_DEVICE=eth0 network_address", here)
    assert told == f"{address}\n"


def test_link_local_addresses_get_their_interface(here: Path) -> None:
    """It may have another name than in production."""
    text = f"{USE_NET}\nTARGET_HOST=fe80::9 TARGET_ADDRESS=fe80::9 NET_DEVICE=eth3; network_address"
    assert shell(text, here) == "fe80::9%eth3\n"
