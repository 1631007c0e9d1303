# SPDX-License-Identifier: LGPL-2.1-or-later
"""Conformance of a kernel's ``crashkernel=SIZE,cma``: what upstream promises, tried on that kernel.

boots.py: which guests are booted; checks.py: what is looked for in what they told; told.py: facts of
such a guest, for crashlend's own answer; page.py: the report.
"""
