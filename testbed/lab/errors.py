"""The one error of this package that is meant for people: a line saying what is wrong and what to do."""

from __future__ import annotations

import errno
import os

_ADVICE = {
    errno.EPERM: "needs root (CAP_NET_ADMIN, CAP_SYS_ADMIN and CAP_NET_RAW): run it under sudo or in `unshare -Urn`",
    errno.EACCES: "needs root (CAP_NET_ADMIN): run it under sudo or in `unshare -Urn`",
    errno.EMFILE: "too many open files: raise the limit with `ulimit -n`",
    errno.ENFILE: "too many open files in the whole system: raise fs.file-max",
    errno.ENOSPC: "the kernel allows no more namespaces: raise user.max_net_namespaces",
    errno.ENOMEM: "not enough kernel memory: ask for fewer hosts or smaller packet rings",
    errno.EEXIST: "the name is taken in that namespace: choose another",
    errno.ENODEV: "there is no such interface in that namespace",
    errno.EOPNOTSUPP: "this kernel does not support it",
}


class LabError(Exception):
    """Something in the lab could not be done; `str()` is one line that says what and what to do about it."""


def lab_error(doing: str, number: int, detail: str = "") -> LabError:
    """The error for system error `number` met while `doing`; `detail` is what the kernel added, if anything."""
    text = detail or os.strerror(number)
    advice = _ADVICE.get(number)
    return LabError(f"{doing}: {text}" + (f" ({advice})" if advice else ""))
