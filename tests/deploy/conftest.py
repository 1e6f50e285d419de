"""Fixtures of the deployment's room: its directory, and Compose where there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
# What the files require; no test depends on the values.
REQUIRED = {
    "STORE_PASSWORD": "0123456789abcdef",
    "DOMAIN": "graphs.example.org",
    "GRAFANA_PASSWORD": "fedcba9876543210",
}

Compose = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def deploy() -> Path:
    """The directory of the files that deploy."""
    return DEPLOY


@pytest.fixture(scope="session")
def compose_command() -> list[str]:
    """The command that is Compose v2: $COMPOSE, or the plugin of docker; skips where there is neither."""
    commands = [["docker", "compose"]] if shutil.which("docker") else []
    if chosen := os.environ.get("COMPOSE"):
        commands.insert(0, chosen.split())
    for command in commands:
        if subprocess.run([*command, "version"], capture_output=True, check=False).returncode == 0:
            return command
    pytest.skip("there is no Compose: neither $COMPOSE nor `docker compose` answers")


@pytest.fixture(scope="session")
def compose(compose_command: list[str]) -> Compose:
    """Runs Compose in the directory of the files; raises CalledProcessError with what it said."""

    def run(*arguments: str, environment: dict[str, str] | None = None, timeout_s: float = 60.0) -> object:
        done = subprocess.run(
            [*compose_command, *arguments],
            cwd=DEPLOY,
            env=dict(os.environ) | REQUIRED | (environment or {}),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done

    return run  # type: ignore[return-value]
