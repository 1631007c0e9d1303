# SPDX-License-Identifier: LGPL-2.1-or-later
"""How quick a capture is, measured: against kdump-tools, by target, by threads."""
