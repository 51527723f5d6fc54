"""/v1/support-sets/{id}/evaluations: which model to use, and which class needs more examples."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request

from service.api.auth import Reader
from service.api.dependencies import ClassifierDep, StoreDep, TimeoutDep, problems, unless_gone
from service.api.evaluation_documents import Evaluation
from service.api.forms import form_or_nothing, known_fields
from service.api.set_use import use_set
from service.evaluation import evaluate
from service.problems import NoSupport
from service.stored import StoredSupport

router = APIRouter(prefix="/v1/support-sets", tags=["support sets"])

EVALUATE = """\
Leave one out: each example is asked about by the others, with every model that takes the set. So
you see which model to use and which class needs more examples; `advice` says it in words.

    SET=$(curl -s http://127.0.0.1:8000/v1/support-sets -F archive=@samples/support.zip \\
      | sed 's/.*"id":"\\(set_[0-9a-f]*\\)".*/\\1/')
    curl -X POST http://127.0.0.1:8000/v1/support-sets/$SET/evaluations

Or name the models: `-F models=MODEL`, once for each. The single example of a class cannot be left
out: such classes are in `skipped`. A model that does not take the set, or is not done in time, has
a `problem` in place of numbers; those that adapt by gradient steps come last and are the slow ones.
Allow more time with the header `X-Request-Timeout`. Nothing is kept of an evaluation.
"""


@router.post(
    "/{set_id}/evaluations",
    summary="Find the model for the set, and the class that needs more examples",
    description=EVALUATE,
    dependencies=[Depends(form_or_nothing), Depends(known_fields)],
    responses=problems(400, 401, 403, 404, 408, 409, 410, 413, 415, 422, 429, 503, 504),
)
async def evaluate_support_set(
    set_id: str,
    request: Request,
    caller: Reader,
    classifier: ClassifierDep,
    store: StoreDep,
    timeout: TimeoutDep,
    models: Annotated[
        list[str],
        Form(
            default_factory=list,
            description="Ids of the models to judge, from `GET /v1/models`; default: all.",
        ),
    ],
) -> Evaluation:
    wanted = [model for model in dict.fromkeys(models) if model] or list(classifier.models.cards)
    for model in wanted:
        classifier.models.card(model)

    async def judge(stored: StoredSupport, deadline: float) -> Evaluation:
        if not stored.labels:
            raise NoSupport("the support set has no examples")
        found = await evaluate(classifier, stored, wanted, deadline)
        return await classifier.off_loop(Evaluation.of, stored, found)

    def images(stored: StoredSupport) -> int:
        return max(1, len(stored.labels))  # the models are judged one after another

    work = use_set(classifier, store, caller, set_id, timeout, wanted, images, judge)
    return await unless_gone(request, work)
