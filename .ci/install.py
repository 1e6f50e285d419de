"""Installs this checkout with extras into a virtual environment: `python3 .ci/install.py .venv demo`.

uv does it where there is one or pip can fetch it, in a tenth of pip's time; pip does it otherwise, and whenever uv fails. uv
reads no configuration of pip, so what pip is told of indexes, constraints and certificates is handed over. Needs nothing but
Python and venv. Says what it does, and goes on saying so every two seconds.
"""

import ast
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

SAY_EVERY_S = 2.0
# What pip calls an option, and uv. Options of pip that take several values are split at spaces, as pip does.
OPTIONS = {
    "index-url": "--index-url",
    "extra-index-url": "--extra-index-url",
    "find-links": "--find-links",
    "constraint": "--constraints",
    "trusted-host": "--allow-insecure-host",
}
# Who has told uv where to look is not overruled by what pip was told.
TOLD_UV = {"UV_INDEX", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_CONFIG_FILE"}


def main(directory: Path, extras: str) -> int:
    """Make the virtual environment unless it is there, and install into it; returns the exit status."""
    python = directory / "bin/python"
    uv = find_uv(python)
    if not python.exists():
        # With uv at hand pip is one package more, which takes no time; ensurepip takes seconds.
        bare = [] if uv is None else ["--without-pip"]
        done = run(f"making {directory}", [sys.executable, "-m", "venv", *bare, str(directory)])
        if done.returncode:
            return fail(done, "a virtual environment cannot be made; on Debian and Ubuntu: apt install python3-venv")
    uv = uv or fetch_uv(python)
    wanted = ["--editable", f".[{extras}]"]
    if uv is not None:
        settings = pip_settings(python)
        command = [uv, "pip", "install", "--python", str(python), *uv_options(settings, os.environ), *wanted, "pip"]
        done = run(f"installing pcct[{extras}] by uv", command, os.environ | uv_environment(settings, os.environ))
        if done.returncode == 0:
            return 0
        print(f"uv could not install it ({reason(done)}); pip does", flush=True)
    see_to_pip(python)
    done = run(f"installing pcct[{extras}] by pip", [*pip(python), "install", *wanted])
    return fail(done, "pip could not install it") if done.returncode else 0


def find_uv(python: Path) -> str | None:
    """Return a uv that runs, the one on the path or the environment's own; None without."""
    for candidate in (shutil.which("uv"), str(python.with_name("uv"))):
        if candidate is not None and answers([candidate, "--version"]):
            return candidate
    return None


def fetch_uv(python: Path) -> str | None:
    """Return a uv that pip has fetched into the environment; None, and a line that says so, where it cannot."""
    see_to_pip(python)
    done = run("fetching uv", [*pip(python), "install", "uv"])
    if done.returncode == 0 and (uv := find_uv(python)) is not None:
        return uv
    print(f"there is no uv ({reason(done)}); pip takes minutes in place of seconds", flush=True)
    return None


def see_to_pip(python: Path) -> None:
    """Install the pip that comes with Python, unless the environment has one."""
    if not answers([*pip(python), "--version"]):
        run("installing pip", [str(python), "-m", "ensurepip", "--upgrade"])


def answers(command: Sequence[str]) -> bool:
    """Return whether a command ends well."""
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def pip(python: Path) -> list[str]:
    """Return the command that is the environment's pip."""
    return [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input"]


def pip_settings(python: Path) -> dict[str, str]:
    """Return what pip's configuration files and variables say of an install, the strongest last word for each option."""
    if not answers([*pip(python), "--version"]) and answers([*pip(Path(sys.executable)), "--version"]):
        python = Path(sys.executable)
    see_to_pip(python)
    listed = subprocess.run([*pip(python), "config", "list"], capture_output=True, text=True, check=False)
    found: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}  # the weakest first
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        section, _, option = name.partition(".")
        if section in found:
            found[section][option] = str(ast.literal_eval(value))
    return found["global"] | found["install"] | found[":env:"]


def uv_options(settings: Mapping[str, str], environment: Mapping[str, str]) -> list[str]:
    """Return the options of `uv pip install` that mean what pip's settings mean."""
    if TOLD_UV & set(environment):
        return []
    options = [
        part for name, option in OPTIONS.items() for each in settings.get(name, "").split() for part in (option, each)
    ]
    if settings.get("no-index", "false").lower() in ("1", "true", "yes", "on"):
        options.append("--no-index")
    # pip takes the best release of all indexes, uv by default none but the first index that has the package.
    return [*options, "--index-strategy", "unsafe-best-match"]


def uv_environment(settings: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables by which uv trusts and reaches what pip does."""
    told = {"UV_SYSTEM_CERTS": "true"}
    if "cert" in settings:
        told["SSL_CERT_FILE"] = settings["cert"]
    if "proxy" in settings:
        told |= {"HTTP_PROXY": settings["proxy"], "HTTPS_PROXY": settings["proxy"]}
    if "constraint" in settings:
        told["UV_BUILD_CONSTRAINT"] = settings["constraint"]
    return {name: value for name, value in told.items() if name not in environment}


def run(
    what: str, command: Sequence[str], environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a command, and say what it does, how long it has been at it, and its latest line."""
    begun, lines = time.monotonic(), [""]
    print(what, flush=True)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
    ) as process:
        reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True)
        reader.start()
        while process.poll() is None:
            try:
                process.wait(SAY_EVERY_S)
            except subprocess.TimeoutExpired:
                print(f"  {time.monotonic() - begun:.0f} s  {lines[-1].strip()[:100]}".rstrip(), flush=True)
        reader.join()
    return subprocess.CompletedProcess(command, process.returncode, "".join(lines))


def reason(done: "subprocess.CompletedProcess[str]") -> str:
    """Return the line in which a command that failed says why: its first that speaks of an error, or its last."""
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    said = [line for line in lines if "error" in line.lower() or line.startswith("×")]
    return (said or lines[-1:] or [f"exit status {done.returncode}"])[0]


def fail(done: "subprocess.CompletedProcess[str]", what: str) -> int:
    """Say what a command printed, and what failed; returns its status."""
    print(f"{done.stdout.strip()}\n{what}", file=sys.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
