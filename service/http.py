"""The connection: uvicorn's fast HTTP/1.1 parser, with an end to what it keeps."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.file_limit import most_connections

#: Bytes that may arrive without completing a request's head or adding to its body.
MOST_UNREAD = 64 << 10
#: Chunks that a body may come in beside one for each read, and one more for each of so many bytes.
_FEW_CHUNKS, _BYTES_A_CHUNK = 1000, 16
#: Seconds in which a request's head must arrive, from the connection or the head's first byte on.
HEAD_S = 20.0
#: Seconds in which a client must take some of an answer that waits for it. On a bad line pauses of
#: half a minute happen, and what the system buffers hides as much again.
UNSENT_S = 60.0
#: Seconds that a connection which has asked nothing yet is left when the server ends.
FIRST_S = 0.5
#: Seconds between two lines of the log that say the same.
_TOLD_AGAIN_S = 60.0

log = logging.getLogger(__name__)


class Connection(HttpToolsProtocol):
    """httptools collects a head, a chunk's extension or a trailer until it is whole, however long
    it is: a connection that has sent `MOST_UNREAD` bytes of one is closed, and so is one that takes
    longer than `HEAD_S` over a head. An answer waits in memory until the client takes it: one that
    takes nothing of it for `UNSENT_S` is cut off. So is a body in chunks of next to nothing, each
    of which costs as much as a large one. Beyond `most_connections` new ones are closed.

    Where a client sends the next request before the answer begins, that answer is the connection's
    last and what follows is thrown away, as HTTP allows: to keep it, reading would have to pause,
    and then nobody sees that the client has gone."""

    _told = -_TOLD_AGAIN_S

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unread = 0
        self._pieces: list[bytes] = []
        self._chunks = self._body_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._unsent = 0
        self._unsent_timer: asyncio.TimerHandle | None = None
        self._deaf = self._ending = False
        self._most = most_connections()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._most:
            transport.abort()
            now = time.monotonic()
            if now - Connection._told > _TOLD_AGAIN_S:
                Connection._told = now
                log.warning(
                    "%d connections are open and new ones are closed; raise the limit of open "
                    "files (ulimit -n) or put a proxy in front",
                    self._most,
                )
            return
        self._head_begins()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_ends()
        if self._unsent_timer is not None:
            self._unsent_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._unread += len(data)
        super().data_received(data)
        self._hand_on_body()
        if self._chunks > _FEW_CHUNKS + self._body_bytes // _BYTES_A_CHUNK:
            self.transport.close()
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

    def shutdown(self) -> None:
        self._ending = True
        if self.cycle is None:  # one just opened: its request is on its way, and is to be answered
            self.loop.call_later(FIRST_S, super().shutdown)
        else:
            super().shutdown()

    # The buffer of what is to be sent is filled and emptied, or is left with an answer's end.

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_unsent()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._watch_unsent()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_unsent()

    def _watch_unsent(self) -> None:
        if self._unsent_timer is not None:
            self._unsent_timer.cancel()
        self._unsent, self._unsent_timer = self.transport.get_write_buffer_size(), None
        if self._unsent:
            self._unsent_timer = self.loop.call_later(UNSENT_S, self._is_unsent)

    def _is_unsent(self) -> None:
        if self.transport.get_write_buffer_size() < self._unsent:
            self._watch_unsent()
        else:
            self.transport.abort()

    # What the parser has passed on is kept no longer.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._chunks = self._body_bytes = 0
        self._head_begins()

    def on_headers_complete(self) -> None:
        self._head_ends()
        self._unread = 0
        # Once the answer has begun the client may have the whole of it before its end is told here.
        if self.cycle is not None and not self.cycle.response_started:
            self.cycle.keep_alive = False
            self._deaf = True
            self.headers = []  # nor is it looked at for an upgrade
        else:
            super().on_headers_complete()
            if self._ending and self.cycle is not None:
                self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        if not self._deaf:
            self._pieces.append(body)

    def _hand_on_body(self) -> None:
        """All that a read has brought of it at once: uvicorn copies what it has for every part."""
        if self._pieces:
            body = b"".join(self._pieces)
            self._chunks += len(self._pieces) - 1
            self._body_bytes += len(body)
            self._pieces.clear()
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._unread = 0
        self._hand_on_body()
        if not self._deaf:
            super().on_message_complete()
