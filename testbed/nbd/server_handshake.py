"""The server's half of the fixed newstyle handshake: bytes in, replies out, no socket.

A generator that yields how many bytes it needs next and is resumed with exactly those. An option that makes no sense is
answered and skipped, so the client may try another; a client that cannot be answered (no magic, unknown client flags, a
refused NBD_OPT_EXPORT_NAME) gets a ProtocolError, which means hang up. What a client can make the server hold is
bounded: an option's data by MAX_OPTION_LENGTH, the replies by MAX_OPTIONS.

TLS begins when `starting_tls` turns True; what was negotiated in the clear before that is forgotten (spec: "TLS
support").
"""

from collections.abc import Generator, Mapping
from enum import Enum
from typing import Protocol

from testbed.nbd.block_size import BlockSize
from testbed.nbd.constants import (
    BASE_ALLOCATION,
    EXPORT_NAME_REPLY,
    EXPORT_NAME_ZEROES,
    GREETING,
    IHAVEOPT,
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
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
from testbed.nbd.meta_context import MetaContextQuery

MAX_OPTION_LENGTH = 2 * NBD_MAX_STRING  # bytes of data that an option may carry
MAX_SKIPPED_LENGTH = 1 << 20  # bytes; a longer option is not worth reading to its end
MAX_OPTIONS = 64  # options in one handshake
ALLOCATION_ID = 1  # the metadata context ID of base:allocation

KNOWN_CLIENT_FLAGS = ClientFlag.NBD_FLAG_C_FIXED_NEWSTYLE | ClientFlag.NBD_FLAG_C_NO_ZEROES


class ProtocolError(NbdError):
    """The client cannot be served any further; the server hangs up."""


class TlsMode(Enum):
    """The spec's modes of operation."""

    NOTLS = "no TLS"
    SELECTIVETLS = "TLS if the client wants it"
    FORCEDTLS = "TLS or nothing"


class Described(Protocol):
    """What the handshake needs to know of an export; size in bytes."""

    @property
    def size(self) -> int: ...
    @property
    def read_only(self) -> bool: ...
    @property
    def description(self) -> str: ...
    @property
    def block_size(self) -> BlockSize: ...


def transmission_flags(export: Described, structured: bool) -> TransmissionFlag:
    """The flags announced with an export. Every connection sees the same data, hence NBD_FLAG_CAN_MULTI_CONN."""
    flags = (
        TransmissionFlag.NBD_FLAG_HAS_FLAGS
        | TransmissionFlag.NBD_FLAG_CAN_MULTI_CONN
        | TransmissionFlag.NBD_FLAG_SEND_FLUSH
        | TransmissionFlag.NBD_FLAG_SEND_CACHE
    )
    if structured:
        flags |= TransmissionFlag.NBD_FLAG_SEND_DF
    if export.read_only:
        return flags | TransmissionFlag.NBD_FLAG_READ_ONLY
    return (
        flags
        | TransmissionFlag.NBD_FLAG_SEND_FUA
        | TransmissionFlag.NBD_FLAG_SEND_TRIM
        | TransmissionFlag.NBD_FLAG_SEND_WRITE_ZEROES
        | TransmissionFlag.NBD_FLAG_SEND_FAST_ZERO
    )


class ServerHandshake:
    """Negotiate which of `exports` a client gets; the empty name means the first.

    `output` is what to send. `structured` and `allocation` (is base:allocation active for the export chosen?) hold
    once the negotiation is over.
    """

    def __init__(self, exports: Mapping[str, Described], tls: TlsMode = TlsMode.NOTLS) -> None:
        self._exports = exports
        self._tls = tls
        self._secure = False
        self._allocation_of: str | None = None
        self.output = bytearray()
        self.structured = False
        self.allocation = False
        self.starting_tls = False

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
            if option == Option.NBD_OPT_ABORT:
                self._reply(option, OptionReply.NBD_REP_ACK)
                return None
            if option == Option.NBD_OPT_EXPORT_NAME:
                return self._chosen(self._export_name(data, bool(flags & ClientFlag.NBD_FLAG_C_NO_ZEROES)))
            name = self._answer(option, data)
            if name is not None:
                return self._chosen(name)
        raise ProtocolError(f"the client sent more than {MAX_OPTIONS} options")

    def _answer(self, option: int, data: bytes) -> str | None:
        """Reply to an option that has replies; returns the export's name if NBD_OPT_GO was granted."""
        if self._plaintext_refused and option != Option.NBD_OPT_STARTTLS:
            self._reply(option, OptionReply.NBD_REP_ERR_TLS_REQD, b"this server insists on TLS")
            return None
        match option:
            case Option.NBD_OPT_GO:
                return self._information(option, data)
            case Option.NBD_OPT_INFO:
                self._information(option, data)
            case Option.NBD_OPT_LIST:
                self._list(data)
            case Option.NBD_OPT_STARTTLS:
                self._start_tls(data)
            case Option.NBD_OPT_STRUCTURED_REPLY:
                self._structured_reply(data)
            case Option.NBD_OPT_LIST_META_CONTEXT | Option.NBD_OPT_SET_META_CONTEXT:
                self._meta_context(option, data)
            case _:
                self._reply(option, OptionReply.NBD_REP_ERR_UNSUP, b"this server does not know the option")
        return None

    @property
    def _plaintext_refused(self) -> bool:
        return self._tls is TlsMode.FORCEDTLS and not self._secure

    def _chosen(self, name: str) -> str:
        self.allocation = self._allocation_of == name
        return name

    def _reply(self, option: int, kind: OptionReply, data: bytes = b"") -> None:
        self.output += OPTION_REPLY.pack(NBD_REP_MAGIC, option, kind, len(data)) + data

    def _invalid(self, option: int, message: bytes) -> None:
        self._reply(option, OptionReply.NBD_REP_ERR_INVALID, message)

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
        if self._plaintext_refused:
            raise ProtocolError("the client did not start TLS")
        name = self._find(data)
        if name is None:
            raise ProtocolError(f"there is no export {data.decode(errors='replace')!r}")
        export = self._exports[name]
        if export.block_size.must_be_known:
            raise ProtocolError("the client did not ask for the block size constraints")
        self.output += EXPORT_NAME_REPLY.pack(export.size, transmission_flags(export, self.structured))
        if not no_zeroes:
            self.output += bytes(EXPORT_NAME_ZEROES)
        return name

    def _start_tls(self, data: bytes) -> None:
        option = Option.NBD_OPT_STARTTLS
        if self._tls is TlsMode.NOTLS:
            self._reply(option, OptionReply.NBD_REP_ERR_POLICY, b"this server has no certificates")
        elif data:
            self._invalid(option, b"NBD_OPT_STARTTLS carries no data")
        elif self._secure:
            self._invalid(option, b"TLS has been started already")
        else:
            self._reply(option, OptionReply.NBD_REP_ACK)
            self._secure = self.starting_tls = True
            self.structured = False
            self._allocation_of = None

    def _structured_reply(self, data: bytes) -> None:
        option = Option.NBD_OPT_STRUCTURED_REPLY
        if data:
            self._invalid(option, b"NBD_OPT_STRUCTURED_REPLY carries no data")
        else:
            self.structured = True
            self._reply(option, OptionReply.NBD_REP_ACK)

    def _meta_context(self, option: int, data: bytes) -> None:
        setting = option == Option.NBD_OPT_SET_META_CONTEXT
        if setting:
            self._allocation_of = None
        query = MetaContextQuery.parse(data)
        if query is None or not self.structured:
            message = b"the option's lengths contradict each other" if self.structured else b"no structured replies yet"
            self._invalid(option, message)
            return
        name = self._find(query.export)
        if name is None:
            self._reply(option, OptionReply.NBD_REP_ERR_UNKNOWN, b"there is no such export")
            return
        if query.selects(BASE_ALLOCATION) or (not setting and query.lists(BASE_ALLOCATION)):
            number = ALLOCATION_ID if setting else 0
            described = number.to_bytes(4, "big") + BASE_ALLOCATION.encode()
            self._reply(option, OptionReply.NBD_REP_META_CONTEXT, described)
            if setting:
                self._allocation_of = name
        self._reply(option, OptionReply.NBD_REP_ACK)

    def _list(self, data: bytes) -> None:
        if data:
            self._invalid(Option.NBD_OPT_LIST, b"NBD_OPT_LIST carries no data")
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
            self._invalid(option, b"the option's lengths contradict each other")
            return None
        name = self._find(data[4:after_name])
        if name is None:
            self._reply(option, OptionReply.NBD_REP_ERR_UNKNOWN, b"there is no such export")
            return None
        wanted = {int.from_bytes(requests[at : at + 2], "big") for at in range(0, len(requests), 2)}
        must_ask = option == Option.NBD_OPT_GO and self._exports[name].block_size.must_be_known
        for answer in self._answers(name, wanted):
            self._reply(option, OptionReply.NBD_REP_INFO, answer)
        if must_ask and Info.NBD_INFO_BLOCK_SIZE not in wanted:
            self._reply(option, OptionReply.NBD_REP_ERR_BLOCK_SIZE_REQD, b"ask for the block size constraints")
            return None
        self._reply(option, OptionReply.NBD_REP_ACK)
        return name

    def _answers(self, name: str, wanted: set[int]) -> list[bytes]:
        export = self._exports[name]
        size = export.block_size
        answers = [INFO_EXPORT.pack(Info.NBD_INFO_EXPORT, export.size, transmission_flags(export, self.structured))]
        if Info.NBD_INFO_NAME in wanted:
            answers.append(Info.NBD_INFO_NAME.to_bytes(2, "big") + name.encode())
        if Info.NBD_INFO_DESCRIPTION in wanted and export.description:
            answers.append(Info.NBD_INFO_DESCRIPTION.to_bytes(2, "big") + export.description.encode())
        if Info.NBD_INFO_BLOCK_SIZE in wanted or size.must_be_known:
            answers.append(INFO_BLOCK_SIZE.pack(Info.NBD_INFO_BLOCK_SIZE, size.minimum, size.preferred, size.maximum))
        return answers
