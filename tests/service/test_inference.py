"""The Open Inference Protocol: NVIDIA's client against a real server, and hostile requests."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from service.inference.served import Inference, Served
from tests.service.asking import Pixels, ask, assert_problem, encoded, noise
from tests.service.process import PATIENCE, serving


@pytest.fixture(scope="module")
def triton(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferenceServerClient]:
    with serving(zoo, tmp_path_factory.mktemp("oip")) as server:
        client = InferenceServerClient(
            f"127.0.0.1:{server.port}", connection_timeout=120, network_timeout=120
        )
        yield client
        client.close()


def pixels(seed: int, *lead: int, channels: int = 1) -> Pixels:
    return noise(seed, (*lead, channels, 16, 16))


def tensor(name: str, values: np.ndarray, binary: bool = True) -> InferInput:
    kinds = {"uint8": "UINT8", "int64": "INT64", "bool": "BOOL", "float32": "FP32"}
    made = InferInput(name, list(values.shape), kinds[values.dtype.name])
    made.set_data_from_numpy(values, binary_data=binary)
    return made


def test_the_client_finds_the_server_and_its_models(triton: InferenceServerClient) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert "binary_tensor_data" in triton.get_server_metadata()["extensions"]
    for name in ("mean", "mean.encode", "attentive.predict", "descent.adapt"):
        assert triton.is_model_ready(name)
    found = triton.get_model_metadata("mean.encode")
    assert found["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 1, 16, 16]}]
    version = found["versions"][0]
    assert triton.is_model_ready("mean", version)
    assert triton.get_model_metadata("mean", version)["inputs"][0]["shape"] == [-1, -1, 1, 16, 16]
    for wrong in (("mean", "9"), ("none", ""), ("descent.encode", "")):
        assert not triton.is_model_ready(*wrong)
    with pytest.raises(InferenceServerException, match="unknown model 'none'"):
        triton.get_model_metadata("none")


@pytest.mark.parametrize("binary", [True, False])
def test_a_whole_task_answers_as_the_rest_route_does(
    triton: InferenceServerClient, client: TestClient, binary: bool
) -> None:
    """Two tasks of different way and shot in one request, one of them padded by the mask."""
    support, query = pixels(1, 2, 6, channels=3), pixels(2, 2, 4, channels=3)
    labels = np.array([[0, 1, 2, 0, 1, 2], [1, 0, 1, 0, 9, 9]])
    mask = np.array([[True] * 6, [True] * 4 + [False] * 2])
    names = ("probabilities", "logits", "task_attention", "support_attention", "uncertainty")
    answer = triton.infer(
        "attentive",
        [
            tensor(*pair, binary)
            for pair in (("support", support), ("labels", labels), ("mask", mask), ("query", query))
        ],
        outputs=[InferRequestedOutput(name, binary_data=binary) for name in names],
        request_id="seven",
    )
    assert answer.get_response()["id"] == "seven"
    found = answer.as_numpy("probabilities")
    for row in range(2):
        own = mask[row]
        rest = ask(
            client,
            [
                (str(label), encoded(np.moveaxis(image, 0, -1)))
                for label, image in zip(labels[row][own], support[row][own], strict=True)
            ],
            [encoded(np.moveaxis(image, 0, -1)) for image in query[row]],
            model="attentive",
            attention="maps",
        ).json()
        for q, prediction in enumerate(rest["predictions"]):
            expected = {int(p["label"]): p["probability"] for p in prediction["probabilities"]}
            got = dict(enumerate(found[row, q, : len(expected)]))
            assert got == pytest.approx(expected, abs=1e-6)
            unsure = answer.as_numpy("uncertainty")[row, q]
            assert unsure == pytest.approx(prediction["uncertainty"], rel=1e-5)
            weights = [w["weight"] for w in prediction["attention"]["task"][1]]
            task = answer.as_numpy("task_attention")[row, 1, q]
            assert task[own] == pytest.approx(weights, abs=1e-4)
            assert (task[~own] == 0).all()
    assert (found[1, :, 2] == 0).all()
    assert found.shape == (2, 4, 3)
    assert answer.as_numpy("logits")[1, 0, 2] == np.float32(-1e9)
    assert answer.as_numpy("support_attention").shape == (2, 2, 4, 6, 4, 4)
    assert answer.as_numpy("query_attention") is None


def test_the_three_graphs_in_a_row_are_the_whole_task(triton: InferenceServerClient) -> None:
    support, query, labels = pixels(3, 1, 5), pixels(4, 1, 3), np.array([[0, 1, 0, 1, 1]])
    whole = triton.infer(
        "mean",
        [tensor("support", support), tensor("labels", labels), tensor("query", query)],
    ).as_numpy("logits")

    images = np.concatenate([support[0], query[0]]).astype(np.float32) / np.float32(255)
    features = triton.infer("mean.encode", [tensor("images", images)]).as_numpy("features")
    state = triton.infer(
        "mean.adapt",
        [
            tensor("support", features[None, :5]),
            tensor("labels", labels),
            tensor("mask", np.ones((1, 5), bool)),
            tensor("class_mask", np.ones((1, 2), bool)),
        ],
    )
    parts = [output["name"] for output in state.get_response()["outputs"]]
    logits = triton.infer(
        "mean.predict",
        [
            *(tensor(name, state.as_numpy(name)) for name in parts),
            tensor("query", features[None, 5:]),
        ],
    ).as_numpy("logits")
    assert np.array_equal(logits, whole)


def test_learning_rates_are_an_input_of_models_that_have_them(
    triton: InferenceServerClient,
) -> None:
    task = [
        tensor("support", pixels(1, 1, 2)),
        tensor("labels", np.array([[0, 1]])),
        tensor("query", pixels(2, 1, 1)),
    ]
    still = tensor("inner_lr", np.array([1e-30], np.float32))
    assert triton.infer("descent", [*task, still]).as_numpy("probabilities") == pytest.approx(0.5)
    with pytest.raises(InferenceServerException, match="no input 'inner_lr'"):
        triton.infer("mean", [*task, still])
    with pytest.raises(InferenceServerException, match="inner_lr is -1"):
        triton.infer("descent", [*task, tensor("inner_lr", np.array([-1], np.float32))])


def body(**changes: Any) -> dict[str, Any]:
    """A valid request to `mean`, with some inputs changed or, by None, left out."""
    inputs: dict[str, Any] = {
        "support": {"shape": [1, 2, 1, 16, 16], "datatype": "UINT8", "data": [7] * 512},
        "labels": {"shape": [1, 2], "datatype": "INT64", "data": [[0, 1]]},
        "query": {"shape": [1, 1, 1, 16, 16], "datatype": "UINT8", "data": [7] * 256},
    }
    for name, change in changes.items():
        inputs[name] = None if change is None else inputs.get(name, {}) | change
    return {"inputs": [{"name": n} | t for n, t in inputs.items() if t is not None]}


def test_the_request_of_these_tests_is_valid(client: TestClient) -> None:
    answer = client.post("/v2/models/mean/infer", json=body()).json()
    assert answer["outputs"][1] == {
        "name": "probabilities", "shape": [1, 1, 2], "datatype": "FP32", "data": [0.5, 0.5],
    }  # fmt: skip


BIG = {"shape": [1, 10**9, 1, 16, 16], "datatype": "UINT8"}
WRONG = {
    "no query": body(query=None),
    "another type": body(labels={"datatype": "INT32"}),
    "unknown type": body(labels={"datatype": "x" * 100_000}),
    "another rank": body(query={"shape": [1, 1, 16, 16]}),
    "another side": body(query={"shape": [1, 1, 1, 16, 32], "data": [7] * 512}),
    "unequal tasks": body(query={"shape": [2, 1, 1, 16, 16], "data": [7] * 512}),
    "unequal examples": body(labels={"shape": [1, 3], "data": [0, 1, 1]}),
    "negative size": body(labels={"shape": [1, -2]}),
    "no examples": body(support={"shape": [1, 0, 1, 16, 16], "data": []},
                        labels={"shape": [1, 0], "data": []}),
    "a billion": body(support=BIG, labels={"shape": [1, 10**9]}),
    "huge sizes": body(support={"shape": [2**62, 2**62, 1, 16, 16]}),
    "too few values": body(query={"data": [7] * 255}),
    "too deep": body(labels={"data": [[[[[[[[[[[[0, 1]]]]]]]]]]]]}),
    "uneven": body(labels={"data": [0, [1]]}),
    "text": body(labels={"data": ["0", "1"]}),
    "objects": body(labels={"data": [{}, None]}),
    "fractions": body(labels={"data": [0.5, 1]}),
    "truth as number": body(labels={"data": [False, True]}),
    "too large for a byte": body(query={"data": [256] * 256}),
    "too large for 64 bits": body(labels={"data": [0, 2**64]}),
    "a class left out": body(labels={"data": [0, 2]}),
    "negative label": body(labels={"data": [-1, 0]}),
    "one class": body(labels={"data": [0, 0]}),
    "masked to nothing": body(mask={"shape": [1, 2], "datatype": "BOOL", "data": [False, False]}),
    "unknown input": body(extra={"shape": [1], "datatype": "BOOL", "data": [True]}),
    "unknown output": body() | {"outputs": [{"name": "nope\n"}]},
    "given twice": {"inputs": body()["inputs"] + body()["inputs"][:1]},
    "bytes that are not there": body(labels={"data": None, "parameters": {"binary_data_size": 16}}),
    "both data and bytes": body(labels={"parameters": {"binary_data_size": 16}}),
    "bytes of another size": body(labels={"data": None, "parameters": {"binary_data_size": 3}}),
    "classification": body() | {"outputs": [
        {"name": "logits", "parameters": {"classification": 3}}]},
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_is_a_problem_that_v2_clients_can_read(
    client: TestClient, name: str
) -> None:
    answer = client.post("/v2/models/mean/infer", json=WRONG[name])
    assert answer.status_code in (400, 422), answer.text
    document = assert_problem(answer, answer.status_code, answer.json()["type"].split(":")[-1])
    assert document["error"] == document["detail"]
    assert len(answer.content) < 2000
    assert client.post("/v2/models/mean/infer", json=body()).status_code == 200


@pytest.mark.parametrize(
    ("data", "headers"),
    [
        (b"", {}),
        (b"{", {}),
        (b"[1]", {}),
        (b'{"inputs": [NaN]}', {}),
        (b'{"inputs": ' + b"[" * 100_000, {}),
        (b"\xff" * 10, {}),
        (json.dumps(body()).encode(), {"Inference-Header-Content-Length": "99999999"}),
        (json.dumps(body()).encode(), {"Inference-Header-Content-Length": "-1"}),
        (json.dumps(body()).encode(), {"Inference-Header-Content-Length": "9" * 5000}),
        (json.dumps(body()).encode() + b"more", {"Inference-Header-Content-Length": "1234"}),
        (json.dumps(body()).encode(), {"Content-Encoding": "gzip"}),
    ],
)
def test_a_body_that_is_none_is_400(
    client: TestClient, data: bytes, headers: dict[str, str]
) -> None:
    answer = client.post("/v2/models/mean/infer", content=data, headers=headers)
    assert_problem(answer, 400, "malformed-inference")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"shape": [[]] * 100_000}, "labels.shape: List should have at most 8 items"),
        ({"data": [[]] * 200_000}, "the JSON part holds more than 131072 lists"),
        ({"data": [{}] * 200_000}, "the JSON part holds more than 131072 lists"),
    ],
    ids=["shape", "lists", "objects"],
)
def test_what_takes_long_to_read_is_refused_unread(
    client: TestClient, change: dict[str, Any], reason: str
) -> None:
    """Reading JSON holds up everybody: a fault of each of many items, or an object for each."""
    request = body(labels=change)
    names = [tensor["name"] for tensor in request["inputs"]]
    answer = client.post("/v2/models/mean/infer", json=request)
    detail = assert_problem(answer, 400, "malformed-inference")["detail"]
    assert reason.replace("labels", f"inputs.{names.index('labels')}") in detail


def graph(part: str, **inputs: tuple[str, list[int], list[object]]) -> tuple[str, dict[str, Any]]:
    return f"/v2/models/mean.{part}/infer", {
        "inputs": [
            {"name": n, "datatype": t, "shape": s, "data": d} for n, (t, s, d) in inputs.items()
        ]
    }


@pytest.mark.parametrize(
    ("path", "request_"),
    [
        graph("encode", images=("FP32", [100_000, 1, 16, 16], [])),
        graph("encode", images=("FP32", [0, 1, 16, 16], [])),
        graph(
            "adapt",
            support=("FP32", [1, 2, 16], [0.5] * 32),
            labels=("INT64", [1, 2], [0, 7]),  # beyond class_mask
            mask=("BOOL", [1, 2], [True, True]),
            class_mask=("BOOL", [1, 2], [True, True]),
        ),
        graph(  # ONNX Runtime would broadcast the mask of one task over two
            "adapt",
            support=("FP32", [2, 2, 16], [0.5] * 64),
            labels=("INT64", [2, 2], [0, 1, 0, 1]),
            mask=("BOOL", [1, 2], [True, True]),
            class_mask=("BOOL", [2, 2], [True] * 4),
        ),
        graph(
            "adapt",
            support=("FP32", [1, 2, 16], [0.5] * 32),
            labels=("INT64", [1, 2], [0, 1]),
            mask=("BOOL", [1, 2], [True, True]),
            class_mask=("BOOL", [1, 5000], [True] * 5000),
        ),
    ],
    ids=["too many images", "no images", "label", "broadcast", "too many classes"],
)
def test_graphs_are_as_guarded_as_whole_tasks(
    client: TestClient, path: str, request_: dict[str, Any]
) -> None:
    answer = client.post(path, json=request_)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def steps(tasks: int) -> tuple[str, dict[str, Any]]:
    """So many tasks, all different, for `descent.adapt`."""
    count = tasks * 2 * 256
    path, body = graph(
        "adapt",
        support=("FP32", [tasks, 2, 1, 16, 16], [i / count for i in range(count)]),
        labels=("INT64", [tasks, 2], [0, 1] * tasks),
        mask=("BOOL", [tasks, 2], [True, True] * tasks),
        class_mask=("BOOL", [tasks, 2], [True, True] * tasks),
        inner_lr=("FP32", [2], [0.1, 0.2]),
    )
    return path.replace("mean", "descent"), body


def test_gradient_steps_are_taken_task_by_task_with_the_same_answer(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is under way when its client gives up keeps its permit; what follows is not begun."""
    path, body = steps(3)
    wanted = {output["name"]: output for output in client.post(path, json=body).json()["outputs"]}
    session = client.portal.call(client.app.state.classifier.models.runtime, "descent").graph(
        "adapt"
    )
    given = {each["name"]: each for each in body["inputs"]}
    kinds = {"FP32": np.float32, "INT64": np.int64, "BOOL": np.bool_}
    feed = {
        name: np.array(each["data"], kinds[each["datatype"]]).reshape(each["shape"])
        for name, each in given.items()
    }
    for name, value in session.run(feed, session.outputs).items():
        assert wanted[name]["shape"] == list(value.shape)
        assert np.array_equal(np.array(wanted[name]["data"], value.dtype), value.ravel())

    runs: list[str] = []
    go_on = threading.Event()
    run = Inference._run_graph

    def held(self: Inference, served: Served, *rest: Any) -> Any:
        runs.append(served.name)
        assert go_on.wait(PATIENCE)
        return run(self, served, *rest)

    monkeypatch.setattr(Inference, "_run_graph", held)
    admission = client.app.state.classifier.admission
    try:
        late = client.post(path, json=body, headers={"X-Request-Timeout": "3"})
        assert_problem(late, 504, "deadline-exceeded")
        assert admission.held == admission._gradient == 6
    finally:
        go_on.set()
    assert runs == ["descent.adapt"]
    assert client.post(path, json=body).status_code == 200
    assert runs == ["descent.adapt"] * 4
    assert admission.held == admission._gradient == 0


def test_gradient_steps_do_not_hold_up_the_other_graphs(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapting, go_on = threading.Event(), threading.Event()
    run = Inference._run_graph

    def held(self: Inference, served: Served, *rest: Any) -> Any:
        if served.name == "descent.adapt":
            adapting.set()
            assert go_on.wait(PATIENCE)
        return run(self, served, *rest)

    monkeypatch.setattr(Inference, "_run_graph", held)
    path_of_steps, body = steps(1)
    found: list[int] = []
    slow = threading.Thread(
        target=lambda: found.append(client.post(path_of_steps, json=body).status_code)
    )
    slow.start()
    try:
        assert adapting.wait(PATIENCE)
        path, quick = graph("encode", images=("FP32", [1, 1, 16, 16], [0.5] * 256))
        assert client.post(path, json=quick).status_code == 200
        assert slow.is_alive()
    finally:
        go_on.set()
        slow.join()
    assert found == [200]
