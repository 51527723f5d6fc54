"""The graph network against the paper's sums, node by node, one graph for every query."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models_zoo.metric.gnn import GraphLayer, GraphNetwork
from tests.models_zoo.making import MIXED, make, support_of

DIM, SLOTS = 8, 5


def edges(layer: GraphLayer, nodes: list[Tensor], i: int) -> list[Tensor]:
    """Row i of the adjacency without the node itself: softmax of MLP(|x_i - x_j|)."""
    scores = [layer.edge((nodes[i] - x).abs())[0] for j, x in enumerate(nodes) if j != i]
    weights = list(torch.stack(scores).softmax(0))
    weights.insert(i, torch.zeros((), dtype=torch.float64))
    return weights


def naive(
    learner: GraphNetwork, x: list[Tensor], labels: list[int], query: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Scores of all slots, and each layer's edges from the query to the examples."""
    one_hot = torch.eye(SLOTS, dtype=torch.float64)
    nodes = [torch.cat([features, one_hot[y]]) for features, y in zip(x, labels, strict=True)]
    present = torch.tensor([float(k in labels) for k in range(SLOTS)]).double()
    nodes.append(torch.cat([query, present / len(set(labels))]))
    to_query = []
    for layer in learner.layers:
        assert isinstance(layer, GraphLayer)
        new = []
        for i in range(len(nodes)):
            row = edges(layer, nodes, i)
            read = sum(w * node for w, node in zip(row, nodes, strict=True))
            new.append(layer.node(torch.cat([read, nodes[i]])))
        to_query.append(torch.stack(edges(layer, nodes, len(nodes) - 1)[:-1]))
        if layer.norm is None:
            return new[-1], to_query
        kept = zip(nodes, new, strict=True)
        nodes = [torch.cat([old, F.leaky_relu(layer.norm(x), 0.1)]) for old, x in kept]
    raise AssertionError("no last layer")


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_scores_are_those_of_the_query_s_node(layers: int) -> None:
    torch.manual_seed(layers)
    learner = GraphNetwork(2, 16, "conv4-8", max_way=SLOTS, layers=layers, width=6, edges=(7, 4))
    learner = learner.double().eval()
    support = support_of(MIXED, DIM, way=SLOTS)
    query = torch.randn(len(MIXED), 3, DIM, dtype=torch.float64)
    found = learner.predict(learner.adapt(support), query)
    assert found.task_attention is not None
    for task in range(len(MIXED)):
        kept, present = support.mask[task], support.class_mask[task]
        x, labels = list(support.x[task, kept]), support.labels[task, kept].tolist()
        for number in range(3):
            scores, rows = naive(learner, x, labels, query[task, number])
            assert torch.allclose(found.logits[task, number, present], scores[present])
            weights = found.task_attention[task, :, number]
            assert torch.allclose(weights[:, kept], torch.stack(rows))
            assert (weights[:, ~kept] == 0).all()


@torch.no_grad()
def test_a_single_example_is_a_graph_too() -> None:
    learner = make("gnn")
    found = learner.predict(
        learner.adapt(support_of([(0,)], DIM)), torch.randn(1, 2, DIM, dtype=torch.float64)
    )
    assert (found.probabilities == 1).all()


def test_every_query_has_a_graph_of_its_own() -> None:
    learner = make("gnn")
    support = support_of(MIXED, DIM, way=SLOTS)
    query = torch.randn(len(MIXED), 3, DIM, dtype=torch.float64, requires_grad=True)
    learner.predict(learner.adapt(support), query).probabilities[:, 0].square().sum().backward()
    assert query.grad is not None
    assert (query.grad[:, 0] != 0).any()
    assert (query.grad[:, 1:] == 0).all()
