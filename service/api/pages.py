"""The page and Swagger UI, from files of this package: no outside address is needed."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.requests import Request

WEB = Path(__file__).parent.parent / "web"
LINKS = {
    "docs": "/docs",
    "openapi": "/openapi.json",
    "models": "/v1/models",
    "predictions": "/v1/predictions",
    "support_sets": "/v1/support-sets",
    "limits": "/v1/limits",
    "live": "/livez",
    "ready": "/readyz",
}

router = APIRouter(include_in_schema=False)


@router.get("/")
async def page(request: Request) -> Response:
    """The page for people; links for programs that ask for JSON."""
    accept = request.headers.get("accept", "")
    vary = {"Vary": "Accept"}
    if "application/json" in accept and "text/html" not in accept:
        root = request.app.state.classifier.settings.root_path
        links = {name: root + path for name, path in LINKS.items()}
        return JSONResponse({"name": "fewshot", "links": links}, headers=vary)
    return FileResponse(WEB / "index.html", headers=vary)


@router.get("/docs")
async def docs() -> Response:
    return FileResponse(WEB / "docs.html")
