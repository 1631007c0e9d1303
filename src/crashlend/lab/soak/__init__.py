# SPDX-License-Identifier: LGPL-2.1-or-later
"""Random trials from a seed: the guests, the run, the report."""
