"""Which tensor of a checkpoint is which parameter of ours: one table, walked both ways.

Letters: L layers, D width, S image tokens, C channels; a patch is h x w pixels.
Theirs are the hub's names, one tensor a layer, linear weights [out,in]. Ours are `.`-joined paths, layers stacked on
axis 0, kernels [in,out]. Names of transformers 5 in memory and of fairseq are turned into the hub's first.
Both ways are strict: every tensor is used or known to be unused, every parameter filled, every shape equal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import ml_dtypes
import numpy as np

from ..config import TrOCRConfig
from . import fairseq
from .tensor_files import ArrayLike, Tensors

Put = Callable[[str, np.ndarray], Any]
Map = Callable[[np.ndarray, TrOCRConfig], np.ndarray]


class WeightsError(ValueError):
    """Tensors and model do not fit; the message lists every difference."""


@dataclass(frozen=True)
class Transform:
    """An invertible change of layout of one tensor (of one layer)."""

    to_ours: Map
    to_hub: Map


def _patches_to_ours(x: np.ndarray, config: TrOCRConfig) -> np.ndarray:
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])


def _patches_to_hub(x: np.ndarray, config: TrOCRConfig) -> np.ndarray:
    h, w = config.encoder.patch_size
    return x.reshape(h, w, config.encoder.num_channels, -1).transpose(3, 2, 0, 1)


SAME = Transform(lambda x, _: x, lambda x, _: x)
KERNEL = Transform(lambda x, _: x.T, lambda x, _: x.T)  # [out,in] <-> [in,out]
TOKEN = Transform(lambda x, _: x[0, 0], lambda x, _: x[None, None])  # [1,1,D] <-> [D]
TABLE = Transform(lambda x, _: x[0], lambda x, _: x[None])  # [1,S,D] <-> [S,D]
PATCHES = Transform(_patches_to_ours, _patches_to_hub)  # [D,C,h,w] <-> [h*w*C,D]


def _linear(ours: str, hub: str) -> list[tuple[str, str, Transform]]:
    return [(f"{ours}.kernel", f"{hub}.weight", KERNEL), (f"{ours}.bias", f"{hub}.bias", SAME)]


def _norm(ours: str, hub: str) -> list[tuple[str, str, Transform]]:
    return [(f"{ours}.scale", f"{hub}.weight", SAME), (f"{ours}.bias", f"{hub}.bias", SAME)]


def _attention(ours: str, hub: str) -> list[tuple[str, str, Transform]]:
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
    return [row for name, proj in names.items() for row in _linear(f"{ours}.{name}", f"{hub}.{proj}")]


MAX_LAYERS = 1000  # a config file is not trusted: every layer is walked before the first tensor is read
FLOATS = tuple(np.dtype(t) for t in ("f4", ml_dtypes.bfloat16, "f2", "f8"))

_ENCODER, _DECODER = "encoder.encoder.layer.{i}", "decoder.model.decoder.layers.{i}"
EMBED, HEAD = "decoder.model.decoder.embed_tokens.weight", "decoder.output_projection.weight"
ROWS: dict[str, tuple[str, Transform]] = {
    ours: (hub, transform)
    for ours, hub, transform in [
        ("encoder.cls_token", "encoder.embeddings.cls_token", TOKEN),
        ("encoder.distillation_token", "encoder.embeddings.distillation_token", TOKEN),
        ("encoder.position_embedding", "encoder.embeddings.position_embeddings", TABLE),
        ("encoder.patch_embed.kernel", "encoder.embeddings.patch_embeddings.projection.weight", PATCHES),
        ("encoder.patch_embed.bias", "encoder.embeddings.patch_embeddings.projection.bias", SAME),
        *_norm("encoder.layers.norm1", f"{_ENCODER}.layernorm_before"),
        *_linear("encoder.layers.attention.query", f"{_ENCODER}.attention.attention.query"),
        *_linear("encoder.layers.attention.key", f"{_ENCODER}.attention.attention.key"),
        *_linear("encoder.layers.attention.value", f"{_ENCODER}.attention.attention.value"),
        *_linear("encoder.layers.attention.out", f"{_ENCODER}.attention.output.dense"),
        *_norm("encoder.layers.norm2", f"{_ENCODER}.layernorm_after"),
        *_linear("encoder.layers.mlp.fc1", f"{_ENCODER}.intermediate.dense"),
        *_linear("encoder.layers.mlp.fc2", f"{_ENCODER}.output.dense"),
        *_norm("encoder.norm", "encoder.layernorm"),
        *_linear("enc_to_dec_proj", "enc_to_dec_proj"),
        ("decoder.embed_tokens.embedding", EMBED, SAME),
        ("decoder.position_embedding", "decoder.model.decoder.embed_positions.weight", SAME),
        *_norm("decoder.embed_norm", "decoder.model.decoder.layernorm_embedding"),
        *_attention("decoder.layers.self_attention", f"{_DECODER}.self_attn"),
        *_norm("decoder.layers.self_attention_norm", f"{_DECODER}.self_attn_layer_norm"),
        *_attention("decoder.layers.cross_attention", f"{_DECODER}.encoder_attn"),
        *_norm("decoder.layers.cross_attention_norm", f"{_DECODER}.encoder_attn_layer_norm"),
        *_linear("decoder.layers.mlp.fc1", f"{_DECODER}.fc1"),
        *_linear("decoder.layers.mlp.fc2", f"{_DECODER}.fc2"),
        *_norm("decoder.layers.mlp_norm", f"{_DECODER}.final_layer_norm"),
        ("decoder.head.kernel", HEAD, KERNEL),
    ]
}
"""Our path -> hub name ({i} is the layer) and how the numbers are laid out."""

IGNORED = re.compile(
    r"encoder\.pooler\.dense\.(weight|bias)"  # an image classifier's, unused in TrOCR
    r"|decoder\.model\.decoder\.(embed_positions\._float_tensor|version)"  # fairseq's bookkeeping
)
"""Hub names that may be present although the model does not compute with them."""

_TRANSFORMERS_5 = tuple(
    (re.compile(rf"encoder\.layers\.(\d+)\.{re.escape(theirs)}\."), rf"encoder.encoder.layer.\1.{hub}.")
    for theirs, hub in {
        "attention.q_proj": "attention.attention.query", "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value", "attention.o_proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
        "layernorm_before": "layernorm_before", "layernorm_after": "layernorm_after",
    }.items()
)  # fmt: skip


def load(abstract: Any, tensors: Tensors, put: Put | None = None) -> Any:
    """A model filled with a checkpoint's numbers, converted to the model's dtype.

    Args:
        abstract: the model as `jax.eval_shape` gives it, with its `config`; it decides names, shapes and dtype.
        tensors: in any layout named at the top of this file; read one parameter at a time.
        put: (our name, array) -> what to keep; by default `jax.device_put` to the default device.

    Raises:
        WeightsError: missing, surplus or ill-shaped tensors; all of them in one message.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(abstract)
    parameters = {name_of(path): leaf for path, leaf in leaves}
    found = hub_names(tensors)
    problems = [] if "decoder.head.kernel" in parameters else _merge_tied(found)
    problems += _differences(expected_shapes(abstract), found)
    if problems:
        raise WeightsError(f"the weights do not fit the model's config, {len(problems)} differences: {'; '.join(problems)}")
    put = put or (lambda _, array: jax.device_put(array))
    return treedef.unflatten(put(name, _fill(name, leaf, found, abstract.config)) for name, leaf in parameters.items())


def dump(model: Any) -> dict[str, np.ndarray]:
    """The model's parameters under the hub's names, contiguous; a tied head appears once, as `embed_tokens`."""
    return {name: np.array(x, order="C") for name, x in to_hub(arrays(model), model.config).items()}


def arrays(model: Any) -> dict[str, np.ndarray]:
    """The model's parameters under our names, on the host."""
    return {name_of(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(model)}


def to_hub(ours: Mapping[str, np.ndarray], config: TrOCRConfig) -> dict[str, np.ndarray]:
    """Parameters under our names -> the hub's names and layout, as views.

    Raises:
        WeightsError: a name that is not one of ours, or a shape that cannot be converted.
    """
    out: dict[str, np.ndarray] = {}
    for name, array in ours.items():
        if name not in ROWS:
            raise WeightsError(f"{name!a} is not a parameter of TrOCR")
        hub, transform = ROWS[name]
        try:
            layers = [(hub.format(i=i), x) for i, x in enumerate(array)] if "{i}" in hub else [(hub, array)]
            out |= {hub: transform.to_hub(x, config) for hub, x in layers}
        except (TypeError, ValueError, IndexError):
            raise WeightsError(f"{name} has the shape {array.shape}, which does not fit the config") from None
    return out


def hub_names(tensors: Tensors) -> dict[str, ArrayLike]:
    """The same tensors under the hub's names, whether they come from the hub, transformers 5 in memory, or fairseq."""
    tensors = fairseq.to_hub(tensors) if fairseq.is_fairseq(tensors) else tensors
    renamed = [(_rename(name), tensor) for name, tensor in tensors.items()]
    out = dict(renamed)
    if len(out) < len(renamed):
        raise WeightsError("the weights hold a tensor twice, under its names of transformers 4 and of transformers 5")
    return out


def expected_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """The hub names that a model (abstract or not) needs, with their shapes: export's walk, over arrays without memory."""
    deepest = max(model.config.encoder.num_layers, model.config.decoder.num_layers)
    if deepest > MAX_LAYERS:
        raise WeightsError(f"the config asks for {deepest} layers; more than {MAX_LAYERS} are taken for an error")
    zero, leaves = np.zeros((), "f4"), jax.tree_util.tree_leaves_with_path(model)
    views = to_hub({name_of(path): np.broadcast_to(zero, leaf.shape) for path, leaf in leaves}, model.config)
    return {name: view.shape for name, view in views.items()}


def dtype_of(tensors: Tensors) -> np.dtype:
    """The one dtype of a checkpoint's weights; float32 if they mix several, or have one that JAX does not compute in."""
    found = common_dtype(tensor for name, tensor in hub_names(tensors).items() if not IGNORED.fullmatch(name))
    return jax.dtypes.canonicalize_dtype(found) if found in FLOATS else np.dtype("f4")


def common_dtype(arrays: Iterable[ArrayLike]) -> np.dtype:
    """The one dtype of arrays; float32 if they mix several."""
    found = {array.dtype for array in arrays}
    return found.pop() if len(found) == 1 else np.dtype("f4")


def name_of(path: tuple[Any, ...]) -> str:
    """Our name of a parameter, "encoder.norm.scale", from its path in the model's tree or one around it."""
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def _rename(name: str) -> str:
    for theirs, hub in _TRANSFORMERS_5:
        if theirs.match(name):
            return theirs.sub(hub, name)
    return name


def _merge_tied(tensors: dict[str, ArrayLike]) -> list[str]:
    """A tied head may be stored under either of its names, or under both. Leaves it as the embedding."""
    head = tensors.pop(HEAD, None)
    if head is None or tensors.setdefault(EMBED, head) is head:
        return []
    if head.shape == tensors[EMBED].shape and np.array_equal(np.asarray(head), np.asarray(tensors[EMBED]), equal_nan=True):
        return []
    return [f"differs: {HEAD} from {EMBED}, though the config ties them"]


def _differences(expected: dict[str, tuple[int, ...]], found: Tensors) -> list[str]:
    missing = [f"missing: {name} {shape}" for name, shape in expected.items() if name not in found]
    surplus = [
        f"surplus: {name} {tensor.shape}"
        for name, tensor in found.items()
        if name not in expected and not IGNORED.fullmatch(name)
    ]
    common = [(name, found[name], shape) for name, shape in expected.items() if name in found]
    shapes = [f"shape: {name} is {t.shape}, the model needs {shape}" for name, t, shape in common if t.shape != shape]
    types = [f"type: {name} holds {t.dtype}, not floating point" for name, t, _ in common if t.dtype not in FLOATS]
    return missing + surplus + shapes + types


def _fill(name: str, leaf: Any, tensors: Tensors, config: TrOCRConfig) -> np.ndarray:
    """One parameter, all its layers, in the model's dtype."""
    hub, transform = ROWS[name]
    out = np.empty(leaf.shape, leaf.dtype)
    layers = out if "{i}" in hub else out[None]
    for i in range(len(layers)):
        layers[i] = transform.to_ours(np.asarray(tensors[hub.format(i=i)]), config)
    return out
