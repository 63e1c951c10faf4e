"""Leases and plans: what workers that know nothing of each other do with one folder."""

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import pytest

from trocr_jax import files
from trocr_jax.files import FilesError
from trocr_jax.serve.batch_job import work as batch_work
from trocr_jax.serve.batch_job.progress import ProgressBar, Share, report
from trocr_jax.serve.batch_job.units import Unit
from trocr_jax.serve.batch_job.work import Worker, begin_job, open_job


def plan(count):
    def write(listing):
        listing.write(b"x" * count)
        return [Unit("listing", "", i, i + 1, 1) for i in range(count)]

    return write


@pytest.fixture
def job(tmp_path):
    return begin_job(tmp_path / "out", {"format": "jsonl"}, plan(8))


@pytest.fixture
def workers(job):
    started = []

    def start(**options):
        started.append(Worker(job, **options))
        return started[-1]

    yield start
    for worker in started:
        worker.close()


def test_a_job_is_found_as_it_was_begun(job):
    again = open_job(job.folder)
    assert again == job and again.units[3] == Unit("listing", "", 3, 4, 1) and again.listing.read_bytes() == b"x" * 8


def test_workers_that_begin_at_once_share_one_plan(tmp_path):
    barrier = threading.Barrier(8)

    def begin(count):
        def write(listing):
            barrier.wait()
            return plan(count)(listing)

        return begin_job(tmp_path / "out", {"format": "jsonl"}, write)

    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(begin, range(1, 9)))
    assert len({(len(job.units), job.listing) for job in jobs}) == 1
    assert jobs[0].listing.stat().st_size == len(jobs[0].units)
    assert sorted(path.name for path in (tmp_path / "out" / "_job").iterdir()) == sorted(
        ["clock", "done", "job.json", "leases", jobs[0].listing.name]
    )


def test_a_plan_that_fails_leaves_nothing_behind_and_says_why(tmp_path):
    def write(listing):
        listing.write(b"x")
        raise FilesError("the input is away")

    with pytest.raises(FilesError, match="the input is away"):
        begin_job(tmp_path / "out", {"format": "jsonl"}, write)
    assert sorted(os.listdir(tmp_path / "out" / "_job")) == ["done", "leases"] and open_job(tmp_path / "out") is None


def test_a_folder_that_holds_other_things_or_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for folder, why in ((tmp_path, "holds 'notes.txt' and no job"), (tmp_path / "notes.txt" / "out", "no job can be begun")):
        with pytest.raises(FilesError, match=why):
            begin_job(folder, {"format": "jsonl"}, plan(1))
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_files_of_others_are_neither_parts_nor_leases(job, workers):
    """As NFS leaves one under such a name where it was deleted while somebody read it."""
    leases = (job.lease(0).with_name(name) for name in (".nfs000000a4", "part-xyz"))
    for place in (*(job.folder / name for name in ("page-00003.jsonl", "part-00003.csv", "part-00003.parquet")), *leases):
        place.touch()
    assert job.done() == set()
    assert workers()._claim_one({3}) == 3


def test_a_job_of_another_version_is_refused(job):
    path = job.folder / "_job" / "job.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))
    with pytest.raises(FilesError, match="another version"):
        open_job(job.folder)


@pytest.mark.parametrize("content", [{}, {"units": [{"foo": 1}]}, {"units": [], "settings": []}, {"units": 3}])
def test_a_damaged_plan_is_named(job, content):
    path = job.folder / "_job" / "job.json"
    path.write_text(json.dumps({"version": batch_work.VERSION, **content}))
    with pytest.raises(FilesError, match="job.json: damaged; choose another OUTPUT"):
        open_job(job.folder)


def test_damaged_counts_are_named(job):
    for number in range(8):
        job.counts(number).write_text('{"images": 1}')
    with pytest.raises(FilesError, match="part-00000.json: damaged; without part-00000.jsonl the same command reads that part"):
        report(job, Share(), None)


def test_counts_are_there_before_their_part(job, workers, monkeypatch):
    """A job whose parts are all there is never worked on again: without its counts it could never be reported."""
    write = files.write_atomically

    def die(path, data):
        if path == job.part(0):
            raise FilesError("the disk is full")
        write(path, data)

    monkeypatch.setattr(files, "write_atomically", die)
    worker = workers()
    with pytest.raises(FilesError):
        worker.finish(0, b"part", {"images": 1})
    assert job.counts(0).exists() and worker.stopped.is_set()
    job.part(0).write_bytes(b"another worker's")
    workers().finish(0, b"part", {"images": 1})


def test_a_unit_that_was_done_since_we_looked_is_left_alone(job, workers):
    job.part(0).touch()
    assert workers()._claim_one({0}) is None and not os.listdir(job.lease(0).parent)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_lease_that_cannot_be_written_is_none(job, workers, monkeypatch, number):
    monkeypatch.setattr(batch_work, "identity", Mock(side_effect=OSError(number, "full")))
    with pytest.raises(FilesError, match="part-00000: cannot be written") as error:
        workers()._create(0)
    assert batch_work.disk_full(error.value) and not os.listdir(job.lease(0).parent)


def test_a_lease_is_kept_alive_however_long_it_may_last(job, workers):
    """More seconds than a clock has."""
    worker = workers(expiry=1e12)
    time.sleep(0.1)
    assert worker._heart.is_alive()


def test_a_plan_of_any_size_can_be_opened(tmp_path, monkeypatch):
    """A million units are larger than any json of a model may be."""
    monkeypatch.setattr(files, "JSON_LIMIT", 100)
    assert len(begin_job(tmp_path / "out", {"format": "jsonl"}, plan(1000)).units) == 1000
    with open(tmp_path / "x.json", "wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(FilesError, match="x.json: too large"):
        files.read_json(tmp_path / "x.json")


def test_every_unit_is_claimed_once(job, workers):
    done, lock = [], threading.Lock()

    def work(worker):
        while (number := worker.claim()) is not None:
            worker.finish(number, b"part", {"lines": 1, "errors": {}})
            with lock:
                done.append(number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, [workers() for _ in range(4)]))
    assert sorted(done) == list(range(8)) and job.done() == set(range(8))
    assert not os.listdir(job.lease(0).parent)


def lease(job, number, **changes):
    job.lease(number).write_text(json.dumps({**batch_work.identity(), **changes}))


def test_a_living_holder_keeps_its_lease(job, workers):
    lease(job, 0)
    worker = workers()
    assert {worker.claim() for _ in range(7)} == set(range(1, 8))
    assert worker._claim_one({0}) is None


def test_a_dead_process_of_this_machine_loses_it_at_once(job, workers):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    holder = {"pid": child.pid, "started": batch_work.started(child.pid)}
    assert int(holder["started"]) > 0
    lease(job, 0, **holder)
    assert workers()._claim_one({0}) is None
    child.kill()
    time.sleep(0.2)  # not waited for: a zombie is dead, too
    assert batch_work.started(child.pid) is None
    assert workers()._claim_one({0}) == 0
    child.communicate()
    lease(job, 1, pid=os.getpid(), started="1")
    assert workers()._claim_one({1}) == 1, "another process has got the number since"


@pytest.mark.parametrize("where", [{"pids": "pid:[1]"}, {"boot": "another"}, {"host": "elsewhere"}])
def test_a_number_of_another_namespace_says_nothing(job, workers, where):
    """Containers share a hostname where their pod has one; 999999 may well be a living process there."""
    lease(job, 0, pid=999999, started="123", **where)
    assert workers()._claim_one({0}) is None


def test_a_silent_holder_on_another_machine_loses_it_in_time(job, workers):
    lease(job, 0, host="elsewhere", pid=1)
    worker = workers(expiry=30.0)
    assert worker._claim_one({0}) is None
    os.utime(job.lease(0), (time.time() - 31, time.time() - 31))
    assert worker._claim_one({0}) == 0
    assert json.loads(job.lease(0).read_text())["host"] == socket.gethostname()


def test_a_lease_cut_off_by_a_crash_lasts_until_it_expires(job, workers):
    job.lease(0).write_bytes(b"")
    assert workers()._claim_one({0}) is None
    os.utime(job.lease(0), (1, 1))
    assert workers()._claim_one({0}) == 0


def test_a_holder_stays_alive_while_it_works(job, workers):
    holder, other = workers(expiry=0.4), workers(expiry=0.4)
    number = holder.claim()
    lease(job, number, host="elsewhere")
    for _ in range(10):
        time.sleep(0.1)
        assert other._claim_one({number}) is None
    holder.close()
    assert other._claim_one({number}) == number


def test_the_last_worker_waits_for_others_and_takes_over(job, workers):
    for number in range(7):
        job.part(number).write_bytes(b"")
    lease(job, 7, host="elsewhere")
    told, worker = [], workers(expiry=1.0)
    began = time.monotonic()
    assert worker.claim(told.append) == 7
    assert told == [1] and time.monotonic() - began > 0.5


def test_a_unit_that_two_do_is_no_error(job, workers):
    slow, quick = workers(), workers()
    number = slow.claim()
    job.lease(number).unlink()
    assert quick._create(number)
    quick.finish(number, b"part", {})
    slow.finish(number, b"part", {})
    assert job.part(number).read_bytes() == b"part"


def test_what_killed_workers_left_is_swept_away(job, workers):
    worker = workers()
    for path in (job.folder / ".part-00000.jsonl.1234", job.folder / "_job" / "listing-0.jsonl", job.lease(3)):
        path.write_bytes(b"x")
    worker.sweep()
    assert sorted(os.listdir(job.folder)) == ["_job"] and not os.listdir(job.lease(0).parent) and job.listing.exists()


def test_shards_that_nobody_counted_are_taken_to_be_as_long_as_those_that_were_read(tmp_path):
    shards = [Unit("tar", f"{number}.tar", name=f"{number}.tar") for number in range(3)]
    bar = ProgressBar(begin_job(tmp_path / "out", {"format": "jsonl", "page": False}, lambda listing: shards))
    for images, expected in ((10, 30), (20, 45)):
        bar.stored(images, images)
        assert bar._bar.total == expected
    bar.close()
    assert bar.lines == 30
