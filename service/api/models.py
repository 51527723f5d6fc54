"""GET /v1/models: the cards of the zoo."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from models_zoo.cards import Card
from service.api.auth import READ
from service.api.dependencies import ClassifierDep, problems
from service.api.forms import known_parameters

router = APIRouter(
    prefix="/v1/models",
    tags=["models"],
    dependencies=[READ, Depends(known_parameters)],
    responses=problems(401, 403, 422, 429, 503),
)


class ModelList(BaseModel):
    models: list[Card]


@router.get("", summary="Every model's card")
async def list_models(classifier: ClassifierDep) -> ModelList:
    """What each model is, what it takes, and how accurate it was measured to be."""
    return ModelList(models=list(classifier.models.cards.values()))


@router.get("/{model_id}", summary="One model's card", responses=problems(404))
async def get_model(model_id: str, classifier: ClassifierDep) -> Card:
    """An unknown id is answered 404 with the known ones."""
    return classifier.models.card(model_id)
