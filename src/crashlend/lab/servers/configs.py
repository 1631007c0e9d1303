# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the lab's servers are told: their own configuration files."""

from __future__ import annotations

# Packages of the guests on the lab's network, those of the servers and of the clients.
PACKAGES = (
    *("openssh-server", "nginx", "nfs-kernel-server", "rpcbind", "dnsmasq-base"),
    *("openssh-client", "curl", "ca-certificates", "iproute2"),
)
TOKEN = "lab-token-7f3a"  # what the web server wants to see
SIGNATURE = "lab-signature-91c4"  # of its pre-signed addresses
WRONG_HOST_PORT = 2222  # here SSH answers with a key that nobody knows
BAD_CERTIFICATE_PORT = 8443  # here HTTPS answers with a certificate of an unknown authority
SINK = "/lab/crash"  # where all servers put what they are sent

SSHD = """
Port 22
AddressFamily any
HostKey /lab/keys/host
PidFile none
PasswordAuthentication no
AuthorizedKeysFile /lab/keys/client.pub
StrictModes no
UsePAM no
PrintMotd no
"""

EXPORTS = f"{SINK} *(rw,sync,no_root_squash,no_subtree_check)\n"

DNSMASQ = """
interface=lab0
bind-interfaces
no-resolv
no-hosts
user=root
pid-file=
dhcp-leasefile=/run/dnsmasq.leases
address=/server.lab/192.168.77.1
address=/server.lab/fd77::1
dhcp-range=192.168.77.100,192.168.77.150,255.255.255.0,1h
dhcp-range=fd77::,ra-only,64,1h
dhcp-authoritative
enable-ra
"""

_SERVER = """
  server {{
    listen {port}{ssl};
    listen [::]:{port}{ssl};
    {certificate}
    client_max_body_size 0;
    client_body_temp_path /lab/incoming;
    dav_access user:rw;
    {locations}
  }}
"""
# The second location behaves like an object store: signed addresses, no upload of unknown length.
_LOCATIONS = f"""
    location /dumps/ {{
      if ($http_authorization != "Bearer {TOKEN}") {{ return 401 "no such token\\n"; }}
      alias {SINK}/;
      dav_methods PUT;
      create_full_put_path on;
    }}
    location /bucket/ {{
      if ($arg_signature != "{SIGNATURE}") {{ return 403 "SignatureDoesNotMatch\\n"; }}
      if ($http_transfer_encoding) {{ return 501 "NotImplemented: Transfer-Encoding\\n"; }}
      alias {SINK}/;
      dav_methods PUT;
      create_full_put_path on;
    }}
"""


def nginx() -> str:
    """Three servers: plain, with a good certificate, with a bad one."""
    servers = "".join(
        _SERVER.format(port=port, ssl=ssl, certificate=certificate, locations=_LOCATIONS)
        for port, ssl, certificate in (
            (80, "", ""),
            (443, " ssl", _certificate("ca-server")),
            (BAD_CERTIFICATE_PORT, " ssl", _certificate("otherca-server")),
        )
    )
    return f"""
user root;
worker_processes 1;
error_log /lab/nginx.log;
pid /run/nginx.pid;
events {{ worker_connections 64; }}
http {{
  access_log /lab/access.log;
{servers}
}}
"""


def _certificate(name: str) -> str:
    path = f"/lab/keys/{name}.pem"
    return f"ssl_certificate {path}; ssl_certificate_key {path};"
