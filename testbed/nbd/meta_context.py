"""What NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT ask: an export, and queries for metadata contexts."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MetaContextQuery:
    """`export` is the name as it was sent."""

    export: bytes
    queries: tuple[bytes, ...]

    @classmethod
    def parse(cls, data: bytes) -> "MetaContextQuery | None":
        """The option's data: a name, a number of queries, the queries, each string behind its 32-bit length. None if
        the lengths contradict each other.
        """
        export, at = _string(data, 0)
        if len(data) < at + 4:
            return None
        count = int.from_bytes(data[at : at + 4], "big")
        at += 4
        queries: list[bytes] = []
        while at < len(data) and len(queries) < count:
            query, at = _string(data, at)
            queries.append(query)
        if at != len(data) or len(queries) != count:
            return None
        return cls(export, tuple(queries))

    def selects(self, context: str) -> bool:
        """Some query names the context itself."""
        return context.encode() in self.queries

    def lists(self, context: str) -> bool:
        """To NBD_OPT_LIST_META_CONTEXT, no query at all means every context, and a namespace all that is in it."""
        namespace = context[: context.index(":") + 1].encode()
        return not self.queries or namespace in self.queries


def _string(data: bytes, at: int) -> tuple[bytes, int]:
    """A string behind its length, and where it ends, which is past the end of `data` if it is cut off."""
    end = at + 4 + int.from_bytes(data[at : at + 4], "big")
    return data[at + 4 : end], max(end, at + 4)
