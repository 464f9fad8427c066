"""Reading what a session wrote, by readers that are not ours, and the invariants that always hold."""

from __future__ import annotations

import io
import sqlite3
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import gemmi
import mrcfile
import numpy as np
import numpy.typing as npt
import pandas as pd
import starfile


def read_table(path: Path) -> tuple[pd.DataFrame | None, pd.DataFrame]:
    """Optics and rows of a published table."""
    assert gemmi.cif.read_file(str(path)) is not None
    read = starfile.read(path, always_dict=True)
    return read.get("optics"), read["particles"]


def rows_of(path: Path) -> list[tuple[object, ...]]:
    """All rows of a table, sorted, for comparison."""
    return sorted(map(tuple, read_table(path)[1].itertuples(index=False)))


def images_of(output: Path, table: str) -> dict[str, npt.NDArray[np.float32]]:
    """Pixels of every row of a table, by image name; each stack is read once."""
    stacks: dict[str, npt.NDArray[np.float32]] = {}
    images = {}
    for name in read_table(output / table)[1]["rlnImageName"]:
        number, _, stack = name.partition("@")
        if stack not in stacks:
            said = io.StringIO()
            assert mrcfile.validate(output / stack, print_file=said), f"{stack} is not valid: {said.getvalue()}"
            pixels = mrcfile.read(output / stack)
            stacks[stack] = pixels if pixels.ndim == 3 else pixels[None]  # mrcfile takes one image for no stack
        assert name not in images, f"{name} appears twice"
        images[name] = stacks[stack][int(number) - 1]
    return images


def further_forms(output: Path, table: str) -> Iterator[tuple[str, list[str]]]:
    """The further tables of a set that are there, and the images they name, in RELION's way."""
    if (path := output / f"{table}.xmd").exists():
        block = gemmi.cif.read_file(str(path)).sole_block()
        yield path.name, [gemmi.cif.as_string(value) for value in block.find_loop("_image")]
    if (path := output / f"{table}.cs").exists():
        rows = np.load(path, allow_pickle=False)
        yield path.name, [f"{row['blob/idx'] + 1:06d}@{row['blob/path'].decode()}" for row in rows]


def check_invariants(output: Path, *, ended: bool = True, ledger: Path | None = None) -> None:
    """What must hold of every output folder whenever no daemon is at work on it, by its ``ledger``, or a copy of it.

    Tables are published one after the other: where no daemon has ``ended`` in order, they may be of different age.
    """
    ledger = ledger or output / ".streamprep" / "ledger.sqlite"
    database = sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)
    try:
        assert database.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        assert not database.execute("SELECT * FROM jobs WHERE state = 'claimed'").fetchall(), "I7 orphan claims"
        doubled = database.execute(
            "SELECT item, state = 'done', count(*) FROM jobs WHERE state != 'superseded' GROUP BY 1, 2 "
            "HAVING count(*) > 1"
        ).fetchall()
        assert not doubled, f"I1 several live jobs of one item: {doubled}"
        shared = database.execute(
            "SELECT origin, count(*) FROM jobs WHERE state = 'done' AND origin IS NOT NULL GROUP BY origin "
            "HAVING count(*) > 1"
        ).fetchall()
        assert not shared, f"I1 the same coordinates are in the sets twice: {shared}"
        shards = {row[0]: row[1:] for row in database.execute("SELECT path, size, crc32 FROM shards")}
        blocks = database.execute("SELECT tbl, start, length, crc32 FROM blocks WHERE live").fetchall()
        lengths = dict(database.execute("SELECT name, length FROM tables"))
        counted = dict(database.execute("SELECT name, rows FROM tables"))
        images = dict(
            database.execute(
                "SELECT s.path, b.count FROM shards s JOIN blocks b ON b.job = s.job "
                "AND b.tbl = substr(s.path, 1, instr(s.path, '/') - 1) || '.star' WHERE s.live AND s.path LIKE '%.mrcs'"
            )
        )
        own = database.execute(
            "SELECT b.tbl, j.item FROM blocks b JOIN jobs j ON j.id = b.job WHERE b.live AND b.tbl LIKE '%{item}%'"
        ).fetchall()
    finally:
        database.close()
    for path, (size, crc32) in shards.items():
        data = (output / path).read_bytes()
        assert (len(data), zlib.crc32(data)) == (size, crc32), f"I3 {path} differs from what was committed"
    for table, length in lengths.items():
        log = output / ".streamprep" / "rows" / (table.replace("/", "__").replace("{item}", "ITEM") + ".rows")
        data = log.read_bytes()
        assert len(data) == length, f"I3 {log.name} has {len(data)} bytes, committed are {length}"
        for name, start, size, crc32 in blocks:
            if name == table:
                assert zlib.crc32(data[start : start + size]) == crc32, f"I3 rows of {table} differ"
    for path, count in images.items():
        with (output / path).open("rb") as file:
            (said,) = struct.unpack_from("<i", file.read(1024), 8)
        assert said == count, f"I5 {path} says it has {said} images, the ledger says {count}"
    named = {table.replace("{item}", item) for table, item in own}
    for path in (output / "coordinates").rglob("*.*"):
        name = path.relative_to(output).as_posix()
        if path.is_file() and name.count("/") > 1 and not path.name.startswith("."):
            assert name in named or not ended, f"I6 {name} is of no item that has rows"
    for folder in ("particles", "noise"):
        for path in (output / folder).rglob("*"):
            if path.is_file():
                assert path.relative_to(output).as_posix() in shards, f"I6 {path.name} is unknown to the ledger"
    for table in ("particles.star", "noise.star"):
        if (output / table).exists():
            optics, rows = read_table(output / table)
            for name, micrograph in zip(rows["rlnImageName"], rows["rlnMicrographName"], strict=True):
                number, _, stack = name.partition("@")
                assert stack in shards, f"I4 {name} is not a committed stack"
                stem = Path(stack).stem.split("~")[0]
                assert stem == Path(micrograph).stem, f"I4 {name} is said to be of {micrograph}"
                assert int(number) >= 1
            for further, images in further_forms(output, table.removesuffix(".star")) if ended else ():
                assert images == list(rows["rlnImageName"]), f"I5 {further} names other images than {table}"
            assert not ended or len(rows) == counted[table], f"I5 {table} has {len(rows)} rows, not {counted[table]}"
            assert optics is not None
            assert set(rows["rlnOpticsGroup"]) <= set(optics["rlnOpticsGroup"])


TABLES = ("particles.star", "noise.star", "coordinates/particles.star", "coordinates/noise.star")


def same_results(output: Path, reference: Path) -> None:
    """Rows, pixels and coordinate files equal those of an uninterrupted run, and the invariants hold."""
    for table in TABLES:
        assert rows_of(output / table) == rows_of(reference / table)
    for table in ("particles.star", "noise.star"):
        theirs, ours = images_of(reference, table), images_of(output, table)
        assert ours.keys() == theirs.keys()
        for name, image in theirs.items():
            assert np.array_equal(ours[name], image), f"pixels of {name} differ"
    for kind in ("pos", "pos_noise", "box", "box_noise"):
        for path in (reference / "coordinates" / kind).rglob("*.*"):
            same = output / path.relative_to(reference)
            assert same.read_bytes() == path.read_bytes()
    check_invariants(output)
    assert not any((output / ".streamprep" / "staging").iterdir())
