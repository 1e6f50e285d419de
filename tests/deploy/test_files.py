"""The files that deploy, without a container engine: what they promise, and that they name what there is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from service.app import create_app
from service.processes import KEEP_MEMORY
from service.settings import ServiceSettings, unknown_variables
from worker.metrics import COUNTERS, HISTOGRAMS

OVERRIDES = ("tls", "monitoring")


class ComposeLoader(yaml.SafeLoader):
    """YAML with Compose's own tags."""


ComposeLoader.add_constructor("!reset", lambda loader, node: None)


def read(file: Path) -> Any:
    return yaml.load(file.read_text(), ComposeLoader)


def test_image_keeps_freed_memory(deploy: Path) -> None:
    variables = " ".join(f"{name}={value}" for name, value in KEEP_MEMORY.items())
    assert f"ENV {variables}\n" in (deploy / "Dockerfile").read_text()


def test_python_in_containers_runs_nothing_of_the_current_folder(deploy: Path) -> None:
    image = (deploy / "Dockerfile").read_text()
    assert "PYTHONSAFEPATH=1" in image.rpartition("FROM ")[2]
    texts = [image, (deploy / "compose.yml").read_text()]
    for text in texts:
        assert not re.search(r"python[\"]?[,\s-]+-[cm]\b", text)


@pytest.mark.parametrize("override", [None, *OVERRIDES])
def test_compose_takes_the_files(compose: Any, override: str | None) -> None:
    files = ["-f", "compose.yml", *(["-f", f"compose.{override}.yml"] if override else [])]
    compose(*files, "config", "--quiet")


def test_compose_takes_all_files_together_and_publishes_nothing_in_the_clear(compose: Any) -> None:
    files = ["-f", "compose.yml", "-f", "compose.tls.yml", "-f", "compose.monitoring.yml"]
    services = json.loads(compose(*files, "config", "--format", "json").stdout)["services"]
    assert "ports" not in services["api"]
    published = [(name, port) for name, service in services.items() for port in service.get("ports", ())]
    assert {port["published"] for name, port in published if name == "caddy"} == {"80", "443"}
    assert all(port["host_ip"] == "127.0.0.1" for name, port in published if name != "caddy")


@pytest.mark.parametrize("file", ["compose.yml", *(f"compose.{override}.yml" for override in OVERRIDES)])
def test_every_container_is_confined(deploy: Path, file: str) -> None:
    for name, service in read(deploy / file)["services"].items():
        if "image" not in service:
            continue  # what an override adds to a service of the base file
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service["restart"] == "unless-stopped", name


def test_the_store_keeps_everything_and_is_reached_by_us_alone(deploy: Path) -> None:
    files = read(deploy / "compose.yml")
    store = files["services"]["redis"]
    program = store["command"][-1]
    for line in ("appendonly yes", "maxmemory-policy noeviction", "maxmemory $$STORE_MEMORY", "requirepass $$"):
        assert line in program
    assert "ports" not in store
    assert store["networks"] == ["store"]
    assert files["networks"]["store"]["internal"] is True
    assert store["volumes"] == ["store:/data"]


def test_compose_sets_only_settings_that_there_are(deploy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(file.read_text() for file in deploy.glob("compose*.yml"))
    for name in [name for name in os.environ if name.startswith("PCCT_")]:
        monkeypatch.delenv(name)  # such as those of the tests themselves
    for name in set(re.findall(r"\bPCCT_[A-Z_]+(?=:)", text)):
        monkeypatch.setenv(name, "x")
    assert unknown_variables() == []


def test_every_variable_that_compose_reads_is_in_the_example(deploy: Path) -> None:
    text = "".join(file.read_text() for file in deploy.glob("compose*.yml"))
    example = (deploy / ".env.example").read_text()
    read_there = set(re.findall(r"(?<!\$)\$\{(\w+)", text)) - {
        name for name in re.findall(r"\w+", text) if name.endswith("_IMAGE")
    }
    assert read_there == set(re.findall(r"^#?([A-Z_]+)=", example, re.MULTILINE))


def test_the_image_has_what_an_operator_expects(deploy: Path) -> None:
    lines = (deploy / "Dockerfile").read_text()
    build, final = lines.split("\nFROM ")[1:]
    assert "USER pcct" in final
    assert "HEALTHCHECK" in final
    assert "pip" not in final
    assert "python -P -m pcct_core.prebuild" in build
    assert "--without-pip" in build
    assert not re.search(r"^# syntax=|@sha256:", lines, re.MULTILINE)
    allowed = (deploy / "Dockerfile.dockerignore").read_text().split("!")[1:]
    copied = re.findall(r"^COPY (?!--from)(?:--\S+ )?(.+) \S+$", build, re.MULTILINE)
    assert {name for names in copied for name in names.split()} == {line.split()[0] for line in allowed}


@pytest.mark.anyio
async def test_dashboard_and_alerts_name_metrics_that_there_are(deploy: Path, valkey_url: str) -> None:
    app = create_app(ServiceSettings(redis_url=valkey_url))
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        await client.get("/livez")
        text = (await client.get("/metrics")).raise_for_status().text
    shown = set(re.findall(r"^(?:# HELP )?(\w+)", text, re.MULTILINE)) - {""}
    # A metric with labels has no samples before something happened.
    for counter in COUNTERS:
        shown.add(f"{counter.name}_total")
    for histogram in HISTOGRAMS:
        shown |= {f"{histogram.name}_{part}" for part in ("bucket", "sum", "count")}
    rules = read(deploy / "monitoring/alerts.yml")
    expressions = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    board = json.loads((deploy / "monitoring/grafana/dashboards/pcct.json").read_text())
    expressions += [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    named = {name for text in expressions for name in re.findall(r"\b(?:pcct|process)_\w+", text)}
    assert len(named) > 15
    assert named - shown == set()


def test_every_alert_is_explained_and_no_other(deploy: Path) -> None:
    rules = read(deploy / "monitoring/alerts.yml")
    names = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    assert set(re.findall(r"^\| `(Pcct\w+)`", (deploy / "README.md").read_text(), re.MULTILINE)) == names


def test_every_file_that_an_override_mounts_is_there(deploy: Path) -> None:
    for override in OVERRIDES:
        for service in read(deploy / f"compose.{override}.yml")["services"].values():
            for volume in service.get("volumes", ()):
                source = volume.split(":")[0]
                assert not source.startswith("./") or (deploy / source).exists(), volume


def test_the_table_of_settings_is_as_the_settings_are(deploy: Path) -> None:
    check = [sys.executable, str(deploy / "settings_table.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_links_of_the_guide_lead_somewhere(deploy: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (deploy / "README.md").read_text())
    assert links
    assert all((deploy / link).exists() for link in links if "://" not in link)
