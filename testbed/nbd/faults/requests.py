"""The requests that get a reply."""

from testbed.nbd.server_protocol import BlockStatus, Cache, Flush, Read, Trim, Write, WriteZeroes

REQUESTS = (Read, Write, Flush, Trim, WriteZeroes, Cache, BlockStatus)
