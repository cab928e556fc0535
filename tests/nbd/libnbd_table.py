"""A table of operations with libnbd, strict mode off: run by the system's Python, which has Debian's python3-libnbd.

Arguments: an NBD URI of 8 MiB, writable, with a minimum block size of 1, and optionally the directory of certificates.
Prints one line per operation: its name and what came of it.
"""

import errno
import sys

import nbd

SIZE = 8 << 20
DF = nbd.CMD_FLAG_DF


def error_of(operation, *arguments):  # type: ignore[no-untyped-def]
    """The name of the error that the server answers with."""
    try:
        operation(*arguments)
    except nbd.Error as error:
        return errno.errorcode[error.errnum] if error.errnum else "no errno"
    return "success"


def main() -> None:
    handle = nbd.NBD()
    handle.set_strict_mode(0)
    handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    if len(sys.argv) > 2:
        handle.set_tls(nbd.TLS_REQUIRE)
        handle.set_tls_certificates(sys.argv[2])
    handle.connect_uri(sys.argv[1])
    told = {
        "structured": handle.get_structured_replies_negotiated(),
        "tls": handle.get_tls_negotiated(),
        "size": handle.get_size(),
        "multi_conn": handle.can_multi_conn(),
        "df": handle.can_df(),
        "fast_zero": handle.can_fast_zero(),
        "cache": handle.can_cache(),
        "minimum": handle.get_block_size(nbd.SIZE_MINIMUM),
    }
    handle.pwrite(b"x" * 4096, 4096, nbd.CMD_FLAG_FUA)
    told["read"] = handle.pread(12288, 0) == bytes(4096) + b"x" * 4096 + bytes(4096)
    chunks = []
    handle.pread_structured(12288, 0, lambda data, at, kind, error: chunks.append((at, len(data), kind)))
    told["chunks"] = chunks
    whole = []
    handle.pread_structured(
        12288, 0, lambda data, at, kind, error: whole.append((at, len(data), kind)), nbd.CMD_FLAG_DF
    )
    told["whole"] = whole
    extents = []
    handle.block_status(16384, 0, lambda context, at, entries, error: extents.append((context, at, entries)))
    told["extents"] = extents
    one = []
    ask_one = nbd.CMD_FLAG_REQ_ONE
    handle.block_status(16384, 0, lambda context, at, entries, error: one.append(entries), ask_one)
    told["one"] = one
    handle.zero(4096, 4096, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_FUA)
    told["zeroed"] = handle.pread(4096, 4096) == bytes(4096)
    handle.cache(4096, 0)
    handle.trim(4096, 4096, nbd.CMD_FLAG_FUA)
    handle.flush()
    told["read beyond"] = error_of(handle.pread, 512, SIZE)
    told["write beyond"] = error_of(handle.pwrite, b"x" * 512, SIZE)
    told["zero beyond"] = error_of(handle.zero, 512, SIZE)
    told["trim beyond"] = error_of(handle.trim, 512, SIZE)
    told["cache beyond"] = error_of(handle.cache, 512, SIZE)
    told["unknown flag"] = error_of(handle.pwrite, b"x" * 512, 0, 1 << 9)
    told["still alive"] = handle.pread(512, 0) == bytes(512)
    handle.shutdown()
    for name, value in told.items():
        print(f"{name}: {value}")


main()
