"""The one handler that turns every exception into a problem document."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.routing import Match, Route
from starlette.types import Scope

from service.images import clean_name
from service.middleware import problem_response
from service.problems import FilesNotKept, HttpProblem, InvalidRequest, MalformedRequest, Problem

log = logging.getLogger(__name__)

#: Messages of the framework that would mean nothing to a user.
_WORDS = {
    "Value error, Expected UploadFile, received: <class 'str'>": "this is text, not a file",
    "Input should be a valid dictionary or object to extract fields from": "not a JSON object",
}
_CLIENT_CLOSED = 499  # nobody reads it; it only marks the log line
_RETRY_AFTER_S = 5
#: Faults that one answer tells of.
_MOST_TOLD = 20


def install(app: FastAPI, routes: Sequence[Route]) -> None:
    """Answer problems, failed validation and HTTP errors of the framework in one form; `routes` are
    those that may be asked by a wrong method, or with a slash too many.

    Other exceptions reach `SecurityHeaders`, which logs them and answers 500.
    """
    for kind in (Problem, RequestValidationError, HTTPException, ClientDisconnect):
        app.add_exception_handler(kind, partial(_handle, routes))


async def _handle(routes: Sequence[Route], request: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnect):
        return Response(status_code=_CLIENT_CLOSED)
    problem = as_problem(error)
    if isinstance(problem, HttpProblem) and problem.code == 405:
        # The framework names those of the first route at the address alone.
        if methods := _methods(routes, request.scope):
            problem.headers["Allow"] = ", ".join(methods)
    elif isinstance(problem, HttpProblem) and problem.code == 404:
        path = request.scope["path"]
        if path.endswith("/") and _methods(routes, {**request.scope, "path": path.rstrip("/")}):
            problem = HttpProblem(404, "no such address; leave out the slash at its end")
    if request.url.path.startswith("/v2"):
        # Where clients of the Open Inference Protocol look for the reason.
        problem.extra["error"] = problem.detail
    return problem_response(problem)


def _methods(routes: Sequence[Route], scope: Scope) -> list[str]:
    """Those that are answered at the address: HEAD is wherever GET is (see `Head`)."""
    here = (route for route in routes if route.matches(scope)[0] is not Match.NONE)
    found = set[str]().union(*(route.methods or () for route in here))
    return sorted(found | {"HEAD"} if "GET" in found else found)


def as_problem(error: Exception) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, RequestValidationError):
        return _validation(error)
    if isinstance(error, HTTPException) and error.status_code == MalformedRequest.status:
        # The framework blames the client for whatever stops it while it reads a form.
        if isinstance(error.__cause__, OSError):
            return _not_kept(error.__cause__)
        return MalformedRequest(str(error.detail))
    if isinstance(error, HTTPException):
        return HttpProblem(error.status_code, str(error.detail), error.headers)
    return Problem("an unexpected fault; it has been logged")


def _not_kept(error: OSError) -> Problem:
    """Large files wait on the disk until they are read. The reason goes to the log, not to the
    client."""
    log.warning("an upload could not be kept in the folder for temporary files: %s", error)
    return FilesNotKept(
        f"the files cannot be kept while they are read; try again in {_RETRY_AFTER_S} s",
        headers={"Retry-After": str(_RETRY_AFTER_S)},
    )


def _validation(error: RequestValidationError) -> Problem:
    """Where and what, without the values that were sent."""
    faults = error.errors()
    errors = [_told(fault) for fault in faults[:_MOST_TOLD]]
    detail = "; ".join(f"{fault['field']}: {fault['message']}" for fault in errors)
    if len(faults) > _MOST_TOLD:
        detail += f"; and {len(faults) - _MOST_TOLD} more"
    return InvalidRequest(detail, errors=errors)


def _told(fault: Mapping[str, Any]) -> dict[str, str]:
    """A field of a form, of an object, or of the address; or the body as a whole."""
    (source, *place), words = fault["loc"], str(fault["msg"])
    if fault["type"] == "json_invalid":
        words = f"not JSON: {fault['ctx']['error']}, at character {place.pop()}"
    elif not place and fault["type"] == "missing":
        words = "send a JSON object"
    field = ".".join(map(str, place)) if place else str(source)
    return {"field": clean_name(field), "message": clean_name(_WORDS.get(words, words))}
