"""Calls from web pages of other origins: refused by browsers unless `PCCT_CORS_ORIGINS` names the origin."""

from __future__ import annotations

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from service.request_ids import HEADER

# What a page may read of an answer besides its body and type.
_EXPOSED = (
    *("Array-Dtype", "Array-Shape", "Content-Length", "Content-Location", "ETag", "Location"),
    *("Preference-Applied", "Retry-After", HEADER),
)
_PREFLIGHT_S = 600


def allow_origins(app: ASGIApp, origins: list[str]) -> ASGIApp:
    """Return the application as pages of these origins may call it; ["*"] for any, without cookies in either case."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "HEAD", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=_EXPOSED,
        max_age=_PREFLIGHT_S,
    )
