"""Writing ONNX graphs by hand: nodes, constants, and the few building blocks that TrOCR needs.

Letters: B rows, T queries, S keys, D width, N heads, H head dim. Values are referred to by name; a block returns the name of its
result. `Style` chooses between operators that any runtime knows and the fused ones of ONNX Runtime.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trocr_jax.network.attention import Attention
from trocr_jax.network.layers import Mlp

OPSET = 20  # the first with Gelu
IR_VERSION = 10
TINY = float(np.finfo(np.float32).tiny) * 256  # so that a scale is never 0, nor denormal
MICROSOFT = "com.microsoft"
HEAD_BLOCK = 256  # weights with one scale in the output head: smaller ones are closer to float32 and slower


@dataclass(frozen=True)
class Style:
    """How a graph is written.

    Attributes:
        int8: linear maps with int8 weights, a scale an output channel, and activations rounded as they come (uint8, one scale a
            tensor); the output head with a scale a block of weights and of activations; and, without a cross cache, the image
            tokens that the decoder attends to, a scale a token. Self-attention, norms and embeddings stay float32.
        cross_cache: every decoder layer keeps its keys and values of the image, which is quicker for small models; otherwise all
            layers read the same image tokens, which is quicker for large ones.
        plain: an export as others make it, which any runtime takes: standard operators in float32, a cross cache, and caches that
            grow by copying. Otherwise ONNX Runtime's own operators, and caches that are written where they lie.
    """

    int8: bool = False
    cross_cache: bool = False
    plain: bool = False

    def __post_init__(self) -> None:
        if self.plain and (self.int8 or not self.cross_cache):
            raise ValueError("a plain graph is written in float32, with a cross cache")


class Graph:
    """A graph under construction."""

    def __init__(self, name: str, style: Style):
        self.name, self.style = name, style
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[int, tuple[str, np.ndarray]] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._names: dict[str, str] = {}  # results that are outputs -> what these are called
        self._rounded: dict[str, tuple[str, ...]] = {}

    def input(self, name: str, shape: list[int | str], dtype: int = TensorProto.FLOAT) -> str:
        """Declares an input; a string is a dimension known only when the graph runs."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, value: str, name: str, shape: list[int | str], dtype: int = TensorProto.FLOAT) -> None:
        """Gives a node's result to the caller under a name.

        The result itself is renamed: ONNX Runtime writes into the caller's memory only what a node puts out directly.
        """
        self._names[value] = name
        self._outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def constant(self, array: Any) -> str:
        """An array, once however often it is used (by identity)."""
        if id(array) not in self._constants:
            self._constants[id(array)] = f"c{len(self._constants)}", array  # the array is kept, so that no other gets its id
        return self._constants[id(array)][0]

    def number(self, value: float) -> str:
        """A scalar of float32."""
        return self.constant(np.array(value, np.float32))

    def ints(self, *values: int) -> str:
        """A vector of int64: shapes and axes."""
        return self.constant(np.array(values, np.int64))

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """A node with one result."""
        (name,) = self.ops(kind, 1, *inputs, domain=domain, **attributes)
        return name

    def ops(self, kind: str, results: int, *inputs: str, domain: str = "", **attributes: Any) -> tuple[str, ...]:
        """A node with several results."""
        names = tuple(f"v{len(self._nodes)}_{i}" for i in range(results))
        self._nodes.append(helper.make_node(kind, inputs, names, domain=domain, **attributes))
        return names

    def build(self) -> onnx.ModelProto:
        """The finished model."""
        for node in self._nodes:
            for names in (node.input, node.output):
                names[:] = [self._names.get(name, name) for name in names]
        constants = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in self._constants.values()]
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, constants)
        imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=imports[:1] if self.style.plain else imports, ir_version=IR_VERSION)

    # --- blocks ---

    def linear(self, x: str, module: Any) -> str:
        """x [...,in] -> [...,out] through an nnx.Linear."""
        kernel, bias = array(module.kernel), None if module.bias is None else array(module.bias)
        if self.style.int8:
            return self._linear_int8(x, kernel, bias)
        y = self.op("MatMul", x, self.constant(kernel))
        return y if bias is None else self.op("Add", y, self.constant(bias))

    def _linear_int8(self, x: str, kernel: np.ndarray, bias: np.ndarray | None) -> str:
        if x not in self._rounded:  # query, key and value share it
            self._rounded[x] = self.ops("DynamicQuantizeLinear", 3, x)
        rounded, scale, zero = self._rounded[x]
        weights, scales = quantize(kernel)
        inputs = [rounded, self.constant(weights), scale, self.constant(scales), zero, ""]
        inputs += [] if bias is None else [self.constant(bias)]
        return self.op("MatMulIntegerToFloat", *inputs, domain=MICROSOFT)

    def head(self, x: str, table: np.ndarray) -> str:
        """x [B,in] times table [out,in] -> [B,out]; in int8 every row is rounded by blocks of its own, whatever is beside it."""
        if not self.style.int8:
            return self.op("Gemm", x, self.constant(table), transB=1)
        weights, scales = quantize_blocks(table, HEAD_BLOCK)
        size = {"K": table.shape[1], "N": table.shape[0], "block_size": HEAD_BLOCK, "bits": 8}
        inputs = x, self.constant(weights), self.constant(scales)
        return self.op("MatMulNBits", *inputs, domain=MICROSOFT, accuracy_level=4, **size)  # 4: activations in int8 as well

    def round_rows(self, x: str, zero: int, dtype: int) -> tuple[str, str]:
        """x [...,D] -> integers around `zero` and their scale [...,1]: a row's largest magnitude becomes the dtype's largest."""
        top = (127 if dtype == TensorProto.INT8 else 255) - zero
        scale = self.op("ReduceMax", self.op("Abs", x), self.ints(-1), keepdims=1)
        scale = self.op("Mul", self.op("Max", scale, self.number(TINY)), self.number(1 / top))
        rounded = self.op("Round", self.op("Div", x, scale))
        return self.op("Cast", self.op("Add", rounded, self.number(zero)) if zero else rounded, to=dtype), scale

    def matmul_int8(self, x: str, y: str, zero: int) -> str:
        """x [B,T,D], float32 and rounded row by row to uint8 around `zero`, times y [B,D,S] int8 -> [B,T,S] float32."""
        rounded, scale = self.round_rows(x, zero, TensorProto.UINT8)
        product = self.op("MatMulInteger", rounded, y, self.constant(np.array(zero, np.uint8)))
        return self.op("Mul", self.op("Cast", product, to=TensorProto.FLOAT), scale)

    def norm(self, x: str, module: Any) -> str:
        """LayerNorm over the last axis."""
        scale, bias = self.constant(array(module.scale)), self.constant(array(module.bias))
        return self.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=float(module.epsilon))

    def mlp(self, x: str, module: Mlp) -> str:
        """fc2(activation(fc1(x)))"""
        return self.linear(self._activation(self.linear(x, module.fc1), module.activation), module.fc2)

    def _activation(self, x: str, name: str) -> str:
        if name == "relu":
            return self.op("Relu", x)
        if name == "silu":
            return self.op("Mul", x, self.op("Sigmoid", x))
        return self.op("Gelu", x, approximate="tanh" if name == "gelu_new" else "none")

    def split_heads(self, x: str, heads: int, size: int) -> str:
        """[B,T,D] -> [B,N,T,H]"""
        return self.op("Transpose", self.op("Reshape", x, self.ints(0, 0, heads, size // heads)), perm=[0, 2, 1, 3])

    def attend(self, query: str, key: str, value: str, module: Attention, size: int) -> str:
        """query [B,T,D] over key and value, [B,S,D], or in a plain graph by heads [B,N,S,H] -> [B,T,D]"""
        scale = (size // module.num_heads) ** -0.5
        if not self.style.plain:
            options = {"num_heads": module.num_heads, "scale": scale}
            return self.op("MultiHeadAttention", query, key, value, domain=MICROSOFT, **options)
        query = self.split_heads(query, module.num_heads, size)
        scores = self.op("MatMul", query, self.op("Transpose", key, perm=[0, 1, 3, 2]))
        weights = self.op("Softmax", self.op("Mul", scores, self.number(scale)), axis=-1)
        context = self.op("Transpose", self.op("MatMul", weights, value), perm=[0, 2, 1, 3])
        return self.op("Reshape", context, self.ints(0, 0, size))


def array(parameter: Any) -> np.ndarray:
    """A parameter as float32."""
    return np.asarray(parameter[...], np.float32)


def quantize(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[in,out] -> int8 [in,out] and scales [out]: symmetric, the largest magnitude of a column becomes 127."""
    scales = np.maximum(np.abs(kernel).max(axis=0), TINY) / np.float32(127)
    return np.rint(kernel / scales).astype(np.int8), scales.astype(np.float32)


def quantize_blocks(table: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """[out,in] -> uint8 around 128 [out,blocks,block] and scales [out,blocks], as MatMulNBits takes them; the last block is
    filled up with zeros."""
    count, size = table.shape
    blocks = np.pad(table, ((0, 0), (0, -size % block))).reshape(count, -1, block)
    scales = np.maximum(np.abs(blocks).max(axis=2, keepdims=True), TINY) / np.float32(127)
    return (np.rint(blocks / scales) + 128).astype(np.uint8), scales[..., 0].astype(np.float32)
