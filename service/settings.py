"""Settings of the HTTP process: `PCCT_…` environment variables, read here and in `worker.settings`, nowhere else."""

from __future__ import annotations

import os
from typing import Literal, TypeAlias

from limits import parse_many
from pydantic import Field, field_validator

from pcct_core.points import MAX_POINTS
from service.memory import usable_memory
from service.prefix import checked_prefix
from service.wire import Limits
from worker.settings import SharedSettings, WorkerSettings

AuthMode: TypeAlias = Literal["auto", "on", "off"]


class ServiceSettings(SharedSettings):
    """What the HTTP process needs besides the store and the queue."""

    auth: AuthMode = Field(
        default="auto",
        description="Whether callers need an API key: on, off, or auto, which is off on a loopback address or Unix socket "
        "and refuses to serve any other. Default: auto.",
    )
    rate_limit: str | None = Field(
        default=None,
        description="Most requests of one key, or of one address where no key is needed, such as "
        "100/second;5000/minute; counted by each API process. Default: any number.",
    )
    max_body_bytes: int = Field(
        default=1 << 30, ge=1, description="Largest array that may be uploaded, bytes of numbers. Default: 1 GiB."
    )
    max_points: int = Field(
        default=MAX_POINTS, ge=1, le=MAX_POINTS, description="Most rows of an uploaded array. Default: 2^31 - 2."
    )
    max_dimensions: int = Field(
        default=4096, ge=1, le=1 << 20, description="Most columns of an uploaded array. Default: 4096."
    )
    max_fortran_bytes: int = Field(
        default=64 << 20,
        ge=0,
        description="Largest upload in Fortran order or as an Arrow stream, which are held in memory whole, bytes. "
        "Default: 64 MiB.",
    )
    max_json_bytes: int = Field(
        default=4 << 20, ge=0, description="Largest array sent as JSON, bytes of text. Default: 4 MiB."
    )
    max_request_bytes: int = Field(
        default=1 << 20, ge=1024, description="Largest body of any other request, bytes. Default: 1 MiB."
    )
    max_k: int = Field(default=1024, ge=1, description="Most neighbors per row of a graph. Default: 1024.")
    max_build_bytes: int = Field(
        default_factory=lambda: usable_memory() * 3 // 8,
        ge=1,
        description="Largest estimate of the memory of a build that is begun, bytes; each worker builds two at once, one of "
        "them for a track. Default: three eighths of the memory that the API's machine or container has.",
    )
    max_jobs: int = Field(
        default=1000, ge=1, description="Most graphs of one namespace that wait or are built. Default: 1000."
    )
    max_tracks: int = Field(default=1000, ge=1, description="Most tracks of one namespace. Default: 1000.")
    max_oneshots: int = Field(
        default=32,
        ge=1,
        description="Most one-shot requests and queries of one namespace that one API process answers at once. Default: 32.",
    )
    max_waits: int = Field(
        default=1000,
        ge=1,
        description="Most requests of one namespace that wait or follow events at once in one API process. Default: 1000.",
    )
    upload_idle_s: float = Field(
        default=60.0, gt=0, description="Longest pause inside an upload before it is given up, seconds. Default: 60."
    )
    min_upload_rate: int = Field(
        default=1000,
        ge=0,
        description="Least rate of an upload, once it has lasted PCCT_UPLOAD_IDLE_S, bytes per second. Default: 1000.",
    )
    head_s: float = Field(
        default=15.0, gt=0, description="Longest time for the head of a request to come, seconds. Default: 15."
    )
    keep_alive_s: int = Field(
        default=5, ge=1, description="How long a connection is kept for its next request, seconds. Default: 5."
    )
    max_connections: int = Field(
        default=4000, ge=1, description="Most connections of one API process at once. Default: 4000."
    )
    max_wait_s: float = Field(
        default=30.0, ge=0, description="Longest wait that `Prefer: wait=` is granted, seconds. Default: 30."
    )
    oneshot_wait_s: float = Field(
        default=300.0,
        ge=0,
        description="How long a one-shot request waits for its graph before it answers 202, seconds. Default: 300.",
    )

    cors_origins: str = Field(
        default="",
        description="Origins whose pages may call this service from a browser, with commas between, or *. Default: none.",
    )

    root_path: str = Field(
        default="",
        description="Path below which a proxy serves this service, such as /pcct; the proxy may hand it on or take it off. "
        "Default: none.",
    )
    trust_forwarded_prefix: Literal["on", "off"] = Field(
        default="off",
        description="Whether X-Forwarded-Prefix is that path: on only where every request comes through a proxy that sets or "
        "removes this header. Default: off.",
    )

    @field_validator("root_path")
    @classmethod
    def _check_root_path(cls, text: str) -> str:
        return checked_prefix(text)

    @property
    def allowed_origins(self) -> list[str]:
        """Origins whose pages may call this service."""
        return [origin.strip().rstrip("/") for origin in self.cors_origins.split(",") if origin.strip()]

    @field_validator("rate_limit")
    @classmethod
    def _check_rate_limit(cls, text: str | None) -> str | None:
        if text is not None:
            try:
                parse_many(text)
            except ValueError:
                raise ValueError("use rates such as 100/second;5000/minute") from None
        return text

    @property
    def limits(self) -> Limits:
        """What an uploaded array may cost."""
        return Limits(
            max_body_bytes=self.max_body_bytes,
            max_points=self.max_points,
            max_dimensions=self.max_dimensions,
            max_fortran_bytes=self.max_fortran_bytes,
            max_json_bytes=self.max_json_bytes,
        )


def unknown_variables() -> list[str]:
    """Return the PCCT_ variables of the environment that no process of ours reads."""
    known = {f"PCCT_{name.upper()}" for name in (*ServiceSettings.model_fields, *WorkerSettings.model_fields)}
    return sorted(name for name in os.environ if name.upper().startswith("PCCT_") and name.upper() not in known)
