"""When to send a request again, and how long to wait before."""

from __future__ import annotations

import random
from dataclasses import dataclass

import httpx

from fewshot_client.errors import retry_after

#: The request never got to the service.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
#: Nor would it on another try: it is not HTTP.
_CANNOT_BE_SENT = (httpx.LocalProtocolError, httpx.UnsupportedProtocol)
#: The service refused it before doing anything that counts.
_REFUSED = (429,)
#: It may have been done: a database may commit what it could not confirm.
_UNKNOWN = (502, 503)


@dataclass(frozen=True)
class Retry:
    """At most `retries` more tries, waiting as long as Retry-After says, else `backoff_s`, twice as
    long each time, with some chance in it. A wait beyond `max_wait_s` is not waited: the error is
    raised instead.

    What may have been done already is sent again only where doing it twice is the same as once:
    reading, asking, and making or adding, whose idempotency key stays the same.
    """

    retries: int = 3
    backoff_s: float = 0.5
    max_wait_s: float = 30.0

    def wait(
        self, tried: int, repeatable: bool, outcome: httpx.Response | httpx.RequestError
    ) -> float | None:
        """Seconds to wait before trying again after `tried` tries; None to give up."""
        if tried > self.retries:
            return None
        asked: float | None = None
        if isinstance(outcome, httpx.Response):
            safe = outcome.status_code in _REFUSED or (
                repeatable and outcome.status_code in _UNKNOWN
            )
            asked = retry_after(outcome)
        elif isinstance(outcome, _CANNOT_BE_SENT):
            safe = False
        else:
            safe = repeatable or isinstance(outcome, _NOT_SENT)
        if not safe:
            return None
        own = self.backoff_s * 2 ** (tried - 1) * random.uniform(0.5, 1.0)
        seconds = own if asked is None else asked
        return seconds if seconds <= self.max_wait_s else None
