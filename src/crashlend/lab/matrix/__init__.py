# SPDX-License-Identifier: LGPL-2.1-or-later
"""``lab matrix``: a table of trials, run wherever there are machines, and what came of each."""
