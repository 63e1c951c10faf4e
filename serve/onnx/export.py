"""A model as two ONNX graphs, written from our weights: the encoder, and one decoding step with its cache.

Letters: B rows, S image tokens, E their width, P tokens before, V vocabulary, D width, N heads, H head dim.

* encoder: `pixels` [B,height,W,3] normalised float32, of the model's width, or less where not plain: the left part of such an
  image -> what the decoder attends to. That is `memory` [B,S,E]; in int8 its numbers twice, as `memory` and as
  `memory_transposed` [B,E,S] (each product wants its own order), and `memory_scale` [B,1,S]; with a cross cache `cross_key_i`
  [B,N,H,S] (where plain [B,N,S,H], as it is elsewhere) and `cross_value_i` [B,N,S,H] of every decoder layer.
* step: `ids` [B,1], `rows` [B,1] (of the position table, see `position_rows`), the encoder's outputs, `past_key_i`,
  `past_value_i` and, where not plain, `place` [], the number of tokens before -> `logprobs` [B,V] and `key_i`, `value_i`. These
  caches are [B,N,P,H] and come out [B,N,P+1,H] where plain; otherwise [B,N,M,H] with room for M tokens, to be written where they
  lie: a caller gives the same memory as input and as output.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import onnx
from onnx import TensorProto

from trocr_jax.model import TrOCR
from trocr_jax.network.attention import Attention

from .graph import MICROSOFT, Graph, Style, array


def encoder(model: TrOCR, style: Style) -> onnx.ModelProto:
    """The encoder's graph."""
    config, graph = model.config.encoder, Graph("encoder", style)
    height, width = config.image_size
    pixels = graph.input("pixels", ["B", height, width if style.plain else "W", config.num_channels])
    x = _embed_image(graph, pixels, model)
    for index in range(config.num_layers):
        layer = _layer(model.encoder.layers, index)
        normed = graph.norm(x, layer.norm1)
        x = graph.op("Add", x, _self_attention(graph, normed, layer.attention, config.hidden_size))
        x = graph.op("Add", x, graph.mlp(graph.norm(x, layer.norm2), layer.mlp))
    memory = graph.norm(x, model.encoder.norm)
    if model.config.has_projection:
        memory = graph.linear(memory, model.enc_to_dec_proj)
    (_output_cross_cache if style.cross_cache else _output_memory)(graph, memory, model)
    return graph.build()


def step(model: TrOCR, style: Style) -> onnx.ModelProto:
    """The graph of one decoding step."""
    config, graph = model.config.decoder, Graph("step", style)
    ids, rows = (graph.input(name, ["B", 1], TensorProto.INT64) for name in ("ids", "rows"))
    memory = () if style.cross_cache else _memory_inputs(graph, model.config.memory_size)
    attend = _growing_attention if style.plain else _CachedAttention(graph, ids)
    table = array(model.decoder.embed_tokens.embedding)
    x = _embed_tokens(graph, ids, rows, table, model)
    for index in range(config.num_layers):
        layer = _layer(model.decoder.layers, index)
        attended = attend(graph, x, layer.self_attention, index, model)
        x = graph.norm(graph.op("Add", x, attended), layer.self_attention_norm)
        if style.cross_cache:
            cross = _cross_attention_cached(graph, x, layer.cross_attention, index, model)
        else:
            cross = _cross_attention(graph, x, memory, layer.cross_attention, config.hidden_size)
        x = graph.norm(graph.op("Add", x, cross), layer.cross_attention_norm)
        x = graph.norm(graph.op("Add", x, graph.mlp(x, layer.mlp)), layer.mlp_norm)
    _output_logprobs(graph, x, table, model)
    return graph.build()


def position_rows(ids: np.ndarray, position: int, model: TrOCR) -> np.ndarray:
    """Rows of the position table for ids [B,1] at a 0-based position."""
    row = np.full_like(ids, position + model.decoder.first_row)
    return row if model.config.decoder.learned_positions else np.where(ids == model.decoder.pad_token_id, ids, row)


def _layer(stacked: Any, index: int) -> Any:
    return jax.tree.map(lambda parameter: np.asarray(parameter[index]), stacked)


def _embed_image(graph: Graph, pixels: str, model: TrOCR) -> str:
    config, encoder = model.config.encoder, model.encoder
    (h, w), down, C = config.patch_size, config.grid[0], config.num_channels
    x = graph.op("Reshape", pixels, graph.ints(0, down, h, -1, w, C))
    x = patches = graph.op("Transpose", x, perm=[0, 1, 3, 2, 4, 5])  # [B,down,across,h,w,C]
    x = graph.linear(graph.op("Reshape", x, graph.ints(0, down, -1, h * w * C)), encoder.patch_embed)
    positions = array(encoder.position_embedding)
    grid = graph.constant(positions[config.num_special_tokens :].reshape(1, *config.grid, -1))
    columns = graph.op("Shape", patches, start=2, end=3)
    x = graph.op("Add", x, graph.op("Slice", grid, graph.ints(0), columns, graph.ints(2)))  # of the columns that there are
    x = graph.op("Reshape", x, graph.ints(0, -1, config.hidden_size))
    tokens = [array(encoder.cls_token)] + ([array(encoder.distillation_token)] if config.model_type == "deit" else [])
    shape = graph.op("Concat", graph.op("Shape", pixels, start=0, end=1), graph.ints(1, 1), axis=0)
    special = graph.op("Expand", graph.constant(np.stack(tokens)[None] + positions[: len(tokens)]), shape)
    return graph.op("Concat", special, x, axis=1)


def _self_attention(graph: Graph, x: str, module: Attention, size: int) -> str:
    query, key, value = (graph.linear(x, part) for part in (module.query, module.key, module.value))
    if graph.style.plain:
        key, value = (graph.split_heads(part, module.num_heads, size) for part in (key, value))
    return graph.linear(graph.attend(query, key, value, module, size), module.out)


def _embed_tokens(graph: Graph, ids: str, rows: str, table: np.ndarray, model: TrOCR) -> str:
    config, decoder = model.config.decoder, model.decoder
    x = graph.op("Gather", graph.constant(table), ids)
    if config.scale_embedding:
        x = graph.op("Mul", x, graph.number(config.hidden_size**0.5))
    positions = array(decoder.position_embedding) if config.learned_positions else decoder.sinusoids()
    x = graph.op("Add", x, graph.op("Gather", graph.constant(positions), rows))
    return graph.norm(x, decoder.embed_norm) if config.layernorm_embedding else x


def _growing_attention(graph: Graph, x: str, module: Attention, index: int, model: TrOCR) -> str:
    """Self-attention of x [B,1,D] over the tokens before and itself, with caches that come out longer by one."""
    size, N = model.config.decoder.hidden_size, module.num_heads
    past = [graph.input(f"past_{name}_{index}", ["B", N, "P", size // N]) for name in ("key", "value")]
    query, *new = (graph.linear(x, part) for part in (module.query, module.key, module.value))
    full = [graph.op("Concat", p, graph.split_heads(n, N, size), axis=2) for p, n in zip(past, new, strict=True)]
    for name, value in zip(("key", "value"), full, strict=True):
        graph.output(value, f"{name}_{index}", ["B", N, "P+1", size // N])
    return graph.linear(graph.attend(query, full[0], full[1], module, size), module.out)


class _CachedAttention:
    """Self-attention of x [B,1,D] over the tokens before and itself, with caches of one size that all layers fill alike."""

    def __init__(self, graph: Graph, ids: str):
        place = graph.input("place", [], TensorProto.INT32)
        self._before = graph.op("Expand", place, graph.op("Shape", ids, start=0, end=1))  # tokens of each row
        self._total = graph.op("Add", place, graph.constant(np.array(1, np.int32)))

    def __call__(self, graph: Graph, x: str, module: Attention, index: int, model: TrOCR) -> str:
        size, N = model.config.decoder.hidden_size, module.num_heads
        shape: list[int | str] = ["B", N, "M", size // N]
        past = [graph.input(f"past_{name}_{index}", shape) for name in ("key", "value")]
        inputs = [graph.linear(x, part) for part in (module.query, module.key, module.value)] + [*past, self._before, self._total]
        heads = {"num_heads": N, "kv_num_heads": N, "scale": (size // N) ** -0.5}
        y, *caches = graph.ops("GroupQueryAttention", 3, *inputs, domain=MICROSOFT, **heads)
        for name, value in zip(("key", "value"), caches, strict=True):
            graph.output(value, f"{name}_{index}", shape)
        return graph.linear(y, module.out)


def _output_memory(graph: Graph, memory: str, model: TrOCR) -> None:
    S, E = "S", model.config.memory_size
    if not graph.style.int8:
        return graph.output(memory, "memory", ["B", S, E])
    rounded, scale = graph.round_rows(memory, 0, TensorProto.INT8)
    graph.output(rounded, "memory", ["B", S, E], TensorProto.INT8)
    graph.output(graph.op("Transpose", rounded, perm=[0, 2, 1]), "memory_transposed", ["B", E, S], TensorProto.INT8)
    graph.output(graph.op("Transpose", scale, perm=[0, 2, 1]), "memory_scale", ["B", 1, S])


def _memory_inputs(graph: Graph, size: int) -> tuple[str, ...]:
    """The encoder's outputs as the step's inputs, see the module's docstring."""
    if not graph.style.int8:
        return (graph.input("memory", ["B", "S", size]),)
    tokens, transposed = ("memory", ["B", "S", size]), ("memory_transposed", ["B", size, "S"])
    rounded = (graph.input(*named, TensorProto.INT8) for named in (tokens, transposed))
    return *rounded, graph.input("memory_scale", ["B", 1, "S"])


def _attend_to_image(graph: Graph, query: str, memory: tuple[str, ...]) -> str:
    """query [B,N,E] over the image tokens of `_memory_inputs` -> their weighted sum [B,N,E]."""
    if not graph.style.int8:
        scores = graph.op("MatMul", query, graph.op("Transpose", *memory, perm=[0, 2, 1]))
        return graph.op("MatMul", graph.op("Softmax", scores, axis=-1), *memory)
    tokens, transposed, scale = memory
    scores = graph.op("Mul", graph.matmul_int8(query, transposed, 128), scale)
    weights = graph.op("Mul", graph.op("Softmax", scores, axis=-1), scale)
    return graph.matmul_int8(weights, tokens, 0)  # none is negative


def _cross_attention(graph: Graph, x: str, memory: tuple[str, ...], module: Attention, size: int) -> str:
    """Cross-attention as in `decoder_layer.StepLayer`: the key's kernel moved to the query, the value's to after the sum."""
    N, H = module.num_heads, size // module.num_heads
    key, value = (array(part.kernel).reshape(-1, N, H) for part in (module.key, module.value))  # [E,N,H]
    query = graph.op("Mul", graph.linear(x, module.query), graph.number(H**-0.5))
    query = graph.op("Transpose", graph.op("Reshape", query, graph.ints(0, N, H)), perm=[1, 0, 2])  # [N,B,H]
    query = graph.op("Transpose", graph.op("MatMul", query, graph.constant(key.transpose(1, 2, 0))), perm=[1, 0, 2])  # [B,N,E]
    context = _attend_to_image(graph, query, memory)
    context = graph.op("MatMul", graph.op("Transpose", context, perm=[1, 0, 2]), graph.constant(value.transpose(1, 0, 2)))
    y = graph.op("Reshape", graph.op("Transpose", context, perm=[1, 0, 2]), graph.ints(0, 1, size))
    if module.value.bias is not None:
        y = graph.op("Add", y, graph.constant(array(module.value.bias)))
    return graph.linear(y, module.out)


def _cross_attention_cached(graph: Graph, x: str, module: Attention, index: int, model: TrOCR) -> str:
    size, N = model.config.decoder.hidden_size, module.num_heads
    H, query = size // N, graph.linear(x, module.query)
    key = graph.input(f"cross_key_{index}", ["B", N, "S", H] if graph.style.plain else ["B", N, H, "S"])
    value = graph.input(f"cross_value_{index}", ["B", N, "S", H])
    if graph.style.plain:
        return graph.linear(graph.attend(query, key, value, module, size), module.out)
    # heads of one query lie as they should: nothing to transpose
    query = graph.op("Reshape", graph.op("Mul", query, graph.number(H**-0.5)), graph.ints(0, N, 1, H))
    context = graph.op("MatMul", graph.op("Softmax", graph.op("MatMul", query, key), axis=-1), value)
    return graph.linear(graph.op("Reshape", context, graph.ints(0, 1, size)), module.out)


def _output_cross_cache(graph: Graph, memory: str, model: TrOCR) -> None:
    size, S = model.config.decoder.hidden_size, model.config.encoder.num_tokens if graph.style.plain else "S"
    for index in range(model.config.decoder.num_layers):
        module = _layer(model.decoder.layers, index).cross_attention
        N, H = module.num_heads, size // module.num_heads
        key, value = (graph.split_heads(graph.linear(memory, part), N, size) for part in (module.key, module.value))
        if graph.style.plain:
            graph.output(key, f"cross_key_{index}", ["B", N, S, H])
        else:
            graph.output(graph.op("Transpose", key, perm=[0, 1, 3, 2]), f"cross_key_{index}", ["B", N, H, S])
        graph.output(value, f"cross_value_{index}", ["B", N, S, H])


def _output_logprobs(graph: Graph, x: str, table: np.ndarray, model: TrOCR) -> None:
    config = model.config.decoder
    flat = graph.op("Reshape", x, graph.ints(0, config.hidden_size))
    logits = graph.head(flat, table if config.tie_word_embeddings else array(model.decoder.head.kernel).T)
    graph.output(graph.op("LogSoftmax", logits, axis=-1), "logprobs", ["B", config.vocab_size])
