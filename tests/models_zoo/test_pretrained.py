"""Torchvision's networks as encoders: the vectors, the places and the pixels are torchvision's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.models import get_model_weights

from models_zoo import registry
from models_zoo.backbones.pretrained import find, input_spec
from models_zoo.metric.prototypical import PrototypicalNetwork
from models_zoo.patches import PatchAttention
from models_zoo.preprocess import to_pixels
from tests.models_zoo.making import support_of
from tests.models_zoo.networks import KINDS, MEAN, STD, made


def normalised(images: Tensor) -> Tensor:
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def seen_by_the_classifier(model: nn.Module, images: Tensor) -> Tensor:
    """What the last linear layer gets of normalised images."""
    seen: list[Tensor] = []
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with last.register_forward_pre_hook(lambda _, given: seen.append(given[0])), torch.no_grad():
        model(normalised(images))
    return seen[0]


def scaled(vectors: Tensor) -> Tensor:
    return 10**0.5 * vectors / vectors.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("kind", ["resnet", "convnext", "vit", "swin"])
def test_an_image_s_vector_is_what_its_classifier_would_see(kind: str) -> None:
    model, encoder, images = made(kind)
    found = encoder(images)
    expected = seen_by_the_classifier(model, images)
    assert encoder.dim == expected.shape[1]
    assert torch.allclose(found[:, 0], scaled(expected), atol=1e-5)


def test_a_classifier_that_is_a_convolution_is_no_part_of_the_encoder() -> None:
    model, encoder, images = made("squeezenet")
    assert encoder.dim == 512
    features = model.features(normalised(images))  # type: ignore[operator, union-attr]
    assert torch.allclose(encoder(images)[:, 0], scaled(features.mean((2, 3))), atol=1e-5)
    assert not any("classifier" in name for name in encoder.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_a_vector_for_each_place(kind: str) -> None:
    _, encoder, images = made(kind)
    height, width = KINDS[kind][2]
    assert encoder.grid == (height, width)
    found = encoder(images)
    assert found.shape == (3, 1 + height * width, encoder.dim)
    assert torch.allclose(found.norm(dim=-1), torch.tensor(10**0.5))


def test_places_are_those_of_the_map_row_by_row() -> None:
    model, encoder, images = made("resnet")
    with torch.no_grad():
        x = model.maxpool(model.relu(model.bn1(model.conv1(normalised(images)))))
        maps = model.layer4(model.layer3(model.layer2(model.layer1(x))))
    for place, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        expected = scaled(maps[:, :, row, column])
        assert torch.allclose(encoder(images)[:, 1 + place], expected, atol=1e-5)


def test_a_network_that_flattens_its_map_gives_the_map_s_mean() -> None:
    """As VGG's and AlexNet's, whose classifiers see all places one after another."""
    model, encoder, images = made("flat")
    with torch.no_grad():
        maps = model[:2](normalised(images))
    assert torch.allclose(encoder(images)[:, 0], scaled(maps.mean((2, 3))), atol=1e-5)


def test_nothing_in_it_trains() -> None:
    _, encoder, images = made("resnet")
    before = encoder(images)
    encoder.train()
    assert torch.equal(encoder(images), before)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


SIZES = [(500, 333), (333, 500), (224, 224), (640, 480), (97, 300), (256, 256), (1000, 201)]


@pytest.mark.parametrize("name", ["resnet50", "swin_v2_t", "inception_v3", "vit_b_16"])
@pytest.mark.parametrize("size", SIZES)
def test_the_pixels_are_those_of_torchvision_s_own_preprocessing(
    name: str, size: tuple[int, int]
) -> None:
    """Scaled, cut and, by the encoder, normalised."""
    weights = get_model_weights(name).DEFAULT
    preset = weights.transforms()
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    pixels = torch.from_numpy(to_pixels(image, input_spec(weights))).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preset.mean, preset.std))
    assert torch.allclose((pixels - mean) / std, preset(image), atol=1e-6)


def test_a_very_long_image_costs_no_more_than_its_middle() -> None:
    spec = input_spec(get_model_weights("resnet50").DEFAULT)
    long = np.zeros((3, 30_000, 3), np.uint8)
    long[:, 14_000:16_000] = 200  # scaled whole, it would be 2.3 million pixels wide
    pixels = to_pixels(Image.fromarray(long), spec)
    assert pixels.shape == (3, 224, 224)
    assert (pixels == 200).all()


def test_names() -> None:
    assert find("torchvision/resnet50")[1].name == "IMAGENET1K_V2"
    assert find("torchvision/resnet50/IMAGENET1K_V1")[1].name == "IMAGENET1K_V1"
    for wrong, hint in {
        "resnet50": "did you mean torchvision/resnet50",
        "torchvision/resnet5": "did you mean torchvision/resnet",
        "torchvision/quantized": "torchvision/",
        "torchvision/resnet50/V9": "known: IMAGENET1K_V1, IMAGENET1K_V2",
    }.items():
        with pytest.raises(ValueError, match=hint):
            find(wrong)


def test_a_head_that_needs_feature_maps_is_refused() -> None:
    with pytest.raises(ValueError, match="STANet cannot stand on a pretrained encoder"):
        registry.build("stanet", {"backbone": "torchvision/shufflenet_v2_x0_5", "image_size": 224})


def test_the_map_shows_where_the_query_is_like_its_class() -> None:
    _, encoder, _ = made("vit")
    learner = PatchAttention(PrototypicalNetwork(backbone="conv4-8"), encoder)
    support = support_of([(0, 1, 2, 1), (1, 0, None, None)], 17, 16, way=3)
    query = torch.randn(2, 3, 17, 16, dtype=torch.float64)
    found = learner.predict(learner.adapt(support), query)
    vectors = support.with_x(support.x[:, :, 0])
    head = learner.head.predict(learner.head.adapt(vectors), query[:, :, 0])
    assert torch.equal(found.logits, head.logits)
    assert found.query_attention is not None and found.query_attention.shape == (2, 1, 3, 4, 4)
    for task in range(2):
        for number in range(3):
            winner = int(found.logits[task, number].argmax())
            mine = support.mask[task] & (support.labels[task] == winner)
            mean = vectors.x[task, mine].mean(0)
            likeness = [F.cosine_similarity(q, mean, dim=0) for q in query[task, number, 1:]]
            expected = (torch.stack(likeness) / 0.1).softmax(0).view(4, 4)
            assert torch.allclose(found.query_attention[task, 0, number], expected)
