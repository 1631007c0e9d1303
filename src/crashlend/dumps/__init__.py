# SPDX-License-Identifier: LGPL-2.1-or-later
"""Saved dumps: what is there, whether it can be used, what it says, and what may go."""
