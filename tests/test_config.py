"""Configs: the hub's files load, round-trip, and what would change the maths is refused by name; parameter counts."""

import json
import math
import re
from dataclasses import replace

import jax
import pytest
from conftest import FAMILIES, shared

from trocr_jax.config import PRESETS, ConfigError, DecoderConfig, EncoderConfig, TrOCRConfig
from trocr_jax.model import TrOCR

# encoder without pooler, decoder without head, head; counted from the hub's configs with the reference implementation
SMALL, BASE, LARGE = 21_812_352, 86_062_848, 303_617_024
COUNTS = {
    "small-stage1": (SMALL, 23_241_216, 16_395_264),
    "small-handwritten": (SMALL, 23_241_216, 16_395_264),
    "small-printed": (SMALL, 23_241_216, 16_395_264),
    "base-stage1": (BASE, 246_739_968, 51_471_360),
    "base-handwritten": (BASE, 247_268_352, 0),
    "base-printed": (BASE, 247_268_352, 0),
    "base-str": (BASE, 247_268_352, 0),
    "large-stage1": (LARGE, 253_031_424, 51_471_360),
    "large-handwritten": (LARGE, 253_559_808, 0),
    "large-printed": (LARGE, 253_031_424, 51_471_360),
    "large-str": (LARGE, 253_559_808, 0),
}


def hub_config(name: str) -> dict:
    return json.loads((shared("hub_configs", f"microsoft__trocr-{name}") / "config.json").read_text())


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    model = TrOCR.abstract(PRESETS[f"microsoft/trocr-{name}"])

    def count(tree):
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))

    head = 0 if model.config.decoder.tie_word_embeddings else count(model.decoder.head)
    assert (count(model.encoder), count(model.decoder) - head, head) == COUNTS[name]


def test_there_are_eleven_presets():
    assert {name.removeprefix("microsoft/trocr-") for name in PRESETS} == set(COUNTS)


@pytest.mark.parametrize("name", ["base-handwritten", "base-printed", "large-handwritten", "large-printed", "small-printed"])
def test_hub_config_equals_preset_and_round_trips(name):
    config = TrOCRConfig.from_hf(hub_config(name))
    assert config == PRESETS[f"microsoft/trocr-{name}"]
    assert TrOCRConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


@pytest.mark.parametrize("family", FAMILIES)
def test_fixture_config_round_trips(family):
    config = TrOCRConfig.from_hf(json.loads((shared("fixtures", family) / "config.json").read_text()))
    assert TrOCRConfig.from_hf(config.to_hf()) == config


def test_stage1_null_cross_width_means_the_old_key():
    """large-stage1 has `cross_attention_hidden_size: null` beside the key from before its renaming."""
    config = PRESETS["microsoft/trocr-large-stage1"].to_hf()
    config["decoder"] |= {"cross_attention_hidden_size": None, "encoder_hidden_size": 1024}
    assert TrOCRConfig.from_hf(config) == PRESETS["microsoft/trocr-large-stage1"]


def test_projection_exists_only_where_widths_differ_and_none_is_given():
    base = PRESETS["microsoft/trocr-base-printed"]
    assert not base.has_projection
    third_party = replace(base, decoder=replace(base.decoder, cross_attention_size=None))
    assert third_party.has_projection and third_party.memory_size == 1024
    assert hasattr(TrOCR.abstract(third_party), "enc_to_dec_proj")


def test_rectangles_round_trip():
    encoder = EncoderConfig(image_size=(32, 384), patch_size=(32, 8), hidden_size=64, num_heads=2)
    config = TrOCRConfig(encoder, DecoderConfig(hidden_size=64, num_heads=2, cross_attention_size=64))
    assert TrOCRConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config
    assert encoder.grid == (1, 48) and encoder.num_tokens == 49


def test_tied_encoder_and_decoder_are_refused_and_other_remarks_beside_them_are_not():
    config = PRESETS["microsoft/trocr-base-printed"].to_hf() | {"note": "mine"}
    assert TrOCRConfig.from_hf(config) == PRESETS["microsoft/trocr-base-printed"]
    with pytest.raises(ConfigError, match="tie_encoder_decoder"):
        TrOCRConfig.from_hf(config | {"tie_encoder_decoder": True})


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("encoder", "use_relative_position_bias", True),
        ("encoder", "layer_scale_init_value", 0.1),
        ("encoder", "hidden_act", "quick_gelu"),
        ("encoder", "model_type", "swin"),
        ("decoder", "model_type", "gpt2"),
        ("decoder", "pruned_heads", {"1": [0]}),
        ("decoder", "cross_attention_hidden_size", 999),
        ("decoder", "activation_function", "tanh"),
    ],
)
def test_what_changes_the_maths_is_refused_by_name(section, field, value):
    config = PRESETS["microsoft/trocr-base-printed"].to_hf()
    config[section][field] = value
    with pytest.raises(ConfigError, match=field):
        TrOCRConfig.from_hf(config)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("encoder.hidden_size", "768", "'768', expected a whole number above 0"),
        ("encoder.num_attention_heads", 0, "0, expected a whole number above 0"),
        ("encoder.num_hidden_layers", 2.5, "2.5, expected a whole number above 0"),
        ("encoder.image_size", None, "None, expected height and width"),
        ("encoder.image_size", {"height": 384, "width": 384}, "{'height': 384, 'width': 384}, expected height and width"),
        ("encoder.image_size", [384.5, 384], "(384.5, 384), expected height and width"),
        ("encoder.image_size", [384, 384, 384], "(384, 384, 384), expected height and width"),
        ("encoder.image_size", True, "(True, True), expected height and width"),
        ("encoder.patch_size", 0, "(0, 0), expected height and width"),
        ("encoder.hidden_act", ["gelu"], "['gelu'], expected a name"),
        ("encoder.layer_norm_eps", float("nan"), "nan, expected a number from 0 to below 1"),
        ("encoder.qkv_bias", 1, "1, expected true or false"),
        ("encoder.image_size", 16 * 10**9, "(16000000000, 16000000000), expected height and width"),
        ("decoder.vocab_size", 10**30, f"{10**30}, expected a whole number above 0, at most 1000000"),
        ("decoder.decoder_layers", 0, "0, expected a whole number above 0"),
        ("decoder.decoder_attention_heads", -4, "-4, expected a whole number above 0"),
        ("decoder.scale_embedding", "false", "'false', expected true or false"),
        ("decoder.dropout", "0.1", "'0.1', expected a number from 0 to below 1"),
        ("decoder.dropout", 1.0, "1.0, expected a number from 0 to below 1"),
        ("decoder.activation_dropout", False, "False, expected a number from 0 to below 1"),
        ("decoder.vocab_size", True, "True, expected a whole number above 0"),
        ("decoder.cross_attention_hidden_size", [768], "[768], expected a whole number above 0, at most 1000000, or null"),
    ],
)
def test_fields_of_another_type_or_out_of_range_are_refused(field, value, told):
    config = PRESETS["microsoft/trocr-base-printed"].to_hf()
    section, name = field.split(".")
    config[section][name] = value
    with pytest.raises(ConfigError, match=f"^{re.escape(f'{field} is {told}')}"):
        TrOCRConfig.from_hf(config)


def test_positions_that_no_weights_bound_are_bounded():
    config = PRESETS["microsoft/trocr-large-printed"].to_hf()
    config["decoder"]["max_position_embeddings"] = 200_000
    with pytest.raises(ConfigError, match=r"decoder\.max_position_embeddings is 200000, expected at most 65536"):
        TrOCRConfig.from_hf(config)


@pytest.mark.parametrize("value", [0, 0.1, 1e-12])
def test_shares_may_be_whole_numbers(value):
    config = PRESETS["microsoft/trocr-base-printed"].to_hf()
    config["decoder"]["dropout"] = value
    assert TrOCRConfig.from_hf(config).decoder.dropout == value


def test_a_token_id_may_stand_alone_in_a_list():
    config = PRESETS["microsoft/trocr-base-printed"].to_hf()
    config["eos_token_id"] = [2]
    assert TrOCRConfig.from_hf(config).eos_token_id == 2


@pytest.mark.parametrize("value", [[2, 5], [], "2", 2.0, True, -1, 50265])
def test_other_token_ids_are_refused(value):
    """Several ids, too: a line would have to end at each of them, and it would end at one."""
    config = PRESETS["microsoft/trocr-base-printed"].to_hf()
    config["eos_token_id"] = value
    with pytest.raises(ConfigError, match=f"^eos_token_id is {re.escape(repr(value))}, expected one token id below 50265"):
        TrOCRConfig.from_hf(config)


def test_unknown_fields_that_are_off_are_harmless():
    config = PRESETS["microsoft/trocr-base-printed"].to_hf()
    config["encoder"]["use_mask_token"] = False
    assert TrOCRConfig.from_hf(config) == PRESETS["microsoft/trocr-base-printed"]


@pytest.mark.parametrize("config", [{}, {"model_type": "vit"}, {"model_type": "vision-encoder-decoder", "encoder": {}}])
def test_what_is_no_trocr_config_is_refused(config):
    with pytest.raises(ConfigError, match=r"model_type|section"):
        TrOCRConfig.from_hf(config)


def test_token_ids_come_from_the_top_level_then_the_decoder_then_the_default():
    config = PRESETS["microsoft/trocr-base-printed"].to_hf()
    assert TrOCRConfig.from_hf(config).decoder_start_token_id == 2
    config["decoder_start_token_id"] = 0
    assert TrOCRConfig.from_hf(config).decoder_start_token_id == 0
    del config["decoder_start_token_id"], config["decoder"]["decoder_start_token_id"]
    assert TrOCRConfig.from_hf(config).decoder_start_token_id == 2
