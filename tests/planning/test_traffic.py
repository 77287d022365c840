"""Traffic of compiled programs whose answers are known, on eight virtual devices."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding

from unime_jax.planning import costs

N = 8
BYTES = 4  # float32


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((N,), ("x",), axis_types=(AxisType.Auto,))


def shaped(mesh, shape, *spec):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, jax.P(*spec)))


def compile_text(mesh, function, *arguments, out=None):
    placed = {} if out is None else {"out_shardings": NamedSharding(mesh, jax.P(*out))}
    with jax.set_mesh(mesh):
        return jax.jit(function, **placed).lower(*arguments).compile().as_text()


def ici(text, trips=lambda kind, scopes: None):
    found = costs.traffic(text, trips)
    assert found.unknown_loops == 0
    return found.ici


def test_each_collective_by_its_size_and_by_groups_that_are_rings(mesh):
    text = compile_text(mesh, lambda x: x * 2, shaped(mesh, (64, 32), "x"), out=())
    assert ici(text) == {"all-gather": 7 / 8 * 64 * 32 * BYTES}

    # All reduce
    text = compile_text(mesh, lambda x: x.sum(0), shaped(mesh, (64, 32), "x"), out=())
    assert ici(text) == {"all-reduce": 2 * 7 / 8 * 32 * BYTES}

    # Explicit collectives
    def function(x):
        ring = [(i, (i + 1) % N) for i in range(N)]
        shift = jax.lax.ppermute(x, "x", ring)
        scattered = jax.lax.psum_scatter(x, "x", scatter_dimension=1, tiled=True)
        swapped = jax.lax.all_to_all(x, "x", split_axis=1, concat_axis=0, tiled=True)
        return shift, scattered, swapped

    spec = jax.P("x")
    mapped = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=(spec, spec, spec))
    found = ici(compile_text(mesh, mapped, shaped(mesh, (64, 32), "x")))
    local = 8 * 32 * BYTES
    assert found["collective-permute"] == local
    assert found["reduce-scatter"] == 7 / 8 * local
    assert found["all-to-all"] == pytest.approx(7 / 8 * local)

    # Groups are rings of their own. Lines that a TPU's compiler may print, with groups in
    # both notations; without: all chips.
    text = """HloModule m, is_scheduled=true, num_partitions=16

ENTRY %main (p: bf16[4,8]) -> bf16[16,8] {
  %p = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %s = bf16[4,8]{1,0} all-reduce(%p), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %e = bf16[4,8]{1,0} all-to-all(%s), replica_groups={}, dimensions={0}
  ROOT %g = bf16[16,8]{1,0:T(8,128)(2,1)} all-gather(%e), replica_groups=[2,8]<=[16], dimensions={0}
}
"""
    found = costs.traffic(text, lambda kind, scopes: None)
    assert found.ici == {
        "all-reduce": 2 * 3 / 4 * 4 * 8 * 2,
        "all-to-all": 15 / 16 * 4 * 8 * 2,
        "all-gather": 7 / 8 * 16 * 8 * 2,
    }

    # Asynchronous starts count once and by their result
    text = """HloModule m, num_partitions=4

ENTRY %main (p: f32[2,8]) -> f32[8,8] {
  %p = f32[2,8]{1,0} parameter(0)
  %c = (f32[2,8]{1,0}, f32[2,8]{1,0:S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p), source_target_pairs={{0,1}}
  %d = f32[2,8]{1,0:S(1)} collective-permute-done(%c)
  %a = (f32[2,8]{1,0:S(1)}, f32[8,8]{1,0}) all-gather-start(%d), replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %e = f32[8,8]{1,0} all-gather-done(%a)
}
"""  # noqa: E501
    found = costs.traffic(text, lambda kind, scopes: None)
    assert found.ici == {"all-gather": 3 / 4 * 256, "collective-permute": 64}

    # What stays on the chip is no traffic. Memory space 1 is the chip's own: a copy and a slice
    # into it read HBM, and write nothing.
    text = """HloModule m

ENTRY %main (p: f32[16,8]) -> f32[4,8] {
  %p = f32[16,8]{1,0} parameter(0)
  %c = (f32[16,8]{1,0:T(8,128)S(1)}, f32[16,8]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%p)
  %d = f32[16,8]{1,0:T(8,128)S(1)} copy-done(%c)
  %s = ((f32[16,8]{1,0:T(8,128)}), f32[4,8]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%p), slice={[4:8], [0:8]}
  %t = f32[4,8]{1,0:T(8,128)S(1)} slice-done(%s)
  ROOT %n = f32[4,8]{1,0:T(8,128)S(1)} negate(%t)
}
"""  # noqa: E501
    found = costs.traffic(text, lambda kind, scopes: None)
    assert (found.hbm, found.ici) == (16 * 8 * BYTES + 4 * 8 * BYTES, {})


def test_attention_kernels_fetch_keys_for_each_block_of_queries():
    """An instruction of several lines, as libtpu prints kernels, and what follows it."""
    text = """HloModule m

ENTRY %main (q: bf16[2,8,512,64]) -> bf16[2,8,512,64] {
  %q = bf16[2,8,512,64]{3,2,1,0} parameter(0)
  %k = bf16[2,2,512,64]{3,2,1,0} parameter(1)
  %n = s8[1,4,4]{2,1,0} constant({...})
  %i = s32[512,128]{1,0} iota(), iota_dimension=0
  %j = s32[8,512]{1,0} iota(), iota_dimension=1
  %other = (f32[2,512]{1,0}) custom-call(%i), custom_call_target="tpu_custom_call"
  %splash_mha_fwd_residuals.1 = (f32[2,128,128]{2,1,0:S(1)}, bf16[2,8,512,64]{3,2,1,0}) custom-call(%n, %n, %q, %k, %k, /*index=5*/%i), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 128, \\"block_kv\\": 128}"
}}, backend_config={}
  %splash_mha_dkv_no_residuals.2 = (bf16[2,2,512,64]{3,2,1,0}, bf16[2,2,512,64]{3,2,1,0}) custom-call(%q, %k, %k, %i, %j, /*index=5*/%q), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q_dkv\\": 256}"
}}
  ROOT %y = bf16[2,8,512,64]{3,2,1,0} negate(%q)
}
"""  # noqa: E501
    q, k, ids, key_ids = 2 * 8 * 512 * 64 * 2, 2 * 2 * 512 * 64 * 2, 512 * 128 * 4, 8 * 512 * 4
    # Causal: 10 of 16 pairs of blocks, each for the 4 query heads of a key head; positions for
    # each head.
    forward = 2 * 16 + 2 * q + 2 * k * 4 * 4 * 10 / 16 + 8 * ids
    # Two blocks of keys, which go through all queries; and cotangents, their ids for each head.
    backward = 2 * 2 * q + 2 * k + 2 * 8 * ids + key_ids + 2 * k
    other, last = ids + 2 * 512 * 4, 2 * q
    found = costs.traffic(text, lambda kind, scopes: None)
    assert found.hbm == forward + backward + other + last


def test_hbm_of_a_scans_layers_of_every_dtype_and_of_updates_and_slices(mesh):
    # Five layers whose weights are gathered one at a time, as with fsdp.
    def function(x, weights):
        def body(x, w):
            w = jax.lax.with_sharding_constraint(w, jax.P())
            return jnp.tanh(x @ w), None

        return jax.lax.scan(body, x, weights)[0]

    text = compile_text(
        mesh, function, shaped(mesh, (64, 32), "x"), shaped(mesh, (5, 32, 32), None, "x")
    )
    assert ici(text) == {"all-gather": 5 * 7 / 8 * 32 * 32 * BYTES}

    # The dearest branch counts
    def function(x, which):
        heavy, light = (lambda x: x - x.sum(0)), (lambda x: x)
        return jax.lax.cond(which, light, heavy, x)

    which = jax.ShapeDtypeStruct((), jnp.bool_, sharding=NamedSharding(mesh, jax.P()))
    text = compile_text(mesh, function, shaped(mesh, (64, 32), "x"), which)
    assert ici(text) == {"all-reduce": 2 * 7 / 8 * 32 * BYTES}

    # HBM: five layers read their own matrix each, not all five.
    def function(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    text = compile_text(mesh, function, shaped(mesh, (8, 256)), shaped(mesh, (5, 256, 256)))
    found = costs.traffic(text, lambda kind, scopes: None)
    weights = 5 * 256 * 256 * BYTES
    assert weights <= found.hbm < 4 * weights

    # Hbm of every dtype and of updates and slices
    # Every dtype has its own size.
    for dtype, size in ITEMS.items():
        text = f"""HloModule m, num_partitions=2

ENTRY %main (p: {dtype}[6]) -> {dtype}[6] {{
  %p = {dtype}[6]{{0}} parameter(0)
  ROOT %c = {dtype}[6]{{0}} collective-permute(%p), source_target_pairs={{{{0,1}}}}
}}
"""
        moved = costs.traffic(text, lambda kind, scopes: None)
        assert (moved.ici, moved.hbm) == ({"collective-permute": 6 * size}, 12 * size), dtype

    # Of updates and slices only the part moves. In a fusion: the row read and written, the part
    # read and written, and the scalar.
    row, part, third = 4 * 8 * BYTES, 2 * 8 * BYTES, 3 * 8 * BYTES
    fused = 2 * row + 2 * part + BYTES
    moved = costs.traffic(UPDATES, lambda kind, scopes: None)
    assert (moved.ici, moved.hbm) == ({}, fused + 2 * third + 2 * row)


def test_loops_of_unknown_end_and_as_a_tpus_compiler_leaves_them(mesh):
    def function(x, end):
        def body(_, x):
            return x - x.sum(0) / 64

        return jax.lax.fori_loop(0, end, body, x)

    end = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, jax.P()))
    text = compile_text(mesh, function, shaped(mesh, (64, 32), "x"), end)
    seen = []

    def trips(kind, scopes):
        seen.append(kind)
        return 11

    once = 2 * 7 / 8 * 32 * BYTES
    assert ici(text, trips) == {"all-reduce": 11 * once}
    assert len(seen) == 1 and "f32[8,32]" in seen[0]
    unknown = costs.traffic(text, lambda kind, scopes: None)
    assert unknown.unknown_loops == 1 and unknown.ici == {"all-reduce": once}

    # A counted loop says how often it runs: of collective matmuls 1, 3, 5, 7.
    found = costs.traffic(LOOP, lambda kind, scopes: pytest.fail("the end is known"))
    assert found.ici == {"collective-permute": 4 * 32}

    # Steps of one collective beside other work count once; groups are said by axes of a mesh here.
    found = costs.traffic(CHAIN, lambda kind, scopes: None)
    assert found.ici == {"all-gather": 7 / 8 * 16 * 8 * BYTES}
    assert found.hbm == 16 * 8 * BYTES + 2 * 4 * BYTES

    # Text that is no module
    with pytest.raises(ValueError, match="no ENTRY computation"):
        costs.traffic("nothing", lambda kind, scopes: None)


LOOP = """HloModule m, num_partitions=8

%body (s: (f32[8], u32[], u32[])) -> (f32[8], u32[], u32[]) {
  %s = (f32[8]{0}, u32[], u32[]) parameter(0)
  %x = f32[8]{0} get-tuple-element(%s), index=0
  %i = u32[] get-tuple-element(%s), index=1
  %step = u32[] get-tuple-element(%s), index=2
  %j = u32[] add(%i, %step)
  %y = f32[8]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
  ROOT %t = (f32[8]{0}, u32[], u32[]) tuple(%y, %j, %step)
}

%condition (c: (f32[8], u32[], u32[])) -> pred[] {
  %c = (f32[8]{0}, u32[], u32[]) parameter(0)
  %k = u32[] get-tuple-element(%c), index=1
  %end = u32[] constant(8)
  ROOT %less = pred[] compare(%k, %end), direction=LT
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %zero = u32[] constant(1)
  %two = u32[] constant(2)
  %copied = u32[] copy(%two)
  %state = (f32[8]{0}, u32[], u32[]) tuple(%p, %zero, %copied)
  %loop = (f32[8]{0}, u32[], u32[]) while(%state), condition=%condition, body=%body
  ROOT %r = f32[8]{0} get-tuple-element(%loop), index=0
}
"""


ITEMS = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4,
    "s64": 8, "u64": 8, "f8e4m3fn": 1, "f8e5m2": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8,
    "c64": 8,
}  # fmt: skip


UPDATES = """HloModule m

%fused (stack: f32[5,4,8], row: f32[1,4,8], all: f32[7,8], i: s32[]) -> (f32[5,4,8], f32[2,8]) {
  %stack = f32[5,4,8]{2,1,0} parameter(0)
  %row = f32[1,4,8]{2,1,0} parameter(1)
  %all = f32[7,8]{1,0} parameter(2)
  %i = s32[] parameter(3)
  %update = f32[5,4,8]{2,1,0} dynamic-update-slice(%stack, %row, %i, %i, %i)
  %part = f32[2,8]{1,0} dynamic-slice(%all, %i, %i), dynamic_slice_sizes={2,8}
  ROOT %t = (f32[5,4,8]{2,1,0}, f32[2,8]{1,0}) tuple(%update, %part)
}

ENTRY %main (p: f32[5,4,8], q: f32[1,4,8], r: f32[7,8], i: s32[]) -> f32[5,4,8] {
  %p = f32[5,4,8]{2,1,0} parameter(0)
  %q = f32[1,4,8]{2,1,0} parameter(1)
  %r = f32[7,8]{1,0} parameter(2)
  %i = s32[] parameter(3)
  %f = (f32[5,4,8]{2,1,0}, f32[2,8]{1,0}) fusion(%p, %q, %r, %i), kind=kLoop, calls=%fused
  %f0 = f32[5,4,8]{2,1,0} get-tuple-element(%f), index=0
  %s = f32[3,8]{1,0} slice(%r), slice={[0:3], [0:8]}
  ROOT %u = f32[5,4,8]{2,1,0} dynamic-update-slice(%f0, %q, %i, %i, %i)
}
"""


CHAIN = """HloModule m, num_partitions=16

%first (a: f32[2,8]) -> (f32[2,8], f32[16,8]) {
  %a = f32[2,8]{1,0} parameter(0)
  %g1 = f32[16,8]{1,0} all-gather(%a), channel_id=1, replica_groups=mesh['x'=8,'y'=2] {'x'}, frontend_attributes={chain_id="3"}
  ROOT %start = (f32[2,8]{1,0}, f32[16,8]{1,0}) custom-call(%g1), custom_call_target="AsyncCollectiveStart"
}

%second (b: f32[2,8], c: f32[16,8], d: f32[4]) -> (f32[4], f32[2,8], f32[16,8]) {
  %b = f32[2,8]{1,0} parameter(0)
  %c = f32[16,8]{1,0} parameter(1)
  %d = f32[4]{0} parameter(2)
  %work = f32[4]{0} negate(%d)
  %g2 = f32[16,8]{1,0} all-gather(%b), channel_id=1, replica_groups=mesh['x'=8,'y'=2] {'x'}, frontend_attributes={chain_id="3"}
  ROOT %t = (f32[4]{0}, f32[2,8]{1,0}, f32[16,8]{1,0}) tuple(%work, %b, %g2)
}

ENTRY %main (p: f32[2,8], q: f32[4]) -> f32[4] {
  %p = f32[2,8]{1,0} parameter(0)
  %q = f32[4]{0} parameter(1)
  %s = (f32[2,8]{1,0}, f32[16,8]{1,0}) fusion(%p), kind=kCustom, output_to_operand_aliasing={{0}: (0, {})}, calls=%first
  %s0 = f32[2,8]{1,0} get-tuple-element(%s), index=0
  %s1 = f32[16,8]{1,0} get-tuple-element(%s), index=1
  %f = (f32[4]{0}, f32[2,8]{1,0}, f32[16,8]{1,0}) fusion(%s0, %s1, %q), kind=kOutput, output_to_operand_aliasing={{1}: (0, {}), {2}: (1, {})}, calls=%second
  ROOT %r = f32[4]{0} get-tuple-element(%f), index=0
}
"""  # noqa: E501
