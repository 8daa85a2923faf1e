"""The `mechint` command. `--help` imports neither torch nor prefect nor mlflow: commands import what they need.

Exit codes: 0 done; 1 something was found or failed (doctor, verify, an analysis); 2 a mistake in what was given;
130 interrupted, with everything that was finished kept.
"""

import importlib
import os
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape

from mechint_core import __version__
from mechint_core.errors import MechintError

if TYPE_CHECKING:
    from flows.monitor_training import Monitored

out = Console()
err = Console(stderr=True)

CONFIG = click.argument("config", type=click.Path(path_type=Path, dir_okay=False, exists=True))


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="mechint")
@click.option("--home", type=click.Path(path_type=Path), help="Data folder. [default: ./mechint-data, or MECHINT_HOME]")
@click.option("--dask", help="Dask scheduler for heavy work, tcp://host:port.")
@click.option("--processes", type=click.IntRange(0), help="Local worker processes for heavy work, in place of threads.")
def mechint(home: Path | None, dask: str | None, processes: int | None) -> None:
    """How does a network compute? For every checkpoint of a training run: features, circuits, dynamics, geometry.

    \b
    mechint demo                 train a network that groks, analyse it, write the report
    mechint run my-run.yaml      the same for your own training run
    mechint ui                   look at it in Prefect and MLflow
    """  # noqa: D301 - click reads \b
    given = {"MECHINT_HOME": home, "MECHINT_DASK_ADDRESS": dask, "MECHINT_PROCESSES": processes}
    os.environ.update({name: str(value) for name, value in given.items() if value is not None})
    # Prefect's log goes to its server; the terminal shows our progress and our errors, once.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")


@mechint.command()
@click.option("--seed", default=0, show_default=True, help="Initial weights and training pairs.")
def demo(seed: int) -> None:
    """Train a transformer that groks modular addition, analyse every checkpoint, write the report."""
    with services():
        from flows.grokking import grokking

        _tell(grokking(seed))


@mechint.command()
@CONFIG
@click.option("--dry-run", is_flag=True, help="Say what would be done and roughly what it costs.")
def run(config: Path, dry_run: bool) -> None:
    """Collect and analyse what is new in a training run, publish it, write its report."""
    if dry_run:
        _describe(config)
        return
    with services():
        from flows.monitor_training import monitor_training

        _tell(monitor_training(config))


@mechint.command()
@CONFIG
def collect(config: Path) -> None:
    """Record the activations of every checkpoint, and nothing else."""
    with services():
        from flows.collect_activations import collect_activations

        out.print(f"{collect_activations(config)} arrays recorded.")


@mechint.command()
@CONFIG
@click.option("--step", type=int, required=True, help="The checkpoint's step.")
def analyse(config: Path, step: int) -> None:
    """Collect and analyse one checkpoint."""
    with services():
        from flows.analyse_checkpoint import analyse_checkpoint

        keys = analyse_checkpoint(config, step)
    for key in keys:
        out.print(f"{key.technique:<32} {key.name}")


@mechint.command()
@CONFIG
def dictionaries(config: Path) -> None:
    """Train and examine the sparse dictionaries of a configuration, and nothing else."""
    with services():
        from flows.train_dictionaries import train_dictionaries

        keys = train_dictionaries(config)
    for key in keys:
        out.print(f"{key.step:>10} {key.name}", highlight=False)


@mechint.command()
@CONFIG
def circuits(config: Path) -> None:
    """Find the circuits of a configuration's behaviours, verify them on held-out prompts, write the report."""
    with services():
        from flows.find_circuit import find_circuit

        found = find_circuit(config)
    for (name, step), path in found.files.items():
        circuit = found.circuits[name, step]
        out.print(f"[bold]{escape(name)}[/] at step {step}: {circuit.size} edges  {path}", highlight=False)
        if (name, step) in found.readings:
            out.print(f"  {escape(found.readings[name, step])}", highlight=False)
    out.print(f"report  {found.report}", highlight=False, soft_wrap=True)


@mechint.command()
@CONFIG
def brain(config: Path) -> None:
    """Compare every site with a configuration's recordings of brains, against their noise ceiling."""
    with services():
        from flows.compare_to_brain import compare_to_brain

        found = compare_to_brain(config)
    for (name, step), reading in found.readings.items():
        when = "through training" if step is None else f"at step {step}"
        out.print(f"[bold]{escape(name)}[/] {when}: {escape(reading)}", highlight=False)
    out.print(f"report  {found.report}", highlight=False, soft_wrap=True)


@mechint.command()
@CONFIG
def geometry(config: Path) -> None:
    """Describe the shape of what each site represents: dimension, loops, distances along it, and their course."""
    with services():
        from flows.describe_geometry import describe_geometry

        found = describe_geometry(config)
    for (technique, name), reading in found.readings.items():
        out.print(f"[bold]{technique} {escape(name)}[/]: {escape(reading)}", highlight=False)
    out.print(f"report  {found.report}", highlight=False, soft_wrap=True)


@mechint.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True))
@click.option("--field", "fields", multiple=True, metavar="OURS=THEIRS", help="Where a field is not found by its name.")
def recording(file: Path, fields: tuple[str, ...]) -> None:
    """Say what a recording holds, or everything that is wrong with it."""
    from mechint_core.recordings import describe_recording, load_recording

    named = {ours: theirs for ours, _, theirs in (each.partition("=") for each in fields)}
    out.print(escape(describe_recording(load_recording(file, fields=named))), highlight=False, soft_wrap=True)


@mechint.command()
@CONFIG
@click.option("--every", default=10.0, show_default=True, help="Seconds between looks at the folder.")
@click.option("--until", type=int, help="End after the checkpoint of this step.")
def watch(config: Path, every: float, until: int | None) -> None:
    """Analyse each checkpoint as it appears, until interrupted."""
    with services():
        from flows.watch import watch_training

        for monitored in watch_training(config, every=every, until=until):
            _tell(monitored)


@mechint.command()
@CONFIG
def report(config: Path) -> None:
    """Write the report again from what is stored."""
    from flows.configuration import configuration
    from flows.plan import make_plan
    from flows.report import compose_report
    from tasks.settings import settings

    out.print(str(compose_report(make_plan(configuration(config), settings().store_location))))


@mechint.command()
@click.option("--prefect-port", default=4200, show_default=True)
@click.option("--mlflow-port", default=5000, show_default=True)
def ui(prefect_port: int, mlflow_port: int) -> None:
    """Serve the Prefect and MLflow pages on this machine, until interrupted."""
    from flows.services import mlflow_process, server_process, wait_for

    with server_process(prefect_port) as api, mlflow_process(mlflow_port) as page:
        wait_for(api)
        wait_for(page)
        out.print(f"Prefect  http://127.0.0.1:{prefect_port}   flows, tasks, logs, artifacts")
        out.print(f"MLflow   {page}   runs, metrics, checkpoints (choose 'Model training' at the top left)")
        out.print("[dim]Ctrl-C stops both.")
        _wait_for_interrupt()


@mechint.command()
def doctor() -> None:
    """Check the installation: versions, pins, telemetry, store, tracking, server."""
    from flows.doctor import examine

    findings = list(examine())
    for finding in findings:
        mark = "[green]ok  [/]" if finding.ok else "[red]FAIL[/]"
        out.print(f"{mark} {finding.subject:<22} {escape(finding.detail)}", soft_wrap=True, highlight=False)
    if not all(finding.ok for finding in findings):
        sys.exit(1)


@mechint.command()
@CONFIG
def cite(config: Path) -> None:
    """Print the BibTeX entries of the techniques that a configuration uses."""
    from flows.configuration import configuration
    from mechint_core.report import bibtex

    used = {key for analysis in configuration(config).analyses for key in analysis.of.about.references}
    click.echo(bibtex(sorted(used)))


@mechint.group()
def store() -> None:
    """Look into the activation store."""


@store.command("ls")
def store_ls() -> None:
    """List what is stored: kind, rows, size, digest."""
    from mechint_core.store import ActivationStore
    from tasks.settings import settings

    entries = list(ActivationStore(settings().store_location).ls())
    for entry in entries:
        state = entry.digest[:12] if entry.committed else "[red]not committed[/]"
        line = f"{entry.kind:<12} {_size(entry.bytes):>9}  {state:<14} {entry.path}"
        out.print(line, highlight=False, soft_wrap=True)
    out.print(f"[dim]{len(entries)} entries, {_size(sum(entry.bytes for entry in entries))}")


@store.command("verify")
def store_verify() -> None:
    """Read everything again and compare it with the digests of its commits."""
    from flows.progress import shown_on, stage
    from mechint_core.store import ActivationStore
    from tasks.settings import settings

    opened = ActivationStore(settings().store_location)
    n_entries, problems = len(list(opened.ls())), []
    with shown_on(out), stage("verify", n_entries) as advance:
        for entry, problem in opened.verify():
            advance(entry.path)
            problems += [(entry.path, problem)] if problem else []
    for path, problem in problems:
        out.print(f"[red]{path}[/]: {problem}")
    out.print(f"{n_entries} entries verified, {len(problems)} with problems.")
    if problems:
        sys.exit(1)


@store.command("gc")
@click.option("--force", is_flag=True, help="Remove them; without it they are only listed.")
def store_gc(force: bool) -> None:
    """Remove what was never committed: the leavings of killed writers."""
    from mechint_core.store import ActivationStore
    from tasks.settings import settings

    removed = list(ActivationStore(settings().store_location).gc(dry_run=not force))
    for entry in removed:
        out.print(f"{_size(entry.bytes):>9}  {entry.path}", highlight=False, soft_wrap=True)
    verb = "removed" if force else "would be removed; --force removes them"
    out.print(f"{len(removed)} entries {verb}.")


@contextmanager
def services() -> Generator[None]:
    """Start what a flow needs, show its progress, and stop what was started."""
    from flows.progress import shown_on
    from flows.services import prefect_server, wait_for
    from mechint_core.parallel import local_processes
    from tasks.settings import settings

    with prefect_server() as url:
        importlib.import_module("flows.monitor_training")  # 5 s of imports, while the server starts

        wait_for(url)
        with local_processes(settings().backend), shown_on(out):
            yield


def main() -> None:
    """Run the command; a user's mistake ends in a sentence, not in a traceback."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        mechint.main(standalone_mode=False)
    except click.exceptions.Abort:
        err.print("\nInterrupted. What was finished is kept; the same command continues.")
        sys.exit(130)
    except click.ClickException as problem:
        problem.show()
        sys.exit(problem.exit_code)
    except MechintError as problem:
        err.print("[red]Error:[/]", escape(str(problem)), highlight=False, soft_wrap=True)
        sys.exit(1 if isinstance(problem, RuntimeError | OSError) else 2)


def _terminated(_number: int, _frame: object) -> None:
    """End as after an exception, so that what was started is stopped."""
    sys.exit(143)


def _tell(monitored: "Monitored") -> None:
    out.print(
        f"{monitored.n_collected} arrays recorded, {monitored.n_analysed} results computed, "
        f"{monitored.n_results} in all.\n[bold]Report[/] {monitored.report}",
        soft_wrap=True,
    )


def _describe(config: Path) -> None:
    from flows.configuration import configuration
    from flows.estimate import describe
    from flows.plan import make_plan
    from tasks.settings import settings

    text = describe(make_plan(configuration(config), settings().store_location))
    out.print(escape(text), highlight=False, soft_wrap=True)


def _size(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def _wait_for_interrupt() -> None:
    import threading

    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        out.print("Stopped.")
