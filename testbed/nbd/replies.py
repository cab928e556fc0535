"""The messages that answer requests: pure functions from what happened to bytes (spec: "Simple reply message" and
"Structured reply chunk message").

Without NBD_OPT_STRUCTURED_REPLY every answer is a simple reply. With it, what carries a payload comes in chunks, and so
does an error, which then says in words what was wrong; everything else stays a simple reply, as the spec permits.
"""

import os
import struct
from collections.abc import Sequence

from testbed.nbd.constants import (
    CHUNK,
    CHUNK_ERROR,
    EXTENT,
    NBD_REPLY_FLAG_DONE,
    NBD_SIMPLE_REPLY_MAGIC,
    NBD_STRUCTURED_REPLY_MAGIC,
    OFFSET_DATA,
    OFFSET_HOLE,
    SIMPLE_REPLY,
    ChunkType,
)

Extent = tuple[int, int]
"""So many bytes in a row, and their NBD_STATE_... flags."""

_DATA_HEADER = struct.Struct(CHUNK.format + OFFSET_DATA.format[1:])
_OFFSET = OFFSET_DATA.size
_DATA = int(ChunkType.NBD_REPLY_TYPE_OFFSET_DATA)


def simple_reply(handle: int, error: int = 0) -> bytes:
    """The header that answers a request; a READ's data follows it if `error` is 0."""
    return SIMPLE_REPLY.pack(NBD_SIMPLE_REPLY_MAGIC, error, handle)


def simple_data(handle: int, offset: int, length: int) -> bytes:
    """The simple reply to a READ; `length` bytes of data follow it."""
    return SIMPLE_REPLY.pack(NBD_SIMPLE_REPLY_MAGIC, 0, handle)


def undivided_data(handle: int, offset: int, length: int) -> bytes:
    """The header of the one chunk that answers a READ; `length` (at least 1) bytes of data follow it."""
    return _DATA_HEADER.pack(NBD_STRUCTURED_REPLY_MAGIC, NBD_REPLY_FLAG_DONE, _DATA, handle, _OFFSET + length, offset)


def offset_data(handle: int, offset: int, length: int, *, done: bool) -> bytes:
    """The header of NBD_REPLY_TYPE_OFFSET_DATA; `length` (at least 1) bytes of data follow it."""
    return _DATA_HEADER.pack(NBD_STRUCTURED_REPLY_MAGIC, done, _DATA, handle, OFFSET_DATA.size + length, offset)


def offset_hole(handle: int, offset: int, length: int, *, done: bool) -> bytes:
    """NBD_REPLY_TYPE_OFFSET_HOLE: these bytes (at least 1) are zero."""
    return _chunk(ChunkType.NBD_REPLY_TYPE_OFFSET_HOLE, handle, OFFSET_HOLE.pack(offset, length), done=done)


def none(handle: int) -> bytes:
    """NBD_REPLY_TYPE_NONE: the reply is complete."""
    return _chunk(ChunkType.NBD_REPLY_TYPE_NONE, handle, b"")


def error_chunk(handle: int, error: int, offset: int | None = None) -> bytes:
    """NBD_REPLY_TYPE_ERROR, or NBD_REPLY_TYPE_ERROR_OFFSET where the offset of the error is known; the reply's end."""
    message = os.strerror(error).encode()
    payload = CHUNK_ERROR.pack(error, len(message)) + message
    if offset is None:
        return _chunk(ChunkType.NBD_REPLY_TYPE_ERROR, handle, payload)
    return _chunk(ChunkType.NBD_REPLY_TYPE_ERROR_OFFSET, handle, payload + OFFSET_DATA.pack(offset))


def block_status(handle: int, context: int, extents: Sequence[Extent]) -> bytes:
    """NBD_REPLY_TYPE_BLOCK_STATUS of the metadata context with this ID."""
    payload = context.to_bytes(4, "big") + b"".join(EXTENT.pack(*extent) for extent in extents)
    return _chunk(ChunkType.NBD_REPLY_TYPE_BLOCK_STATUS, handle, payload)


def _chunk(kind: ChunkType, handle: int, payload: bytes, *, done: bool = True) -> bytes:
    flags = NBD_REPLY_FLAG_DONE if done else 0
    return CHUNK.pack(NBD_STRUCTURED_REPLY_MAGIC, flags, kind, handle, len(payload)) + payload
