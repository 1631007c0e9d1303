# SPDX-License-Identifier: LGPL-2.1-or-later
"""A second guest with real server software (NFS, SSH, HTTP, DHCP, DNS), linked to the one that crashes."""
