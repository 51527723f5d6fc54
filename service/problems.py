"""Everything that can go wrong, as RFC 9457 problem documents.

One exception base, one subclass per stable `type`, one handler. The same exceptions serve the
command line, which prints `detail`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

PREFIX = "urn:fewshot:problem:"
MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True)
class FileRef:
    """Which uploaded file is at fault: form field, position within the field, and name."""

    field: str
    index: int
    name: str

    def __str__(self) -> str:
        return f"{self.field}[{self.index}] ({self.name})"


class Problem(Exception):
    """Base of all faults that have an answer of their own.

    `status` is the HTTP status, `type` the stable end of the document's type URI.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"

    def __init__(
        self,
        detail: str,
        *,
        file: FileRef | None = None,
        headers: Mapping[str, str] | None = None,
        **extra: object,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.file = file
        self.headers = dict(headers or {})
        self.extra = extra

    def document(self) -> dict[str, object]:
        """The problem document's members."""
        body: dict[str, object] = {
            "type": PREFIX + self.type,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        }
        if self.file is not None:
            body["file"] = {
                "field": self.file.field,
                "index": self.file.index,
                "name": self.file.name,
            }
        return body | self.extra


class HttpProblem(Problem):
    """A fault of the HTTP layer (no such route, wrong method, ...), named after its status."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail, headers=headers)
        kinds = {404: "not-found", 405: "method-not-allowed"}
        self.code = status
        self.kind = kinds.get(status, f"http-{status}")

    def document(self) -> dict[str, object]:
        kind = {"type": PREFIX + self.kind, "status": self.code}
        return super().document() | kind | {"title": self.kind.replace("-", " ").capitalize()}


# The request


class MalformedRequest(Problem):
    status, type, title = 400, "malformed-request", "The form cannot be read, or has too many parts"


class InvalidRequest(Problem):
    status, type, title = 422, "invalid-request", "Fields are missing or malformed"


class NotMultipart(Problem):
    status, type, title = 415, "not-multipart", "Send multipart/form-data"


class NotJson(Problem):
    status, type, title = 415, "not-json", "Send application/json"


class BodyTooLarge(Problem):
    status, type, title = 413, "body-too-large", "The request body is too large"


class BodyTooSlow(Problem):
    status, type, title = 408, "body-too-slow", "The request body did not arrive in time"


class MalformedInference(Problem):
    status, type, title = 400, "malformed-inference", "The inference request cannot be read"


class InvalidTensor(Problem):
    status, type, title = 422, "invalid-tensor", "A tensor is not what the model takes"


class AnswerTooLarge(Problem):
    status, type, title = 422, "answer-too-large", "The answer would be too large"


# The episode


class UnknownModel(Problem):
    status, type, title = 404, "unknown-model", "No such model"


class NoSupport(Problem):
    status, type, title = 422, "no-support", "No support images"


class NoQuery(Problem):
    status, type, title = 422, "no-query", "No query images"


class LabelCount(Problem):
    status, type, title = 422, "label-count", "Labels and support images differ in number"


class InvalidLabel(Problem):
    status, type, title = 422, "invalid-label", "A label is empty, too long or unprintable"


class OneClass(Problem):
    status, type, title = 422, "one-class", "At least two classes are needed"


class EmptyClass(Problem):
    status, type, title = 422, "empty-class", "A class has no images"


class TooManyClasses(Problem):
    status, type, title = 422, "too-many-classes", "More classes than the model takes"


class TooManyShots(Problem):
    status, type, title = 422, "too-many-shots", "More images of a class than the model takes"


class TooManyImages(Problem):
    status, type, title = 422, "too-many-images", "More images than the model takes"


class NoAdaptation(Problem):
    status, type, title = 422, "no-adaptation", "The model has no adaptation steps to set"


class NoOrders(Problem):
    status, type, title = 422, "no-orders", "The model does not depend on the order of the examples"


class AdaptationRange(Problem):
    status, type, title = 422, "adaptation-range", "steps or inner_lr is out of range"


class Diverged(Problem):
    status, type, title = 422, "adaptation-diverged", "The adaptation diverged"


# Files


class EmptyFile(Problem):
    status, type, title = 422, "empty-file", "A file is empty"


class NotAnImage(Problem):
    status, type, title = 422, "not-an-image", "A file is not an image of a known format"


class DamagedImage(Problem):
    status, type, title = 422, "damaged-image", "An image is truncated or damaged"


class ImageTooLarge(Problem):
    status, type, title = 422, "image-too-large", "An image has too many pixels"


class BadArchive(Problem):
    status, type, title = 422, "bad-archive", "The archive cannot be read"


class ArchiveTooLarge(Problem):
    status, type, title = 422, "archive-too-large", "The archive unpacks to too much"


# Stored support sets


class UnknownSet(Problem):
    status, type, title = 404, "unknown-support-set", "No such support set"


class UnknownExample(Problem):
    status, type, title = 404, "unknown-example", "No such example"


class UnknownLabel(Problem):
    status, type, title = 422, "unknown-label", "The support set has no such class"


class SetExpired(Problem):
    status, type, title = 410, "support-set-expired", "The support set was not used for too long"


class RevisionMismatch(Problem):
    status, type, title = 412, "revision-mismatch", "The support set is at another revision"


class TooManySets(Problem):
    status, type, title = 409, "too-many-sets", "No more support sets may be kept"


class SetFull(Problem):
    status, type, title = 422, "support-set-full", "The support set holds no more images"


class LabelledOtherwise(Problem):
    status, type, title = 409, "labelled-otherwise", "The image is there under another label"


class NothingAdded(Problem):
    status, type, title = 422, "nothing-added", "None of the images could be added"


class IdempotencyMismatch(Problem):
    status, type, title = 422, "idempotency-mismatch", "The Idempotency-Key was used otherwise"


class NothingToLeaveOut(Problem):
    status, type, title = 422, "nothing-to-leave-out", "No class has two examples"


class SetChanged(Problem):
    status, type, title = 409, "set-changed", "The support set was changed meanwhile"


# Keys


class Unauthenticated(Problem):
    status, type, title = 401, "unauthenticated", "A valid API key is needed"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": 'Bearer realm="fewshot"'})


class Forbidden(Problem):
    status, type, title = 403, "forbidden", "The API key does not allow this"


class ForeignPage(Problem):
    status, type, title = 403, "foreign-page", "Another site's web page may not do this"


class ForeignHost(Problem):
    status, type, title = 403, "foreign-host", "The service is not known by this name"


class UnknownKey(Problem):
    status, type, title = 404, "unknown-key", "No such API key"


# The service


class StoreUnavailable(Problem):
    status, type, title = 503, "store-unavailable", "The database is not available"


class FilesNotKept(Problem):
    status, type, title = 503, "files-not-kept", "The request's files cannot be kept"


class Overloaded(Problem):
    status, type, title = 429, "overloaded", "Too much work is waiting"


class RateExceeded(Problem):
    status, type, title = 429, "rate-exceeded", "The key asks too often"


class QuotaExceeded(Problem):
    status, type, title = 429, "quota-exceeded", "The key's daily quota is used up"


class ModelUnavailable(Problem):
    status, type, title = 503, "model-unavailable", "The model cannot be loaded"


class NotReady(Problem):
    status, type, title = 503, "not-ready", "The service is not ready"


class OutOfMemory(Problem):
    status, type, title = 503, "out-of-memory", "Not enough memory for this request"


class DeadlineExceeded(Problem):
    status, type, title = 504, "deadline-exceeded", "The request took too long"
