"""What can go wrong, as exceptions. All are `FewshotError`s."""

from __future__ import annotations

import email.utils
import time

import httpx
from pydantic import ValidationError

from fewshot_client.documents import Problem


class FewshotError(Exception):
    """Base of all."""


class ConnectionFailed(FewshotError):
    """No answer of the service: it cannot be reached, did not answer in time, or something else
    answered in its place."""


class NotSent(FewshotError, ValueError):
    """What was given is empty, or cannot be read or sent; the service was not asked."""


class ApiError(FewshotError):
    """The service answered with a problem document, `problem`; `kind` is its stable name."""

    def __init__(self, problem: Problem, retry_after: float | None = None) -> None:
        super().__init__(f"{problem.status} {problem.kind}: {problem.detail}")
        self.problem = problem
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[type[ApiError], tuple[Problem, float | None]]:
        # An exception is pickled by its `args`, which hold the words: a pool of processes would
        # hang over one that cannot be made again.
        return type(self), (self.problem, self.retry_after)

    @property
    def status(self) -> int:
        return self.problem.status

    @property
    def kind(self) -> str:
        return self.problem.kind


class InvalidRequest(ApiError):
    """400, 413, 415, 422, and 409 where there are too many sets: what was sent cannot be taken;
    sending it again will not help."""


class NotAllowed(ApiError):
    """401, 403: the API key is missing, unknown, or not allowed to do this; or the service, asking
    for no key, does not go by the name in `address` (its setting `allowed_hosts`)."""


class NotFound(ApiError):
    """404: no such model, support set or example."""


class Gone(ApiError):
    """410: the support set has expired."""


class Outdated(ApiError):
    """409, 412: it has changed meanwhile."""


class RateLimited(ApiError):
    """429: too much at once; `retry_after` says for how long, in seconds."""


class Unavailable(ApiError):
    """503, 504: not now."""


class ServerFault(ApiError):
    """Any other 5xx."""


#: Asked first, for what its status alone would tell wrongly.
_KINDS: dict[str, type[ApiError]] = {"too-many-sets": InvalidRequest}
_STATUSES: dict[int, type[ApiError]] = {
    400: InvalidRequest,
    401: NotAllowed,
    403: NotAllowed,
    404: NotFound,
    409: Outdated,
    410: Gone,
    412: Outdated,
    413: InvalidRequest,
    415: InvalidRequest,
    422: InvalidRequest,
    429: RateLimited,
    503: Unavailable,
    504: Unavailable,
}


def of_response(response: httpx.Response) -> FewshotError:
    """The exception for an answer that is no success, be it the service's or a proxy's."""
    if response.status_code < 400:
        return of_stranger(response)
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        problem = Problem(
            type="about:blank",
            title=response.reason_phrase,
            status=response.status_code,
            detail=response.text[:200],
        )
    fault = ServerFault if response.status_code >= 500 else ApiError
    of_status = _STATUSES.get(response.status_code, fault)
    return _KINDS.get(problem.kind, of_status)(problem, retry_after(response))


def of_stranger(response: httpx.Response) -> ConnectionFailed:
    """The exception for an answer below 400 that is not what the service answers."""
    url = response.url.copy_with(userinfo=b"")  # without what may be a password
    kind = response.headers.get("content-type", "no content type")
    location = response.headers.get("location")
    elsewhere = f", pointing to {location[:200]}" if location else ""
    return ConnectionFailed(
        f"{url} answered {response.status_code} ({kind}){elsewhere}, but not as the service does: "
        "look for a proxy that answers in its place, or a service of another version"
    )


def retry_after(response: httpx.Response) -> float | None:
    """Seconds of the header Retry-After, which may be a number or a date."""
    text = response.headers.get("retry-after", "")
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
