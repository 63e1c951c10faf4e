"""Programs are read right: which bytes each kernel moves, which of them in a core's own memory, and how often loops run."""

import jax
import pytest

from trocr_jax import ahead_of_time, program_text
from trocr_jax.chips import Chip

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
    ("custom-call(", "send(", "send"),
    ("custom-call(", "conditional(", "conditional"),
    ("bf16[4,4]", "s4[4,4]", "s4"),
])  # fmt: skip
def test_what_cannot_be_counted_is_not_left_out(old, new, what):
    with pytest.raises((ValueError, KeyError), match=what):
        program_text.loops(program_text.parse(PROGRAM.replace(old, new)))


def test_jax_s_own_programs_are_understood():
    def program(x):
        return jax.lax.fori_loop(0, 5, lambda i, x: x.at[i].set(2 * x[i]), x)

    text = jax.jit(program).lower(jax.ShapeDtypeStruct((5, 1000), "float32")).compile().as_text()
    ((_, found),) = program_text.loops(program_text.parse(text))
    assert 2 * 1000 * 4 <= sum(kernel.bytes for kernel in found) <= 2 * 1000 * 4 + 100, "one row read, one written"


@pytest.mark.parametrize(("shape", "main", "anywhere"), [
    ("f32[3,5]{1,0}", 60, 60), ("bf16[]", 2, 2), ("(s32[2]{0}, pred[4]{0})", 12, 12),
    ("f32[3,5]{1,0:T(8,128)}", 8 * 128 * 4, 8 * 128 * 4),
    ("bf16[64,16,64,64]{3,1,0,2:T(8,128)(2,1)}", 2 * 64 * 16 * 64 * 128, 2 * 64 * 16 * 64 * 128),
    ("bf16[64,1024]{1,0:T(8,128)(2,1)S(1)}", 0, 64 * 1024 * 2), ("s32[]{:T(128)S(6)}", 0, 4),
    ("(f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)})", 4096, 8192),
])  # fmt: skip
def test_arrays_fill_whole_tiles_and_lie_in_one_memory_or_another(shape, main, anywhere):
    assert (program_text.size(shape), program_text.size(shape, anywhere=True)) == (main, anywhere)


TPU = """
HloModule jit_f, is_scheduled=true

%same (p: bf16[4,128]) -> bf16[4,128] {
  %p = bf16[4,128]{1,0:T(4,128)} parameter(0)
  ROOT %again = bf16[4,128]{1,0:T(4,128)} bitcast(%p)
}

%layer_of (stack: bf16[12,4,128], i: s32[]) -> bf16[4,128] {
  %stack = bf16[12,4,128]{2,1,0:T(4,128)} parameter(0)
  %i = s32[]{:T(128)} parameter(1)
  %one = bf16[1,4,128]{2,1,0:T(4,128)} dynamic-slice(%stack, %i, %i, %i), dynamic_slice_sizes={1,4,128}
  ROOT %flat = bf16[4,128]{1,0:T(4,128)} bitcast(%one)
}

%product (w: bf16[12,4,128], j: s32[], x: bf16[4,128], y: bf16[4,128]) -> bf16[4,128] {
  %w = bf16[12,4,128]{2,1,0:T(4,128)} parameter(0)
  %j = s32[]{:T(128)S(6)} parameter(1)
  %x = bf16[4,128]{1,0:T(4,128)} parameter(2)
  %y = bf16[4,128]{1,0:T(4,128)S(1)} parameter(3)
  %layer = bf16[4,128]{1,0:T(4,128)} fusion(%w, %j), kind=kLoop, calls=%layer_of
  %seen = bf16[4,128]{1,0:T(4,128)} fusion(%x), kind=kLoop, calls=%same
  %sum = bf16[4,128]{1,0:T(4,128)} add(%seen, %y)
  ROOT %done = bf16[4,128]{1,0:T(4,128)S(1)} multiply(%layer, %sum)
}

%counted (c: (s32[], bf16[12,4,128])) -> pred[] {
  %c = STATE parameter(0)
  %end = s32[]{:T(128)} constant(12)
  %at = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %less = pred[]{:T(512)} compare(%at, %end), direction=LT
}

%open (o: (s32[], bf16[12,4,128])) -> pred[] {
  %o = STATE parameter(0)
  %most = s32[]{:T(128)} constant(9)
  %now = s32[]{:T(128)} get-tuple-element(%o), index=0
  %early = pred[]{:T(512)} compare(%now, %most), direction=LT
  ROOT %both = pred[]{:T(512)} and(%early, %early)
}

%round (b: (s32[], bf16[12,4,128])) -> (s32[], bf16[12,4,128]) {
  %b = STATE parameter(0)
  %n = s32[]{:T(128)S(6)} get-tuple-element(%b), index=0
  %all = bf16[12,4,128]{2,1,0:T(4,128)} get-tuple-element(%b), index=1
  %x1 = bf16[4,128]{1,0:T(4,128)} custom-call(), backend_config={"cost_estimate":{"flops":"500"}}
  %to-core = (bf16[4,128]{1,0:T(4,128)S(1)}, bf16[4,128]{1,0:T(4,128)}, u32[]{:S(2)}) copy-start(%x1)
  %there = bf16[4,128]{1,0:T(4,128)S(1)} copy-done(%to-core)
  %fused = bf16[4,128]{1,0:T(4,128)S(1)} fusion(%all, %n, %x1, %there), calls=%product, backend_config={"estimated_cycles":"700"}
  %part = ((bf16[12,4,128]{2,1,0:T(4,128)}), bf16[1,4,128]{2,1,0:T(4,128)S(1)}, s32[]{:S(2)}) slice-start(%all), slice={[0:1]}
  %row = bf16[1,4,128]{2,1,0:T(4,128)S(1)} slice-done(%part)
  %written = bf16[12,4,128]{2,1,0:T(4,128)} dynamic-update-slice(%all, %row, %n, %n, %n), backend_config={"estimated_cycles":"50"}
  ROOT %next = STATE tuple(%n, %written)
}

ENTRY %main (s: (s32[], bf16[12,4,128])) -> (s32[], bf16[12,4,128]) {
  %s = STATE parameter(0)
  %first = STATE while(%s), condition=%counted, body=%round, metadata={op_name="jit(f)/scan"}
  ROOT %last = STATE while(%first), condition=%open, body=%round, metadata={op_name="jit(f)/while"}
}
""".replace("STATE", "(s32[]{:T(128)}, bf16[12,4,128]{2,1,0:T(4,128)})")
LAYER = 4 * 128 * 2


def test_of_a_tpu_what_stays_in_a_core_does_not_count():
    (_, found), _ = program_text.loops(program_text.parse(TPU))
    assert {kernel.name: (kernel.bytes, kernel.cycles, kernel.claimed) for kernel in found} == {
        "x1": (LAYER, 0, 500), "to-core": (LAYER, 0, 0),
        "fused": (2 * LAYER, 700, 0),  # a layer of the stack through one fusion, all of x through another that is a mere view
        "part": (LAYER, 0, 0), "written": (LAYER, 50, 0),
    }  # fmt: skip


def test_loops_run_as_often_as_they_count_or_as_told():
    program = program_text.parse(TPU)
    assert [times for times, _ in program_text.phases(program, iter([3]))] == [1, 12, 3]
    with pytest.raises(ValueError, match=r"nobody knows how often the loop jit\(f\)/while runs"):
        list(program_text.phases(program, iter([])))


def test_a_round_takes_as_long_as_its_bytes_or_its_cycles():
    class Compiled:
        def as_text(self):
            return TPU

    moved, rounds = 6 * LAYER, 12 + 3
    slow_memory, slow_core = (Chip(1e3, bandwidth, 1e3, 1, 1.0) for bandwidth in (1.0, 1e9))
    found = ahead_of_time.cost(Compiled(), slow_memory, [3])
    assert (found.bytes, found.seconds) == (moved * rounds, pytest.approx(moved * rounds))
    assert ahead_of_time.cost(Compiled(), slow_core, [3]).seconds == pytest.approx(rounds * (0.75 + 0.5))
