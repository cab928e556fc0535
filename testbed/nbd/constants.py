"""The numbers of the NBD protocol, under the names of its specification.

The specification is doc/proto.md of https://github.com/NetworkBlockDevice/nbd ; everything on the wire is big endian.
A connection has two phases: the client *haggles* options until an export is chosen, then *transmission* is a stream of
requests, each answered once, in any order, under the handle (the spec's "cookie") that the client chose.
"""

import struct
from enum import IntEnum, IntFlag
from typing import Final

NBD_DEFAULT_PORT: Final = 10809

# Handshake: "NBDMAGIC", then "IHAVEOPT" (newstyle) or the number of an oldstyle server that announces its only export.
NBDMAGIC: Final = 0x4E42444D41474943
IHAVEOPT: Final = 0x49484156454F5054
OLDSTYLE_MAGIC: Final = 0x00420281861253
NBD_REP_MAGIC: Final = 0x3E889045565A9
NBD_REQUEST_MAGIC: Final = 0x25609513
NBD_SIMPLE_REPLY_MAGIC: Final = 0x67446698
NBD_STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF

NBD_MAX_STRING: Final = 4096  # bytes of an export name or a description
MAX_REQUEST_LENGTH: Final = 32 << 20  # bytes of a READ's or a WRITE's payload; what the spec advises
BASE_ALLOCATION: Final = "base:allocation"  # the metadata context that the spec itself defines

GREETING: Final = struct.Struct(">QQH")  # NBDMAGIC, IHAVEOPT, handshake flags
OPTION: Final = struct.Struct(">QLL")  # IHAVEOPT, option, length of the data that follows
OPTION_REPLY: Final = struct.Struct(">QLLL")  # NBD_REP_MAGIC, option, reply type, length of the data that follows
EXPORT_NAME_REPLY: Final = struct.Struct(">QH")  # export size, transmission flags; then 124 zeroes unless NO_ZEROES
EXPORT_NAME_ZEROES: Final = 124
INFO_EXPORT: Final = struct.Struct(">HQH")  # NBD_INFO_EXPORT, size, transmission flags
INFO_BLOCK_SIZE: Final = struct.Struct(">HLLL")  # NBD_INFO_BLOCK_SIZE, minimum, preferred, maximum
REQUEST: Final = struct.Struct(">LHHQQL")  # NBD_REQUEST_MAGIC, command flags, type, handle, offset, length
SIMPLE_REPLY: Final = struct.Struct(">LLQ")  # NBD_SIMPLE_REPLY_MAGIC, error, handle
CHUNK: Final = struct.Struct(">LHHQL")  # NBD_STRUCTURED_REPLY_MAGIC, flags, type, handle, length of the payload
OFFSET_DATA: Final = struct.Struct(">Q")  # offset; then the data
OFFSET_HOLE: Final = struct.Struct(">QL")  # offset, bytes that are zero
CHUNK_ERROR: Final = struct.Struct(">LH")  # error, length of the message that follows
EXTENT: Final = struct.Struct(">LL")  # bytes, status flags; after the 32-bit metadata context ID


class HandshakeFlag(IntFlag):
    NBD_FLAG_FIXED_NEWSTYLE = 1 << 0
    NBD_FLAG_NO_ZEROES = 1 << 1


class ClientFlag(IntFlag):
    NBD_FLAG_C_FIXED_NEWSTYLE = 1 << 0
    NBD_FLAG_C_NO_ZEROES = 1 << 1


class TransmissionFlag(IntFlag):
    NBD_FLAG_HAS_FLAGS = 1 << 0
    NBD_FLAG_READ_ONLY = 1 << 1
    NBD_FLAG_SEND_FLUSH = 1 << 2
    NBD_FLAG_SEND_FUA = 1 << 3
    NBD_FLAG_ROTATIONAL = 1 << 4
    NBD_FLAG_SEND_TRIM = 1 << 5
    NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6
    NBD_FLAG_SEND_DF = 1 << 7
    NBD_FLAG_CAN_MULTI_CONN = 1 << 8
    NBD_FLAG_SEND_CACHE = 1 << 10
    NBD_FLAG_SEND_FAST_ZERO = 1 << 11


class Option(IntEnum):
    NBD_OPT_EXPORT_NAME = 1
    NBD_OPT_ABORT = 2
    NBD_OPT_LIST = 3
    NBD_OPT_STARTTLS = 5
    NBD_OPT_INFO = 6
    NBD_OPT_GO = 7
    NBD_OPT_STRUCTURED_REPLY = 8
    NBD_OPT_LIST_META_CONTEXT = 9
    NBD_OPT_SET_META_CONTEXT = 10


NBD_REP_FLAG_ERROR: Final = 1 << 31


class OptionReply(IntEnum):
    NBD_REP_ACK = 1
    NBD_REP_SERVER = 2
    NBD_REP_INFO = 3
    NBD_REP_META_CONTEXT = 4
    NBD_REP_ERR_UNSUP = NBD_REP_FLAG_ERROR + 1
    NBD_REP_ERR_POLICY = NBD_REP_FLAG_ERROR + 2
    NBD_REP_ERR_INVALID = NBD_REP_FLAG_ERROR + 3
    NBD_REP_ERR_PLATFORM = NBD_REP_FLAG_ERROR + 4
    NBD_REP_ERR_TLS_REQD = NBD_REP_FLAG_ERROR + 5
    NBD_REP_ERR_UNKNOWN = NBD_REP_FLAG_ERROR + 6
    NBD_REP_ERR_SHUTDOWN = NBD_REP_FLAG_ERROR + 7
    NBD_REP_ERR_BLOCK_SIZE_REQD = NBD_REP_FLAG_ERROR + 8
    NBD_REP_ERR_TOO_BIG = NBD_REP_FLAG_ERROR + 9


class Info(IntEnum):
    NBD_INFO_EXPORT = 0
    NBD_INFO_NAME = 1
    NBD_INFO_DESCRIPTION = 2
    NBD_INFO_BLOCK_SIZE = 3


class Command(IntEnum):
    NBD_CMD_READ = 0
    NBD_CMD_WRITE = 1
    NBD_CMD_DISC = 2
    NBD_CMD_FLUSH = 3
    NBD_CMD_TRIM = 4
    NBD_CMD_CACHE = 5
    NBD_CMD_WRITE_ZEROES = 6
    NBD_CMD_BLOCK_STATUS = 7


NBD_CMD_FLAG_FUA: Final = 1 << 0
NBD_CMD_FLAG_NO_HOLE: Final = 1 << 1
NBD_CMD_FLAG_DF: Final = 1 << 2
NBD_CMD_FLAG_REQ_ONE: Final = 1 << 3
NBD_CMD_FLAG_FAST_ZERO: Final = 1 << 4

NBD_REPLY_FLAG_DONE: Final = 1 << 0  # the last chunk of a structured reply
NBD_REPLY_TYPE_ERROR_BIT: Final = 1 << 15


class ChunkType(IntEnum):
    """The structured reply types."""

    NBD_REPLY_TYPE_NONE = 0
    NBD_REPLY_TYPE_OFFSET_DATA = 1
    NBD_REPLY_TYPE_OFFSET_HOLE = 2
    NBD_REPLY_TYPE_BLOCK_STATUS = 5
    NBD_REPLY_TYPE_ERROR = NBD_REPLY_TYPE_ERROR_BIT + 1
    NBD_REPLY_TYPE_ERROR_OFFSET = NBD_REPLY_TYPE_ERROR_BIT + 2


NBD_STATE_HOLE: Final = 1 << 0
NBD_STATE_ZERO: Final = 1 << 1


class NbdErrno(IntEnum):
    """What a reply's error field may hold: the Linux numbers, fixed for every platform."""

    NBD_SUCCESS = 0
    NBD_EPERM = 1
    NBD_EIO = 5
    NBD_ENOMEM = 12
    NBD_EINVAL = 22
    NBD_ENOSPC = 28
    NBD_EOVERFLOW = 75
    NBD_ENOTSUP = 95
    NBD_ESHUTDOWN = 108
