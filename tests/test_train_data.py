"""The order of the data: the same for any number of hosts, exact after a pause, and not stopped by single bad records."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import tiny
from PIL import Image

from trocr_jax.pixels.image_processor import ImageProcessor
from trocr_jax.train.batches import Batches, prefetch
from trocr_jax.train.data import Loader, mixed_order, parse_source, training_lines
from trocr_jax.train.sets.records import Record, SourceError
from trocr_jax.train.sets.sources import open_source
from trocr_jax.train.start import opened

PROCESSOR = ImageProcessor(height=16, width=48, fit="pad")

TEXTS = {"empty": "  ", "long": "1" * 30, "ends": "1</s>2", "begins": "<s>1", "fills": "1<pad>", "two": "1\n2"}


class Numbers:
    """n lines whose text is their number; some of them broken."""

    def __init__(self, count: int, bad: dict[int, str] | None = None):
        self.count, self.bad = count, bad or {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Record:
        problem = self.bad.get(index)
        if problem == "missing":
            raise SourceError("the record is missing")
        text = TEXTS.get(problem or "", str(index))
        return Record(b"no image" if problem == "image" else tiny.draw(text), text, f"number {index}")


def loader(sources, weights=None, seed=0, **options) -> Loader:
    order = mixed_order(sources, weights or [1.0] * len(sources), seed)
    return Loader(sources=sources, order=order, tokenizer=tiny.TOKENIZER, processor=PROCESSOR, seed=seed, max_tokens=8, **options)


def batches(load, size=8, **options) -> Batches:
    return Batches(load=load, batch_size=size, seed=0, pad=tiny.TOKENIZER.pad_token_id, max_tokens=8, **options)


def test_empty_columns_are_cut_off_three_batches_of_four():
    whole, cut = (batches(loader([Numbers(60)]), cut=16) for _ in range(2))
    whole.cut = 0
    for step in range(8):
        a, b = whole[step], cut[step]
        width = b.images.shape[2]
        assert (a.images[:, :, :width] == b.images).all() and (a.labels == b.labels).all()
        assert (a.images[:, :, width:] == a.images[:, :, -1:]).all(), "nothing but paper is lost"
        assert width == (48 if step % 4 == 0 else 32), "two digits are 22 pixels wide"


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_the_global_order_is_the_same_for_any_number_of_hosts(hosts):
    expected = [batches(loader([Numbers(21)]))[step].places for step in range(6)]
    each = 8 // hosts
    parts = [batches(loader([Numbers(21)]), rows=range(h * each, (h + 1) * each)) for h in range(hosts)]
    assert [sum((part[step].places for part in parts), ()) for step in range(6)] == expected


def test_each_line_once_an_epoch_and_epochs_differ():
    order = mixed_order([Numbers(50)], [1.0], 3)
    epochs = [[order[50 * epoch + i][1] for i in range(50)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != list(range(50))
    assert [mixed_order([Numbers(50)], [1.0], 4)[i][1] for i in range(50)] != epochs[0], "the seed decides"


def test_sources_are_mixed_by_weight_and_shuffled_apart():
    order = mixed_order([Numbers(40), Numbers(30)], [0.75, 0.25], 0)
    places = [order[i] for i in range(400)]
    assert Counter(source for source, _ in places) == {0: 300, 1: 100}
    assert [index for source, index in places if source == 0][:40] != list(range(40))
    assert sorted(index for source, index in places if source == 1)[:3] == [0, 0, 0]


def test_batches_are_a_function_of_the_step():
    load = loader([Numbers(21)])
    straight = [batches(load)[step] for step in range(5)]
    resumed = [batches(loader([Numbers(21)]))[step] for step in (3, 4)]
    for a, b in zip(straight[3:], resumed, strict=True):
        assert a.places == b.places
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.labels, b.labels)


def test_threads_and_prefetching_change_nothing():
    quick = batches(loader([Numbers(21)]), threads=3)
    assert [b.places for _, b in prefetch(quick, 2, 6)] == [batches(loader([Numbers(21)]))[s].places for s in range(2, 6)]


def test_labels_are_tokens_then_the_end_then_padding():
    batch = batches(loader([Numbers(21)]))[0]
    for row, (_, index) in zip(batch.labels, batch.places, strict=True):
        label = tiny.TOKENIZER.labels(str(index))
        assert row.tolist() == label + [tiny.TOKENIZER.pad_token_id] * (8 - len(label))
        assert tiny.TOKENIZER.bos_token_id not in row


def test_augmentation_is_keyed_by_seed_and_position():
    def noisy(image, rng):
        return image.rotate(int(rng.integers(0, 3)) * 90)

    first, again, other = (loader([Numbers(9)], seed=s, augment=noisy) for s in (1, 1, 2))
    other.order = first.order
    pixels = [[load[i].pixels for i in range(18)] for load in (first, again, other)]
    np.testing.assert_array_equal(pixels[0], pixels[1])
    assert any((a != b).any() for a, b in zip(pixels[0], pixels[2], strict=True))
    twice = [(i, j) for i in range(9) for j in range(9, 18) if first.order[i] == first.order[j]]
    assert len(twice) == 9, "the second epoch has every line again"
    assert any((pixels[0][i] != pixels[0][j]).any() for i, j in twice), "and not as it was in the first"


@pytest.mark.parametrize(("fit", "stretched"), [("stretch", True), ("pad", False), ("line", False)])
@pytest.mark.parametrize("recipe", ["da2", "rand"])
def test_recipes_stretch_lines_only_where_the_model_does(recipe, fit, stretched, tmp_path):
    config = tiny.config(tmp_path)
    model = opened(config.start.model, numbers=False)
    model = replace(model, processor=replace(model.processor, fit=fit))
    loader = training_lines(replace(config, data=replace(config.data, augment=recipe)), model, print)
    line = Image.new("RGB", (600, 40), (250, 250, 250))
    sizes = {loader.augment(line, np.random.default_rng(seed)).size for seed in range(30)}
    assert any(width == height for width, height in sizes) == stretched


def test_groups_sort_by_length_keep_every_line_and_pad_less():
    load = loader([Numbers(1000)])
    plain = [place for step in range(8) for place in batches(load)[step].places]
    grouped = batches(load, group=4)
    assert sorted(place for step in range(8) for place in grouped[step].places) == sorted(plain)
    lengths = [[len(str(index)) for _, index in grouped[step].places] for step in range(4)]
    assert sum(max(row) - min(row) for row in lengths) <= 3
    assert grouped[5].places == batches(loader([Numbers(1000)]), group=4)[5].places, "also when a run goes on inside a group"


def test_bad_records_are_named_once_and_their_places_filled():
    said: list[str] = []
    bad = {3: "missing", 7: "image", 11: "empty", 13: "long"}
    load = loader([Numbers(400, bad)], max_bad=0.05, report=said.append)
    places = [place for step in range(100) for place in batches(load)[step].places]
    assert len(places) == 800 and not {index for _, index in places} & bad.keys()
    assert len(said) == 4, "each once, though two epochs met them twice"
    assert any("record 3: the record is missing" in line for line in said)
    assert any("number 7: not a PNG, JPEG" in line for line in said)
    assert any("number 11: its label is empty" in line for line in said)
    assert any("number 13: its label has 31 tokens, more than --max-tokens 8" in line for line in said)
    again = loader([Numbers(400, bad)], max_bad=0.05)
    assert [place for step in range(100) for place in batches(again)[step].places] == places, "substitutes repeat too"


def test_labels_that_no_line_can_have_are_bad_records():
    """A model would learn to stop in the middle, or to write what is no text."""
    said: list[str] = []
    bad = {3: "ends", 5: "begins", 7: "fills", 9: "two"}
    load = loader([Numbers(200, bad)], max_bad=0.05, report=said.append)
    assert not {load[position].place[1] for position in range(200)} & bad.keys()
    problem = "its label has a token in it that begins, ends or fills up labels, such as </s>"
    expected = [*(f"number {index}: {problem}" for index in (3, 5, 7)), "source 0 record 9: number 9: its text has a line break"]
    assert sorted(said) == expected


def test_too_many_bad_records_end_the_run_with_a_name():
    load = loader([Numbers(300, {index: "empty" for index in range(30)})], max_bad=0.05)
    with pytest.raises(SourceError, match=r"of 2\d\d records cannot be used, more than --data.max-bad 0.05; the last: number"):
        for step in range(40):
            batches(load)[step]
    with pytest.raises(SourceError, match="20 records in a row"):
        loader([Numbers(3, {0: "empty", 1: "empty", 2: "empty"})], max_bad=1.0)[0]


def test_small_data_sets_are_judged_when_all_of_them_was_met():
    """And a record that comes again is not one more good one."""
    load = loader([Numbers(150, {index: "empty" for index in range(0, 150, 10)})], max_bad=0.05)
    with pytest.raises(SourceError, match=r"15 of 150 records cannot be used, more than --data.max-bad 0.05; the last: number"):
        for position in range(450):
            load[position]
    few = loader([Numbers(30, {7: "empty"})], max_bad=0.05)
    assert len({few[position].place for position in range(90)}) == 29
    late = loader([Numbers(1000, {index: "empty" for index in range(0, 1000, 50)})], max_bad=0.01)
    late.order = Repeating([1] * 5000 + [*range(0, 1000, 50), *range(2, 400)])
    with pytest.raises(SourceError, match="20 of 200 records"):
        for position in range(5419):
            late._judge(late.order[position], "" if late.order[position][1] % 50 else "empty")


class Repeating:
    """The order that a list gives."""

    def __init__(self, indices: list[int]):
        self.indices = indices

    def __getitem__(self, position: int) -> tuple[int, int]:
        return 0, self.indices[position]


def test_an_exception_in_the_background_reaches_the_loop():
    class Failing:
        def __getitem__(self, step):
            if step == 2:
                raise OSError("the disk is gone")
            return step

    received = []
    with pytest.raises(OSError, match="disk is gone"):
        for step, item in prefetch(Failing(), 0, 10):
            received.append((step, item))
    assert received == [(0, 0), (1, 1)]


def test_weights_stand_behind_an_at():
    assert parse_source("a/b@0.3") == ("a/b", 0.3)
    assert parse_source("mail@home/x.csv") == ("mail@home/x.csv", 1.0)
    assert parse_source("synthetic") == ("synthetic", 1.0)
    for wrong in ("x@0", "x@-1", "x@inf"):
        with pytest.raises(SourceError, match="must be above 0"):
            parse_source(wrong)


def test_a_stored_data_set_goes_all_the_way(tmp_path):
    source = open_source(tiny.line_folder(tmp_path / "lines"))
    batch = batches(loader([source]))[0]
    assert batch.images.shape == (8, 16, 48, 3) and batch.images.dtype == np.uint8
    wanted = tiny.texts(40)
    for (_, index), label in zip(batch.places, batch.labels, strict=True):
        assert tiny.TOKENIZER.decode(label) == wanted[index]
    assert json.dumps(batch.places), "plain numbers, fit for a log"
