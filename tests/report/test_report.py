"""The pictures and the page of real sessions: what they show, what they survive, what they leave alone."""

from __future__ import annotations

import errno
import json
import os
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import gemmi
import mrcfile
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from streamprep.cli import app
from streamprep.history import LOG, Done, History
from streamprep.hookspecs import ItemResult, Staged, StagedFile
from streamprep.ledger import LedgerError
from streamprep.model import ConfigError
from streamprep.pictures import NOISE_COLOUR, PARTICLE_COLOUR
from streamprep.plugins.extract import extract
from streamprep.report.gallery import alone
from streamprep.report.overview import Overview, _trends, grouped
from streamprep.report.page import page
from streamprep.sinks import _files
from streamprep.sinks.maps import MapSink
from tests.outputs import check_invariants
from tests.report.conftest import maker, once

OUTPUT = "streamprep_out"


class Page(HTMLParser):
    """What a browser would make of a page: its elements and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, attribute: str) -> list[str]:
        return [attributes.get(attribute) or "" for name, attributes in self.elements if name == tag]


def report(folder: Path) -> Page:
    return Page((folder / OUTPUT / "report.html").read_text(encoding="utf-8"))


def rewrite(path: Path, pixels: np.ndarray) -> None:
    with mrcfile.new(path, pixels, overwrite=True) as file:
        file.voxel_size = 1.5


def pictured(folder: Path) -> set[str]:
    return {path.parent.name for path in (folder / OUTPUT / "gallery").rglob("thumb.jpg")}


def test_every_item_of_a_session_that_was_moved_has_its_pictures_and_the_page_shows_them_all(done: Path) -> None:
    assert maker(done).all() == 4
    output = done / OUTPUT
    here = output / "gallery" / "Micrographs" / "mic_0001"
    boxes = [f"{label}_{when}.jpg" for label in ("particles", "noise") for when in ("before", "after")]
    plots = ["ctf.svg", "spectrum_before.svg", "spectrum_after.svg", "statistics.svg"]
    assert {path.name for path in here.iterdir()} == {"micrograph.jpg", "thumb.jpg", *boxes, *plots}
    there = output / "gallery" / "Maps" / "particle"
    assert {path.name for path in there.iterdir()} == {"map.jpg", "thumb.jpg", "spectrum.svg", "grey_values.svg"}
    with Image.open(here / "micrograph.jpg") as picture:
        seen = np.asarray(picture.convert("RGB")).astype(int)
    for colour in (PARTICLE_COLOUR, NOISE_COLOUR):
        assert (np.abs(seen - colour).max(axis=2) < 60).sum() > 100
    shown = report(done)
    images = [unquote(source) for source in shown.all("img", "src")]
    files = [
        path.relative_to(output).as_posix() for path in (output / "gallery").rglob("*.*") if path.suffix != ".json"
    ]
    assert set(images) == {name for name in files if not name.endswith(".lock")}
    assert all(shown.all("img", "alt"))
    assert not any("://" in link for link in [*images, *shown.all("a", "href")])
    assert "script" not in {tag for tag, _ in shown.elements}
    assert "3micrographs done" in shown.text
    assert "truncated" in shown.text, "what failed, and why"
    assert "normalize" in shown.text, "the plan"
    index = json.loads((output / "gallery" / "index.json").read_text())
    assert {entry["item"] for entry in index["items"]} == {f"Micrographs/mic_000{i}" for i in (1, 2, 3)} | {
        "Maps/particle"
    }
    assert all((output / file["file"]).is_file() for entry in index["items"] for file in entry["files"])


def test_before_is_what_extraction_cuts_and_after_what_is_stored(done: Path) -> None:
    output = done / OUTPUT
    history = History(output)
    history.update()
    made = maker(done)
    reader = made.gallery._reader
    item = history.done["Micrographs/mic_0002"]
    look = reader.look(item, history.commit(item))  # type: ignore[arg-type]
    assert look.notes == []
    pixels = mrcfile.read(done / "Micrographs" / "mic_0002.mrc")
    for label, name in (("particle", "particles"), ("noise", "noise")):
        table = gemmi.cif.read_file(str(output / f"{name}.star")).find_block("particles")
        found = table.find("_rln", ["MicrographName", "CoordinateX", "CoordinateY", "ImageName"])
        rows = [row for row in found if "mic_0002" in row[0]]
        xy = np.array([(float(row[1]), float(row[2])) for row in rows])
        boxes = look.boxes[label]  # type: ignore[index]
        assert boxes.count == len(rows) > 2
        np.testing.assert_allclose(boxes.xy_px, xy)
        np.testing.assert_array_equal(boxes.images["before"], extract(pixels, xy, box_size_px=48))
        stack = mrcfile.read(output / rows[0][3].partition("@")[2])
        np.testing.assert_array_equal(boxes.images["after"], stack)


def test_particles_that_were_moved_by_centring_are_shown_before_as_they_were_cut(done: Path) -> None:
    config = done / "streamprep.toml"
    config.write_text(config.read_text().replace("[maps.invert]", "[particles.center]\n[maps.invert]"))
    shutil.rmtree(done / OUTPUT)
    once(done, "session.incomplete_seconds=0")
    history = History(done / OUTPUT)
    history.update()
    item = history.done["Micrographs/mic_0001"]
    look = maker(done).gallery._reader.look(item, history.commit(item))  # type: ignore[arg-type]
    picked = gemmi.cif.read_file(str(done / OUTPUT / "coordinates" / "particles.star")).find_block("particles")
    rows = [
        row for row in picked.find("_rln", ["MicrographName", "CoordinateX", "CoordinateY"]) if "mic_0001" in row[0]
    ]
    np.testing.assert_allclose(look.boxes["particle"].xy_px, [(float(row[1]), float(row[2])) for row in rows])


def test_what_vanished_or_changed_is_left_out_with_a_note(done: Path) -> None:
    (done / "Micrographs" / "mic_0001.mrc").unlink()
    changed = done / "Micrographs" / "mic_0002.mrc"
    rewrite(changed, np.zeros((320, 320), np.float32))
    (done / OUTPUT / "particles" / "Micrographs" / "mic_0003.mrcs").unlink()
    (done / "Maps" / "particle.mrc").unlink()
    assert maker(done).all() == 4
    gallery = done / OUTPUT / "gallery" / "Micrographs"
    for name in ("mic_0001", "mic_0002"):
        there = {path.name for path in (gallery / name).iterdir()}
        assert {"particles_after.jpg", "noise_after.jpg"} <= there
        assert not {"micrograph.jpg", "particles_before.jpg"} & there
    there = {path.name for path in (gallery / "mic_0003").iterdir()}
    assert {"micrograph.jpg", "particles_before.jpg"} <= there
    assert "particles_after.jpg" not in there
    text = report(done).text
    assert "No such file" in text
    assert "is no longer the file that was processed" in text


def test_rows_that_were_damaged_cost_only_themselves(done: Path) -> None:
    log = done / OUTPUT / ".streamprep" / "rows" / "particles.star.rows"
    data = bytearray(log.read_bytes())
    data[10] ^= 1
    log.write_bytes(data)
    assert maker(done).all() == 4
    assert "the rows of particles.star are not those that were committed" in report(done).text


def test_the_number_of_pictures_is_bounded_and_all_else_is_left_alone(done: Path) -> None:
    output = done / OUTPUT
    assert maker(done).all() == 4
    older = output / "gallery" / "Maps" / "particle.png"  # as the map sink of older versions committed them
    older.write_bytes(b"a picture of an older version")
    half = output / "gallery" / "Micrographs" / "gone" / ".micrograph.jpg.tmp"
    half.parent.mkdir()
    half.write_bytes(b"half of one")
    before = {path for path in done.rglob("*") if path.is_file() and path.parent.name != "mic_0001"}
    assert maker(done, "pictures.most=2").all() == 2
    assert len(pictured(done)) == 2
    assert older.exists()
    assert not half.parent.exists()
    after = {path for path in done.rglob("*") if path.is_file()}
    assert all("gallery" in path.parts for path in before - after), "nothing but pictures was removed"
    assert maker(done).all() == 4, "they are made again where there is room"


def test_an_index_that_was_lost_or_forged_removes_nothing_elsewhere(done: Path) -> None:
    output = done / OUTPUT
    maker(done).all()
    victim = done / "Micrographs" / "thumb.jpg"
    victim.write_bytes(b"not ours")
    index = output / "gallery" / "index.json"
    said = json.loads(index.read_text())
    said["items"].append({**said["items"][0], "item": "../../Micrographs", "files": []})
    index.write_text(json.dumps(said))
    assert maker(done, "pictures.most=1").all() == 1
    assert victim.exists()
    index.unlink()
    assert maker(done, "pictures.most=1").all() == 1
    assert len(pictured(done)) == 1


def test_a_new_generation_has_new_pictures(done: Path) -> None:
    maker(done).all()
    thumb = done / OUTPUT / "gallery" / "Micrographs" / "mic_0001" / "thumb.jpg"
    before = thumb.read_bytes()
    pixels = mrcfile.read(done / "Micrographs" / "mic_0001.mrc")[::-1].copy()
    rewrite(done / "Micrographs" / "mic_0001.mrc", pixels)
    assert once(done, "session.incomplete_seconds=0").jobs["done"] == 4
    assert maker(done).all() == 4
    assert thumb.read_bytes() != before


class OlderMapSink(MapSink):
    """The map sink as it was: it committed a picture, too."""

    folders = ("maps", "gallery")

    def stage(self, result: ItemResult, folder: Path) -> Staged:
        staged = super().stage(result, folder)
        if result.map is None:
            return staged
        picture = folder / "map.png"
        picture.write_bytes(b"picture")
        final = f"gallery/{result.item.name}.png"
        return Staged((*staged.files, StagedFile("map.png", final, 7, _files.crc32_of(picture))), staged.rows)


def test_a_session_of_an_older_version_goes_on_and_keeps_the_pictures_it_committed(
    done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(done / OUTPUT)
    with monkeypatch.context() as older:
        older.setattr("streamprep.sinks.maps.MapSink", OlderMapSink)
        once(done, "session.incomplete_seconds=0")
    committed = done / OUTPUT / "gallery" / "Maps" / "particle.png"
    assert committed.read_bytes() == b"picture"
    maker(done, "pictures.most=1").all()
    assert once(done, "session.incomplete_seconds=0").jobs == {"done": 4}
    assert committed.read_bytes() == b"picture"
    assert len(pictured(done)) == 1, "a start moves no pictures away"
    assert not list((done / OUTPUT / ".streamprep").glob("orphans/*"))
    check_invariants(done / OUTPUT)


def test_stacks_are_shown_before_and_after(done: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stacks"
    shutil.copytree(done / OUTPUT / "particles", folder / "In" / "particles")
    shutil.copy(done / OUTPUT / "particles.star", folder / "In" / "particles.star")
    (folder / "streamprep.toml").write_text(
        '[session]\nwatch = ["In"]\ndevice = "cpu"\n[particles.invert]\n[sets]\nfurther_tables = []\n'
    )
    assert once(folder).jobs == {"done": 3}
    assert maker(folder).all() == 3
    (first, *_) = (path.parent for path in (folder / OUTPUT / "gallery").rglob("particles_before.jpg"))
    assert {path.name for path in first.iterdir()} == {
        *("thumb.jpg", "particles_before.jpg", "particles_after.jpg"),
        *("spectrum_before.svg", "spectrum_after.svg", "statistics.svg"),
    }
    facts = json.loads((folder / OUTPUT / "gallery" / "index.json").read_text())["items"][0]["facts"]
    assert facts["contrast_after"] == pytest.approx(-facts["contrast_before"], rel=1e-4)


HOSTILE = '</td><script>alert(1)</script><img src=x onerror="alert(2)">\x1b[31m\udcff'


def test_hostile_names_are_shown_as_text() -> None:
    record = {
        "item": HOSTILE,
        "kind": "micrograph",
        "generation": 1,
        "finished": 0.0,
        "facts": {"particles": 3},
        "notes": [HOSTILE],
        "files": [{"file": f"gallery/{HOSTILE}/thumb.jpg", "name": "thumb", "about": HOSTILE, "width": 1, "height": 1}],
    }
    made = Overview(
        counts={"micrographs": 1},
        rows={HOSTILE: 3},
        warnings=[(HOSTILE, 1, HOSTILE)],
        plan=[("particles", HOSTILE, HOSTILE)],
        status={
            "mode": HOSTILE,
            "message": HOSTILE,
            "age_seconds": 1,
            "failed": 1,
            "rejected": 0,
            "waiting_count": 1,
            "failures": [{"file": HOSTILE, "state": "failed", "reason": HOSTILE}],
            "degraded": [HOSTILE],
            "waiting": [[HOSTILE, HOSTILE, 3.0]],
            "unmatched": [["rows", HOSTILE]],
        },
    )
    text = page(made, [record], name=HOSTILE, now=0.0, most=1)
    text.encode("utf-8")
    assert "\x1b" not in text
    shown = Page(text)
    assert not {"script", "x"} & {tag for tag, _ in shown.elements}
    assert all(source.startswith("gallery/") for source in shown.all("img", "src"))
    assert not any("onerror" in attributes for _, attributes in shown.elements)
    assert shown.text.count("<script>alert(1)</script>") > 10
    policy = next(attributes["content"] for tag, attributes in shown.elements if attributes.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src")
    assert "script-src" not in policy


def test_particles_of_the_wrong_contrast_are_told() -> None:
    def record(name: str, contrast: float) -> dict[str, object]:
        return {"item": name, "kind": "micrograph", "generation": 1, "finished": 0.0, "notes": [], "files": []} | {
            "facts": {"contrast_after": contrast}
        }

    usual = [record(f"m{number}", 0.1) for number in range(4)]
    told = "its stored particles are dark, those of the others bright"
    text = page(Overview(), [*usual, record("turned", -0.1), record("faint", -0.001)], name="", now=0, most=9)
    assert Page(text).text.count(told) == 2  # above all, and where it is shown
    assert "dark on the whole" not in text
    text = page(Overview(), [record("a", -0.1), record("b", -0.2)], name="", now=0, most=9)
    assert "dark on the whole" in text
    assert "Stands out" not in text


def test_warnings_that_differ_in_numbers_are_told_together() -> None:
    said = [(f"m{number}", f"{number} of 50 images are constant") for number in range(5)] + [("m9", "other")]
    assert grouped(said) == [("4 of 50 images are constant", 5, "m4"), ("other", 1, "m9")]


def test_what_stands_out_is_named_and_pictured(done: Path) -> None:
    made = maker(done, "pictures.most=6")
    made.catch_up()
    source = made._history.done["Micrographs/mic_0001"]
    for number in range(200):
        counts = (100 if number != 20 else 3,)
        made._history.done[f"m{number}"] = replace(source, item=f"m{number}", tables=("particles.star",), counts=counts)
    found = made._sum_up()
    assert ("m20", "3 particles, median 100") in [(odd.item, odd.why) for odd in found.odd]
    assert "m20" in [item.item for item in made.gallery.due(made._odd())[:2]]
    assert any("m20: 3" in plot for plot in found.plots)


def test_rounds_do_one_thing_each_and_rest_long_enough(done: Path) -> None:
    now, used = [0.0], [0.0]

    def cpu() -> float:
        used[0] += 0.4  # at each look: a round takes this much
        return used[0]

    made = maker(done, clock=lambda: now[0], cpu=cpu)
    assert made.round() == pytest.approx(0.4 * 19)  # reads the log
    assert not (done / OUTPUT / "report.html").exists()
    made.round()
    assert len(pictured(done)) == 1
    assert (done / OUTPUT / "report.html").exists()
    now[0] = 9.9
    made.round()
    assert len(pictured(done)) == 1, "ten seconds are not over"
    now[0] = 10.0
    made.round()
    assert len(pictured(done)) == 2
    made.finish(60.0)
    assert len(pictured(done)) == 4


def test_nothing_is_made_where_the_output_is_gone_or_the_disk_is_full(done: Path) -> None:
    full = maker(done, f"session.reserve_mib={1 << 40}")
    full.round()
    full.round()
    assert not (done / OUTPUT / "gallery").exists()
    made = maker(done)
    shutil.rmtree(done / OUTPUT)
    made.round()
    made.finish(5.0)
    assert not (done / OUTPUT).exists()


def test_the_command_makes_the_report_and_says_where_it_is(done: Path) -> None:
    said = CliRunner().invoke(app, ["report", str(done / "streamprep.toml")], catch_exceptions=False)
    assert said.exit_code == 0
    assert said.stdout.strip() == str(done / OUTPUT / "report.html")
    assert len(pictured(done)) == 4
    changed = ["report", str(done / "streamprep.toml"), "--set", "extract.box_size_px=64"]
    with pytest.raises(ConfigError, match="nothing was processed"):
        CliRunner().invoke(app, changed, catch_exceptions=False)


def test_a_picture_that_cannot_be_drawn_is_tried_once_and_costs_no_other(
    done: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = maker(done)
    read = made.gallery._reader._image

    def image(done: Done, path: Path) -> object:
        if "mic_0002" in done.item:
            raise RuntimeError("a fault of a plugin")
        return read(done, path)

    monkeypatch.setattr(made.gallery._reader, "_image", image)
    assert made.all() == 3
    assert caplog.text.count("a fault of a plugin") == 1
    assert len(pictured(done)) == 3


def test_names_of_items_do_not_collide_with_those_of_pictures(done: Path) -> None:
    made = maker(done)
    made.catch_up()
    source = made._history.done["Micrographs/mic_0001"]
    for name in ("thumb.jpg", "%thumb.jpg", ".thumb.jpg.tmp", "THUMB.JPG/x", "micrograph.jpg/ctf.svg"):
        made._history.done[f"Micrographs/mic_0001/{name}"] = replace(source, item=f"Micrographs/mic_0001/{name}")
    for name in ("index.json", ".lock", ".index.json.tmp"):
        made._history.done[name] = replace(source, item=name)
    assert made.all() == 12
    records = json.loads((done / OUTPUT / "gallery" / "index.json").read_text())["items"]
    files = [file["file"] for record in records for file in record["files"]]
    assert len({name.lower() for name in files}) == len(files)
    assert all((done / OUTPUT / name).is_file() for name in files)
    again = maker(done)
    assert len(again.gallery.records) == 12
    assert again.all() == 4
    assert len(pictured(done)) == 4


def test_an_item_whose_pictures_cannot_be_written_costs_no_other(
    done: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (done / OUTPUT / "gallery" / "Micrographs").mkdir(parents=True)
    (done / OUTPUT / "gallery" / "Micrographs" / "mic_0002").write_bytes(b"in the way")
    assert maker(done).all() == 3
    assert caplog.text.count("Micrographs/mic_0002: no pictures") == 1
    (done / OUTPUT / "gallery" / "Micrographs" / "mic_0002").unlink()
    made = maker(done)
    with monkeypatch.context() as full:
        full.setattr(_files, "_write", _full)
        with pytest.raises(OSError, match="No space"):
            made.all()
    assert made.all() == 4, "it is tried again when there is room"


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_log_of_another_version_is_told_once_until_it_changes(done: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = done / OUTPUT / LOG
    whole = log.read_bytes()
    text = b'{"of": "another version"}'
    log.write_bytes(whole + b"%08x %b\n" % (zlib.crc32(text), text))
    made = maker(done)
    with pytest.raises(LedgerError, match=r"another version of streamprep.*streamprep run upgrades"):
        maker(done).all()
    for _ in range(3):
        made.round()
    made.finish(5.0)
    assert caplog.text.count("another version of streamprep") == 1
    assert "Traceback" not in caplog.text
    log.write_bytes(whole)
    made.finish(60.0)
    assert len(pictured(done)) == 4


def test_makers_that_take_turns_know_of_each_others_pictures(done: Path) -> None:
    one = maker(done, "pictures.every_seconds=0")
    one.round()
    one.round()
    assert len(pictured(done)) == 1
    assert maker(done).all() == 4
    made = {path: path.stat().st_mtime_ns for path in (done / OUTPUT / "gallery").rglob("*.jpg")}
    one.finish(60.0)
    assert {path: path.stat().st_mtime_ns for path in made} == made, "none is made twice"
    index = json.loads((done / OUTPUT / "gallery" / "index.json").read_text())
    assert len(index["items"]) == len(pictured(done)) == 4


def test_two_makers_keep_out_of_each_others_way(done: Path) -> None:
    with (
        alone(done / OUTPUT),
        pytest.raises(Exception, match="another process makes pictures"),
        alone(done / OUTPUT, 0),
    ):
        pass


@pytest.mark.parametrize(("count", "mean", "told"), [(30, -0.01, False), (30, -0.3, True), (6, -0.3, False)])
def test_what_hardly_differs_and_what_few_do_is_no_alarm(done: Path, count: int, mean: float, told: bool) -> None:
    made = maker(done)
    made.catch_up()
    source = made._history.done["Micrographs/mic_0001"]
    items = [replace(source, item=f"m{number}") for number in range(count)]
    means = np.full(count, 0.012) + np.linspace(0, 1e-3, count)
    means[3] = mean

    class Measured:
        def of(self, some: list[Done]) -> np.ndarray:
            return np.stack([means[: len(some)], np.full(len(some), 1.01)], axis=1)

    found = Overview()
    _trends(found, items, Measured())
    assert ("m3" in [odd.item for odd in found.odd]) is told
