"""Every request as a value, which the two clients send each in its own way.

The functions that give a `Call` are the clients' methods: what stands here of names, defaults and
words is what their users see.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from fewshot_client.documents import (
    AddedExamples,
    Evaluation,
    ExamplePage,
    Limits,
    Model,
    ModelList,
    Predictions,
    SupportSet,
    SupportSetPage,
)
from fewshot_client.errors import NotSent, of_stranger
from fewshot_client.sources import Image, Part, Support, labelled, parts

T = TypeVar("T")
D = TypeVar("D", bound=BaseModel)

AttentionMode = Literal["none", "maps", "overlay"]


class Unset:
    """What a change leaves as it is; None would mean something."""


UNSET = Unset()


@dataclass(frozen=True)
class Call(Generic[T]):
    """`repeatable`: doing it twice is the same as doing it once."""

    method: str
    path: str
    parse: Callable[[httpx.Response], T]
    repeatable: bool
    params: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    form: Mapping[str, Any] | None = None
    files: list[Part] | None = None
    body: object = None

    def request(self, client: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """Raises `NotSent` for text that has no UTF-8, such as some names of files."""
        try:
            return client.build_request(
                self.method,
                self.path,
                params=self.params or None,
                headers=self.headers,
                data=self.form,
                files=self.files or None,
                json=self.body,
            )
        except UnicodeEncodeError as error:
            raise NotSent(f"{error.object[:200]!a} cannot be sent: it has no UTF-8") from None


def models() -> Call[list[Model]]:
    """Every model's card."""
    return Call("GET", "/v1/models", lambda r: _document(ModelList)(r).models, True)


def model(model_id: str) -> Call[Model]:
    """One model's card."""
    return Call("GET", f"/v1/models/{_segment(model_id)}", _document(Model), True)


def limits() -> Call[Limits]:
    """What the service takes, whatever the model."""
    return Call("GET", "/v1/limits", _document(Limits), True)


def classify(
    model: str,
    support: Support,
    queries: Image | Iterable[Image],
    *,
    attention: AttentionMode = "none",
    top_k: int | None = None,
    steps: int | None = None,
    inner_lr: float | None = None,
    orders: int | None = None,
) -> Call[Predictions]:
    """Classify images from a few labelled ones; nothing is stored."""
    files, fields = labelled(support, "support_images", "support_labels", "support_archive")
    files += _queries(queries)
    form = fields | _options(model, attention, top_k, steps, inner_lr, orders)
    return Call("POST", "/v1/predictions", _document(Predictions), True, form=form, files=files)


def ask(
    set_id: str,
    model: str,
    queries: Image | Iterable[Image],
    *,
    attention: AttentionMode = "none",
    top_k: int | None = None,
    steps: int | None = None,
    inner_lr: float | None = None,
    orders: int | None = None,
) -> Call[Predictions]:
    """Classify images from a support set's examples."""
    return Call(
        "POST",
        f"{_set(set_id)}/predictions",
        _document(Predictions),
        True,
        form=_options(model, attention, top_k, steps, inner_lr, orders),
        files=_queries(queries),
    )


def create_set(
    support: Support | None = None,
    *,
    name: str = "",
    metadata: Mapping[str, Any] | None = None,
    ttl: int | None = None,
    idempotency_key: str | None = None,
) -> Call[AddedExamples]:
    """Register a support set, empty (None) or with its images; `ttl` is seconds after the last
    use. The results say what became of each image."""
    files, fields = ([], {}) if support is None else _examples(support)
    form: dict[str, Any] = {**fields, "name": name}
    if metadata is not None:
        form["metadata"] = json.dumps(metadata)
    if ttl is not None:
        form["ttl"] = str(ttl)
    headers = _once(idempotency_key)
    parse = _document(AddedExamples)
    return Call("POST", "/v1/support-sets", parse, True, headers=headers, form=form, files=files)


def sets(limit: int = 100, cursor: str | None = None) -> Call[SupportSetPage]:
    """Your support sets, the newest first."""
    params = _page(limit, cursor)
    return Call("GET", "/v1/support-sets", _document(SupportSetPage), True, params=params)


def get_set(set_id: str) -> Call[SupportSet]:
    """One support set with its classes."""
    return Call("GET", _set(set_id), _document(SupportSet), True)


def update_set(
    set_id: str,
    *,
    name: str | Unset = UNSET,
    metadata: Mapping[str, Any] | Unset = UNSET,
    ttl: int | Unset | None = UNSET,
    labels: Mapping[str, str] | Unset = UNSET,
    if_revision: int | None = None,
) -> Call[SupportSet]:
    """Change what is given; `labels` renames classes, present label to new one. `if_revision`
    refuses (`Outdated`) if it has changed meanwhile."""
    changes = {"name": name, "metadata": metadata, "ttl": ttl, "labels": labels}
    body = {key: value for key, value in changes.items() if not isinstance(value, Unset)}
    headers = _if_match(if_revision)
    # Under If-Match a second try would be refused because of the first, and labels that were
    # exchanged would be exchanged back.
    again = if_revision is None and isinstance(labels, Unset)
    return Call("PATCH", _set(set_id), _document(SupportSet), again, headers=headers, body=body)


def delete_set(set_id: str, *, if_revision: int | None = None) -> Call[None]:
    """Delete a support set with all its examples."""
    return Call("DELETE", _set(set_id), _nothing, False, headers=_if_match(if_revision))


def add(
    set_id: str,
    support: Support,
    *,
    if_revision: int | None = None,
    idempotency_key: str | None = None,
) -> Call[AddedExamples]:
    """Add labelled images; the results say what became of each."""
    files, form = _examples(support)
    headers = _once(idempotency_key) | _if_match(if_revision)
    path, parse = f"{_set(set_id)}/examples", _document(AddedExamples)
    return Call("POST", path, parse, True, headers=headers, form=form, files=files)


def examples(set_id: str, limit: int = 100, cursor: str | None = None) -> Call[ExamplePage]:
    """The examples, in stored order."""
    path, params = f"{_set(set_id)}/examples", _page(limit, cursor)
    return Call("GET", path, _document(ExamplePage), True, params=params)


def image(set_id: str, example_id: str) -> Call[bytes]:
    """An example's image, byte for byte as it was sent."""
    path = f"{_set(set_id)}/examples/{_segment(example_id)}/image"
    return Call("GET", path, _bytes("image/"), True)


def delete_example(set_id: str, example_id: str, *, if_revision: int | None = None) -> Call[None]:
    """Delete one example."""
    path = f"{_set(set_id)}/examples/{_segment(example_id)}"
    return Call("DELETE", path, _nothing, False, headers=_if_match(if_revision))


def evaluate(set_id: str, models: str | Iterable[str] | None = None) -> Call[Evaluation]:
    """Judge one model or several (None: all) by leaving one example out at a time. It may take
    long: allow for that with the client's `timeout`, or name the models."""
    form = None
    if models is not None:
        form = {"models": [models] if isinstance(models, str) else list(models)}
        if not form["models"]:
            raise NotSent("there are no models to judge; None stands for all")
    return Call("POST", f"{_set(set_id)}/evaluations", _document(Evaluation), True, form=form)


def classifier(
    set_id: str, model: str, *, steps: int | None = None, inner_lr: float | None = None
) -> Call[bytes]:
    """The adapted classifier as one ONNX file; its metadata hold the labels."""
    chosen = {"model": model, "steps": steps, "inner_lr": inner_lr}
    params = {name: str(value) for name, value in chosen.items() if value is not None}
    path = f"{_set(set_id)}/classifier.onnx"
    return Call("GET", path, _bytes("application/octet-stream"), True, params=params)


def header(what: str, text: str) -> str:
    """`text` as a header's value, without the white space around it: a key that is read from a file
    often ends its line. Raises `NotSent`, which does not hold `text`, for it may be a secret."""
    text = text.strip()
    if not (text and text.isascii() and text.isprintable()):
        raise NotSent(f"{what} must be printable ASCII characters, at least one")
    return text


def _options(
    model: str,
    attention: AttentionMode,
    top_k: int | None,
    steps: int | None,
    inner_lr: float | None,
    orders: int | None,
) -> dict[str, Any]:
    fields = {"top_k": top_k, "steps": steps, "inner_lr": inner_lr, "orders": orders}
    chosen = {name: str(value) for name, value in fields.items() if value is not None}
    return {"model": model, "attention": attention} | chosen


def _examples(support: Support) -> tuple[list[Part], dict[str, list[str]]]:
    """For a support set: what is wrong with one of them is told of that one alone."""
    return labelled(support, "images", "labels", "archive", whole=False)


def _queries(images: Image | Iterable[Image]) -> list[Part]:
    if found := parts("query_images", images):
        return found
    raise NotSent("there are no images to ask about")


def _page(limit: int, cursor: str | None) -> dict[str, str]:
    return {"limit": str(limit)} | ({} if cursor is None else {"cursor": cursor})


def _once(key: str | None) -> dict[str, str]:
    text = uuid.uuid4().hex if key is None else header("idempotency_key", key)
    return {"Idempotency-Key": text}


def _if_match(revision: int | None) -> dict[str, str]:
    return {} if revision is None else {"If-Match": f'"{revision}"'}


def _set(set_id: str) -> str:
    return f"/v1/support-sets/{_segment(set_id)}"


def _segment(text: str) -> str:
    """An id within a path. Raises `NotSent` for what would lead elsewhere."""
    if text in ("", ".", ".."):
        raise NotSent(f"{text!r} is no id")
    return quote(text, safe="")


def _document(kind: type[D]) -> Callable[[httpx.Response], D]:
    def parse(response: httpx.Response) -> D:
        try:
            return kind.model_validate_json(response.content)
        except ValidationError as error:
            raise of_stranger(response) from error

    return parse


def _bytes(kind: str) -> Callable[[httpx.Response], bytes]:
    """`kind` is what the content type begins with."""

    def parse(response: httpx.Response) -> bytes:
        if not response.headers.get("content-type", "").lower().startswith(kind):
            raise of_stranger(response)
        return response.content

    return parse


def _nothing(response: httpx.Response) -> None:
    if response.status_code != httpx.codes.NO_CONTENT:
        raise of_stranger(response)
