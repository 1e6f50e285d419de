"""Settings of the store, the queue and the worker: `PCCT_…` environment variables, read here and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from worker.store_url import VARIABLE, check_store_answers, check_store_url, without_password

ENTRY_BYTES = 4 + 8  # of a graph: an int32 neighbor and a distance, counted as float64
_FIRST_LOOK_S = 1.0  # a person waits for the first line of a process that starts
LOCAL_REDIS_URL = "redis://127.0.0.1:6379/0"


def default_data_dir() -> Path:
    """Return `$XDG_DATA_HOME/pcct`, or `~/.local/share/pcct` where that is not set."""
    base = os.environ.get("XDG_DATA_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".local" / "share") / "pcct"


def numba_cache_dir() -> Path | None:
    """Return the directory that Numba is told to keep compiled kernels in, None when it chooses."""
    path = os.environ.get("NUMBA_CACHE_DIR")
    return Path(path) if path else None


def numba_jit_disabled() -> bool:
    """Return whether Numba is told to run kernels as Python."""
    return os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")


def traces_exporter() -> str | None:
    """Return where OpenTelemetry's variables want traces to go, such as "otlp" or "console"; None for nowhere."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    named = os.environ.get("OTEL_TRACES_EXPORTER", "")
    if named:
        return None if named == "none" else named
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return "otlp" if any(os.environ.get(name) for name in endpoints) else None


def faults_of(error: ValidationError) -> list[str]:
    """Return one line for each variable that cannot be read: its name, its value without a password, and what to change."""
    lines = []
    for fault in error.errors():
        name, value = f"PCCT_{'_'.join(map(str, fault['loc'])).upper()}", fault["input"]
        shown = without_password(value) if name == VARIABLE and isinstance(value, str) else value
        lines.append(f"{name}={shown!r}: {fault['msg'].removeprefix('Value error, ')}")
    return lines


class SharedSettings(BaseSettings):
    """What the API and the worker both need to meet at the same store and queue."""

    model_config = SettingsConfigDict(env_prefix="PCCT_", extra="ignore", env_ignore_empty=True, frozen=True)

    redis_url: str | None = Field(
        default=None,
        description="Redis >= 6.2 or Valkey, as redis://, rediss:// or unix://. Unset: `pcct up` starts an embedded "
        f"Valkey, `pcct serve` and `pcct work` use {LOCAL_REDIS_URL}.",
    )
    data_dir: Path = Field(
        default_factory=default_data_dir,
        description="Directory of the embedded store's files. Default: $XDG_DATA_HOME/pcct or ~/.local/share/pcct.",
    )
    chunk_bytes: int = Field(
        default=1 << 20,
        ge=1 << 10,
        le=256 << 20,
        description="Largest stored piece of an array, bytes. Default: 1 MiB.",
    )
    max_graph_bytes: int = Field(
        default=1 << 30,
        ge=1,
        description="Largest graph that may be asked for, bytes of neighbors and distances. Default: 1 GiB.",
    )
    queue: str = Field(default="interactive", pattern="^[a-z0-9-]+$", description="Name of the queue of graphs.")
    refresh_queue: str = Field(default="refresh", pattern="^[a-z0-9-]+$", description="Name of the queue of tracks.")
    store_timeout_s: float = Field(
        default=5.0, gt=0, description="Longest wait for one answer of the store, seconds. Default: 5."
    )
    namespace_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Most bytes of datasets and graphs that one namespace keeps; beyond, those used longest ago go. "
        "Default: any number.",
    )
    staging_ttl_s: int = Field(
        default=600, ge=10, description="How long an abandoned upload stays in the store, seconds. Default: 600."
    )
    stale_run_s: float = Field(
        default=60.0,
        gt=0,
        description="A running job silent for this long counts as lost, and asking again queues it again; seconds. "
        "Default: 60.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least level logged.")
    log_format: Literal["console", "json"] = Field(
        default="console", description="Plain lines, or one JSON object each."
    )

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, url: str | None) -> str | None:
        return None if url is None else check_store_url(url)

    def to_environment(self) -> dict[str, str]:
        """Return this process's environment with the settings that were given explicitly, for a child process."""
        given = self.model_dump(mode="json", exclude_unset=True, exclude_none=True)
        hidden = {name: value for name in given if isinstance(value := getattr(self, name), SecretStr)}
        values = given | {
            name: value.get_secret_value() for name, value in hidden.items()
        }  # stars stand for them before
        return dict(os.environ) | {f"PCCT_{name.upper()}": str(value) for name, value in values.items()}

    @property
    def store_url(self) -> str:
        """The store to connect to: `redis_url`, or Redis on this machine."""
        return self.redis_url or LOCAL_REDIS_URL

    def check_store(self) -> str | None:
        """Return why the store does not answer at once, None when it does.

        Raises WrongStoreUrl where it refuses what `redis_url` says, which no waiting mends.
        """
        return check_store_answers(self.store_url, min(self.store_timeout_s, _FIRST_LOOK_S))


class WorkerSettings(SharedSettings):
    """What one worker process needs besides."""

    redelivery_s: float = Field(
        default=6.0,
        ge=0.2,
        description="A job whose worker has not renewed its lease for this long goes to another worker, seconds; "
        "noticed within half as much more. Default: 6.",
    )
    max_attempts: int = Field(
        default=3, ge=1, description="Times a job may end its worker before it counts as failed. Default: 3."
    )
    secret: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="Text of 16 characters or more that the pairs are drawn by which certificates rest on; the same for all "
        "workers of a deployment. Default: a random one, kept in the store.",
    )
    threads: int | None = Field(default=None, ge=1, description="Threads of one build. Default: one per core.")
    refresh_threads: int | None = Field(
        default=None,
        ge=1,
        description="Threads of a build for a track. Default: one per core but one, which is left to the objective.",
    )
    refresh_timeout_s: float = Field(
        default=600.0,
        gt=0,
        description="Longest build of a track's version before it is given up, seconds. Default: 600.",
    )
    track_idle_s: float = Field(
        default=7 * 86400.0,
        ge=300,
        description="A track that nobody has read or refreshed for this long is deleted, seconds. Default: 604800, a week.",
    )
    tree_cache_bytes: int = Field(
        default=256 << 20,
        ge=0,
        description="Trees of the datasets asked last that a worker keeps for their next query, bytes. Default: 256 MiB.",
    )
    shutdown_grace_s: float = Field(
        default=3.0, ge=0, description="How long a stopping worker waits for its build to notice, seconds. Default: 3."
    )
    heartbeat_s: float = Field(
        default=1.0, gt=0, description="A worker says that it is alive this often, seconds. Default: 1."
    )
