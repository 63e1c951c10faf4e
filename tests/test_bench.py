"""The benchmark: what it prints, what it counts, and that its candidates do the same work. Speed itself is not tested."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from conftest import ROOT

from trocr_jax import images
from trocr_jax.config import PRESETS
from trocr_jax.model import TrOCR
from trocr_jax.reader import Reader
from trocr_jax.serve import bench, curves, refill
from trocr_jax.serve.benchmark import lines as bench_lines
from trocr_jax.serve.benchmark import roofline
from trocr_jax.terminal import UsageError

BASE = PRESETS["microsoft/trocr-base-handwritten"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny.model_directory(tmp_path_factory.mktemp("bench") / "model"))


def last_json(text: str) -> dict:
    return json.loads(text.splitlines()[-1])


def test_one_table_a_setting_and_one_json_line(folder, tmp_path, capsys):
    plot = tmp_path / "roofline.png"
    config = bench.Config(
        folder, batch_size=(2, 1), tokens=(3,), dtype=("float32", "bfloat16"), rounds=2, peers=False, price_per_hour=3.6,
        plot=plot,
    )  # fmt: skip
    assert bench.run(config) == 0
    out = capsys.readouterr().out
    found = last_json(out)
    assert [(m["batch_size"], m["tokens"]) for m in found["measured"]] == [(2, 3), (1, 3)]
    assert out.count("same tokens") == 2 and out.count("XLA cpu, bfloat16") == 2 + 2
    for measured in found["measured"]:
        own, narrow = measured["results"]
        assert own["token_agreement"] == 1.0 and "bfloat16" in narrow["name"]
        assert own["lines_per_s"] == pytest.approx(measured["batch_size"] / own["median_s"])
        assert own["cost_per_1000_lines"] == pytest.approx(1000 * 3.6 / 3600 / own["lines_per_s"])
        assert own["p50_s"] <= own["p99_s"]
        assert own["compile_s"] == pytest.approx(max(0.0, own["first_s"] - own["median_s"]))
        assert measured["roofline"]["share"] == pytest.approx(measured["roofline"]["least_s"] / own["median_s"])
    assert found["ceilings"]["flops"] > 1e8 and found["ceilings"]["bytes"] > 1e7
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_peer_that_is_not_there_is_named_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr(bench, "available_peers", lambda: {"transformers (torch, eager, float32)": None})
    bench.check(bench.Config(only=("float32",)))
    with pytest.raises(UsageError, match="no peer here is called OpenVINO; there are: transformers"):
        bench.run(bench.Config(only=("float32", "OpenVINO")))


@pytest.mark.filterwarnings("default")  # OpenVINO forks as it starts
def test_every_peer_gives_the_same_number_of_tokens_and_the_exact_ones_the_same_tokens():
    model = TrOCR.from_pretrained(dtype=jnp.float32)
    pixels = np.stack([np.asarray(_pixels(name)) for name in ("print-1", "sum")])
    expected = bench.ours(model)(pixels, 6)
    for name, make in bench.available_peers().items():
        if "compiled" in name:
            continue  # minutes of a C++ compiler
        found = make(model)(pixels, 6)
        assert found.shape == expected.shape, name
        if "float32" in name:
            np.testing.assert_array_equal(found, expected, err_msg=name)


def _pixels(name: str) -> np.ndarray:
    reader = Reader.from_pretrained()
    return reader.processor.normalize(reader.processor(images.load(ROOT / "examples" / f"{name}.png")))


def test_devices_share_a_batch_and_give_the_same_tokens(folder):
    model = bench.load(bench.Config(folder))
    pixels = bench.draw_pixels(bench.Config(folder), model, 4)
    np.testing.assert_array_equal(bench.ours(model, 2)(pixels, 4), bench.ours(model)(pixels, 4))


def test_cold_start_is_a_process_of_its_own(folder):
    found = bench.cold_start(bench.Config(folder, batch_size=(1,), tokens=(2,)))
    assert found["cold_start_s"] > 0.5 and found["cold_peak_bytes"] > 1 << 26


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": (8, 0)}, "at least 1"),
        ({"dtype": ("float16",)}, "float32, bfloat16"),
        ({"devices": 999}, "--devices is 999"),
        ({"random": True, "model": "nobody/none"}, "--random needs --model"),
        ({"tokens": ()}, "at least one number"),
        ({"random": True, "model": "microsoft/trocr-base-handwritten", "lines": ROOT}, "leave out --random$"),
        ({"lines": ROOT, "tokens": (3,), "peers": False, "cold_start": True}, "leave out --tokens, --no-peers, --cold-start$"),
        ({"plot": Path("/nowhere/x.png")}, "--plot /nowhere/x.png: there is no folder /nowhere"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        bench.run(replace(bench.Config(), **changes))


def test_lines_take_the_model_and_the_rounds(monkeypatch, capsys):
    monkeypatch.setattr(bench_lines, "run", lambda *given: {"given": given[1:]})
    assert bench.run(bench.Config("some/model", rounds=2, lines=ROOT)) == 0
    assert last_json(capsys.readouterr().out)["given"] == ["some/model", 2]


def test_the_json_line_comes_before_the_plot_which_may_fail(folder, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(roofline, "plot", full)
    with pytest.raises(OSError, match="no space left"):
        bench.run(bench.Config(folder, batch_size=(1,), tokens=(2,), rounds=1, peers=False, plot=tmp_path / "roofline.png"))
    assert last_json(capsys.readouterr().out)["measured"]


def test_without_tyro_flags_are_one_json_object():
    found = bench.from_json(['{"dtype": ["bfloat16"], "plot": "x.png", "rounds": 2}'])
    assert found == bench.Config(dtype=("bfloat16",), plot=Path("x.png"), rounds=2)
    for wrong in (["--help"], ['{"round": 2}'], ["[1]"], ["{}", "{}"]):
        with pytest.raises(UsageError, match="takes one JSON object of: model, random, batch_size"):
            bench.from_json(wrong)
    assert bench.from_json(['{"batch_size": 64, "price_per_hour": 2}']) == bench.Config(batch_size=(64,), price_per_hour=2.0)


@pytest.mark.parametrize(("given", "said"), [
    ('{"rounds": "x"}', "rounds must be of type int, not 'x'"), ('{"rounds": true}', "rounds must be of type int, not True"),
    ('{"tokens": [20, 2.5]}', "tokens must be of type int, not 2.5"), ('{"plot": 3}', "plot must be of type Path, not 3"),
    ('{"random": "yes"}', "random must be of type bool, not 'yes'"), ('{"model": 1}', "model must be of type str, not 1"),
])  # fmt: skip
def test_a_value_of_another_kind_is_named(given, said):
    with pytest.raises(UsageError) as raised:
        bench.from_json([given])
    assert str(raised.value) == said


def test_the_counts_of_the_base_model_are_known():
    encode, decode = roofline.encoding(BASE, 1, 4), roofline.decoding(BASE, 1, 20, 4)
    assert encode.flops == pytest.approx(111e9, rel=0.01)
    assert decode.flops == pytest.approx(20 * 108e9 / 128, rel=0.03)  # the TPU compiler's count, design.md section 4
    assert decode.bytes == pytest.approx(20 * 4 * 247e6, rel=0.1)  # the decoder's weights at every step, and little else


@pytest.mark.parametrize("family", ["vit", "deit"])
def test_encoder_arithmetic_is_what_the_compiler_counts(family):
    """On layers without a scan, whose body the compiler would count once."""
    encoder = replace(BASE.encoder, model_type=family, image_size=(64, 128), num_layers=1, activation="relu")
    config = replace(BASE, encoder=encoder)
    abstract = TrOCR.abstract(config)
    pixels = jax.ShapeDtypeStruct((2, 64, 128, 3), jnp.float32)
    counted = jax.jit(TrOCR.encode).lower(abstract, pixels).cost_analysis()["flops"]
    assert roofline.encoding(config, 2, 4).flops == pytest.approx(counted, rel=0.05)


def test_least_time_is_the_slower_of_arithmetic_and_traffic():
    ceilings = roofline.Ceilings(100.0, 10.0)
    assert roofline.Work(200.0, 10.0).seconds(ceilings) == 2.0
    assert roofline.Work(200.0, 50.0).seconds(ceilings) == 5.0


def test_lines_are_read_by_every_mode(tmp_path, capsys):
    for path in sorted((ROOT / "examples").glob("*.png"))[:3]:
        shutil.copy(path, tmp_path)
    found = bench_lines.run(tmp_path, None, 1)
    assert found["lines"] == 3
    exact, narrow, *others = found["results"]
    assert exact["line_agreement"] == exact["token_agreement"] == 1.0
    assert 0 < narrow["token_agreement"] <= 1
    for row in others:
        assert (row["token_agreement"] is None) == row["name"].startswith("Tesseract"), row
        if "float32" in row["name"]:
            assert row["line_agreement"] == 1.0
    assert "same tokens" in capsys.readouterr().out


def test_lines_that_cannot_be_read_are_named_before_another_program_gives_up_at_them(tmp_path, monkeypatch):
    shutil.copy(ROOT / "examples" / "sum.png", tmp_path)
    for number in range(1, 6):
        (tmp_path / f"{number}.png").write_bytes((tmp_path / "sum.png").read_bytes()[: 100 * (number > 1)])
    reader = Reader.from_pretrained()
    others = {"ours": bench_lines._reading(reader), "Tesseract": lambda paths: pytest.fail("too late")}
    monkeypatch.setattr(bench_lines, "make_candidates", lambda model: others)
    with pytest.raises(
        ValueError, match=r"^5 of 6 images cannot be read, take them out: .*/1.png: the file is empty; .*/2.png: "
    ) as error:
        bench_lines.run(tmp_path, None, 1)
    assert "3.png" in str(error.value) and "4.png" not in str(error.value) and str(error.value).endswith("; and 2 more")


def test_refilling_counts_steps():
    assert refill.static([1, 9, 4, 4], 2) == 12 + 4
    assert refill.refilled([1, 9, 4, 4], 2) == 12  # 1, 4 and 4 one after another beside 9
    assert refill.refilled([5] * 6, 3) == refill.static([5] * 6, 3) == 16


def test_curves_are_measured_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", tiny.MODEL)
    config = curves.Config(
        tmp_path / "curves",
        model="tiny",
        models=("tiny",),
        batch_sizes=(2,),
        tokens=(2,),
        widths=(16,),
        batch=1,
        length=3,
        rounds=1,
    )
    assert curves.run(config) == 0
    found = json.loads((tmp_path / "curves.json").read_text())
    assert [(p["curve"], p["batch"], p["tokens"]) for p in found["points"]] == [
        ("batch", 2, 3), ("tokens", 1, 2), ("width", 1, 3), ("model", 1, 3)
    ]  # fmt: skip
    flops = {p["curve"]: p["encode_flops"] for p in found["points"]}
    assert flops["batch"] == 2 * flops["tokens"] == 2 * flops["model"], "two images, one, one"
    for stage in ("encode", "decode"):
        assert all(p[f"{stage}_least_s"] >= p[f"{stage}_flops"] / found["flops_per_s"] for p in found["points"])
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_where_decoding_becomes_the_longer_stage():
    rows = [{"curve": "tokens", "x": x, "encode_s": 10.0, "decode_s": float(x)} for x in (4, 8, 16)]
    assert curves.crossing(rows) == 10 and curves.crossing(rows[:2]) is None
