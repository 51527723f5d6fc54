"""The form fields that several routes take, each written once."""

from __future__ import annotations

from typing import Annotated

from fastapi import File, Form, UploadFile

from service.api.forms import Files
from service.schemas import AttentionMode
from service.tasks import MAX_ORDERS

# Said again of the query parameters of routes that take no form.
MODEL = "Id of a model, from `GET /v1/models`."
STEPS = "Gradient steps of the adaptation; only for models that have them."
INNER_LR = "Learning rate of these steps."

Model = Annotated[str, Form(description=MODEL)]
QueryImages = Annotated[Files, File(description="The images to classify.")]
Attention = Annotated[
    AttentionMode,
    Form(description="Also answer what the model looked at, as numbers or as pictures."),
]
TopK = Annotated[
    int | None, Form(ge=1, description="Only the `top_k` most probable classes of each query.")
]
Steps = Annotated[int | None, Form(ge=0, description=STEPS)]
Orders = Annotated[
    int | None,
    Form(
        ge=1,
        le=MAX_ORDERS,
        description="Show the examples in so many fixed orders and answer with the mean; only for "
        "models whose card says `order_dependent`. Each order counts as a task of its own.",
    ),
]
InnerLr = Annotated[float | None, Form(gt=0, description=INNER_LR)]
Archive = Annotated[
    UploadFile | None,
    File(description="Instead of images and labels: a zip with one folder per class."),
]
