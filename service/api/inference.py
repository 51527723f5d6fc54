"""The Open Inference Protocol, version 2, under /v2."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field
from starlette.requests import Request

from service.api import health
from service.api.auth import READ, Reader
from service.api.dependencies import ClassifierDep, StoreDep, TimeoutDep, problems, unless_gone
from service.engine.admission import in_time
from service.inference import codec
from service.inference.codec import InferenceResponse
from service.inference.served import Inference, Served, images_of
from service.problems import MalformedInference, UnknownModel

router = APIRouter(prefix="/v2", tags=["inference protocol"])
#: Unlike the server's health, models are for those who may read.
_models = APIRouter(prefix="/models", dependencies=[READ])

INFER = """\
Run a model on tensors: JSON, or JSON followed by binary tensors (the protocol's binary extension).
Names: `MODEL` takes whole tasks, `MODEL.encode`, `MODEL.adapt` and `MODEL.predict` are its graphs;
`GET /v2/models/{model_name}` tells the tensors of each. A black and a white square told apart:

    python3 - <<'END'
    import json, urllib.request as web
    address = "http://127.0.0.1:8000/v2/models/MODEL"
    image = json.load(web.urlopen(address))["inputs"][0]["shape"][2:]  # channels, height, width
    size = image[0] * image[1] * image[2]
    black, white = [0] * size, [255] * size
    task = [
        {"name": "support", "datatype": "UINT8", "shape": [1, 2, *image], "data": black + white},
        {"name": "labels", "datatype": "INT64", "shape": [1, 2], "data": [0, 1]},
        {"name": "query", "datatype": "UINT8", "shape": [1, 2, *image], "data": white + black},
    ]
    print(web.urlopen(address + "/infer", json.dumps({"inputs": task}).encode()).read().decode())
    END
"""

#: What Swagger UI fills in: it would make up names and values that no model takes.
_EXAMPLE = {
    "inputs": [
        {"name": "support", "datatype": "UINT8", "shape": [1, 2, 1, 28, 28], "data": []},
        {"name": "labels", "datatype": "INT64", "shape": [1, 2], "data": [0, 1]},
        {"name": "query", "datatype": "UINT8", "shape": [1, 1, 1, 28, 28], "data": []},
    ]
}


class ServerMetadata(BaseModel):
    """What speaks here, and which extensions it knows."""

    name: str = "fewshot"
    version: str
    extensions: list[str] = ["binary_tensor_data"]


class Liveness(BaseModel):
    live: bool = True


class Readiness(BaseModel):
    ready: bool = True


class ModelReadiness(BaseModel):
    name: str
    ready: bool = True


class TensorMetadata(BaseModel):
    """A tensor of a model; -1 is a size that may vary."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, bool] | None = Field(
        None, description="`optional`: the input may be left out."
    )


class ModelMetadata(BaseModel):
    """What a model takes and gives."""

    name: str
    versions: list[str]
    platform: Literal["onnx_onnxv1"] = "onnx_onnxv1"
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


async def _inference(request: Request) -> Inference:
    found: Inference = request.app.state.inference
    return found


InferenceDep = Annotated[Inference, Depends(_inference)]


@router.get("", summary="What speaks here")
async def server_metadata(request: Request) -> ServerMetadata:
    """The name of the service and the extensions of the protocol that it knows."""
    return ServerMetadata(version=request.app.version)


@router.get("/health/live", summary="Is the process working?", responses=problems(503))
async def server_live(classifier: ClassifierDep) -> Liveness:
    """As `GET /livez`."""
    await health.live(classifier)
    return Liveness()


@router.get("/health/ready", summary="May requests be sent?", responses=problems(503))
async def server_ready(request: Request, classifier: ClassifierDep, store: StoreDep) -> Readiness:
    """As `GET /readyz`."""
    await health.ready(request, classifier, store)
    return Readiness()


@_models.get(
    "/{model_name}",
    summary="A model's tensors",
    responses=problems(401, 403, 404, 429, 503),
    response_model_exclude_none=True,
)
@_models.get(
    "/{model_name}/versions/{version}",
    include_in_schema=False,
    response_model_exclude_none=True,
)
async def model_metadata(
    model_name: str, inference: InferenceDep, version: str | None = None
) -> ModelMetadata:
    """The tensors that a model takes and gives. A graph's entry is loaded for that."""
    served = await _find(inference, model_name, version)
    return ModelMetadata(
        name=served.name,
        versions=[served.card.version],
        inputs=[
            TensorMetadata(
                name=spec.name,
                datatype=spec.datatype,
                shape=spec.open_shape,
                parameters={"optional": True} if spec.optional else None,
            )
            for spec in served.inputs
        ],
        outputs=[
            TensorMetadata(name=spec.name, datatype=spec.datatype, shape=spec.open_shape)
            for spec in served.outputs
        ],
    )


@_models.get(
    "/{model_name}/ready",
    summary="May the model be asked?",
    responses=problems(401, 403, 404, 429, 503),
)
@_models.get("/{model_name}/versions/{version}/ready", include_in_schema=False)
async def model_ready(
    model_name: str,
    classifier: ClassifierDep,
    inference: InferenceDep,
    version: str | None = None,
) -> ModelReadiness:
    """Whether the model may be asked; it is loaded on its first use. 503 where that failed."""
    _check_version(inference, model_name, version)
    card, _ = inference.card(model_name)
    classifier.models.check(card.id)
    return ModelReadiness(name=model_name)


_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"$ref": "#/components/schemas/InferenceRequest"},
            "example": _EXAMPLE,
        },
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}


@_models.post(
    "/{model_name}/infer",
    summary="Run a model on tensors",
    description=INFER,
    response_model=InferenceResponse,
    responses=problems(400, 401, 403, 404, 408, 413, 422, 429, 503, 504),
    openapi_extra={"requestBody": _BODY},
)
@_models.post("/{model_name}/versions/{version}/infer", include_in_schema=False)
async def infer(
    request: Request,
    model_name: str,
    caller: Reader,
    classifier: ClassifierDep,
    inference: InferenceDep,
    timeout: TimeoutDep,
    version: str | None = None,
) -> Response:
    if request.headers.get("content-encoding", "identity") != "identity":
        raise MalformedInference("send the body without a content encoding")
    served = await _find(inference, model_name, version)
    most = classifier.settings.max_tensor_values
    parsing = classifier.off_loop(
        codec.parse, await request.body(), request.headers.get(codec.HEADER)
    )
    (parsed, raw), rest = await in_time(parsing, timeout)
    wanted = codec.check(parsed, raw, served.inputs, served.outputs, served.usual, most)
    images = images_of(served, wanted.sizes, classifier.settings.max_files)
    sizes = {"way": served.card.limits.max_way} | wanted.sizes
    codec.check_answer(served.outputs, wanted.outputs, sizes, most)

    async def answer() -> tuple[bytes, int | None]:
        slow = served.takes_steps
        permit = classifier.admission.admit(images, rest, slow, asked_s=timeout, key=caller.id)
        async with permit as deadline:
            arrays = await classifier.off_loop(wanted.arrays)
            names = set(wanted.outputs)
            found = await inference.run(served, sizes, arrays, names, images, deadline)
            version = served.card.version
            return await classifier.off_loop(codec.encode, served.name, version, wanted, found)

    body, length = await unless_gone(request, answer())
    if length is None:
        return Response(body, media_type="application/json")
    headers = {codec.HEADER: str(length)}
    return Response(body, media_type="application/octet-stream", headers=headers)


async def _find(inference: Inference, name: str, version: str | None) -> Served:
    _check_version(inference, name, version)
    return await inference.find(name)


def _check_version(inference: Inference, name: str, version: str | None) -> None:
    """Raises `UnknownModel`: one version of each model is served, its card's."""
    card, _ = inference.card(name)
    if version is not None and version != card.version:
        raise UnknownModel(f"{card.id} is served in version {card.version} only", known=[card.id])


router.include_router(_models)
