"""What a checkpoint says of decoding is followed, or it is said that it is not."""

import json
import re
import shutil
import warnings

import pytest
import transformers
from conftest import ROOT, shared

from trocr_jax import Reader, TrOCR
from trocr_jax.checkpoints.generation_files import read_settings
from trocr_jax.config import TrOCRConfig
from trocr_jax.generation.config import GenerateConfig
from trocr_jax.pretrained import companions, save

PACKAGED = ROOT / "trocr_jax" / "tiny-print"


@pytest.fixture
def folder(tmp_path):
    """The packaged model without a manifest and a generation_config.json, as many fine-tuned ones are."""
    copy = tmp_path / "model"
    shutil.copytree(PACKAGED, copy, ignore=shutil.ignore_patterns("manifest.json", "generation_config.json"))
    return copy


def change(folder, section=None, **settings):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    (config[section] if section else config).update(settings)
    path.write_text(json.dumps(config))


def write(folder, **settings):
    (folder / "generation_config.json").write_text(json.dumps(settings))


TUNED = {"num_beams": 4, "length_penalty": 2.0, "no_repeat_ngram_size": 3, "early_stopping": True, "max_length": 60}


def test_settings_in_config_json_are_followed_as_transformers_follows_them(folder):
    change(folder, **TUNED)
    theirs = transformers.VisionEncoderDecoderModel.from_pretrained(folder).generation_config
    ours = Reader.from_pretrained(folder).defaults
    assert ours == GenerateConfig(59, num_beams=4, length_penalty=2.0, no_repeat_ngram_size=3, early_stopping=True)
    assert {name: getattr(theirs, name) for name in TUNED} == TUNED


def test_the_top_of_config_json_goes_before_its_decoder_and_neutral_values_say_nothing(folder):
    change(folder, "decoder", num_beams=2, length_penalty=0.5, max_length=20)
    change(folder, num_beams=4, length_penalty=1.0)
    assert read_settings(folder, TrOCRConfig()) == {"num_beams": 4, "length_penalty": 0.5}


def test_generation_config_json_goes_before_config_json(folder):
    change(folder, **TUNED)
    write(folder, num_beams=3, min_length=3)
    assert read_settings(folder, TrOCRConfig()) == {"num_beams": 3, "min_length": 3}
    assert Reader.from_pretrained(folder).defaults.min_new_tokens == 2, "min_length counts the start token"


def test_numbers_of_new_tokens_go_before_lengths_with_the_start_token(folder):
    write(folder, max_new_tokens=30, max_length=50, min_new_tokens=4, min_length=9)
    assert Reader.from_pretrained(folder).defaults == GenerateConfig(30, min_new_tokens=4)


def test_what_is_not_followed_is_said(folder):
    write(folder, repetition_penalty=1.2, do_sample=True, decoder_start_token_id=0, eos_token_id=[2, 3], num_beams=2)
    said = "do_sample = True, repetition_penalty = 1.2, decoder_start_token_id = 0 (config.json says 2, "
    ids = "which the model was trained with), eos_token_id = [2, 3] (config.json says 2, "
    with pytest.warns(UserWarning, match=re.escape(f"not followed when decoding: {said}{ids}")):
        assert read_settings(folder, TrOCRConfig()) == {"num_beams": 2}


@pytest.mark.parametrize("name, value", [("forced_eos_token_id", 2), ("renormalize_logits", True), ("guidance_scale", 1.5)])
def test_what_changes_scores_without_a_draw_is_not_passed_over(folder, name, value):
    write(folder, **{name: value})
    with pytest.warns(UserWarning, match=f"not followed when decoding: {name} = {value}"):
        read_settings(folder, TrOCRConfig())


NEUTRAL = {
    "guidance_scale": 1,
    "renormalize_logits": False,
    "decoder_start_token_id": 2,
    "eos_token_id": [2],
    "repetition_penalty": 1.0,
    "do_sample": False,
}


@pytest.mark.parametrize("settings", [{}, NEUTRAL])
def test_public_checkpoints_are_read_without_a_remark(folder, settings):
    write(folder, use_cache=False, **settings)
    with warnings.catch_warnings(action="error"):
        assert read_settings(folder, TrOCRConfig()) == {}


def test_old_config_json_files_list_every_setting_and_set_none(tmp_path):
    """As those of the public checkpoints, from before there was a generation_config.json."""
    for directory in shared("hub_configs").iterdir():
        shutil.copy(directory / "config.json", tmp_path)
        with warnings.catch_warnings(action="error"):
            assert read_settings(tmp_path, TrOCRConfig()) == {}, directory.name


@pytest.mark.parametrize(
    "settings",
    [{"num_beams": "4"}, {"max_length": "long"}, {"max_new_tokens": [5]}, {"max_new_tokens": "long"}, {"early_stopping": 1}],
)
def test_values_of_another_type_are_refused_by_name(folder, settings):
    write(folder, **settings)
    with pytest.raises(ValueError, match=f"{folder}: .*generation_config.json.* {next(iter(settings))}"):
        Reader.from_pretrained(folder)


@pytest.mark.parametrize("to", ["hub", "orbax"])
def test_a_copy_decodes_as_the_original(folder, tmp_path, to):
    change(folder, **TUNED)
    save(TrOCR.from_pretrained(folder), tmp_path / "copy", companions(folder), to=to)
    assert Reader.from_pretrained(tmp_path / "copy").defaults == Reader.from_pretrained(folder).defaults
    theirs = json.loads((tmp_path / "copy" / "generation_config.json").read_text())
    assert theirs["decoder_start_token_id"] == theirs["eos_token_id"] == 2


def test_a_file_of_its_own_goes_before_config_json(folder):
    write(folder, num_beams=2)
    change(folder, num_beams=4)
    assert companions(folder)["generation_config.json"] == (folder / "generation_config.json").read_bytes()
