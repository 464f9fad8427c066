"""File formats: one module per family. What a file is, whether it is whole, and what is in it.

The hooks below are the built-in readers; a third party's ``classify_path`` and ``read_item`` are asked first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from streamprep.formats import cryolo, cryosparc, ctffind, eman, mrc, spider, star, tiff, topaz, xmipp
from streamprep.hookspecs import hookimpl
from streamprep.model import Entry, Image, InputError, Item, Kind
from streamprep.naming import is_picture

HEAD_BYTES = 4096
IMAGE_ENDINGS = (".mrc", ".mrcs", ".map", ".ccp4")
SPIDER_ENDINGS = (".spi", ".vol", ".stk", ".xmp")
TIFF_ENDINGS = (".tif", ".tiff")
COMPRESSED_ENDINGS = (".gz", ".bz2")


class TableReader(Protocol):
    """A module that reads one family of tables."""

    def recognise(self, path: Path, head: bytes) -> Kind | None:
        """What a file that begins with ``head`` is; None where it is another's."""

    def read_entries(self, path: Path) -> list[Entry]:
        """What it says of each micrograph."""


TABLES: tuple[TableReader, ...] = (xmipp, cryosparc, ctffind, cryolo, eman, topaz, star)
"""Asked in this order."""

TABLE_ENDINGS = (".star", ".pos", ".xmd", ".ctfparam", ".box", ".cbox", ".json", ".txt", ".cs")
"""What a file that cannot be read is taken for: a table, or an image."""

__all__ = ["HEAD_BYTES", "classify_path", "depends_on", "is_part_of_tables", "missing_part", "read_item"]


@hookimpl(trylast=True)
def missing_part(path: Path, size_bytes: int, head: bytes) -> str | None:
    """What is not there yet of a file that is being written; None when it is whole, as far as its format can tell.

    Parameters
    ----------
    path
        Its ending and ``head`` choose the format.
    size_bytes
        Size of the file.
    head
        Its first 4096 bytes.

    Raises
    ------
    InputError
        It can never become a usable file.
    """
    if image_ending(path) in IMAGE_ENDINGS:
        return mrc.missing(path, size_bytes, head)
    if path.suffix.lower() in SPIDER_ENDINGS:
        return spider.missing(path, size_bytes, head)
    if path.suffix.lower() in TIFF_ENDINGS:
        return tiff.missing(path, size_bytes, head)
    if path.suffix.lower() == ".cs":
        return cryosparc.missing(path, size_bytes, head)
    return None


def image_ending(path: Path) -> str:
    """The ending that says what a file is: that before ``.gz`` or ``.bz2`` where it is compressed.

    Examples
    --------
    >>> image_ending(Path("mic.MRC")), image_ending(Path("mic.mrc.gz"))
    ('.mrc', '.mrc')
    """
    ending = path.suffix.lower()
    return path.with_suffix("").suffix.lower() if ending in COMPRESSED_ENDINGS else ending


@hookimpl(trylast=True)
def classify_path(path: Path, head: bytes) -> Kind | None:
    """Tell micrographs, stacks and maps by their headers, tables by what they begin with.

    A power spectrum beside its micrograph would wait for coordinates for ever, or be given those of a micrograph that
    is not there yet: what is called like one is ``other``.
    """
    kind = _kind_of(path, head)
    return "other" if kind == "micrograph" and is_picture(path.name) else kind


def _kind_of(path: Path, head: bytes) -> Kind | None:
    ending = image_ending(path)
    if ending in IMAGE_ENDINGS:
        header = mrc.parse_header(path, mrc.plain_head(path, head))
        if ending == ".mrcs":
            return "particles"
        if header.nz == 1 and ending == ".mrc":
            return "micrograph"
        return "map" if header.space_group >= 1 or ending != ".mrc" else "particles"
    if ending in SPIDER_ENDINGS:
        return spider.recognise(path, head)
    if path.suffix.lower() in TIFF_ENDINGS:
        return tiff.recognise(path)
    found = _table_reader(path, head)
    return None if found is None else found[1]


def _table_reader(path: Path, head: bytes) -> tuple[TableReader, Kind] | None:
    """Who reads a table, and what it is.

    A broken one that no reader takes for its own goes to the reader of its ending, which says what is wrong with it.
    """
    for reader in TABLES:
        kind = reader.recognise(path, head)
        if kind is not None:
            return reader, kind
    ending = path.suffix.lower()
    if ending == ".box" or path.name.lower().endswith(eman.INFO_ENDING):
        return eman, "coordinates"
    if ending == ".cbox":
        return cryolo, "coordinates"
    if ending == ".pos" or (ending in (".xmd", ".ctfparam") and not xmipp.is_xmipp(head)):
        return xmipp, "coordinates"
    if ending == ".cs" and not cryosparc.is_other_table(path):
        return cryosparc, "coordinates"
    return None


WITH_PARTS = ".cs"
"""How tables end that other files belong to."""


def depends_on(path: Path) -> list[Path]:
    """Files beside a table that reading it may look at, sorted: where one of them changes, it must be read again.

    Examples
    --------
    >>> depends_on(Path("picks.star"))
    []
    """
    joined = path.suffix.lower() == ".cs" and not cryosparc.is_passthrough(path)
    return cryosparc.depends_on(path) if joined else []


def is_part_of_tables(path: Path) -> bool:
    """Whether a file is read with the tables of its folder, as `depends_on` gives it, and never by itself."""
    return cryosparc.is_passthrough(path)


def read_image_rows(path: Path) -> list[Entry]:
    """The rows of each stack whose images a RELION or Xmipp table names.

    Raises
    ------
    InputError
        It is no such table, or names none.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    return xmipp.read_image_rows(path) if xmipp.is_xmipp(head) else star.read_image_rows(path)


@hookimpl(trylast=True)
def read_item(item: Item) -> Image | list[Entry]:
    """Images as `Image`, tables as lists of `Entry`."""
    ending = image_ending(item.path)
    if item.kind in ("micrograph", "mask", "particles", "map") and ending in IMAGE_ENDINGS:
        return mrc.read(item.path)
    if item.kind in ("micrograph", "mask", "particles", "map") and ending in SPIDER_ENDINGS:
        return spider.read(item.path)
    if item.kind in ("micrograph", "mask") and item.path.suffix.lower() in TIFF_ENDINGS:
        return tiff.read(item.path)
    if item.kind in ("coordinates", "ctf", "rows"):
        with item.path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        found = _table_reader(item.path, head)
        if found is not None:
            return found[0].read_entries(item.path)
    raise InputError(item.path, f"no reader for a {item.kind} file that ends in {ending or 'nothing'}")
