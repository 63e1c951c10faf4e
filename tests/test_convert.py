"""`trocr-jax convert`: every source to every target, proof by comparison, warm starts, clear refusals."""

import json
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import FAMILIES, ROOT, shared
from PIL import Image
from reference import close, nchw, ours, random_config, random_pixels, torch_model
from safetensors.numpy import save_file
from test_weights import to_fairseq
from tokenizers import Tokenizer, models
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BeitConfig,
    BeitModel,
    DeiTConfig,
    DeiTModel,
    RobertaConfig,
    RobertaForMaskedLM,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTForImageClassification,
)

from trocr_jax import cli, pretrained
from trocr_jax.checkpoints import tensor_files, weights
from trocr_jax.config import PRESETS, TrOCRConfig
from trocr_jax.convert import verify
from trocr_jax.convert.cli import _named_tokenizer, main
from trocr_jax.convert.warm_start import warm_start
from trocr_jax.files import read_preprocessor
from trocr_jax.model import TrOCR
from trocr_jax.pixels.image_processor import ImageProcessor
from trocr_jax.terminal import UsageError
from trocr_jax.tokens import Tokenizer as OurTokenizer

TOKENIZER = {"vocab.json": b'{"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}', "merges.txt": b"#version: 0.2\n"}
PREPROCESSOR = {"preprocessor_config.json": b'{"image_processor_type": "ViTImageProcessor", "resample": 2, "size": 32}'}


def convert(*arguments) -> int:
    return cli.main(["convert", *map(str, arguments)])


def reference(directory) -> VisionEncoderDecoderModel:
    model = VisionEncoderDecoderModel.from_pretrained(directory).eval()
    verify.restore_positions(model)
    return model


def logits(model: VisionEncoderDecoderModel, config: TrOCRConfig) -> torch.Tensor:
    ids = torch.tensor(np.random.default_rng(0).integers(3, config.decoder.vocab_size, (2, 7)))
    with torch.no_grad():
        return model(nchw(random_pixels(config, 2)), decoder_input_ids=ids).logits


@pytest.fixture
def source(tmp_path):
    """A random model of a family in a hub directory, complete with tokenizer and preprocessing."""

    def make(family: str, seed: int = 0, companions: bool = True):
        config = replace(random_config(family, seed), pad_token_id=1)  # its tokenizer's
        directory = tmp_path / f"source-{family}-{seed}"
        torch_model(config, seed).save_pretrained(directory)
        for name, content in {**TOKENIZER, **PREPROCESSOR}.items() if companions else ():
            (directory / name).write_bytes(content)
        return directory, config

    return make


# --- conversions ---


@pytest.mark.parametrize("family", "ABC")
def test_exports_load_in_transformers_with_equal_logits(tmp_path, source, family):
    directory, config = source(family)
    assert convert(directory, tmp_path / "hub") == 0
    assert convert(directory, tmp_path / "orbax", "--to", "orbax") == 0
    assert convert(tmp_path / "orbax", tmp_path / "back") == 0
    expected = logits(reference(directory), config)
    for made in ("hub", "back"):
        assert torch.equal(logits(reference(tmp_path / made), config), expected)
    files = [(tmp_path / made / "model.safetensors").read_bytes() for made in ("hub", "back")]
    assert files[0] == files[1]
    assert (tmp_path / "orbax" / "orbax").is_dir() and not (tmp_path / "orbax" / "model.safetensors").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_fixtures_verify(tmp_path, capsys, family):
    assert convert(shared("fixtures", family), tmp_path / "m", "--verify") == 0
    out = capsys.readouterr().out.splitlines()
    report = json.loads(out[-1])
    assert report["ok"] and "transformers" in report["reference"] and "torch" in report["reference"]
    rows = {row["what"]: row for row in report["rows"]}
    layers = ["encoder layer 0", "encoder layer 1", "decoder layer 0", "decoder layer 1", "decoder layer 2"]
    assert rows.keys() >= {*layers, "logits, end to end", "greedy tokens that differ"}
    assert all(rows[layer]["difference"] < 2e-5 for layer in layers)
    assert out[0].split() == ["compared", "difference", "allowed"] and len(out) == len(rows) + 3


@pytest.mark.parametrize(("dtype", "to"), [("bfloat16", "orbax"), ("float16", "hub")])
def test_other_dtypes_verify(tmp_path, capsys, source, dtype, to):
    directory, _ = source("C", 1)
    assert convert(directory, tmp_path / "m", "--to", to, "--dtype", dtype, "--verify") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["ok"]
    assert pretrained.open_checkpoint(tmp_path / "m").dtype == jnp.dtype(dtype)
    assert json.loads((tmp_path / "m" / "config.json").read_text())["dtype"] == dtype


@pytest.mark.parametrize("family", "ABC")
def test_fairseq_files(tmp_path, capsys, source, family):
    """The published sizes are tried in test_weights; this one is small, so its config comes from a file."""
    directory, config = source(family, 2)
    assert not config.has_projection
    tensors = {name: np.asarray(x) for name, x in pretrained.open_checkpoint(directory).tensors.items()}
    torch.save({"model": {n: torch.from_numpy(x) for n, x in to_fairseq(tensors, config).items()}}, tmp_path / "x.pt")
    flags = ("--config", directory / "config.json", "--tokenizer", directory, *(("--verify",) if family == "A" else ()))
    assert convert(tmp_path / "x.pt", tmp_path / "m", *flags) == 0
    assert torch.equal(logits(reference(tmp_path / "m"), config), logits(reference(directory), config))
    assert (tmp_path / "m" / "vocab.json").read_bytes() == TOKENIZER["vocab.json"]
    settings = json.loads((tmp_path / "m" / "preprocessor_config.json").read_text())
    height, width = config.encoder.image_size
    assert settings["resample"] == 3 and settings["size"] == {"height": height, "width": width}  # bicubic, as the original


def test_a_source_without_companions_is_converted_with_a_remark(tmp_path, capsys, source):
    directory, _ = source("A", 3, companions=False)
    assert convert(directory, tmp_path / "m") == 0
    remarks = capsys.readouterr().err
    assert "no preprocessor_config.json" in remarks and "no tokenizer found: needs vocab.json" in remarks
    assert json.loads((tmp_path / "m" / "preprocessor_config.json").read_text())["resample"] == 2


def test_damaged_weights_are_named_and_converted(tmp_path, capsys, source):
    directory, config = source("A", 3)
    model = TrOCR.from_pretrained(directory)
    model.encoder.norm.bias[...] = model.encoder.norm.bias.at[1].set(jnp.nan)
    pretrained.save(model, tmp_path / "damaged", pretrained.companions(directory))
    assert convert(tmp_path / "damaged", tmp_path / "m") == 0
    assert "damaged weights, NaN or infinity: encoder.norm.bias\n" in capsys.readouterr().err


def test_what_float64_loses_is_told(tmp_path, capsys, source):
    directory, _ = source("A", 3)
    tensors = {name: np.asarray(x, np.float64) for name, x in pretrained.open_checkpoint(directory).tensors.items()}
    (directory / "model.safetensors").unlink()
    save_file(tensors, directory / "model.safetensors")
    assert convert(directory, tmp_path / "m") == 0
    assert "SRC has float64 weights, DST gets what a model computes in" in capsys.readouterr().err
    assert pretrained.open_checkpoint(tmp_path / "m").dtype == jnp.float32


def test_what_float16_cannot_hold_is_told(tmp_path, capsys, source):
    directory, _ = source("A", 3)
    model = TrOCR.from_pretrained(directory)
    model.encoder.norm.bias[...] = model.encoder.norm.bias.at[1].set(1e6)
    pretrained.save(model, tmp_path / "large", pretrained.companions(directory))
    assert convert(tmp_path / "large", tmp_path / "m", "--dtype", "float16") == 0
    assert "encoder.norm.bias; float16 ends at 65504, --dtype bfloat16 does not\n" in capsys.readouterr().err


@pytest.mark.parametrize(("content", "told"), [
    (b"{", "preprocessor_config.json: not valid json"),
    (b'{"image_processor_type": "ViTImageProcessor", "resample": 9}', "resample 9 is no PIL filter number"),
])  # fmt: skip
def test_a_preprocessing_that_cannot_be_read_is_told_and_goes_along(tmp_path, capsys, source, content, told):
    directory, _ = source("A", 3)
    pretrained.save(TrOCR.from_pretrained(directory), tmp_path / "m", {**TOKENIZER, "preprocessor_config.json": content})
    assert convert(tmp_path / "m", tmp_path / "same") == 0
    err = capsys.readouterr().err
    assert told in err and "nothing can be read with DST before this is mended" in err
    assert (tmp_path / "same" / "preprocessor_config.json").read_bytes() == content


def other_tokenizer(folder, **changes):
    """The tests' tokenizer with some ids changed, in a folder of its own."""
    folder.mkdir()
    vocabulary = {**json.loads(TOKENIZER["vocab.json"]), **changes}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_bytes(TOKENIZER["merges.txt"])
    return folder


def test_a_tokenizer_of_another_vocabulary_is_refused(tmp_path, capsys, source):
    directory, config = source("A", 3)
    rows = config.decoder.vocab_size
    many = other_tokenizer(tmp_path / "many", **{f"token{i}": i for i in range(4, rows + 1)})
    assert convert(directory, tmp_path / "m", "--tokenizer", many) == 1
    wrong = f"--tokenizer {many}: the tokenizer has {rows + 1} tokens and the model {rows} rows; name the model's own"
    assert wrong in capsys.readouterr().err
    swapped = other_tokenizer(tmp_path / "swapped", **{"<s>": 2, "</s>": 0})
    assert convert(directory, tmp_path / "m", "--tokenizer", swapped) == 1
    assert (
        f"--tokenizer {swapped}: bos_token_id is 0 in the model and 2 in the tokenizer; eos_token_id is 2 in"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "m").exists()
    fits = other_tokenizer(tmp_path / "fits", **{f"token{i}": i for i in range(4, rows)})
    assert convert(directory, tmp_path / "m", "--tokenizer", fits) == 0


@pytest.mark.parametrize(("checkpoint", "tokenizer", "fits"), [
    ("small", "trocr-small", True), ("base", "roberta", True), ("small", "roberta", False), ("base", "trocr-small", False),
])  # fmt: skip
def test_the_public_tokenizers_fit_their_own_checkpoints(checkpoint, tokenizer, fits):
    config = PRESETS[f"microsoft/trocr-{checkpoint}-printed"]
    with nullcontext() if fits else pytest.raises(ValueError, match="name the model's own with --tokenizer"):
        _named_tokenizer("--tokenizer", str(shared("tokenizer", tokenizer)), config)


def test_the_tokenizer_gets_a_class(tmp_path, capsys, source):
    directory, _ = source("A", 3)
    (directory / "tokenizer_config.json").write_text('{"model_max_length": 512}')
    assert convert(directory, tmp_path / "m") == 0
    settings = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    assert settings.items() >= {"model_max_length": 512, "tokenizer_class": "RobertaTokenizer", "eos_token": "</s>"}.items()
    capsys.readouterr()
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "Other"}')
    assert convert(directory, tmp_path / "kept") == 0
    assert (tmp_path / "kept" / "tokenizer_config.json").read_text() == '{"tokenizer_class": "Other"}'
    assert f"{directory}: tokenizer_class 'Other' is not supported with these files" in capsys.readouterr().err


def test_a_lone_tokenizer_json_is_not_called_a_roberta(tmp_path, source):
    """It says itself what it is; transformers would read a unigram model or a word list by another class's rules."""
    directory, _ = source("A", 3)
    backend = Tokenizer(models.WordLevel(json.loads(TOKENIZER["vocab.json"]), unk_token="<unk>"))
    (directory / "tokenizer.json").write_text(backend.to_str())
    for name in TOKENIZER:
        (directory / name).unlink()
    assert convert(directory, tmp_path / "m") == 0
    assert not (tmp_path / "m" / "tokenizer_config.json").exists()
    assert AutoTokenizer.from_pretrained(tmp_path / "m")("<pad>", add_special_tokens=False).input_ids == [1]


def test_a_tokenizer_that_does_not_fit_its_own_model_is_said(tmp_path, capsys, source):
    directory, _ = source("A", 3)
    (directory / "vocab.json").write_text('{"<s>": 2, "<pad>": 1, "</s>": 0, "<unk>": 3}')
    assert convert(directory, tmp_path / "m") == 0
    told = capsys.readouterr().err
    assert (
        f"{directory}: bos_token_id is 0 in the model and 2 in the tokenizer; eos_token_id is" in told and "--tokenizer" in told
    )


@pytest.mark.parametrize(("family", "tokenizer", "resample"), [("A", "roberta", 2), ("C", "trocr-small", 3)])
def test_transformers_prepares_and_reads_with_what_was_written(tmp_path, source, family, tokenizer, resample):
    """Bare vocabulary files and no preprocessing: what is written beside them gives the same pixels and tokens there as here."""
    directory, config = source(family, 3, companions=False)
    for name in ("vocab.json", "merges.txt", "sentencepiece.bpe.model"):
        if (file := shared("tokenizer", tokenizer) / name).exists():
            (directory / name).write_bytes(file.read_bytes())
    assert convert(directory, tmp_path / "m") == 0
    ids = AutoTokenizer.from_pretrained(tmp_path / "m")("Hello world").input_ids
    assert ids == OurTokenizer.from_directory(tmp_path / "m").encode("Hello world") and len(ids) == 4
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 120, 3), np.uint8))
    theirs = AutoImageProcessor.from_pretrained(tmp_path / "m", backend="pil")(image, return_tensors="np").pixel_values[0]
    height, width = config.encoder.image_size
    exact = np.asarray(image.resize((width, height), resample), np.float32).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(theirs, (exact - 0.5) / 0.5, atol=1e-6)
    ours_ = ImageProcessor.from_hf(read_preprocessor(tmp_path / "m"), config.encoder.image_size)
    np.testing.assert_array_equal(theirs.transpose(1, 2, 0), ours_.normalize(ours_(image)))


# --- verification ---


def test_verification_finds_what_is_wrong(tmp_path, source):
    """One weight of one layer changed after the conversion: its tensor, its layer and the whole are reported, no other."""
    directory, config = source("C", 4)
    assert convert(directory, tmp_path / "m") == 0
    tensors = {name: np.array(x) for name, x in tensor_files.open_tensors(tmp_path / "m").items()}
    tensors["decoder.model.decoder.layers.0.fc1.bias"] += 0.1
    tensor_files.write_safetensors(tmp_path / "m" / "model.safetensors", tensors)
    (tmp_path / "m" / "manifest.json").unlink()
    report = verify.verify(tmp_path / "m", pretrained.open_checkpoint(directory))
    wrong = {row.what for row in report.rows if not row.ok} - {"greedy tokens that differ"}
    assert not report.ok and wrong == {f"{len(tensors)} tensors, bit for bit", "decoder layer 0", "logits, end to end"}
    assert "WRONG" in verify.table(report)


WITHOUT_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from trocr_jax.cli import main
raise SystemExit(main())
"""


def test_verification_without_torch_compares_the_tensors(tmp_path, source):
    directory, _ = source("A", 5)
    command = [sys.executable, "-c", WITHOUT_TORCH, "convert", str(directory), str(tmp_path / "m"), "--verify"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["ok"] and "torch is not installed" in report["reference"] and len(report["rows"]) == 1


# --- refusals ---


def test_refusals_are_one_line(tmp_path, capsys, source):
    directory, _ = source("A", 6)
    capsys.readouterr()  # what transformers told of writing it
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk.pt").write_bytes(b"junk")
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "config.json").write_text("{")
    cases = [
        (2, "exists and is not empty", (directory, directory)),
        (2, "lies inside of SRC", (directory, directory / "orbax", "--to", "orbax")),
        (2, "--seed must be from 0", (directory, tmp_path / "new", "--decoder", directory, "--seed", 2**32)),
        (1, "no config.json", (tmp_path / "empty", tmp_path / "m")),
        (1, "no such file or directory", (tmp_path / "absent", tmp_path / "m")),
        (1, "not a PyTorch checkpoint", (tmp_path / "junk.pt", tmp_path / "m")),
        (1, "not valid json", (tmp_path / "json", tmp_path / "m")),
        (1, "HF_HUB_OFFLINE", ("owner/not-here", tmp_path / "m")),
        (1, "'vision-encoder-decoder', a warm start needs vit", (directory, tmp_path / "m", "--decoder", directory)),
    ]
    for code, reason, arguments in cases:
        assert convert(*arguments) == code, reason
        message = capsys.readouterr().err
        assert reason in message and message.count("\n") == 1, message
    assert not (tmp_path / "m").exists()
    with pytest.raises(SystemExit) as error:
        convert(directory, tmp_path / "m", "--to", "onnx")
    assert error.value.code == 2


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (RuntimeError("no memory left\nat 0x7f"), 1, "trocr-jax: no memory left\n"),
        (KeyboardInterrupt(), 130, "trocr-jax: interrupted\n"),
        (UsageError("taken"), 2, "trocr-jax: taken\n"),
    ],
)
def test_in_a_checkout_mistakes_end_as_those_of_the_command_do(tmp_path, capsys, monkeypatch, error, code, told):
    monkeypatch.setattr("trocr_jax.convert.cli.run", Mock(side_effect=error))
    assert main(["a", str(tmp_path / "m")]) == code and capsys.readouterr().err == told
    monkeypatch.setenv("TROCR_TRACEBACK", "1")
    with pytest.raises(type(error)):
        main(["a", str(tmp_path / "m")])


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--image-size", 32, 64), "--image-size: only for a warm start, which needs --decoder"),
        (
            ("--seed", 1, "--decoder-layers", 3, "--branch", "roberta"),
            "--branch, --decoder-layers, --seed: only for a warm start",
        ),
        (("--config", "c.json"), "--config: only for a fairseq file, and "),
        (("--config", "c.json", "--decoder", "r"), "--config: only for a fairseq file; a warm start has the sizes of SRC"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(tmp_path, capsys, flags, told):
    assert convert(tmp_path, tmp_path / "m", *flags) == 2
    message = capsys.readouterr().err
    assert told in message and message.count("\n") == 1


def test_homes(tmp_path, capsys, monkeypatch, source):
    directory, _ = source("A", 6)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert convert(directory, "~/m") == 0
    assert f"wrote {tmp_path / 'm'}: float32, 0.2 MB" in capsys.readouterr().err
    assert convert(directory, "~nobody9/m") == 2 and convert("~nobody9/m", tmp_path / "n") == 1
    assert capsys.readouterr().err.count("~nobody9 is nobody's home\n") == 2


# --- warm starts ---

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2}


def drawn(model, seed=0):
    """Every parameter random: what is all zeros or ones would hide that it was lost."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture
def roberta(tmp_path):
    config = RobertaConfig(
        hidden_size=24, num_attention_heads=4, intermediate_size=40, num_hidden_layers=5, vocab_size=60,
        max_position_embeddings=34, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1,
    )  # fmt: skip
    model = drawn(RobertaForMaskedLM(config))
    model.save_pretrained(tmp_path / "roberta")
    for name, content in TOKENIZER.items():
        (tmp_path / "roberta" / name).write_bytes(content)
    return tmp_path / "roberta", {name: x.numpy() for name, x in model.state_dict().items()}


def encode(model: TrOCR, pixels: np.ndarray) -> jax.Array:
    return jax.jit(TrOCR.encode)(model, pixels)


@pytest.mark.parametrize("kind", ["deit", "beit"])
def test_encoders_compute_what_they_did(tmp_path, roberta, kind):
    """BEiT here without relative positions: with them a plain ViT cannot compute the same. ViT itself is tried below."""
    make = {
        "deit": lambda: DeiTModel(DeiTConfig(image_size=32, **SIZES)),
        "beit": lambda: BeitModel(
            BeitConfig(
                image_size=32, use_absolute_position_embeddings=True, use_mean_pooling=False, layer_scale_init_value=0.3, **SIZES
            )
        ),
    }  # fmt: skip
    theirs = drawn(make[kind]())
    theirs.save_pretrained(tmp_path / kind)
    model, remarks = warm_start(tmp_path / kind, roberta[0], decoder_layers=3)
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype("f4")
    with torch.no_grad():
        expected = theirs(nchw(pixels)).last_hidden_state
    close(encode(model, pixels), expected, 1e-5)
    assert model.config.encoder.model_type == {"deit": "deit", "beit": "vit"}[kind]
    assert model.config.encoder.image_size == (32, 32) and not any("interpolated" in remark for remark in remarks)
    assert not any("encoder.encoder" in remark for remark in remarks if remark.startswith("fresh"))


def test_a_warm_start_has_the_decoder_s_dropout_and_refuses_positions_that_are_none(tmp_path, roberta):
    drawn(ViTForImageClassification(ViTConfig(image_size=32, **SIZES))).save_pretrained(tmp_path / "vit")
    path = roberta[0] / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "hidden_dropout_prob": 0.3}))
    assert warm_start(tmp_path / "vit", roberta[0], decoder_layers=3)[0].config.decoder.dropout == 0.3
    path.write_text(json.dumps({**content, "position_embedding_type": "relative_key"}))
    with pytest.raises(ValueError, match="position"):
        warm_start(tmp_path / "vit", roberta[0], decoder_layers=3)


def test_a_vit_for_another_image_size(tmp_path, roberta):
    theirs = drawn(ViTForImageClassification(ViTConfig(image_size=64, **SIZES)))
    theirs.save_pretrained(tmp_path / "vit")
    model, remarks = warm_start(tmp_path / "vit", roberta[0], decoder_layers=3, image_size=(32, 96))
    assert model.config.encoder.image_size == (32, 96) and "interpolated: positions from 4x4 to 2x6 patches" in remarks
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, 32, 96, 3)).astype("f4")
    with torch.no_grad():
        expected = theirs.vit(nchw(pixels), interpolate_pos_encoding=True).last_hidden_state
    close(encode(model, pixels), expected, 1e-5)


@pytest.mark.parametrize("pooled", [False, True])
def test_beit_with_relative_positions_says_what_it_loses(tmp_path, roberta, pooled):
    config = BeitConfig(image_size=32, use_relative_position_bias=True, use_mask_token=True, use_mean_pooling=pooled, **SIZES)
    theirs = drawn(BeitModel(config))
    theirs.save_pretrained(tmp_path / "beit")
    model, remarks = warm_start(tmp_path / "beit", roberta[0], decoder_layers=3)
    told = "\n".join(remarks)
    assert "dropped: BEiT's relative position biases" in told and "encoder.embeddings.position_embeddings" in told
    norm = theirs.pooler.layernorm if pooled else theirs.layernorm
    np.testing.assert_array_equal(weights.arrays(model)["encoder.norm.scale"], norm.weight.detach())
    bias = weights.arrays(model)["encoder.layers.attention.key.bias"]
    assert not bias.any() and weights.arrays(model)["encoder.layers.attention.query.bias"].any()


LAYER = {
    "self_attn.q_proj": "attention.self.query", "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value", "self_attn.out_proj": "attention.output.dense",
    "self_attn_layer_norm": "attention.output.LayerNorm", "fc1": "intermediate.dense", "fc2": "output.dense",
    "final_layer_norm": "output.LayerNorm",
}  # fmt: skip


@pytest.mark.parametrize("branch", ["roberta2", "roberta"])
def test_decoders_take_the_last_layers(tmp_path, roberta, branch):
    directory, theirs = roberta
    drawn(ViTForImageClassification(ViTConfig(image_size=32, **SIZES))).save_pretrained(tmp_path / "vit")
    model, remarks = warm_start(tmp_path / "vit", directory, branch=branch, decoder_layers=3)
    found, decoder, whole = weights.dump(model), model.config.decoder, branch == "roberta2"
    for i in range(3):
        for ours_, name in LAYER.items():
            for kind in ("weight", "bias"):
                x = found[f"decoder.model.decoder.layers.{i}.{ours_}.{kind}"]
                equal = np.array_equal(x, theirs[f"roberta.encoder.layer.{i + 2}.{name}.{kind}"])
                assert equal == (whole or ours_.startswith("self_attn")), (i, ours_, kind)
    np.testing.assert_array_equal(found[weights.EMBED], theirs["roberta.embeddings.word_embeddings.weight"])
    assert (decoder.learned_positions, decoder.layernorm_embedding, decoder.tie_word_embeddings) == (whole, whole, whole)
    assert (decoder.activation, decoder.scale_embedding) == (("gelu", False) if whole else ("relu", True))
    assert decoder.max_positions == (32 if whole else 1024) and decoder.cross_attention_size == 32
    if whole:
        embeddings, root = "roberta.embeddings", "decoder.model.decoder"
        table = theirs[f"{embeddings}.position_embeddings.weight"] + theirs[f"{embeddings}.token_type_embeddings.weight"]
        np.testing.assert_array_equal(found[f"{root}.embed_positions.weight"], table)
        np.testing.assert_array_equal(found[f"{root}.layernorm_embedding.bias"], theirs[f"{embeddings}.LayerNorm.bias"])
    fresh = next(remark for remark in remarks if remark.startswith("fresh"))
    assert "encoder_attn" in fresh and ("layers.*.fc1" in fresh) == (not whole)
    assert any("first 2 layers" in remark for remark in remarks)


def test_warm_start_from_the_command_line(tmp_path, capsys, roberta):
    drawn(ViTForImageClassification(ViTConfig(image_size=32, **SIZES))).save_pretrained(tmp_path / "vit")
    flags = ("--decoder", roberta[0], "--decoder-layers", 2, "--image-size", 32, 64, "--verify")
    assert convert(tmp_path / "vit", tmp_path / "m", *flags) == 0
    captured = capsys.readouterr()
    assert "fresh: " in captured.err and json.loads(captured.out.splitlines()[-1])["ok"]
    assert "an encoder's own preprocessing is not taken: DST gets" in captured.err and "no tokenizer" not in captured.err
    found = pretrained.companions(tmp_path / "m")
    assert found["vocab.json"] == TOKENIZER["vocab.json"] and "preprocessor_config.json" in found


def test_a_warm_start_has_the_tokenizer_of_its_embeddings(tmp_path, capsys, roberta):
    drawn(ViTForImageClassification(ViTConfig(image_size=32, **SIZES))).save_pretrained(tmp_path / "vit")
    many = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, **{f"token{i}": i for i in range(4, 61)}}
    (roberta[0] / "vocab.json").write_text(json.dumps(many))
    flags = ("--decoder", roberta[0], "--decoder-layers", 2)
    assert convert(tmp_path / "vit", tmp_path / "m", *flags) == 1 and not (tmp_path / "m").exists()
    assert f"--decoder {roberta[0]}: the tokenizer has 61 tokens and the model 60 rows; name" in capsys.readouterr().err
    assert convert(tmp_path / "vit", tmp_path / "m", *flags, "--tokenizer", other_tokenizer(tmp_path / "own")) == 0


def test_warm_starts_that_cannot_be(tmp_path, roberta):
    drawn(ViTForImageClassification(ViTConfig(image_size=32, **SIZES))).save_pretrained(tmp_path / "vit")
    directory = roberta[0]
    cases = [
        ("has 5 layers; 12 of them", {}, {}),
        ("layer_norm_eps must be 1e-5", {"layer_norm_eps": 1e-6}, {"decoder_layers": 2}),
        ("the weights have 5 layers, config.json says '5'", {"num_hidden_layers": "5"}, {"decoder_layers": 2}),
        ("the weights have 5 layers, config.json says 3", {"num_hidden_layers": 3}, {"decoder_layers": 2}),
        ("layer_norm_eps must be 1e-5", {"layer_norm_eps": None}, {"decoder_layers": 2}),
        ("model_type is 'bert'", {"model_type": "bert"}, {"decoder_layers": 2}),
        ("'camembert', a warm start needs roberta, xlm-roberta", {"model_type": "camembert"}, {"decoder_layers": 2}),
        ("has bos_token_id 5, not 0; eos_token_id 6, not 2", {"bos_token_id": 5, "eos_token_id": 6}, {"decoder_layers": 2}),
        ("'num_attention_heads' is missing", {"num_attention_heads": None}, {"decoder_layers": 2}),
    ]
    good = json.loads((directory / "config.json").read_text())
    for reason, change, arguments in cases:
        settings = {name: value for name, value in {**good, **change}.items() if value is not None}
        (directory / "config.json").write_text(json.dumps(settings))
        with pytest.raises(ValueError, match=reason):
            warm_start(tmp_path / "vit", directory, **arguments)


@pytest.mark.parametrize(("change", "told"), [
    ({"encoder.layer.1.lambda_1": None}, "not a complete checkpoint, 'encoder.layer.1.lambda_1' is missing"),
    ({"layernorm.bias": np.zeros(32, "i4")}, "weights that are not floating point: layernorm.bias int32"),
])  # fmt: skip
def test_weights_that_would_be_folded_wrongly_are_refused(tmp_path, roberta, change, told):
    drawn(BeitModel(BeitConfig(image_size=32, **SIZES))).save_pretrained(tmp_path / "beit")
    path = tmp_path / "beit" / "model.safetensors"
    found = {name: np.asarray(x) for name, x in tensor_files.open_tensors(path).items()} | change
    tensor_files.write_safetensors(path, {name: x for name, x in found.items() if x is not None})
    with pytest.raises(ValueError, match=told):
        warm_start(tmp_path / "beit", roberta[0], decoder_layers=3)


def test_reference_helper_agrees(source):
    """`ours` (weights from a live torch model) and the file on disk give one model."""
    directory, config = source("B", 7)
    live = ours(reference(directory), config)
    found = TrOCR.from_pretrained(directory)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), live, found))
    assert replace(found.config) == config
