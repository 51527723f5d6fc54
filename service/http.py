"""The connection: uvicorn's fast HTTP/1.1 parser, with an end to what it keeps."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Bytes that may arrive without completing a request's head or adding to its body.
MOST_UNREAD = 64 << 10


class Connection(HttpToolsProtocol):
    """httptools collects a head, a chunk's extension or a trailer until it is whole, however long
    it is: a connection that has sent `MOST_UNREAD` bytes of one is closed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unread = 0

    def data_received(self, data: bytes) -> None:
        self._unread += len(data)
        super().data_received(data)
        if self._unread <= MOST_UNREAD or self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            self.send_400_response(f"A request's head may have {MOST_UNREAD} bytes.")
        else:  # an answer is on its way: there is no place for another
            self.transport.close()

    # What the parser has passed on is kept no longer.

    def on_headers_complete(self) -> None:
        self._unread = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unread = 0
        super().on_message_complete()
