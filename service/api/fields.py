"""The form fields that several routes take, each written once."""

from __future__ import annotations

from typing import Annotated

from fastapi import File, Form, UploadFile

from service.api.forms import Files
from service.schemas import AttentionMode

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
InnerLr = Annotated[float | None, Form(gt=0, description=INNER_LR)]
Archive = Annotated[
    UploadFile | None,
    File(description="Instead of images and labels: a zip with one folder per class."),
]
