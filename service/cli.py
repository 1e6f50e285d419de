"""The `pcct` command. Exit status: 0 done, 1 failed, 2 wrong usage or bad input; never a traceback for the user.

Everything heavy is imported by the command that needs it, so `pcct --help` answers at once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from pcct_core.spec import GraphSpec
    from worker.absence import Absence
    from worker.settings import SharedSettings

app = typer.Typer(
    name="pcct",
    help="Exact neighbor graphs for Gaussian processes: k-NN and Vecchia graphs, as a service or from a file.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

telemetry = typer.Typer(rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})
app.add_typer(telemetry, name="telemetry", help="Look at what builds have recorded.")

keys = typer.Typer(rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})
app.add_typer(keys, name="keys", help="Make, list and revoke the API keys of a service with PCCT_AUTH=on.")

_INTERRUPTED = 130  # what Typer makes of Ctrl-C, without a word

_Host = Annotated[str, typer.Option(help="Address to listen on.")]
_Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any free one.")]
_DataDir = Annotated[
    Path | None, typer.Option(help="Where the embedded store keeps its files.", show_default="~/.local/share/pcct")
]
_LifelineFd = Annotated[int | None, typer.Option(hidden=True)]


@app.command()
def up(
    host: _Host = "127.0.0.1",
    port: _Port = 8000,
    data_dir: _DataDir = None,
    workers: Annotated[int, typer.Option(min=1, help="Number of worker processes.")] = 1,
) -> None:
    """Run everything here: store (unless PCCT_REDIS_URL names one), API and workers, until Ctrl-C."""
    from service.up import run_up
    from worker.settings import WorkerSettings

    settings = WorkerSettings() if data_dir is None else WorkerSettings(data_dir=data_dir)
    if settings.redis_url is not None:
        _told_of_store(settings)
    run_up(settings, host, port, workers)


@app.command()
def serve(
    host: _Host = "127.0.0.1",
    port: _Port = 8000,
    listen_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    lifeline_fd: _LifelineFd = None,
) -> None:
    """Run the API alone, on the store that PCCT_REDIS_URL names."""
    from service.settings import ServiceSettings

    settings = ServiceSettings()
    absence = _told_of_store(settings)
    from service.serve import run_api  # what takes longest to load

    run_api(settings, host, port, absence=absence, listen_fd=listen_fd, lifeline_fd=lifeline_fd)


@app.command()
def work(lifeline_fd: _LifelineFd = None) -> None:
    """Run one worker, on the store that PCCT_REDIS_URL names."""
    from service import lifeline
    from worker.main import run_worker
    from worker.settings import WorkerSettings

    settings = WorkerSettings()
    absence = _told_of_store(settings)
    if lifeline_fd is not None:
        lifeline.follow(lifeline_fd)
    run_worker(settings, absence=absence)


@app.command()
def graph(
    points: Annotated[
        Path, typer.Argument(help="Points as .npy: (n, d) numbers; - for standard input.", metavar="POINTS.npy")
    ],
    k: Annotated[int | None, typer.Option("-k", help="Neighbors per point.", show_default="30")] = None,
    kind: Annotated[str, typer.Option(help="knn, vecchia or radius.")] = "knn",
    radius: Annotated[
        float | None, typer.Option(help="radius: largest distance of a neighbor, in the metric's unit.")
    ] = None,
    metric: Annotated[
        str, typer.Option(help="euclidean, haversine (longitude, latitude in degrees), cosine or residual.")
    ] = "euclidean",
    order: Annotated[str, typer.Option(help="Vecchia order: maximin, hilbert, random, coordinate, given.")] = "maximin",
    seed: Annotated[int, typer.Option(help="Seed of the random order.")] = 0,
    lengthscale: Annotated[
        str | None, typer.Option(help="euclidean, residual: one number, or one per dimension as 0.3,0.3,0.1.")
    ] = None,
    kernel: Annotated[
        str | None, typer.Option(help="residual: rbf, matern12, matern32 or matern52.", show_default="matern52")
    ] = None,
    variance: Annotated[float | None, typer.Option(help="residual: kernel variance.", show_default="1")] = None,
    inducing: Annotated[
        int | None, typer.Option(help="residual: number of inducing points.", show_default="512")
    ] = None,
    accuracy: Annotated[
        str | None, typer.Option(help="residual: recall to certify, or exact.", show_default="0.999")
    ] = None,
    gate: Annotated[
        str | None, typer.Option(help="residual: auto, lookup, or off to scan all pairs.", show_default="auto")
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            help="knn, vecchia, radius: neighbors only within a group. The column of the points that names it, which is then "
            "no coordinate, or a .npy file of one label for every point.",
            metavar="COLUMN|FILE",
        ),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write, .npz; - for standard output.")] = Path(
        "graph.npz"
    ),
    force: Annotated[bool, typer.Option("--force", help="Replace also a file that is not a graph.")] = False,
) -> None:
    """Build a graph from a file, without a server."""
    from service.local import build_file
    from service.sources import STANDARD

    description = _read_metric(metric, lengthscale, kernel=kernel, variance=variance, inducing=inducing)
    spec = _read_spec(description, accuracy, gate, kind=kind, k=k, radius=radius, order=order, seed=seed)
    line = build_file(points, spec, output, groups=groups, force=force)
    print(line, file=sys.stderr if output == STANDARD else sys.stdout)


@app.command()
def guardrail(
    as_json: Annotated[bool, typer.Option("--json", help="Print all that was measured as one JSON object.")] = False,
) -> None:
    """Check the residual metric on 4,096 points: recall, gate, speed, determinism. Exit status 1 when a check fails."""
    from pcct_core.guardrail import run_guardrail

    checks, report = run_guardrail()
    if as_json:
        print(json.dumps(report))
    else:
        for check in checks:
            print(f"{'pass' if check.passed else 'FAIL'}  {check.name}: {check.found}")
    sys.exit(0 if report["passed"] else 1)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def bench(context: typer.Context) -> None:
    """Time the core beside its rivals, in a source checkout; pcct bench --help tells the options."""
    runner = Path(__file__).resolve().parents[1] / "tests" / "bench" / "run.py"
    if not runner.is_file():
        _fail(
            "bench needs a source checkout, this is an installed package; clone the repository and call make bench", 1
        )
    sys.exit(subprocess.run([sys.executable, str(runner), *context.args], check=False).returncode)


@app.command()
def doctor() -> None:
    """Look at versions, store, directories, threads and memory, and test a few graphs. Exit status 1 at a problem."""
    from service.doctor import run_doctor

    sys.exit(0 if run_doctor() else 1)


@telemetry.callback()
def _telemetry() -> None:
    pass


@telemetry.command()
def render(
    file: Annotated[
        Path, typer.Argument(help="Lines of pcct bench, a graph's JSON, or the .npz of pcct graph.", metavar="FILE")
    ],
) -> None:
    """Show the records of a file: seconds and share of every phase, counters, certificate."""
    from service.telemetry import print_records

    print_records(file)


@keys.command("create")
def create_key(
    namespace: Annotated[str, typer.Option(help="Whose data the key sees: lower-case letters, digits, hyphens.")],
    scope: Annotated[str, typer.Option(help="read, write or admin; each includes those before it.")] = "write",
    label: Annotated[str, typer.Option(help="A note for you.")] = "",
    data_dir: _DataDir = None,
) -> None:
    """Make a key and print it: it is not shown again."""
    from service.keyring import create_key

    create_key(_shared_settings(data_dir), namespace, scope, label)


@keys.command("list")
def list_keys(data_dir: _DataDir = None) -> None:
    """List all keys: ids and what they allow, no secrets."""
    from service.keyring import list_keys

    list_keys(_shared_settings(data_dir))


@keys.command("revoke")
def revoke_key(
    id: Annotated[str, typer.Argument(help="As pcct keys list shows it.", metavar="ID")], data_dir: _DataDir = None
) -> None:
    """Refuse a key from now on."""
    from service.keyring import revoke_key

    revoke_key(_shared_settings(data_dir), id)


def _told_of_store(settings: SharedSettings) -> Absence:
    """Tell, in the log, when the store does not answer; return what goes on telling. Raises WrongStoreUrl."""
    from worker.absence import Absence
    from worker.logs import configure_logs

    configure_logs(settings)
    absence = Absence(settings.store_url)
    reason = settings.check_store()
    if reason is not None:
        absence.note_failure(reason)
    return absence


def _shared_settings(data_dir: Path | None) -> SharedSettings:
    from worker.settings import SharedSettings

    return SharedSettings() if data_dir is None else SharedSettings(data_dir=data_dir)


def _read_metric(kind: str, lengthscale: str | None, **fields: Any) -> dict[str, Any]:
    """Return the metric's JSON form; fields that were not given are left out."""
    from pcct_core.errors import InvalidSpec

    metric: dict[str, Any] = {"type": kind} | {name: value for name, value in fields.items() if value is not None}
    if kind == "residual":
        metric.setdefault("kernel", "matern52")
    if lengthscale is not None:
        try:
            values = [float(part) for part in lengthscale.split(",")]
        except ValueError:
            raise InvalidSpec(
                f"lengthscale {lengthscale!r} is not a number or a list such as 0.3,0.3,0.1", "metric.lengthscale"
            ) from None
        metric["lengthscale"] = values if len(values) > 1 else values[0]
    return metric


def _read_spec(metric: dict[str, Any], accuracy: str | None, gate: str | None, **fields: Any) -> GraphSpec:
    from pcct_core.errors import InvalidSpec
    from pcct_core.spec import GraphSpec

    wish: dict[str, Any] = {name: value for name, value in fields.items() if value is not None} | {"metric": metric}
    if gate is not None:
        wish["gate"] = gate
    if accuracy is not None:
        try:
            wish["accuracy"] = accuracy if accuracy == "exact" else float(accuracy)
        except ValueError:
            raise InvalidSpec(f"accuracy {accuracy!r} is not a recall such as 0.999, or 'exact'", "accuracy") from None
    return GraphSpec.from_json(wish)


def main() -> NoReturn:
    """Run the command line and exit with its status."""
    try:
        status = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one more would be a traceback of an interpreter that ends
        _fail("interrupted", 1)
    except BrokenPipeError:
        # The reader of our output has gone, as in `pcct graph … | head`; nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        _fail(*_describe(error))
    if status == _INTERRUPTED:
        _fail("interrupted", 1)
    sys.exit(status if isinstance(status, int) else 0)


def _describe(error: Exception) -> tuple[str, int]:
    """Return the line and the exit status for an error."""
    usage = getattr(error, "format_message", None)  # Typer's own, whichever Click it is built on
    if usage is not None:
        return f"{usage().rstrip('.')}; see pcct --help", 2
    if isinstance(error, typer.Abort):
        return "interrupted", 1
    from pcct_core.errors import InvalidInput, PcctError

    if isinstance(error, InvalidInput):
        return str(error), 2
    if isinstance(error, PcctError):
        return str(error), 1
    if isinstance(error, MemoryError):
        return "out of memory; use fewer points or a smaller k", 1
    setting = _wrong_setting(error)
    if setting is not None:
        return setting, 2
    return f"failed: {type(error).__name__}: {error}", 1


def _wrong_setting(error: Exception) -> str | None:
    """Return the line for a PCCT_… variable that cannot be read, or None for another error."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return None
    from worker.settings import faults_of

    return faults_of(error)[0]


def _fail(line: str, status: int) -> NoReturn:
    print(f"pcct: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
