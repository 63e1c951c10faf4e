"""What a GPU's programs do; where jax's plugin for CUDA is installed, of programs for an H100 that is not there."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from trocr_jax import program_text

PROGRAM = """
HloModule jit_f

%add_in_place (p0: f32[4,8], p1: f32[8], p2: s32[]) -> f32[4,8] {
  %p0 = f32[4,8]{1,0} parameter(0)
  %p1 = f32[8]{0} parameter(1)
  %p2 = s32[] parameter(2)
  %row = f32[1,8]{1,0} dynamic-slice(%p0, %p2, %p2), dynamic_slice_sizes={1,8}
  %bitcast = f32[8]{0} bitcast(%row)
  %sum = f32[8]{0} add(%bitcast, %p1)
  %wide = f32[1,8]{1,0} bitcast(%sum)
  ROOT %update = f32[4,8]{1,0} dynamic-update-slice(%p0, %wide, %p2, %p2)
}

%change_and_look (p3: f32[4,8], p4: s32[2]) -> (f32[4,8], f32[2,8]) {
  %p3 = f32[4,8]{1,0} parameter(0)
  %p4 = s32[2]{0} parameter(1)
  %first = f32[1,8]{1,0} dynamic-slice(%p3, %p4, %p4), dynamic_slice_sizes={1,8}
  %changed = f32[4,8]{1,0} dynamic-update-slice(%p3, %first, %p4, %p4)
  %rows = f32[2,8]{1,0} gather(%changed, %p4), slice_sizes={1,8}
  ROOT %both = (f32[4,8]{1,0}, f32[2,8]{1,0}) tuple(%changed, %rows)
}

%body (carry: (s32[], f32[4,8], f32[8])) -> (s32[], f32[4,8], f32[8]) {
  %carry = (s32[], f32[4,8]{1,0}, /*index=2*/f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %x = f32[4,8]{1,0} get-tuple-element(%carry), index=1
  %ids = s32[2]{0} constant({1, 2})
  %y = f32[8]{0} get-tuple-element(%carry), index=2
  %fused = f32[4,8]{1,0} fusion(%x, %y, %i), kind=kLoop, calls=%add_in_place
  %looked = (f32[4,8]{1,0}, f32[2,8]{1,0}) fusion(%x, %ids), kind=kLoop, calls=%change_and_look
  %gemm = (bf16[4,4]{1,0}, s8[4194304]{0}) custom-call(%fused, %fused), custom_call_target="__cublas$lt$matmul"
  ROOT %out = (s32[], f32[4,8]{1,0}, /*index=2*/f32[8]{0}) tuple(%i, %fused, %y)
}

ENTRY %main (a: (s32[], f32[4,8], f32[8])) -> (s32[], f32[4,8], f32[8]) {
  %a = (s32[], f32[4,8]{1,0}, /*index=2*/f32[8]{0}) parameter(0)
  ROOT %loop = (s32[], f32[4,8]{1,0}, /*index=2*/f32[8]{0}) while(%a), body=%body, metadata={op_name="jit(f)/while"}
}
"""


def test_kernels_are_counted_with_what_they_move():
    """Of buffers that change in place what is read and written of them, and a product without cuBLAS's workspace."""
    ((source, found),) = program_text.loops(program_text.parse(PROGRAM))
    assert source == "jit(f)/while"
    row, index = 8 * 4, 4
    assert {k.name: k.bytes for k in found} == {
        "fused": row + row + index + row,  # a row of the buffer, the other input, its index; a row written
        "looked": row + 2 * row + 2 * index + row + 2 * row,  # a row, then two of what came of it; a row and two written
        "gemm": 4 * 4 * 2 + 2 * 4 * 8 * 4,
    }


@pytest.mark.parametrize(("old", "new", "what"), [
    ("custom-call(", "all-reduce(", "all-reduce"),
    ("custom-call(", "conditional(", "conditional"),
    ("bf16[4,4]", "s4[4,4]", "s4"),
])  # fmt: skip
def test_what_cannot_be_counted_is_not_left_out(old, new, what):
    with pytest.raises((ValueError, KeyError), match=what):
        program_text.loops(program_text.parse(PROGRAM.replace(old, new)))


def test_jax_s_own_programs_are_understood():
    import jax

    def program(x):
        return jax.lax.fori_loop(0, 5, lambda i, x: x.at[i].set(2 * x[i]), x)

    text = jax.jit(program).lower(jax.ShapeDtypeStruct((5, 1000), "float32")).compile().as_text()
    ((_, found),) = program_text.loops(program_text.parse(text))
    assert 2 * 1000 * 4 <= sum(kernel.bytes for kernel in found) <= 2 * 1000 * 4 + 100, "one row read, one written"


@pytest.mark.skipif(not (find_spec("jax_cuda13_plugin") or find_spec("jax_cuda12_plugin")), reason="needs jax's plugin for CUDA")
def test_greedy_and_beam_of_base_fit_an_h100():
    command = [sys.executable, "-m", "trocr_jax.serve.gpu", "--models", "microsoft/trocr-base-handwritten"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for program in json.loads(done.stdout.splitlines()[-1])["programs"]:
        assert 0 < program["bytes"] < 5 * 2**30
        step, layer = program["loops"]
        assert step["kernels"] < 320, "steps one by one"
        assert layer["kernels"] < 26 and layer["bytes"] < 9e9, "no scores written out"
