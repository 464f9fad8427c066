"""The configuration file: TOML in, typed and checked `Config` out."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from streamprep.arrays import DeviceName
from streamprep.model import ConfigError, nearest
from streamprep.naming import DEFAULT_SUFFIXES

Parameters = dict[str, Any]
M = TypeVar("M", bound=BaseModel)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Session(_Section):
    """Where the data comes from and goes to, and how the daemon behaves."""

    watch: list[str] = Field(..., min_length=1, description="Folders to watch, relative to this file.")
    output: str = Field("streamprep_out", description="Folder of the results, relative to this file.")
    device: DeviceName = Field("auto", description="auto (a GPU where there is one), cpu, or gpu.")
    seed: int = Field(0, ge=0, description="Seed of every random number in this session.")
    workers: int = Field(0, ge=0, le=256, description="Worker processes; 0: one per core, or one per GPU.")
    settle_seconds: float = Field(1.0, ge=0, description="A file is stable when unchanged for this long [s].")
    rescan_seconds: float = Field(
        30.0, gt=0, description="Least time between full scans of the folders, events or not [s]."
    )
    poll_seconds: float = Field(5.0, gt=0, description="The same, on file systems that give no events [s].")
    events: Literal["auto", "off"] = Field("auto", description="off: never rely on file system events, scan only.")
    incomplete_seconds: float = Field(
        60.0,
        ge=0,
        description="A truncated file that does not grow for this long counts as failed, until it does [s].",
    )
    job_timeout_seconds: float = Field(600.0, gt=0, description="A job that takes longer is stopped and retried [s].")
    start_timeout_seconds: float = Field(
        120.0, gt=0, description="A worker process that is not ready to work after this time is stopped [s]."
    )
    worker_memory_mib: int = Field(
        0,
        ge=0,
        description="Memory that a worker process may take [MiB]; 0: 90 % of the machine's, without limit on a GPU.",
    )
    max_attempts: int = Field(3, ge=1, description="A job that fails this often is put aside as failed.")
    stop_after_failures: int = Field(
        10, ge=1, description="Stop taking new work when one operation fails on this many items in a row."
    )
    publish_seconds: float = Field(2.0, ge=0, description="Renew the published tables at most this often [s].")
    reserve_mib: int = Field(512, ge=0, description="Pause when the output disk has less free space [MiB].")
    image_paths: Literal["output", "session", "absolute"] = Field(
        "output",
        description="How tables name the stacks: relative to the output folder, to this file, or absolute.",
    )


class OpticsSection(_Section):
    """What the microscope was set to."""

    pixel_size_angstrom: float | None = Field(
        None, gt=0, description="Pixel size of the micrographs [Å]; from their headers unless given."
    )
    voltage_kv: float = Field(300.0, gt=0, description="Acceleration voltage [kV].")
    spherical_aberration_mm: float = Field(2.7, ge=0, description="Cs [mm].")
    amplitude_contrast: float = Field(0.1, ge=0, le=1, description="Fraction of amplitude contrast.")


class CtfSection(_Section):
    """Where the CTF of the micrographs comes from. With this table, every micrograph waits for its CTF."""

    table: str = Field(..., description="CTF table, or a pattern of tables (CtfFind/*.star), relative to this file.")


class Matching(_Section):
    """How tables find their micrographs."""

    suffixes: list[Annotated[str, Field(min_length=1)]] = Field(
        list(DEFAULT_SUFFIXES), description="Endings to ignore when the names of two files are compared."
    )
    flip_y: list[str] = Field(
        [],
        description="Watched folders, as in watch, whose coordinates count y from the last row of the image; it "
        "depends on the program that made the micrographs, not on the format.",
    )


class Sets(_Section):
    """What the published sets look like, beside the STAR tables, which are always written."""

    further_tables: list[Literal["xmd", "cs"]] = Field(
        ["xmd"], description="Further tables of the particle sets: xmd (Xmipp), cs (cryoSPARC)."
    )
    coordinate_files: list[Literal["pos", "box"]] = Field(
        ["pos", "box"],
        description="Coordinate files for each micrograph: pos (Xmipp), box (EMAN; where the box size is known).",
    )
    stack_dtype: Literal["float32", "float16"] = Field(
        "float32",
        description="How stacks are stored; float16 halves them, and keeps 3 digits of values up to 65504.",
    )


class ClusterSection(_Section):
    """Where --executor dask and --executor slurm find or get their workers; it changes no result."""

    scheduler: str | None = Field(
        None, description="Of --executor dask: address of the scheduler, as tcp://host:8786; --scheduler wins."
    )
    queue: str | None = Field(None, description="Of --executor slurm, as all that follows: partition of its jobs.")
    account: str | None = Field(None, description="Account that pays for them.")
    cores: int = Field(4, ge=1, le=1024, description="Cores of a job of SLURM; it has so many worker processes.")
    memory_gib: float = Field(16.0, gt=0, description="Memory of a job of SLURM [GiB].")
    walltime: str = Field(
        "04:00:00", pattern=r"^(\d+-)?\d+(:\d\d){1,2}$", description="Longest life of a job of SLURM, as HH:MM:SS."
    )
    minimum_jobs: int = Field(0, ge=0, description="Jobs of SLURM to keep, whatever there is to do.")
    maximum_jobs: int = Field(1, ge=1, description="Most jobs of SLURM; between the two as the work needs.")
    gpu_directive: str = Field("--gres=gpu:1", description='How to ask for a GPU, where device = "gpu".')
    directives: list[str] = Field([], description='Further directives, as "--constraint=icelake".')
    prologue: list[str] = Field([], description="Lines of shell before the worker, as module load or ulimit.")
    python: str | None = Field(None, description="Python on the nodes, with streamprep; this one's path unless given.")
    interface: str | None = Field(None, description="Network interface to the nodes, as ib0.")
    scratch: str | None = Field(None, description="Local folder on the nodes for files of Dask itself.")


class PicturesSection(_Section):
    """Pictures of single items in gallery/, and report.html, made beside the session; they change no result."""

    enabled: bool = Field(True, description="Whether a run makes them; `streamprep report` does at any time.")
    every_seconds: float = Field(
        10.0,
        ge=0,
        description="Least time between the pictures of two items in a run [s]; they take 5 % of a core at most.",
    )
    most: int = Field(
        60,
        ge=1,
        le=1000,
        description="Items that have pictures: the first, the newest, outliers and a spread over all.",
    )
    boxes: int = Field(24, ge=1, le=400, description="Boxes in a montage.")
    finish_seconds: float = Field(
        20.0, ge=0, le=3600, description="The end of a run waits this long at most for what is still to be drawn [s]."
    )


class NotifySection(_Section):
    """Who is told when something is wrong with a session, and when it ends; it changes no result."""

    webhook: SecretStr | None = Field(
        None,
        description="Address that messages are posted to, as JSON; ${NAME} in it is taken from the environment. It is "
        "a secret, and no log shows it.",
    )
    webhook_file: str | None = Field(
        None, description="File that holds this address, relative to this file, which others may then read."
    )
    webhook_format: Literal["text", "teams"] = Field(
        "text", description="text (Slack, Mattermost, and most others) or teams (Microsoft Teams)."
    )
    mail: list[str] = Field(
        [],
        description='Command that sends an e-mail, as ["mail", "-s", "{subject}", "em-staff@example.org"]; the message '
        "is its input, and there is no shell.",
    )
    name: str | None = Field(None, description="What messages call this session; the folder's name unless given.")
    stall_minutes: float = Field(
        20.0, ge=0, description="Tell when nothing was finished for so long though there is work; 0: never [min]."
    )
    quiet_minutes: float = Field(
        30.0, ge=0, description="Tell when no file has arrived for so long after others had; 0: never [min]."
    )
    failures_percent: float = Field(
        20.0, ge=0, le=100, description="Tell when more than this of the last 50 items failed; 0: never [%]."
    )
    disk_hours: float = Field(
        4.0,
        ge=0,
        description="Tell when the output disk is full within so long at the pace of the last minutes; less than twice "
        "the reserve is told anyway [h].",
    )
    warnings: bool = Field(False, description="Tell every warning about the session, once.")
    summary: bool = Field(True, description="Tell how the session ended.")
    messages_per_hour: int = Field(12, ge=1, description="Most messages in an hour; the last one comes all the same.")

    @property
    def wanted(self) -> bool:
        """Whether messages go anywhere."""
        return bool(self.webhook is not None or self.webhook_file is not None or self.mail)


class PluginsSection(_Section):
    """Which installed plugins to leave out."""

    block: list[str] = Field([], description="Names of plugins that are not to be loaded.")


class Config(_Section):
    """A whole configuration. Operation tables are raw here; the plan checks them with the operations' own models."""

    session: Session
    optics: OpticsSection = OpticsSection()
    ctf: CtfSection | None = None
    matching: Matching = Matching()
    sets: Sets = Sets()
    plugins: PluginsSection = PluginsSection()
    cluster: ClusterSection = ClusterSection()
    pictures: PicturesSection = PicturesSection()
    notify: NotifySection = NotifySection()
    micrographs: dict[str, Parameters] = Field({}, description="Operations on micrographs.")
    coordinates: dict[str, Parameters] = Field({}, description="Operations on coordinates.")
    extract: Parameters | None = Field(None, description="How boxes are cut.")
    particles: dict[str, Parameters] = Field({}, description="Operations on particle images.")
    maps: dict[str, Parameters] = Field({}, description="Operations on maps.")
    sinks: dict[str, Parameters] = Field({}, description="Sinks of plugins, and their parameters.")

    file: Path = Field(Path("streamprep.toml"), exclude=True)
    """Where it was read from; not a key of the file."""

    @property
    def folder(self) -> Path:
        """The folder that relative paths are relative to."""
        return self.file.parent

    def resolve(self, path: str) -> Path:
        """A path of the file as an absolute path, links left as they are."""
        try:
            return Path(self.folder, Path(path).expanduser()).absolute()
        except RuntimeError as error:
            raise ConfigError(f"{self.file}: {path!r}: no home folder is known for its ~; write it out") from error

    def sink(self, name: str, model: type[M]) -> M | None:
        """The parameters of a plugin's sink, from its table ``[sinks.NAME]``; None where the file has no such table.

        Raises
        ------
        ConfigError
            A parameter is unknown or not allowed.
        """
        if name not in self.sinks:
            return None
        try:
            return model.model_validate(self.sinks[name])
        except ValidationError as error:
            raise ConfigError("\n".join(explain(error, f"{self.file}: [sinks.{name}]", model))) from error

    @property
    def watch_folders(self) -> list[Path]:
        """The watched folders."""
        return [self.resolve(path) for path in self.session.watch]


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration file.

    Parameters
    ----------
    path
        The TOML file, or the folder in which it is ``streamprep.toml``.
    overrides
        ``table.key=value`` texts, as from ``--set``; they win over the file.

    Raises
    ------
    ConfigError
        The file is missing or not TOML; a key is unknown (the nearest known one is named); a value is not allowed.
    """
    if path.is_dir():
        path /= "streamprep.toml"
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; `streamprep init` writes one") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    for text in overrides:
        keys, value = parse_override(text)
        place: dict[str, Any] = raw
        for key in keys[:-1]:
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--set {text}: {key} is a value, not a table")
        place[keys[-1]] = value
    if "file" in raw:
        raise ConfigError(_unknown(path, "", "file", Config))
    try:
        return Config.model_validate({**raw, "file": path.absolute()})
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, str(path), Config))) from error


def parse_override(text: str) -> tuple[list[str], Any]:
    """Split ``a.b.c=value``; the value is read as TOML where it is TOML, else it is text.

    Examples
    --------
    >>> parse_override("particles.normalize.background_radius_px=30")
    (['particles', 'normalize', 'background_radius_px'], 30)
    >>> parse_override("particles.normalize.method=new")
    (['particles', 'normalize', 'method'], 'new')
    """
    name, equals, value = text.partition("=")
    keys = [key.strip() for key in name.split(".")]
    if not equals or not all(keys):
        raise ConfigError(f"--set {text}: write it as TABLE.KEY=VALUE, for example particles.normalize.method=new")
    try:
        return keys, tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return keys, value


def explain(error: ValidationError, where: str, model: type[BaseModel], prefix: Sequence[str] = ()) -> list[str]:
    """A pydantic error as lines that name the place, the key, the value, what is allowed and the nearest key."""
    lines = []
    for problem in error.errors():
        location = [str(part) for part in problem["loc"]]
        table = ".".join([*prefix, *location[:-1]])
        key = location[-1] if location else ""
        if problem["type"] == "extra_forbidden":
            lines.append(_unknown(where, table, key, _model_at(model, location[:-1])))
            continue
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "missing":
            whole = issubclass(model, Config) and not table  # else they are parameters of one operation
            needed = f"a table [{key}] is needed" if whole else f"[{table}] needs {key}" if table else f"needs {key}"
            lines.append(f"{where}: {needed}")
        elif key:
            name = f"[{table}] {key}" if table else key
            value = problem["input"]
            secret = table.split(".")[0] == "notify" and (key == "webhook" or "://" in str(value))
            shown = f" = {value!r}" if not isinstance(value, Mapping) and not secret else ""
            lines.append(f"{where}: {name}{shown}: {message[:1].lower()}{message[1:]}")
        else:
            lines.append(f"{where}: [{table}] {message}" if table else f"{where}: {message}")
    return lines


def _model_at(model: type[BaseModel], location: Iterable[str]) -> type[BaseModel]:
    for key in location:
        found = model.model_fields[key].annotation if key in model.model_fields else None
        options = getattr(found, "__args__", (found,))
        model = next((part for part in options if isinstance(part, type) and issubclass(part, BaseModel)), model)
    return model


def _unknown(where: object, table: str, key: str, model: type[BaseModel]) -> str:
    known = [name for name in model.model_fields if name != "file"]
    return f"{where}: {f'[{table}] ' if table else ''}{key}: unknown key; {nearest(key, known)}"
