"""The server's half of the fixed newstyle handshake: bytes in, replies out, no socket.

A generator that yields how many bytes it needs next and is resumed with exactly those. An option that makes no sense is
answered and skipped, so the client may try another; a client that cannot be answered (no magic, unknown client flags, a
refused NBD_OPT_EXPORT_NAME) gets a ProtocolError, which means hang up. What a client can make the server hold is
bounded: an option's data by MAX_OPTION_LENGTH, the replies by MAX_OPTIONS.
"""

from collections.abc import Generator, Mapping
from typing import Protocol

from testbed.nbd.constants import (
    EXPORT_NAME_REPLY,
    EXPORT_NAME_ZEROES,
    GREETING,
    IHAVEOPT,
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    MAX_REQUEST_LENGTH,
    NBD_MAX_STRING,
    NBD_REP_MAGIC,
    NBDMAGIC,
    OPTION,
    OPTION_REPLY,
    ClientFlag,
    HandshakeFlag,
    Info,
    Option,
    OptionReply,
    TransmissionFlag,
)
from testbed.nbd.errors import NbdError

MAX_OPTION_LENGTH = 2 * NBD_MAX_STRING  # bytes of data that an option may carry
MAX_SKIPPED_LENGTH = 1 << 20  # bytes; a longer option is not worth reading to its end
MAX_OPTIONS = 64  # options in one handshake

KNOWN_CLIENT_FLAGS = ClientFlag.NBD_FLAG_C_FIXED_NEWSTYLE | ClientFlag.NBD_FLAG_C_NO_ZEROES


class ProtocolError(NbdError):
    """The client cannot be served any further; the server hangs up."""


class Described(Protocol):
    """What the handshake needs to know of an export; size in bytes."""

    @property
    def size(self) -> int: ...
    @property
    def read_only(self) -> bool: ...
    @property
    def description(self) -> str: ...


def transmission_flags(export: Described) -> TransmissionFlag:
    """The flags announced with an export. Every connection sees the same data, hence NBD_FLAG_CAN_MULTI_CONN."""
    flags = TransmissionFlag.NBD_FLAG_HAS_FLAGS | TransmissionFlag.NBD_FLAG_CAN_MULTI_CONN
    if export.read_only:
        return flags | TransmissionFlag.NBD_FLAG_READ_ONLY | TransmissionFlag.NBD_FLAG_SEND_FLUSH
    return (
        flags
        | TransmissionFlag.NBD_FLAG_SEND_FLUSH
        | TransmissionFlag.NBD_FLAG_SEND_FUA
        | TransmissionFlag.NBD_FLAG_SEND_TRIM
    )


class ServerHandshake:
    """Negotiate which of `exports` a client gets; the empty name means the first. `output` is what to send."""

    def __init__(self, exports: Mapping[str, Described]) -> None:
        self._exports = exports
        self.output = bytearray()

    def negotiate(self) -> Generator[int, bytes, str | None]:
        """Returns the name of the export chosen, or None when the client said NBD_OPT_ABORT. Raises ProtocolError."""
        offered = HandshakeFlag.NBD_FLAG_FIXED_NEWSTYLE | HandshakeFlag.NBD_FLAG_NO_ZEROES
        self.output += GREETING.pack(NBDMAGIC, IHAVEOPT, offered)
        flags = int.from_bytes((yield 4), "big")
        if flags & ~KNOWN_CLIENT_FLAGS:
            raise ProtocolError(f"the client set unknown handshake flags {flags:#x}")
        for _ in range(MAX_OPTIONS):
            magic, option, length = OPTION.unpack((yield OPTION.size))
            if magic != IHAVEOPT:
                raise ProtocolError("the client's option has the wrong magic")
            if option != Option.NBD_OPT_EXPORT_NAME and not flags & ClientFlag.NBD_FLAG_C_FIXED_NEWSTYLE:
                raise ProtocolError(f"the client sent option {option} without the fixed newstyle handshake")
            if length > MAX_OPTION_LENGTH:
                yield from self._skip(option, length)
                continue
            data = (yield length) if length else b""
            chosen: str | None
            match option:
                case Option.NBD_OPT_EXPORT_NAME:
                    return self._export_name(data, bool(flags & ClientFlag.NBD_FLAG_C_NO_ZEROES))
                case Option.NBD_OPT_ABORT:
                    self._reply(option, OptionReply.NBD_REP_ACK)
                    return None
                case Option.NBD_OPT_LIST:
                    self._list(data)
                case Option.NBD_OPT_INFO | Option.NBD_OPT_GO:
                    chosen = self._information(option, data)
                    if chosen is not None and option == Option.NBD_OPT_GO:
                        return chosen
                case _:
                    self._reply(option, OptionReply.NBD_REP_ERR_UNSUP, b"this server does not know the option")
        raise ProtocolError(f"the client sent more than {MAX_OPTIONS} options")

    def _reply(self, option: int, kind: OptionReply, data: bytes = b"") -> None:
        self.output += OPTION_REPLY.pack(NBD_REP_MAGIC, option, kind, len(data)) + data

    def _skip(self, option: int, length: int) -> Generator[int, bytes, None]:
        if option == Option.NBD_OPT_EXPORT_NAME or length > MAX_SKIPPED_LENGTH:
            raise ProtocolError(f"the client's option {option} is too long ({length} bytes)")
        while length:
            portion = min(length, MAX_OPTION_LENGTH)
            yield portion
            length -= portion
        self._reply(option, OptionReply.NBD_REP_ERR_TOO_BIG, b"the option is too long")

    def _find(self, name: bytes) -> str | None:
        try:
            text = name.decode()
        except UnicodeDecodeError:
            return None
        if text in self._exports:
            return text
        return None if text else next(iter(self._exports), None)

    def _export_name(self, data: bytes, no_zeroes: bool) -> str:
        name = self._find(data)
        if name is None:
            raise ProtocolError(f"there is no export {data.decode(errors='replace')!r}")
        export = self._exports[name]
        self.output += EXPORT_NAME_REPLY.pack(export.size, transmission_flags(export))
        if not no_zeroes:
            self.output += bytes(EXPORT_NAME_ZEROES)
        return name

    def _list(self, data: bytes) -> None:
        if data:
            self._reply(Option.NBD_OPT_LIST, OptionReply.NBD_REP_ERR_INVALID, b"NBD_OPT_LIST carries no data")
            return
        for name, export in self._exports.items():
            encoded = name.encode()
            entry = len(encoded).to_bytes(4, "big") + encoded + export.description.encode()
            self._reply(Option.NBD_OPT_LIST, OptionReply.NBD_REP_SERVER, entry)
        self._reply(Option.NBD_OPT_LIST, OptionReply.NBD_REP_ACK)

    def _information(self, option: int, data: bytes) -> str | None:
        """Answer NBD_OPT_INFO or NBD_OPT_GO: name length, name, number of information requests, 16 bits each."""
        after_name = 4 + int.from_bytes(data[:4], "big")
        requests = data[after_name + 2 :]
        if len(data) < after_name + 2 or len(requests) != 2 * int.from_bytes(data[after_name : after_name + 2], "big"):
            self._reply(option, OptionReply.NBD_REP_ERR_INVALID, b"the option's lengths contradict each other")
            return None
        name = self._find(data[4:after_name])
        if name is None:
            self._reply(option, OptionReply.NBD_REP_ERR_UNKNOWN, b"there is no such export")
            return None
        export = self._exports[name]
        wanted = {int.from_bytes(requests[at : at + 2], "big") for at in range(0, len(requests), 2)}
        answers = [INFO_EXPORT.pack(Info.NBD_INFO_EXPORT, export.size, transmission_flags(export))]
        if Info.NBD_INFO_NAME in wanted:
            answers.append(Info.NBD_INFO_NAME.to_bytes(2, "big") + name.encode())
        if Info.NBD_INFO_DESCRIPTION in wanted and export.description:
            answers.append(Info.NBD_INFO_DESCRIPTION.to_bytes(2, "big") + export.description.encode())
        if Info.NBD_INFO_BLOCK_SIZE in wanted:
            answers.append(INFO_BLOCK_SIZE.pack(Info.NBD_INFO_BLOCK_SIZE, 1, 4096, MAX_REQUEST_LENGTH))
        for answer in answers:
            self._reply(option, OptionReply.NBD_REP_INFO, answer)
        self._reply(option, OptionReply.NBD_REP_ACK)
        return name
