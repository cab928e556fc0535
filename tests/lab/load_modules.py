"""Loads the kernel modules that it is given, as insmod does, which a machine without modules need not have."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from testbed.lab.errors import lab_error
from testbed.lab.linux import libc

FINIT_MODULE = 313
"""Its number on x86-64, which is what User Mode Linux is for."""

for name in sys.argv[1:]:
    with Path(name).open("rb") as file:
        if libc.syscall(ctypes.c_long(FINIT_MODULE), ctypes.c_int(file.fileno()), b"", ctypes.c_int(0)):
            raise lab_error(f"loading {name}", ctypes.get_errno())
