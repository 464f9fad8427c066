"""The command line: thin verbs over the modules that do the work."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import logging
import logging.handlers
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from streamprep import __version__, completion
from streamprep.errors import ConfigError, StreamprepError

if TYPE_CHECKING:  # verbs import what they need when they run, so that help and completion come at once
    from streamprep.config import Config
    from streamprep.pipeline import Plan
    from streamprep.plugin_manager import Plugins


class _Verbs(TyperGroup):
    """The verbs; in their help flags stand without the type that some versions of typer name, as --plain <bool>."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            _bare(command.get_params(ctx))
        return command

    def get_params(self, ctx: Any) -> list[Any]:
        return _bare(super().get_params(ctx))


def _bare(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters


app = typer.Typer(
    name="streamprep",
    cls=_Verbs,
    help="Streams cryo-EM micrographs through plugin operations into growing particle, noise and coordinate sets.\n\n"
    "Begin with [bold]streamprep init[/bold], or see it work: [bold]streamprep demo[/bold]. "
    "[bold]streamprep VERB --help[/bold] has an example of each.",
    epilog="Exit codes: 0 all is well; 1 something failed, and was told; 2 a wrong configuration or command.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigPath = Annotated[Path, typer.Argument(help="Configuration file, or the folder it is in.", show_default=True)]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="TABLE.KEY=VALUE",
        help="Override a value of the file. May be repeated.",
        autocompletion=completion.settings,
    ),
]
DEFAULT_CONFIG = Path("streamprep.toml")

# Headings of the verbs in the help.
SESSIONS = "Sessions"
PREPARING = "Preparing a session"
TRYING = "Trying things out"
WRITING = "Writing plugins"

_NOT_ALLOWED = "give a place that this user may read and write, or run it as the user who owns it"
_NOT_A_FOLDER = "a file stands where a folder is needed; move it away, or give another path"
WHAT_TO_DO = {
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.EROFS: "give a place that can be written",
    errno.EEXIST: _NOT_A_FOLDER,
    errno.ENOTDIR: _NOT_A_FOLDER,
    errno.ENOENT: "nothing is there, and nothing can be made there; correct the path",
    errno.ENOSPC: "make room on the disk, or give a place on another",
    errno.EDQUOT: "the quota of this user is used up; make room, or give a place on another disk",
}
"""What to do about an error of the operating system that nothing else has explained."""

_TOLD = 5
"""Files that check passed over and names."""

log = logging.getLogger(__name__)


def main() -> None:
    """Run the command line; errors for people are one message and exit code 2."""
    try:
        app()
    except StreamprepError as error:
        sys.stderr.write(f"error: {_shown(str(error))}\n")
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(1)
    except KeyboardInterrupt:  # before a session, which drains, began
        sys.exit(130)
    except OSError as error:
        log.info("ended by an error of the operating system", exc_info=True)  # for the log of a session, where one is
        sys.stderr.write(f"error: {_shown(_os_error(error))}\n")
        sys.exit(2)


def _os_error(error: OSError) -> str:
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    todo = WHAT_TO_DO.get(error.errno or 0)
    return f"{where}{error.strerror or error}" + (f"; {todo}" if todo else "")


def _shown(text: str) -> str:
    return "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text)


def _out(text: str = "") -> None:
    typer.echo(_shown(text))


def _prepare(path: Path, overrides: list[str] | None) -> tuple[Config, Plugins, Plan]:
    from streamprep.config import load
    from streamprep.pipeline import resolve
    from streamprep.plugin_manager import load_plugins

    config = load(path, overrides or ())
    plugins = load_plugins(block=config.plugins.block)
    plan = resolve(config, plugins)
    for broken in plugins.broken:
        last = (broken.error or "").strip().splitlines()[-1]
        sys.stderr.write(f"warning: plugin {broken.name} of {broken.distribution} could not be loaded: {last}\n")
    return config, plugins, plan


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        _out(f"streamprep {__version__}")
        raise typer.Exit


SHOWN = 20
"""Most lines of a list."""

# --- sessions --------------------------------------------------------------------------------------------------------

NewSet = Annotated[bool, typer.Option("--new-set", help="Begin a second set beside results that another plan made.")]
LogJson = Annotated[bool, typer.Option("--log-json", help="One JSON object per event on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print the closing summary only.")]
ExecutorName = Annotated[
    str,
    typer.Option(
        "--executor",
        metavar="local|dask|slurm",
        help=r"Where jobs run: here, on the workers of a Dask scheduler, or as jobs of SLURM (see \[cluster]).",
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help=r"Of --executor dask, as tcp://host:8786; \[cluster] scheduler unless given."),
]
Plain = Annotated[bool, typer.Option("--plain", help="Lines instead of the live view, on a terminal too.")]


@app.command(rich_help_panel=SESSIONS)
def run(
    config: ConfigPath = DEFAULT_CONFIG,
    overrides: Overrides = None,
    new_set: NewSet = False,
    log_json: LogJson = False,
    quiet: Quiet = False,
    plain: Plain = False,
    executor: ExecutorName = "local",
    scheduler: Scheduler = None,
) -> None:
    """Run the daemon: process what is there and what arrives, until Ctrl-C or SIGTERM.

    The first signal finishes what the workers have, publishes and exits with 0; a second ends at once. Both are safe.
    Exit code 1 where the session had stopped itself, 2 for a wrong configuration.

    Example: [bold]streamprep run streamprep.toml --set particles.normalize.method=new[/bold]
    """
    style = _style(log_json, quiet, plain)
    raise typer.Exit(_session(config, overrides, executor, scheduler, once=False, new_set=new_set, style=style))


@app.command(rich_help_panel=SESSIONS)
def once(
    config: ConfigPath = DEFAULT_CONFIG,
    overrides: Overrides = None,
    new_set: NewSet = False,
    log_json: LogJson = False,
    quiet: Quiet = False,
    plain: Plain = False,
    executor: ExecutorName = "local",
    scheduler: Scheduler = None,
) -> None:
    """Process what is there, publish, and exit: for batch work and tests.

    Exit code 0 when nothing failed, 1 when something did (the summary says what), 2 for a wrong configuration.

    Example: [bold]streamprep once --plain[/bold]
    """
    style = _style(log_json, quiet, plain)
    raise typer.Exit(_session(config, overrides, executor, scheduler, once=True, new_set=new_set, style=style))


def _style(log_json: bool, quiet: bool, plain: bool) -> str:
    if log_json:
        return "json"
    if quiet:
        return "quiet"
    dumb = os.environ.get("TERM", "dumb") in ("dumb", "unknown", "")
    return "plain" if plain or dumb or not sys.stdout.isatty() else "live"


def _session(
    path: Path,
    overrides: list[str] | None,
    executor: str,
    scheduler: str | None,
    *,
    once: bool,
    new_set: bool,
    style: str,
) -> int:
    if executor not in ("local", "dask", "slurm"):
        raise ConfigError(f"--executor {executor}: allowed are local, dask and slurm")
    if scheduler is not None and executor != "dask":
        raise ConfigError("--scheduler is of --executor dask")
    config, plugins, plan = _prepare(path, overrides)
    importlib.import_module("streamprep.notify").places(config)  # an error here, and not silence later
    from streamprep.engine import Engine

    with contextlib.ExitStack() as ending:
        where: dict[str, Any] = {}
        if executor != "local":
            from streamprep.cluster import DaskExecutor

            cluster = DaskExecutor(config, plan.hash, scheduler=scheduler, slurm=executor == "slurm")
            ending.callback(cluster.stop)
            where = {"executor": cluster.begin, "device": cluster.device}
        engine = Engine(config, plugins, plan, once=once, new_set=new_set, **where)
        console = _prepare_session(engine, plugins, style)
        ending.callback(console.restore)
        last = engine.run()
        end_session(console)
    return 1 if last.mode == "stopped" or (once and last.failed) else 0


def _prepare_session(engine: Any, plugins: Plugins, style: str) -> Any:
    _log_to(engine.output / ".streamprep" / "log")
    console = importlib.import_module("streamprep.console").Console(style)
    plugins.manager.register(console, name="console")
    engine.handle_signals(console.restore)
    return console


def end_session(console: Any) -> None:
    """Tell the end, then draw the last pictures: the session holds nothing any more, and nobody waits for them."""
    with importlib.import_module("streamprep.sinks.pictures").last_pictures() as seconds:
        if seconds:
            console.drawing_pictures(seconds)
        console.close()


class _Log(logging.handlers.RotatingFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        """Nothing: where the disk is full, the console says so, and the log has to wait."""


def _is_not_of_the_end(record: logging.LogRecord) -> bool:
    """False for what watchdog calls an error when its thread looks once more after it was stopped."""
    return not (record.name.startswith("watchdog.") and "when the thread is inactive" in record.getMessage())


def _log_to(folder: Path) -> None:
    from streamprep.snapshot import LogForm

    folder.mkdir(parents=True, exist_ok=True)
    handler = _Log(
        folder / "streamprep.log",
        maxBytes=10 << 20,
        backupCount=5,
        encoding="utf-8",
        errors="backslashreplace",
    )
    handler.setFormatter(LogForm("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.addFilter(_is_not_of_the_end)
    for name in ("streamprep", "watchdog", "distributed"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


@app.command(rich_help_panel=PREPARING)
def init(
    folder: Annotated[Path, typer.Argument(help="Folder of the session.")] = Path(),
    operations: Annotated[
        list[str] | None,
        typer.Option(
            "--operation",
            "-o",
            metavar="LANE.NAME",
            help="Turn this operation on. May be repeated.",
            autocompletion=completion.lanes,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a configuration that is there.")] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Write nothing; print the reference of all keys as a page of Markdown.")
    ] = False,
) -> None:
    """Write a commented configuration, made from the operations' own parameters.

    Every installed operation that sessions run stands in it; those not asked for are commented out.

    Example: [bold]streamprep init session -o coordinates.pick_noise -o particles.normalize[/bold]
    """
    from streamprep import templates
    from streamprep.plugin_manager import load_plugins

    if markdown:
        _out(templates.configuration_page(load_plugins()).rstrip("\n"))
        return
    path = folder / "streamprep.toml"
    if path.exists() and not force:
        raise ConfigError(f"{path}: there is a configuration already; --force overwrites it")
    text = templates.configuration(load_plugins(), folder, set(operations or templates.DEFAULT_OPERATIONS))
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    _out(f"wrote {path}; now: streamprep check {path}")


@app.command(rich_help_panel=PREPARING)
def check(
    config: ConfigPath = DEFAULT_CONFIG,
    overrides: Overrides = None,
    notify: Annotated[bool, typer.Option("--notify", help=r"Send a test message, as \[notify] says.")] = False,
) -> None:
    """Check the configuration, the folders, the disk, the GPU, and which way y runs, without processing anything.

    Where coordinates and their micrographs are there already, up to 8 micrographs of
    each watched folder show whether they stand out from the background more at the
    coordinates as they are, or with y turned over. That they certainly fit the other
    way is a warning, with what to set, and leaves the exit code at 0; it is 1 where
    the disk is too full or a test message was not taken, and 2 for a wrong configuration.

    Example: [bold]streamprep check streamprep.toml --set 'matching.flip_y=["Coordinates"]'[/bold]
    """
    loaded, plugins, plan = _prepare(config, overrides)
    from streamprep.arrays import choose_backend
    from streamprep.pipeline import required_kinds
    from streamprep.session import choose_output, make_sources
    from streamprep.watcher import file_system_of, is_remote

    _out(f"configuration  {loaded.file}: valid, plan {plan.hash}")
    broken = f", could not be loaded: {', '.join(made.name for made in plugins.broken)}" if plugins.broken else ""
    _out(f"plugins        {len(plugins.operations)} operations{broken}")
    _out(f"sinks          {', '.join(sink.name for sink in plugins.make_sinks(loaded))}")
    _out(f"device         {choose_backend(loaded.session.device).description}")
    for source in make_sources(loaded, plan):
        kind = file_system_of(source.root)
        told = f"{kind}, scanned every {loaded.session.poll_seconds:g} s" if is_remote(kind) else f"{kind}, events"
        what = f" ({source.pattern})" if source.pattern else ""
        _out(f"watched        {source.root}{what}: {told}")
    output, _ = choose_output(loaded, plan)
    there = _writable(output)
    free = shutil.disk_usage(there).free
    short = free < loaded.session.reserve_mib << 20
    _out(f"output         {output}: {free / 2**30:.1f} GiB free" + (", below the reserve" if short else ""))
    if plan.extract is None:
        stacks = "; stacks of particles that come with a table are processed" if any(plan.lane("particles")) else ""
        _out(f"note           no [extract] table: no boxes will be cut{stacks}")
    if loaded.optics.pixel_size_angstrom is None:
        _out("note           no [optics] pixel_size_angstrom: it is that of each file's table or header")
    taken = _check_messages(loaded, notify)
    if "micrograph" in required_kinds(loaded, plan):
        _check_orientation(loaded, plugins, plan, output)
    if short or not taken:
        raise typer.Exit(1)


def _check_messages(config: Config, send: bool) -> bool:
    """Whether each place that messages go to took a test, where one is to be sent."""
    notify = importlib.import_module("streamprep.notify")
    places = notify.places(config)
    if send and not places:
        raise ConfigError(f"{config.file}: [notify] names nowhere to send to; give webhook, webhook_file or mail")
    said = notify.test(config) if send else [(place, "") for place in places]
    for place, trouble in said:
        if trouble:
            sys.stderr.write(f"warning: {_shown(place)} did not take a test message: {_shown(trouble)}\n")
        else:
            _out(f"messages       {place}" + (" took a test message" if send else ""))
    return not any(trouble for _, trouble in said)


def _check_orientation(config: Config, plugins: Plugins, plan: Plan, output: Path) -> None:
    from streamprep import orientation

    findings, passed_over = orientation.measure(config, plugins, plan, output)
    for finding in findings:
        text = finding.text(config.matching.flip_y)
        if finding.wrong:
            sys.stderr.write(f"warning: coordinates of {_shown(text)}\n")
        else:
            _out(f"coordinates    {text}")
    for line in passed_over[:_TOLD]:
        _out(f"note           passed over {line}")
    if len(passed_over) > _TOLD:
        _out(f"note           {len(passed_over) - _TOLD} more files were passed over")


def _writable(output: Path) -> Path:
    """The output folder, or the one above in which it would be made, after a trial."""
    there = output
    while not there.exists():
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            return there
    except OSError as error:
        said = "this is a file, not a folder" if not there.is_dir() else f"cannot be written: {error.strerror}"
        raise ConfigError(f"[session] output {output}: {there}: {said}; give another output folder") from error


@app.command(rich_help_panel=PREPARING)
def plan(config: ConfigPath = DEFAULT_CONFIG, overrides: Overrides = None) -> None:
    """Show what would run, in which order and with which parameters.

    Example: [bold]streamprep plan --set particles.invert.order=5[/bold]
    """
    loaded, _, made = _prepare(config, overrides)
    _out(f"plan {made.hash}")
    for step in made.steps:
        values = ", ".join(f"{name}={value}" for name, value in step.params.model_dump(mode="json").items())
        _out(
            f"  {step.table:<12} {step.order:>4}  {step.name:<18} {values or '-'}"
            f"  [{step.operation.distribution} {step.operation.version}]"
        )
    from streamprep.pipeline import required_kinds
    from streamprep.session import named_files

    for kind, needed in required_kinds(loaded, made).items():
        texts = [*needed.values(), *(named_files(loaded, made).values() if kind == "map" else ())]
        if texts:
            _out(f"each {'stack of particles' if kind == 'particles' else kind} waits for: {', '.join(texts)}")


@app.command(rich_help_panel=PREPARING)
def ops(
    name: Annotated[
        str | None, typer.Argument(help="Operation to explain.", autocompletion=completion.operations)
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="All of them, as one page of Markdown.")] = False,
) -> None:
    """List the operations, or explain one with its parameters.

    Example: [bold]streamprep ops normalize[/bold]
    """
    from streamprep import templates
    from streamprep.plugin_manager import load_plugins

    plugins = load_plugins()
    if markdown:
        _out(templates.operations_page(plugins).rstrip("\n"))
    else:
        _out(templates.explain_operation(plugins, name) if name else templates.list_operations(plugins))


@app.command(rich_help_panel=WRITING)
def hooks(
    name: Annotated[str | None, typer.Argument(help="Hook to explain.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="All of them, as one page of Markdown.")] = False,
) -> None:
    """List the hooks that plugins may implement, or explain one: when it is called, what it receives and returns.

    Example: [bold]streamprep hooks process_particles[/bold]
    """
    from streamprep import hook_reference

    if markdown:
        _out(hook_reference.page().rstrip("\n"))
    else:
        _out(hook_reference.explain_hook(name) if name else hook_reference.list_hooks())


@app.command(rich_help_panel=PREPARING)
def plugins(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """List the plugins: name, distribution, version, hooks, and the error of those that could not be loaded.

    Example: [bold]streamprep plugins --json[/bold]
    """
    from streamprep.plugin_manager import load_plugins

    loaded = load_plugins()
    if as_json:
        keys = ("name", "distribution", "version", "hooks", "operations", "error", "blocked")
        _out(json.dumps([{key: getattr(plugin, key) for key in keys} for plugin in loaded.plugins], indent=2))
        return
    width = max(len(plugin.name) for plugin in loaded.plugins)
    for plugin in loaded.plugins:
        state = "BROKEN" if plugin.error else ", ".join(plugin.hooks)
        _out(f"{plugin.name:<{width}} {plugin.distribution} {plugin.version:<10} {state}")
    for plugin in loaded.broken:
        _out(f"\n{plugin.name} of {plugin.distribution} could not be loaded:\n{plugin.error}")


@app.command(rich_help_panel=SESSIONS)
def status(
    config: ConfigPath = DEFAULT_CONFIG,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    tracebacks: Annotated[bool, typer.Option("--tracebacks", help="With the tracebacks of failures.")] = False,
) -> None:
    """Show the state of a session, running or not: counts, what waits and for what, failures and warnings.

    Example: [bold]streamprep status --json | jq .jobs[/bold]
    """
    loaded, _, made = _prepare(config, overrides)
    from streamprep import inspection

    report = inspection.look(loaded, made)
    _out(
        json.dumps(report, indent=2, default=str) if as_json else inspection.report_text(report, tracebacks=tracebacks)
    )


@app.command(rich_help_panel=SESSIONS)
def retry(
    config: ConfigPath = DEFAULT_CONFIG,
    overrides: Overrides = None,
    item: Annotated[str | None, typer.Option(metavar="TEXT", help="Only items whose name contains this.")] = None,
) -> None:
    """Take failed items up again: at once where the daemon runs, else at its next start.

    Example: [bold]streamprep retry --item mic_0042[/bold]
    """
    loaded, _, made = _prepare(config, overrides)
    from streamprep import inspection

    _out(inspection.retry(loaded, made, item))


@app.command(rich_help_panel=SESSIONS)
def repair(
    config: ConfigPath = DEFAULT_CONFIG,
    overrides: Overrides = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every file that was made, and compare it with its checksum.")
    ] = False,
) -> None:
    """Make a session whole again where its ledger, or what it knows of, is missing or damaged.

    What is done and whole stays as it is; what is missing or damaged is made again at the next start. A ledger that is
    replaced is kept.

    Example: [bold]streamprep repair --verify[/bold]
    """
    loaded, plugins, made = _prepare(config, overrides)
    from rich.console import Console
    from rich.progress import Progress

    from streamprep.repair import repair

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("looking at what was made", total=None)
        done = repair(
            loaded,
            plugins,
            made,
            verify=verify,
            progress=lambda read, total: bar.update(task, completed=read, total=total),
        )
    if done.trouble is None:
        whole = "all files hold what was committed" if verify else "all files are there (--verify reads them, too)"
        _out(f"{done.output}: nothing to repair: {whole}")
        return
    _out(f"{done.output}: {done.trouble}")
    if done.commits:
        _out(f"the ledger was made again: {done.items} items are done, by {done.commits} commits")
    if done.aside is not None:
        _out(f"the former ledger is kept as {done.aside}")
    for said in done.damaged[:SHOWN]:
        _out(f"made again at the next start: {said}")
    if done.damaged[SHOWN:]:
        _out(f"and {len(done.damaged) - SHOWN} more")


@app.command(rich_help_panel=SESSIONS)
def upgrade(
    config: ConfigPath = DEFAULT_CONFIG,
    overrides: Overrides = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do it; what differs is told otherwise, and nothing is done.")
    ] = False,
) -> None:
    """Have a session go on that other versions of streamprep or of plugins began.

    Where more than versions differs, it is refused. A ledger of an older form is upgraded by the next start anyway.

    Example: [bold]streamprep upgrade --yes[/bold]
    """
    loaded, _, made = _prepare(config, overrides)
    from streamprep.upgrading import continue_with, other_versions

    output, changes = other_versions(loaded, made)
    for change in changes:
        _out(change)
    if not changes:
        _out(f"{output}: made with these versions; nothing to do")
    elif yes:
        continue_with(loaded, made, output, changes)
        _out(f"{output}: the next start goes on with it")
    else:
        _out(f"{output}: the same but for that; --yes has the session go on with these versions")
        raise typer.Exit(1)


@app.command(rich_help_panel=SESSIONS)
def report(config: ConfigPath = DEFAULT_CONFIG, overrides: Overrides = None) -> None:
    """Make all pictures that are due, and report.html, of a session that runs or ran; needs no right but to write them.

    Example: [bold]streamprep report --set pictures.most=200[/bold]
    """
    loaded, plugins, made = _prepare(config, overrides)
    from rich.console import Console
    from rich.progress import Progress

    from streamprep.inspection import existing_output
    from streamprep.report.process import REPORT, Maker

    output = existing_output(loaded, made)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("drawing", total=None)
        Maker(loaded, plugins, made, output).all(lambda done, total: bar.update(task, completed=done, total=total))
    _out(str(output / REPORT))


@app.command(rich_help_panel=SESSIONS)
def dashboard(
    config: ConfigPath = DEFAULT_CONFIG,
    overrides: Overrides = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="To listen on. All but this machine's own ask for a token.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="NUMBER", help="Port to listen on; 0: any that is free.")
    ] = 8765,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Of mode 600, with the token to ask for; it is made where it is not there."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A further name that browsers may call this server by. May be repeated."),
    ] = None,
) -> None:
    """Show a session in the browser, while its daemon runs and afterwards. Nothing is written or locked.

    It needs the extra web: pip install 'streamprep\\[web]'.

    Example: [bold]streamprep dashboard streamprep.toml --port 8080[/bold]

    Another machine sees it through a tunnel: [bold]ssh -N -L 8765:127.0.0.1:8765 USER@HOST[/bold]

    The whole network may, with a token: [bold]streamprep dashboard --host 0.0.0.0 --token-file token[/bold]
    """
    loaded, _, made = _prepare(config, overrides)
    from streamprep.session import find_output

    try:
        server = importlib.import_module("streamprep.web.server")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("streamprep"):
            raise
        raise ConfigError(
            f"the dashboard needs {error.name}; install it with: pip install 'streamprep[web]'"
        ) from error
    server.serve(
        lambda: find_output(loaded, made),
        config=config.absolute(),
        overrides=overrides or (),
        host=host,
        port=port,
        token_file=token_file,
        allow_hosts=allow_host or (),
        out=lambda line: print(_shown(line), flush=True),  # noqa: T201 - at once, where standard output is a pipe
    )


# --- trying things out -----------------------------------------------------------------------------------------------


@app.command(rich_help_panel=TRYING)
def apply(
    operations: Annotated[
        str,
        typer.Argument(
            help="Operations, separated by commas, in the order they run.", autocompletion=completion.operation_lists
        ),
    ],
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Particle stack (.mrcs) or map (.mrc, .map, .ccp4).")],
    target: Annotated[Path, typer.Argument(metavar="OUTPUT", help="File to write, of the same kind.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="OPERATION.KEY=VALUE",
            help="A parameter. May be repeated.",
            autocompletion=completion.parameters,
        ),
    ] = None,
    pixel_size_angstrom: Annotated[
        float | None, typer.Option(min=1e-6, metavar="NUMBER", help=r"Pixel size \[Å]; from the header unless given.")
    ] = None,
    ctf: Annotated[Path | None, typer.Option(metavar="FILE", help="STAR table with the CTF of each particle.")] = None,
    device: Annotated[str, typer.Option(metavar="auto|cpu|gpu", help="Where to compute.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, metavar="NUMBER", help="Seed of random numbers.")] = 0,
) -> None:
    """Run operations on one stack or map, without a session.

    What an operation tells of each image (center: its shift) is written beside OUTPUT, in NAME_particles.star.
    OUTPUT may be INPUT: it is replaced once all is done.

    Example: [bold]streamprep apply normalize,invert in.mrcs out.mrcs --set normalize.method=new[/bold]
    """
    if device not in ("auto", "cpu", "gpu"):
        raise ConfigError(f"--device {device}: allowed are auto, cpu and gpu")
    from streamprep.apply import apply as run_on_file
    from streamprep.plugin_manager import load_plugins

    notes: list[str] = []
    warnings = run_on_file(
        [name.strip() for name in operations.split(",")],
        source,
        target,
        load_plugins(sinks=False),
        overrides=overrides or (),
        pixel_size_angstrom=pixel_size_angstrom,
        ctf=ctf,
        device=device,  # type: ignore[arg-type]
        seed=seed,
        note=notes.append,
    )
    for note in notes:
        sys.stderr.write(f"note: {_shown(note)}\n")
    for warning in warnings:
        sys.stderr.write(f"warning: {_shown(warning)}\n")


@app.command(rich_help_panel=WRITING)
def new_plugin(
    name: Annotated[str, typer.Argument(help="Name of the operation, as band-pass.")],
    folder: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the package's folder is made.")] = Path(),
    hook: Annotated[
        str,
        typer.Option(
            metavar="process_particles|process_micrograph|process_coordinates|process_map",
            help="What the operation works on.",
        ),
    ] = "process_particles",
) -> None:
    """Write a package to begin a plugin with: an operation, its tests, a README.

    Its tests pass as it is; docs/plugins.md goes on from there.

    Example: [bold]streamprep new-plugin band-pass --hook process_map[/bold]
    """
    from streamprep.new_plugin import new_plugin
    from streamprep.plugin_manager import load_plugins

    root = new_plugin(name, folder, hook, load_plugins())
    _out(f"wrote {root}; now: cd {root} && pip install --editable '.[dev]' && pytest")


@app.command(rich_help_panel=TRYING)
def simulate(
    folder: Annotated[Path, typer.Argument(help="Folder to make the acquisition in.")],
    micrographs: Annotated[int, typer.Option(min=1, metavar="NUMBER", help="Number of micrographs.")] = 8,
    size: Annotated[
        int, typer.Option(min=128, max=16384, metavar="NUMBER", help=r"Side of a micrograph \[px].")
    ] = 1024,
    particles: Annotated[int, typer.Option(min=0, metavar="NUMBER", help="Particles on each.")] = 30,
    box: Annotated[int, typer.Option(min=16, metavar="NUMBER", help=r"Box size \[px].")] = 96,
    seed: Annotated[int, typer.Option(min=0, metavar="NUMBER", help="Seed: the same seed makes the same bytes.")] = 0,
    interval: Annotated[
        float, typer.Option(min=0, metavar="NUMBER", help="Seconds between exposures; 0: at once.")
    ] = 0.0,
) -> None:
    """Make a realistic acquisition: micrographs with known particles, CTF, noise, ice, hot pixels and carbon.

    Example: [bold]streamprep simulate session --micrographs 20 --interval 3[/bold]
    """
    from streamprep.simulate import Acquisition
    from streamprep.simulate import simulate as expose_all

    acquisition = Acquisition(micrographs=micrographs, size_px=size, particles=particles, box_size_px=box, seed=seed)

    def progress(done: int, total: int) -> None:
        _out(f"exposure {done} of {total}")

    expose_all(folder, acquisition, interval_s=interval, progress=progress)
    if not (folder / "streamprep_out").exists():  # else a session goes on there, or went
        _out(f"now: streamprep run {folder / 'streamprep.toml'}")


@app.command(rich_help_panel=TRYING)
def demo(
    folder: Annotated[
        Path, typer.Argument(help="Folder for the demonstration; an earlier one in it is removed.")
    ] = Path("demo"),
    micrographs: Annotated[int, typer.Option(min=1, metavar="NUMBER", help="Number of micrographs.")] = 6,
    interval: Annotated[float, typer.Option(min=0, metavar="NUMBER", help="Seconds between exposures.")] = 1.5,
    plain: Plain = False,
) -> None:
    """See it work: a simulated microscope and the daemon side by side, then a summary and a report with pictures.

    Example: [bold]streamprep demo --micrographs 10[/bold]
    """
    from streamprep import demonstration

    started = time.monotonic()
    code = demonstration.run(folder, micrographs, interval, _style(False, False, plain), _prepare_session, end_session)
    _out(f"done in {time.monotonic() - started:.0f} s")
    raise typer.Exit(code)
