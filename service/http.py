"""The connection: uvicorn's fast HTTP/1.1 parser, with an end to what it keeps."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Bytes that may arrive without completing a request's head or adding to its body.
MOST_UNREAD = 64 << 10
#: Seconds in which a request's head must arrive, from the connection or the head's first byte on.
HEAD_S = 20.0


class Connection(HttpToolsProtocol):
    """httptools collects a head, a chunk's extension or a trailer until it is whole, however long
    it is: a connection that has sent `MOST_UNREAD` bytes of one is closed, and so is one that takes
    longer than `HEAD_S` over a head."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unread = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_begins()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_ends()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unread += len(data)
        super().data_received(data)
        if self._unread <= MOST_UNREAD or self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            self.send_400_response(f"A request's head may have {MOST_UNREAD} bytes.")
        else:  # an answer is on its way: there is no place for another
            self.transport.close()

    def _head_begins(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_S, self._head_is_late)

    def _head_ends(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:  # while a request is answered the next one's head may wait unread
            self._head_begins()

    # What the parser has passed on is kept no longer.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_begins()

    def on_headers_complete(self) -> None:
        self._head_ends()
        self._unread = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unread = 0
        super().on_message_complete()
