"""What holds for every learner of the zoo: masks, batches, independence of the queries."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models_zoo import registry
from models_zoo.episode import Prediction, Support, TaskState
from models_zoo.learner import Learner
from tests.models_zoo.making import CONFIGS, MIXED, alone, images, make, support_of

every_learner = pytest.mark.parametrize("name", CONFIGS)


def ask(learner: Learner, support: Support, query: Tensor) -> Prediction:
    """Encode, adapt, predict in float64."""
    with torch.no_grad():
        state = learner.adapt(support.with_x(learner.encode_batch(support.x)))
        return learner.predict(state, learner.encode_batch(query))


def mixed() -> Support:
    return support_of(MIXED, 2, 16, 16, way=5)


def test_every_learner_of_the_registry_is_tested_here() -> None:
    assert {learner for learner, _ in CONFIGS.values()} == set(registry.names())


@every_learner
def test_a_batch_of_tasks_answers_as_each_task_alone_without_padding(name: str) -> None:
    learner, support, query = make(name), mixed(), images(5, 4)
    together = ask(learner, support, query)
    for task in range(5):
        single = ask(learner, alone(support, task), query[task : task + 1])
        assert torch.allclose(together.logits[task], single.logits[0], atol=1e-8)
        kept = support.mask[task]
        if together.task_attention is not None and single.task_attention is not None:
            weights = together.task_attention[task]
            assert torch.allclose(weights[..., kept], single.task_attention[0], atol=1e-8)
            assert (weights[..., ~kept] == 0).all()
        if together.uncertainty is not None and single.uncertainty is not None:
            assert torch.allclose(together.uncertainty[task], single.uncertainty[0], atol=1e-8)
        if together.query_attention is not None and single.query_attention is not None:
            assert torch.allclose(
                together.query_attention[task], single.query_attention[0], atol=1e-8
            )


@pytest.mark.parametrize("name", CONFIGS)
def test_a_query_gets_the_same_answer_whatever_else_is_asked_unless_transductive(name: str) -> None:
    learner, support, query = make(name), mixed(), images(5, 6)
    together = ask(learner, support, query).logits
    for number in range(6):
        single = ask(learner, support, query[:, number : number + 1]).logits
        same = torch.allclose(together[:, number], single[:, 0], atol=1e-8)
        assert same is not learner.transductive
    other = torch.cat([query[:, :1], 30 * images(5, 3, seed=9)], dim=1)
    found = ask(learner, support, other).logits[:, 0]
    assert torch.allclose(found, together[:, 0], atol=1e-8) is not learner.transductive


@every_learner
def test_the_order_of_the_queries_does_not_matter(name: str) -> None:
    learner, support, query = make(name), mixed(), images(5, 4)
    order = torch.tensor([2, 0, 3, 1])
    a, b = ask(learner, support, query).logits, ask(learner, support, query[:, order]).logits
    assert torch.allclose(a[:, order], b, atol=1e-8)


@every_learner
def test_probabilities_are_over_the_classes_present(name: str) -> None:
    support = mixed()
    found = ask(make(name), support, images(5, 4))
    assert found.logits.isfinite().all()
    assert torch.allclose(found.probabilities.sum(-1), torch.ones(5, 4, dtype=torch.float64))
    assert (found.probabilities.transpose(1, 2)[~support.class_mask] == 0).all()
    assert (found.probabilities.transpose(1, 2)[support.class_mask] > 0).all()


@every_learner
def test_slots_beyond_the_classes_change_nothing(name: str) -> None:
    """Two tasks of 2 and 5 classes may share a batch: the narrow one is not the worse for it."""
    learner, query = make(name), images(1, 3)
    narrow = support_of([(0, 1, 1)], 2, 16, 16, way=2)
    wide = Support.of(narrow.x, narrow.labels, way=5)
    a, b = ask(learner, narrow, query).logits, ask(learner, wide, query).logits
    assert torch.allclose(a, b[..., :2], atol=1e-9)


@every_learner
def test_the_order_of_the_support_set_matters_where_the_learner_says_so(name: str) -> None:
    learner, support, query = make(name), mixed(), images(5, 3)
    order = torch.tensor([4, 6, 1, 0, 5, 3, 2])
    other = Support.of(support.x[:, order], support.labels[:, order], support.mask[:, order], 5)
    a, b = ask(learner, support, query), ask(learner, other, query)
    assert torch.allclose(a.logits, b.logits, atol=1e-8) != learner.order_dependent


@every_learner
def test_predictions_carry_the_attention_they_promise(name: str) -> None:
    learner = make(name)
    found = ask(learner, mixed(), images(5, 4))
    layers = learner.attention_layers
    maps = (found.task_attention, found.query_attention, found.support_attention)
    assert any(weights is not None for weights in maps) == (layers > 0)
    for weights, places in zip(maps, ((-1,), (-2, -1), (-2, -1)), strict=True):
        if weights is not None:
            assert weights.shape[:3] == (5, layers, 4)
            sums = weights.sum(places)
            assert torch.allclose(sums, torch.ones_like(sums))
    if found.task_attention is not None:
        assert found.task_attention.shape[3:] == (7,)


@every_learner
def test_forward_is_encode_adapt_predict(name: str) -> None:
    learner, support, query = make(name), mixed(), images(5, 4)
    expected = ask(learner, support, query)
    single = learner.float()
    found = single(support.with_x(support.x.float()), query.float())
    assert torch.allclose(found.probabilities.double(), expected.probabilities, atol=1e-3)


@pytest.mark.parametrize("name", [n for n in CONFIGS if make(n).encodes])
def test_low_precision_is_for_the_encoder_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, support = make(name).float(), mixed()
    seen: dict[str, list[torch.dtype]] = {"encode": [], "predict": []}
    encode, predict = learner.encode, learner.predict

    def spy_encode(x: Tensor) -> Tensor:
        seen["encode"].append(encode(x).dtype)
        return encode(x)

    def spy_predict(state: TaskState, query: Tensor) -> Prediction:
        product = query.flatten(2) @ query.flatten(2).transpose(1, 2)
        seen["predict"] += [query.dtype, product.dtype]
        return predict(state, query)

    monkeypatch.setattr(learner, "encode", spy_encode)
    monkeypatch.setattr(learner, "predict", spy_predict)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = learner(support.with_x(support.x.float()), images(5, 4).float()).logits
    assert set(seen["encode"]) == {torch.bfloat16}
    assert set(seen["predict"]) == {torch.float32}
    assert logits.dtype == torch.float32


@every_learner
def test_evaluation_leaves_the_weights_and_statistics_alone(name: str) -> None:
    learner = make(name)
    before = {key: value.clone() for key, value in learner.state_dict().items()}
    ask(learner, mixed(), images(5, 4))
    assert all(torch.equal(before[key], value) for key, value in learner.state_dict().items())


@pytest.mark.parametrize("name", [n for n in CONFIGS if make(n).max_way])
def test_more_classes_than_outputs_are_refused_by_number(name: str) -> None:
    support = support_of([range(6)], 2, 16, 16)
    with pytest.raises(ValueError, match="6 classes, at most 5"):
        ask(make(name), support, images(1, 1))
