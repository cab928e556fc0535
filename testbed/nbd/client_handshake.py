"""The client's half of the handshake: bytes in, events out, no socket.

The negotiation is a generator: it yields how many bytes it needs next and is resumed with exactly those, so its text
reads in the order of the wire and no split of the stream can matter. NBD_OPT_GO is tried first; a server that does not
know it is asked again with NBD_OPT_EXPORT_NAME, which can only be refused by hanging up.
"""

from collections.abc import Generator
from dataclasses import dataclass

from testbed.nbd.constants import (
    EXPORT_NAME_REPLY,
    EXPORT_NAME_ZEROES,
    GREETING,
    IHAVEOPT,
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    NBD_MAX_STRING,
    NBD_REP_FLAG_ERROR,
    NBD_REP_MAGIC,
    NBDMAGIC,
    OLDSTYLE_MAGIC,
    OPTION,
    OPTION_REPLY,
    ClientFlag,
    HandshakeFlag,
    Info,
    Option,
    OptionReply,
)
from testbed.nbd.errors import NbdError

MAX_REPLY_LENGTH = 2 * NBD_MAX_STRING + 64  # bytes of one option reply: the longest is a name with its description
MAX_REPLIES = 65536  # replies to one option, so that a hostile server cannot list for ever


@dataclass(frozen=True, slots=True)
class ExportInformation:
    """What the server said of the export. Sizes in bytes; a block size of 0 was not announced (spec: "Option types").
    """

    size: int
    transmission_flags: int
    name: str | None = None
    description: str | None = None
    minimum_block_size: int = 0
    preferred_block_size: int = 0
    maximum_block_size: int = 0


@dataclass(frozen=True, slots=True)
class ExportListed:
    """One answer to NBD_OPT_LIST."""

    name: str
    description: str


@dataclass(frozen=True, slots=True)
class HandshakeFinished:
    """After NBD_OPT_GO or NBD_OPT_EXPORT_NAME transmission begins; after the others the client has said NBD_OPT_ABORT.
    """


@dataclass(frozen=True, slots=True)
class TlsBegins:
    """The server has agreed to NBD_OPT_STARTTLS: agree on the keys, then call `tls_started`."""


Event = ExportInformation | ExportListed | HandshakeFinished | TlsBegins
Goal = Option  # NBD_OPT_GO, NBD_OPT_INFO, NBD_OPT_LIST or NBD_OPT_ABORT
Needs = Generator[int, bytes, None]


class ClientHandshake:
    """Negotiate with a server until `finished`.

    `goal` is what the caller is after: NBD_OPT_GO to use the export, NBD_OPT_INFO to learn of it, NBD_OPT_LIST for the
    names of all, NBD_OPT_ABORT to greet and leave. With `tls` everything after the greeting is encrypted, or nothing is
    said. `structured_replies` says whether the server has agreed to them, if it was asked.
    Raises ValueError for an export name over 4096 bytes.
    """

    def __init__(
        self,
        export_name: str = "",
        goal: Goal = Option.NBD_OPT_GO,
        *,
        tls: bool = False,
        ask_structured_replies: bool = False,
    ) -> None:
        self._name = export_name.encode()
        if len(self._name) > NBD_MAX_STRING:
            raise ValueError(f"an NBD export name has at most {NBD_MAX_STRING} bytes, this one has {len(self._name)}")
        if goal not in (Option.NBD_OPT_GO, Option.NBD_OPT_INFO, Option.NBD_OPT_LIST, Option.NBD_OPT_ABORT):
            raise ValueError(f"{goal!r} is not a goal of a handshake")
        self.finished = False
        self.structured_replies = False
        self._goal = goal
        self._tls = tls
        self._ask_structured_replies = ask_structured_replies
        self._tls_begins = False
        self._input = bytearray()
        self._output = bytearray()
        self._events: list[Event] = []
        self._negotiation = self._negotiate()
        self._needed = next(self._negotiation)

    def data_to_send(self) -> bytes:
        """Bytes for the server since the last call."""
        data = bytes(self._output)
        self._output.clear()
        return data

    def received(self, data: bytes) -> list[Event]:
        """Take bytes of the server, in any portions. Raises NbdError when it refuses or is no NBD server."""
        self._input += data
        while not self.finished and not self._tls_begins and len(self._input) >= self._needed:
            portion = bytes(self._input[: self._needed])
            del self._input[: self._needed]
            try:
                self._needed = self._negotiation.send(portion)
            except StopIteration:
                self.finished = True
                self._events.append(HandshakeFinished())
        if (self.finished or self._tls_begins) and self._input:
            raise NbdError("the NBD server sent data that nobody asked for")
        events, self._events = self._events, []
        return events

    def tls_started(self) -> None:
        """From now on the bytes of both directions are what TLS protects."""
        self._tls_begins = False
        self.received(b"")

    def _negotiate(self) -> Needs:
        server_flags = yield from self._greeting()
        fixed = bool(server_flags & HandshakeFlag.NBD_FLAG_FIXED_NEWSTYLE)
        no_zeroes = bool(server_flags & HandshakeFlag.NBD_FLAG_NO_ZEROES)
        client_flags = ClientFlag.NBD_FLAG_C_FIXED_NEWSTYLE * fixed | ClientFlag.NBD_FLAG_C_NO_ZEROES * no_zeroes
        self._output += client_flags.to_bytes(4, "big")

        if self._tls:
            yield from self._starttls(fixed)
        if self._goal is Option.NBD_OPT_GO:
            yield from self._choose_export(fixed, no_zeroes)
        elif fixed:
            yield from self._ask()
            self._option(Option.NBD_OPT_ABORT)
        else:
            raise NbdError("the NBD server is too old to be asked about its exports")

    def _greeting(self) -> Generator[int, bytes, int]:
        """The server's handshake flags."""
        magic = int.from_bytes((yield 8), "big")
        if magic != NBDMAGIC:
            raise NbdError("the peer is not an NBD server")
        style = int.from_bytes((yield 8), "big")
        if style == OLDSTYLE_MAGIC:
            raise NbdError("the NBD server speaks only the oldstyle handshake")
        if style != IHAVEOPT:
            raise NbdError("the peer is not an NBD server")
        return int.from_bytes((yield GREETING.size - 16), "big")

    def _choose_export(self, fixed: bool, no_zeroes: bool) -> Needs:
        """After this comes transmission."""
        if fixed and self._ask_structured_replies:
            yield from self._structured_reply()
        if not fixed or not (yield from self._go(Option.NBD_OPT_GO)):
            yield from self._export_name(no_zeroes)

    def _ask(self) -> Needs:
        """What the caller wants to know, which with NBD_OPT_ABORT is nothing."""
        if self._goal is Option.NBD_OPT_LIST:
            yield from self._list()
        elif self._goal is Option.NBD_OPT_INFO and not (yield from self._go(Option.NBD_OPT_INFO)):
            raise NbdError("the NBD server does not know NBD_OPT_INFO")

    def _starttls(self, fixed: bool) -> Needs:
        if not fixed:
            raise NbdError("the NBD server is too old for TLS")
        self._option(Option.NBD_OPT_STARTTLS)
        kind, data = yield from self._reply(Option.NBD_OPT_STARTTLS)
        if kind != OptionReply.NBD_REP_ACK:
            raise self._refusal(Option.NBD_OPT_STARTTLS, kind, data)
        self._events.append(TlsBegins())
        self._tls_begins = True
        yield 0

    def _structured_reply(self) -> Needs:
        """A server that cannot, or will not yet, answers with simple replies."""
        self._option(Option.NBD_OPT_STRUCTURED_REPLY)
        kind, _ = yield from self._reply(Option.NBD_OPT_STRUCTURED_REPLY)
        self.structured_replies = kind == OptionReply.NBD_REP_ACK
        if kind != OptionReply.NBD_REP_ACK and not kind & NBD_REP_FLAG_ERROR:
            raise self._refusal(Option.NBD_OPT_STRUCTURED_REPLY, kind, b"")

    def _option(self, option: Option, data: bytes = b"") -> None:
        self._output += OPTION.pack(IHAVEOPT, option, len(data)) + data

    def _reply(self, option: Option) -> Generator[int, bytes, tuple[int, bytes]]:
        magic, answered, kind, length = OPTION_REPLY.unpack((yield OPTION_REPLY.size))
        if magic != NBD_REP_MAGIC or answered != option:
            raise NbdError(f"the NBD server's answer to {option.name} is not an option reply")
        if length > MAX_REPLY_LENGTH:
            raise NbdError(f"the NBD server's answer to {option.name} is too long ({length} bytes)")
        return kind, (yield length) if length else b""

    def _go(self, option: Option) -> Generator[int, bytes, bool]:
        """False if the server does not know the option."""
        wanted = (Info.NBD_INFO_NAME, Info.NBD_INFO_DESCRIPTION, Info.NBD_INFO_BLOCK_SIZE)
        requests = b"".join(number.to_bytes(2, "big") for number in (len(wanted), *wanted))
        self._option(option, len(self._name).to_bytes(4, "big") + self._name + requests)
        size = flags = -1
        texts: dict[int, str] = {}
        block_sizes = (0, 0, 0)
        for _ in range(MAX_REPLIES):
            kind, data = yield from self._reply(option)
            if kind == OptionReply.NBD_REP_ACK:
                if size < 0:
                    raise NbdError("the NBD server granted the export without telling its size")
                name, description = texts.get(Info.NBD_INFO_NAME), texts.get(Info.NBD_INFO_DESCRIPTION)
                self._events.append(ExportInformation(size, flags, name, description, *block_sizes))
                return True
            if kind == OptionReply.NBD_REP_ERR_UNSUP:
                return False
            if kind != OptionReply.NBD_REP_INFO:
                raise self._refusal(option, kind, data)
            information = int.from_bytes(data[:2], "big") if len(data) >= 2 else -1
            if information == Info.NBD_INFO_EXPORT and len(data) == INFO_EXPORT.size:
                _, size, flags = INFO_EXPORT.unpack(data)
            elif information == Info.NBD_INFO_BLOCK_SIZE and len(data) == INFO_BLOCK_SIZE.size:
                block_sizes = INFO_BLOCK_SIZE.unpack(data)[1:]
            elif information in (Info.NBD_INFO_NAME, Info.NBD_INFO_DESCRIPTION):
                texts[information] = self._text(data[2:])
            elif information in (-1, Info.NBD_INFO_EXPORT, Info.NBD_INFO_BLOCK_SIZE):
                raise NbdError(f"the NBD server's answer to {option.name} is malformed")
        raise NbdError(f"the NBD server's answer to {option.name} does not end")

    def _list(self) -> Needs:
        self._option(Option.NBD_OPT_LIST)
        for _ in range(MAX_REPLIES):
            kind, data = yield from self._reply(Option.NBD_OPT_LIST)
            if kind == OptionReply.NBD_REP_ACK:
                return
            if kind != OptionReply.NBD_REP_SERVER:
                raise self._refusal(Option.NBD_OPT_LIST, kind, data)
            length = int.from_bytes(data[:4], "big")
            if len(data) < 4 + length:
                raise NbdError("the NBD server's answer to NBD_OPT_LIST is malformed")
            self._events.append(ExportListed(self._text(data[4 : 4 + length]), self._text(data[4 + length :])))
        raise NbdError("the NBD server's answer to NBD_OPT_LIST does not end")

    def _export_name(self, no_zeroes: bool) -> Needs:
        self._option(Option.NBD_OPT_EXPORT_NAME, self._name)
        size, flags = EXPORT_NAME_REPLY.unpack((yield EXPORT_NAME_REPLY.size))
        if not no_zeroes:
            yield EXPORT_NAME_ZEROES
        self._events.append(ExportInformation(size, flags))

    @staticmethod
    def _text(data: bytes) -> str:
        return data.decode(errors="replace")

    def _refusal(self, option: Option, kind: int, data: bytes) -> NbdError:
        export = repr(self._text(self._name))
        match kind:
            case OptionReply.NBD_REP_ERR_UNKNOWN:
                return NbdError(f"the NBD server has no export {export}")
            case OptionReply.NBD_REP_ERR_TLS_REQD:
                return NbdError("the NBD server requires TLS: give the client the files for it")
            case OptionReply.NBD_REP_ERR_SHUTDOWN:
                return NbdError("the NBD server is shutting down")
            case _ if not kind & NBD_REP_FLAG_ERROR:
                return NbdError(f"the NBD server answered {option.name} with an unexpected reply of type {kind}")
        reason = OptionReply(kind).name if kind in set(OptionReply) else f"error {kind - NBD_REP_FLAG_ERROR}"
        message = " ".join(self._text(data[:200]).split())
        explained = f"{reason} ({message})" if message else reason
        named = option in (Option.NBD_OPT_GO, Option.NBD_OPT_INFO)
        what = option.name if not named else f"{option.name} of export {export}"
        return NbdError(f"the NBD server refused {what}: {explained}")
