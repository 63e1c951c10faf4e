"""What a batch job can read: every container gives the same images under ids of its own, and damage is named and passed over."""

import errno
import io
import json
import os
import resource
import shutil
import tarfile
import time
import tracemalloc
from contextlib import closing
from pathlib import Path

import batching
import pytest
from batching import pictures

from trocr_jax.containers import ContainerError, LineDatabase
from trocr_jax.serve.batch_job import containers as batch_containers
from trocr_jax.serve.batch_job import inputs as batch_inputs
from trocr_jax.serve.batch_job import places as batch_places
from trocr_jax.serve.batch_job.places import FetchError, PlaceError, expand, read_file
from trocr_jax.serve.batch_job.prepare import decode
from trocr_jax.serve.batch_job.units import Columns, Unit
from trocr_jax.terminal import UsageError
from trocr_jax.train.sets.sources import table

IMAGES = pictures(10)
NAMES = list(IMAGES)


def plan_and_read(place, tmp_path, unit_lines=3, columns=Columns()):  # noqa: B008
    """The plan's units, and for each its items."""
    listing = tmp_path / "listing"
    with open(listing, "wb") as file:
        units = batch_inputs.plan(str(place), unit_lines, file, columns)
    units = [Unit(**json.loads(json.dumps(unit.to_json()))) for unit in units]  # as another worker finds them
    return units, [list(batch_inputs.read(unit, listing, columns)) for unit in units]


def content(item) -> bytes:
    if isinstance(item.image, bytes):
        return item.image
    assert item.image is not None
    return read_file(item.image, "/")


def make(kind, tmp_path):
    """An input of the kind, and the ids that its images have."""
    folder = batching.folder(tmp_path / "images", {f"sub/{name}": data for name, data in IMAGES.items()})
    below = [f"sub/{name}" for name in NAMES]
    if kind == "folder":
        (folder / "notes.md").write_text("no image")
        (folder / ".hidden.png").write_bytes(b"x")
        return folder, below
    if kind == "glob":
        return folder / "sub" / "*.png", NAMES
    if kind == "url":
        return f"file://{folder}", below
    if kind == "list":
        (folder / "all.txt").write_text("".join(f"{name}\n" for name in below))
        return folder / "all.txt", below
    if kind == "jsonl":
        lines = [{"id": f"line {i}", "file_name": name} for i, name in enumerate(below)]
        (folder / "all.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder / "all.jsonl", [f"line {i}" for i in range(10)]
    if kind == "tar":
        (tmp_path / "shards").mkdir()
        for shard, names in enumerate((NAMES[:6], NAMES[6:])):
            path = tmp_path / "shards" / f"{shard}.tar{'.gz' * shard}"
            batching.tar(path, {name: IMAGES[name] for name in names}, "w:gz" if shard else "w")
        return tmp_path / "shards", [f"0.tar/{name}" for name in NAMES[:6]] + [f"1.tar.gz/{name}" for name in NAMES[6:]]
    if kind == "parquet":
        return batching.parquet(tmp_path / "lines.parquet", IMAGES, group=2), [f"lines.parquet#{i}" for i in range(10)]
    if kind == "parquet ids":
        return batching.parquet(tmp_path / "ids.parquet", IMAGES, id=NAMES), NAMES
    return batching.lmdb(tmp_path / "lmdb", IMAGES), [f"image-{i:09d}" for i in range(1, 11)]


@pytest.mark.parametrize("kind", ["folder", "glob", "url", "list", "jsonl", "tar", "parquet", "parquet ids", "lmdb"])
def test_every_container_gives_each_image_once_in_order(kind, tmp_path):
    place, ids = make(kind, tmp_path)
    units, found = plan_and_read(place, tmp_path)
    items = [item for unit in found for item in unit]
    assert [item.id for item in items] == ids
    assert [content(item) for item in items] == list(IMAGES.values())
    assert not any(item.error for item in items)
    assert all(unit.lines in (None, len(items)) for unit, items in zip(units, found, strict=True))
    assert len(units) > 1 and (kind == "tar" or max(map(len, found)) <= 4)


def test_another_file_system_is_listed_and_read(tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    for name, data in IMAGES.items():
        memory.pipe_file(f"/bucket/{name}", data)
    buffer = batching.tar(tmp_path / "x.tar", IMAGES).read_bytes()
    memory.pipe_file("/shards/x.tar", buffer)
    try:
        _, found = plan_and_read("memory://bucket", tmp_path)
        assert [content(item) for unit in found for item in unit] == list(IMAGES.values())
        _, found = plan_and_read("memory://shards/*.tar", tmp_path)
        assert [content(item) for item in found[0]] == list(IMAGES.values())
        with pytest.raises(PlaceError, match="no such file"):
            expand("memory://nowhere")
    finally:
        memory.rm("/bucket", recursive=True)
        memory.rm("/shards", recursive=True)


def test_a_url_whose_package_is_absent_names_it(tmp_path):
    with pytest.raises(UsageError, match="(?i)gs://x/y.*gcs"):
        expand("gs://x/y")
    (tmp_path / "x.txt").write_text("a.png\nunknown://x/1.png\ngs://x/1.png\n")
    with pytest.raises(UsageError, match="(?i)gs://.*gcs"):
        plan_and_read(tmp_path / "x.txt", tmp_path)


def test_a_plan_does_not_follow_changes_of_the_input(tmp_path):
    folder, listing = batching.folder(tmp_path / "images", IMAGES), tmp_path / "listing"
    with open(listing, "wb") as file:
        units = batch_inputs.plan(str(folder), 4, file, Columns())
    (folder / "00000a.png").write_bytes(b"later")
    assert [item.id for unit in units for item in batch_inputs.read(unit, listing, Columns())] == NAMES


@pytest.mark.parametrize("kind", ["folder", "glob", "list", "jsonl", "tar", "parquet"])
def test_what_came_after_the_plan_is_counted(tmp_path, kind):
    place, _ = make(kind, tmp_path)
    place = tmp_path / "*.parquet" if kind == "parquet" else place
    units, _ = plan_and_read(place, tmp_path)
    count = lambda: batch_inputs.count_new(str(place), units, tmp_path / "listing", tmp_path / "out")  # noqa: E731
    assert count() == 0
    if kind in ("list", "jsonl"):
        with open(place, "a") as file:
            file.write('{"path": "new.png"}\n' if kind == "jsonl" else "new.png\n")
    else:
        folder = place if place.is_dir() else place.parent
        (folder / {"tar": "new.tar", "parquet": "new.parquet"}.get(kind, "new.png")).touch()
        (folder / "new.md").touch()
    assert count() == 1


def test_odd_file_names_survive(tmp_path):
    names = ["a b.png", "c\nd.png", "ü.png", b"\xff.png".decode("utf-8", "surrogateescape")]
    folder = batching.folder(tmp_path / "images", {name: IMAGES[NAMES[0]] for name in names})
    _, found = plan_and_read(folder, tmp_path, 10)
    assert sorted(item.id for item in found[0]) == sorted(names)


def test_a_list_from_windows_names_files_without_its_mark_and_line_ends(tmp_path):
    batching.folder(tmp_path, {name: IMAGES[NAMES[0]] for name in ("a.png", "\ufeffb.png")})
    (tmp_path / "all.txt").write_bytes("\ufeffa.png\r\n\r\n\ufeffb.png\r\n".encode())
    _, found = plan_and_read(tmp_path / "all.txt", tmp_path, 9)
    assert [(item.id, content(item) == IMAGES[NAMES[0]]) for item in found[0]] == [("a.png", True), ("\ufeffb.png", True)]


def test_bad_lines_of_a_list_are_named(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"image": "a.png", "id": null}\nnot json\n[1]\n\n{"id": 7}\n')
    _, found = plan_and_read(tmp_path / "x.jsonl", tmp_path, 10)
    assert [(item.id, (item.error or "")[:10]) for item in found[0]] == [
        ("a.png", ""), ("x.jsonl line 2", "not valid "), ("x.jsonl line 3", "not a JSON"), ("7", "the object"),
    ]  # fmt: skip


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_cut_tar_gives_what_is_whole(tmp_path, mode):
    path = batching.tar(tmp_path / "x.tar", IMAGES, mode)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    _, found = plan_and_read(path, tmp_path)
    *whole, last = found[0]
    assert [item.id for item in whole] == [f"x.tar/{name}" for name in NAMES[: len(whole)]] and len(whole) > 1
    assert last.id == "x.tar" and "damaged" in last.error


@pytest.mark.parametrize("rest", [100, 0])
def test_a_tar_that_is_cut_amid_a_header_or_before_one_is_named(tmp_path, rest):
    """A whole one ends with blocks of zeros."""
    (tmp_path / "x.tar").write_bytes(block(tarfile.REGTYPE, 0) + block(tarfile.REGTYPE, 0)[:rest])
    _, (items,) = plan_and_read(tmp_path / "x.tar", tmp_path)
    assert [(item.id, "cut off" in (item.error or "")) for item in items] == [("x.tar/x.png", False), ("x.tar", True)]


def test_a_tar_names_links_and_passes_over_hidden_members(tmp_path):
    """A link's own bytes are another member's, which the stream has passed; GNU tar writes hard links by itself."""
    path = batching.tar(tmp_path / "x.tar", {"./a.png": IMAGES[NAMES[0]], "._a.png": b"a Mac's", ".x/a.png": b"hidden"})
    with tarfile.open(path, "a") as archive:
        for name, kind in (
            ("b.png", tarfile.LNKTYPE),
            ("c.png", tarfile.SYMTYPE),
            ("d.txt", tarfile.LNKTYPE),
            ("e.png", tarfile.DIRTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "./a.png"
            archive.addfile(info)
    _, (items,) = plan_and_read(path, tmp_path)
    link = "a link, where a file was expected"
    assert [(item.id, item.error) for item in items] == [("x.tar/./a.png", None), ("x.tar/b.png", link), ("x.tar/c.png", link)]
    assert items[0].image == IMAGES[NAMES[0]]


@pytest.mark.parametrize("name", ["x.TAR", "x.tar.bz2", "x.txz", "x.Tar.Gz"])
def test_shards_are_known_by_their_endings_in_any_case(tmp_path, name):
    mode = {"2": "w:bz2", "z": "w:gz" if "Gz" in name else "w:xz"}.get(name[-1], "w")
    path = batching.tar(tmp_path / name, IMAGES, mode)
    _, (items,) = plan_and_read(path, tmp_path)
    assert [item.id for item in items] == [f"{name}/{image}" for image in NAMES]
    assert all(item.image == IMAGES[image] for item, image in zip(items, NAMES, strict=True))


def test_archives_of_kinds_that_are_not_read_are_told(tmp_path, capsys):
    folder = batching.folder(tmp_path / "shards", dict.fromkeys(("y.zip", "z.tar.zst"), b""))
    batching.tar(folder / "x.tar", IMAGES)
    plan_and_read(folder, tmp_path)
    assert "2 files left out, of kinds that are not read (.zip, .zst)" in capsys.readouterr().err


def test_the_jobs_own_parts_in_its_input_are_nothing_new(tmp_path):
    folder = batching.folder(tmp_path / "images", IMAGES)
    units, _ = plan_and_read(folder, tmp_path)
    batching.parquet(folder / "part-00000.parquet", IMAGES)
    count = lambda output: batch_inputs.count_new(str(folder), units, tmp_path / "listing", output)  # noqa: E731
    assert (count(folder / "out"), count(folder)) == (1, 0)


@pytest.mark.parametrize("unit_lines", [4, 5])
def test_small_row_groups_share_a_unit(tmp_path, unit_lines):
    place = batching.parquet(tmp_path / "lines.parquet", IMAGES, group=2)
    units, found = plan_and_read(place, tmp_path, unit_lines)
    assert [(unit.start, unit.end, unit.lines, unit.first) for unit in units] == [(0, 2, 4, 0), (2, 4, 4, 4), (4, 5, 2, 8)]
    assert [item.id for items in found for item in items] == [f"lines.parquet#{i}" for i in range(10)]


def test_damaged_parquet_files_among_others_are_named(tmp_path):
    (tmp_path / "p").mkdir()
    good = batching.parquet(tmp_path / "p" / "a.parquet", IMAGES).read_bytes()
    (tmp_path / "p" / "b.parquet").write_bytes(b"PAR1 no")
    footer = int.from_bytes(good[-8:-4], "little")
    (tmp_path / "p" / "c.parquet").write_bytes(good[: -8 - footer] + b"\xff" * footer + good[-8:])
    _, found = plan_and_read(tmp_path / "p", tmp_path, 100)
    assert len(found[0]) == 10
    for name, items in zip("bc", found[1:], strict=True):
        assert [(item.id, item.error) for item in items] == [(f"{name}.parquet", "not a parquet file, or damaged")]


def test_what_a_database_lacks_is_named(tmp_path):
    import lmdb

    place = batching.lmdb(tmp_path / "lmdb", IMAGES)
    with lmdb.open(str(place)) as environment, environment.begin(write=True) as transaction:
        assert transaction.delete(b"image-000000003")
    _, found = plan_and_read(place, tmp_path, 100)
    assert [item.error for item in found[0]] == 2 * [None] + ["the database lacks it"] + 7 * [None]


def test_a_database_that_was_cut_off_is_refused_before_its_mapped_file_ends_the_process(tmp_path):
    file = batching.lmdb(tmp_path / "lmdb", IMAGES) / "data.mdb"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(PlaceError, match="cut off"):
        plan_and_read(file.parent, tmp_path)


@pytest.mark.parametrize("count", [b"9" * 5000, b"9" * 19, b"-1", b""], ids=len)
def test_a_database_with_a_count_that_is_none_is_refused_and_closed(tmp_path, count):
    """LMDB does not open a folder twice in a process: one left open is refused for another reason."""
    import lmdb

    place = batching.lmdb(tmp_path / "lmdb", IMAGES)
    with lmdb.open(str(place)) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"num-samples", count)
    for _ in range(2):
        with pytest.raises(ContainerError, match="no num-samples, or one that is no count"):
            LineDatabase(str(place))


def test_a_database_is_closed_whatever_stops_its_opening(tmp_path, monkeypatch):
    place = batching.lmdb(tmp_path / "lmdb", IMAGES)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt) as stopped:
        patched.setattr(LineDatabase, "_check_size", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        LineDatabase(str(place))
    with closing(LineDatabase(str(place))) as database:
        assert database.count == 10 and stopped.tb, "which keeps the first one"


def test_parquet_rows_without_images_are_named(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"picture": [b"1", None, b"2"], "name": ["a", "b", None]})
    for kind in (pyarrow.string(), pyarrow.binary()):  # some writers leave out that bytes are text
        pyarrow.parquet.write_table(table.set_column(1, "name", table["name"].cast(kind)), tmp_path / "x.parquet")
        _, found = plan_and_read(tmp_path / "x.parquet", tmp_path, 9, Columns("picture", "name"))
        assert [(item.id, item.error) for item in found[0]] == [
            ("a", None), ("b", "the row holds no image bytes"), ("x.parquet#2", None),
        ]  # fmt: skip
    with pytest.raises(PlaceError, match="picture, name; expected one of image"):
        plan_and_read(tmp_path / "x.parquet", tmp_path)


@pytest.mark.parametrize("columns", [Columns("picture"), Columns(id="name")])
def test_columns_of_what_has_none_are_refused(tmp_path, columns):
    folder = batching.folder(tmp_path / "images", {"1.png": IMAGES[NAMES[0]]})
    with pytest.raises(UsageError, match="--image-column and --id-column are for parquet files, and here is none"):
        plan_and_read(folder, tmp_path, columns=columns)


def test_a_glob_names_images_as_its_folder_does(tmp_path):
    folder = batching.folder(tmp_path / "images", {f"{sub}/1.png": IMAGES[NAMES[0]] for sub in "ab"})
    (tmp_path / "images" / "link").symlink_to(".")
    for pattern in (f"{folder}/[ab]/1.png", f"{folder}/**/*.png", f"file://{folder}/[ab]/1.png"):
        assert [name for name, _ in expand(pattern)] == ["a/1.png", "b/1.png"], pattern


def test_documents_that_are_left_out_are_told(tmp_path, capsys):
    folder = batching.folder(tmp_path / "images", {"1.png": IMAGES[NAMES[0]], "sub/x.pdf": b"", "y.HEIC": b"", "notes.md": b""})
    _, (items,) = plan_and_read(folder, tmp_path)
    assert [item.id for item in items] == ["1.png"]
    assert capsys.readouterr().err == f"trocr-jax: {folder}: 2 files left out, of kinds that are not read (.heic, .pdf)\n"


def test_files_are_in_natural_order_and_always_in_the_same(tmp_path):
    names = ["1/a.png", "01/a.png", "²1.png", "10.png", "2.png", "A.png", "a.png"]
    folder = batching.folder(tmp_path / "images", dict.fromkeys(names, b"x"))
    expected = ["01/a.png", "1/a.png", "2.png", "10.png", "A.png", "a.png", "²1.png"]
    for place in (str(folder), f"file://{folder}"):
        assert [name for name, _ in expand(place)] == expected
    _, found = plan_and_read(folder, tmp_path)
    assert [item.id for unit in found for item in unit] == expected


def test_an_object_names_the_file_that_training_would_read(tmp_path):
    folder = batching.folder(tmp_path / "lines", {"a.png": IMAGES[NAMES[0]], "page.png": IMAGES[NAMES[1]]})
    row = {"image": "page.png", "url": "https://x/y.png", "file_name": "a.png", "text": "a"}
    (folder / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    _, found = plan_and_read(folder / "metadata.jsonl", tmp_path)
    assert [item.id for item in found[0]] == ["a.png"] == [name for name, _ in table(folder / "metadata.jsonl").rows]


def test_linked_folders_are_listed_once_each_and_loops_end(tmp_path):
    folder = batching.folder(tmp_path / "images", {"a/1.png": b"x", "b/2.png": b"x"})
    batching.folder(tmp_path / "elsewhere", {"3.png": b"x"})
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(folder)
    (folder / "c").symlink_to(folder / "a")
    assert [name for name, _ in expand(str(folder))] == ["a/1.png", "b/2.png", "linked/3.png"]


def test_two_kinds_in_a_folder_are_refused(tmp_path):
    folder = batching.folder(tmp_path / "images", IMAGES)
    batching.tar(folder / "x.tar", IMAGES)
    with pytest.raises(PlaceError, match="holds 10 images and 1 tar shards"):
        plan_and_read(folder, tmp_path)


def with_headers(headers, data=IMAGES[NAMES[0]]) -> bytes:
    """A shard of two images, the second with pax headers."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, extra in (("a.png", {}), ("b.png", headers)):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(data), extra
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


SPARSE = {"GNU.sparse.map": "0,1", "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": str(1 << 40)}


@pytest.mark.parametrize(
    ("headers", "errors"),
    [
        ({"GNU.sparse.size": "x"}, {"x.tar": "damaged"}), ({"GNU.sparse.map": "1,x"}, {"x.tar": "damaged"}),
        (SPARSE, {"x.tar/b.png": "sparse"}), (SPARSE | {"GNU.sparse.size": "100"}, {"x.tar/b.png": "sparse"}),
        ({"size": str(1 << 45)}, {"x.tar/b.png": "sparse", "x.tar": "EOFError"}),
        ({"comment": "x" * (1 << 20)}, {"x.tar": "damaged"}), ({"path": "x" * (1 << 20)}, {"x.tar": "damaged"}),
    ],
    ids=["number", "map", "sparse", "small and sparse", "size", "comment", "path"],
)  # fmt: skip
def test_hostile_headers_of_a_tar_cost_an_image(tmp_path, headers, errors):
    (tmp_path / "x.tar").write_bytes(with_headers(headers))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    limits, held = resource.getrlimit(resource.RLIMIT_AS), int(Path("/proc/self/statm").read_text().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (held + (1 << 30), limits[1]))  # a sparse file must not fill the machine
    try:
        _, (items,) = plan_and_read(tmp_path / "x.tar", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert items[0].id == "x.tar/a.png" and items[0].error is None
    found = {item.id: item.error for item in items[1:]}
    assert found.keys() == errors.keys() and all(word in (found[name] or "") for name, word in errors.items())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


def block(kind: bytes, size: int, name: str = "x.png") -> bytes:
    """A tar header alone."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (block(tarfile.GNUTYPE_LONGNAME, 2 << 20) + b"x" * (2 << 20), "ReadError"),
        ((block(tarfile.XHDTYPE, 12) + b"12 k=123456\n".ljust(512, b"\0")) * 900, "RecursionError"),
        (block(tarfile.REGTYPE, 0).replace(b"0000644", b"0000645"), "ReadError"),
    ],
    ids=["name", "chain", "checksum"],
)  # fmt: skip
def test_a_tar_that_is_damaged_between_two_images_does_not_end_there_in_silence(tmp_path, content, reason):
    image = block(tarfile.REGTYPE, 512, "a.png") + bytes(512)
    (tmp_path / "x.tar").write_bytes(image + content + image + bytes(1024))
    _, (items,) = plan_and_read(tmp_path / "x.tar", tmp_path)
    assert [(item.id, item.error) for item in items] == [
        ("x.tar/a.png", None), ("x.tar", f"the archive is damaged or cut off ({reason})"),
    ]  # fmt: skip


def test_a_shard_does_not_grow_in_memory(tmp_path):
    """Headers of 20 MB, of which tarfile would keep all."""
    buffer = io.BytesIO()
    for number in range(40):
        member = io.BytesIO()
        archive = tarfile.open(fileobj=member, mode="w", format=tarfile.PAX_FORMAT, pax_headers={f"k{number}": "x" * (1 << 18)})
        info = tarfile.TarInfo(f"{number}.png")
        info.pax_headers = {"comment": "x" * (1 << 18)}
        archive.addfile(info)
        buffer.write(member.getvalue())
    (tmp_path / "x.tar").write_bytes(buffer.getvalue() + bytes(1024))
    unit = Unit("tar", str(tmp_path / "x.tar"), name="x.tar")
    tracemalloc.start()
    try:
        count = sum(1 for _ in batch_inputs.read(unit, tmp_path, Columns()))
        assert count == 40 and tracemalloc.get_traced_memory()[1] < 6 << 20
    finally:
        tracemalloc.stop()


def test_an_image_larger_than_any_is_not_taken_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_containers, "MAX_BYTES", 1000)
    images = {"a.png": b"x" * 1001, "b.png": b"x" * 1000}
    _, (items,) = plan_and_read(batching.tar(tmp_path / "x.tar", images), tmp_path)
    assert [(item.id, item.image and len(item.image)) for item in items] == [("x.tar/a.png", None), ("x.tar/b.png", 1000)]
    _, (items,) = plan_and_read(batching.parquet(tmp_path / "x.parquet", images), tmp_path)
    assert [item.image and len(item.image) for item in items] == [None, 1000] and items[0].error == "larger than images are"


def test_a_parquet_file_does_not_grow_in_memory(tmp_path):
    """One value that all rows have is stored once."""
    path = batching.parquet(tmp_path / "x.parquet", {f"{number}.png": bytes(1 << 20) for number in range(64)}, 64)
    assert path.stat().st_size < 1 << 18
    tracemalloc.start()
    try:
        count = sum(1 for _ in batch_inputs.read(Unit("parquet", str(path), 0, 1), tmp_path, Columns()))
        assert count == 64 and tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


class Flaky(io.BytesIO):
    """A file whose storage fails when half of it was read."""

    def __init__(self, content, error):
        super().__init__(content)
        self.half, self.error = len(content) // 2, error

    def read(self, size=-1):
        content = super().read(size)
        if self.error and self.tell() > self.half:
            raise self.error
        return content


@pytest.fixture
def lines(tmp_path):
    """A folder of two files, the root of an input."""
    return batching.folder(tmp_path / "root" / "lines", {"a.png": IMAGES[NAMES[0]], "sub/b.png": IMAGES[NAMES[1]]})


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ETIMEDOUT, errno.EACCES, errno.ELOOP])
@pytest.mark.parametrize("where", ["open", "read"])
def test_a_file_that_cannot_be_read_now_is_no_error_of_its_image(lines, monkeypatch, code, where):
    def fail(place):
        if where == "open":
            raise OSError(code, "")
        return Flaky(b"xx", OSError(code, ""))

    monkeypatch.setattr(batch_places, "_open", fail)
    monkeypatch.setattr(batch_places, "PAUSES", (0.0, 0.0))
    with pytest.raises(FetchError, match="a.png: cannot be read now .*--give-up"):
        decode(str(lines / "a.png"), None, False, str(lines))
    assert (decode(str(lines / "a.png"), None, False, str(lines), True).lines[0].error or "").startswith("cannot be read now (")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no.png", "no such file"), ("no/no.png", "no such file"), ("a.png/no.png", "no such file"), ("link.png", "no such file"),
        ("a\0.png", "cannot be read (ValueError)"), ("x" * 300, "cannot be read (OSError)"), ("sub", "not a regular file"),
        ("fifo", "not a regular file"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_what_no_mount_brings_back_is_an_error_of_the_image(lines, name, reason, scheme):
    os.mkfifo(lines / "fifo")
    (lines / "link.png").symlink_to("no.png")
    assert decode(f"{scheme}{lines}/{name}", None, False, str(lines)).lines[0].error == reason


@pytest.mark.parametrize("place", ["root", "root/lines", "root/lines/sub"])
@pytest.mark.parametrize("left", [True, False])
def test_a_missing_file_says_nothing_where_its_storage_is_away(lines, tmp_path, monkeypatch, place, left):
    """A mount point is left as an empty folder; a folder that is gone says so of the input's root alone."""
    monkeypatch.setattr(batch_places, "PAUSES", (0.0, 0.0))
    (tmp_path / "link.png").symlink_to(lines / "sub" / "b.png")
    shutil.rmtree(tmp_path / place)
    if left:
        (tmp_path / place).mkdir()
    for image in (lines / "sub" / "b.png", tmp_path / "link.png"):
        if place == "root/lines/sub" and not left:
            assert decode(str(image), None, False, str(lines)).lines[0].error == "no such file"
        else:
            with pytest.raises(FetchError, match="is it mounted"):
                decode(str(image), None, False, str(lines))


@pytest.mark.parametrize("kind", ["tar", "parquet", "lmdb"])
def test_a_container_that_is_away_stores_nothing(tmp_path, monkeypatch, kind):
    place, _ = make(kind, tmp_path / "data")
    units, _ = plan_and_read(place, tmp_path)
    read = lambda: list(batch_inputs.read(units[0], tmp_path, Columns(), batch_places.root_of(str(place))))  # noqa: E731
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    with pytest.raises(FetchError, match="is it mounted"):
        read()
    (tmp_path / "data" / "more").mkdir(parents=True)
    Path(units[0].place).parent.mkdir(exist_ok=True)
    (Path(units[0].place).parent / "others").touch()
    if kind != "lmdb":  # which is the input's root
        assert [item.error for item in read()] == ["no such file"]


@pytest.mark.parametrize(
    ("place", "root"),
    [
        ("lines", "lines"), ("lines/*.png", "lines"), ("lines/a.png", "lines"), ("*/a.png", ""), ("no/x*/y.png", "no"),
        ("file://{}/lines", "lines"), ("gs://bucket/lines", None),
    ],
)  # fmt: skip
def test_the_root_of_an_input(lines, place, root):
    place = place.format(lines.parent) if "://" in place else f"{lines.parent}/{place}"
    assert batch_places.root_of(place) == ("/" if root is None else str(lines.parent / root))


def test_a_url_that_gives_nothing_or_too_much_ends(monkeypatch):
    monkeypatch.setattr(batch_places, "MAX_BYTES", 1000)
    monkeypatch.setattr(batch_places, "DEADLINE", 0.2)
    files = {"http://x/1": lambda: io.BytesIO(b"x" * 1000), "http://x/2": lambda: io.BytesIO(b"x" * 1001)}
    monkeypatch.setattr(batch_places, "_open", lambda place: files[place]() if place in files else time.sleep(5))
    assert batch_places.read_file("http://x/1", "/") == b"x" * 1000
    with pytest.raises(PlaceError, match="larger than images are"):
        batch_places.read_file("http://x/2", "/")
    with pytest.raises(FetchError, match="not there after 0.2 seconds"):
        batch_places.read_file("http://x/3", "/")


class StrangeError(Exception):
    """As botocore and others have them: of no class that Python knows."""


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("error", [ConnectionResetError("peer"), StrangeError("x"), TimeoutError(), OSError(5, "EIO")], ids=repr)
def test_storage_that_fails_for_a_moment_loses_nothing(tmp_path, monkeypatch, kind, error):
    make_one = {"tar": batching.tar, "parquet": batching.parquet}[kind]
    content = make_one(tmp_path / f"x.{kind}", IMAGES).read_bytes()
    unit = Unit(kind, f"s3://b/x.{kind}", 0, 3, None, 0, "x")
    opened: list[int] = []

    def read(failures):
        opened.clear()

        def open_it(place):
            opened.append(1)
            return Flaky(content, error if len(opened) <= failures else None)

        monkeypatch.setattr(batch_places, "_open", open_it)
        return [item.image for item in batch_inputs.read(unit, tmp_path, Columns())]

    monkeypatch.setattr(batch_places, "PAUSES", (0.0, 0.0))
    assert read(2) == list(IMAGES.values()) and len(opened) == 3
    with pytest.raises(FetchError, match="s3://b/x.*cannot be read now"):
        read(3)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError(), PlaceError), (ValueError("no URL"), PlaceError), (404, PlaceError), (403, PlaceError),
        (503, FetchError), (429, FetchError), (PermissionError(), FetchError), (StrangeError(), FetchError),
        (ModuleNotFoundError("x"), UsageError),
    ],
    ids=repr,
)  # fmt: skip
def test_what_stays_so_is_told_from_what_may_pass(error, kind):
    if isinstance(error, int):
        status, error = error, StrangeError()
        error.status = status  # as aiohttp's ClientResponseError
    with pytest.raises(kind), batch_places.storage("http://x/1.png"):
        raise error


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "no such file"),
        ("empty", "holds no files"),
        ("x*.png", "no file matches"),
        ("notes", "holds no images"),
        ("wide.txt", "line 1 has a NUL byte, as in UTF-16"),
    ],
)
def test_what_is_no_input(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text("x")
    (tmp_path / "wide.txt").write_text("a.png\nb.png\n", encoding="utf-16")
    with pytest.raises(PlaceError, match=message):
        batch_inputs.plan(str(tmp_path / name), 3, io.BytesIO(), Columns())


def test_what_cannot_be_read_now_is_begun_again_after_longer_and_longer_pauses(monkeypatch):
    def begin():
        yield from range(3 - len(slept))
        raise FetchError("x", "away")

    slept: list[float] = []
    monkeypatch.setattr(batch_places.time, "sleep", slept.append)
    items = batch_places.steadily(begin)
    assert [next(items) for _ in range(3)] == [0, 1, 2], "each once"
    with pytest.raises(FetchError):
        next(items)
    assert slept == sorted({*slept}) == list(batch_places.PAUSES) and slept[0] > 0
