"""The operations that move most: a loop's as often as it runs, with their source lines."""

import jax
import jax.numpy as jnp

from unime_jax.planning import costs, largest

LAYERS, WIDTH = 7, 256


def test_kernels_that_each_layer_dequantises_are_seen_with_their_line():
    """Written out by the CPU's compiler, as a matmul there takes no codes."""

    def layer(x, kernel):
        codes, scale = kernel
        return jnp.tanh(x @ dequantised(codes, scale)), None

    def dequantised(codes, scale):
        return codes.astype(jnp.float32) * scale

    codes = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.int8)
    scales = jax.ShapeDtypeStruct((LAYERS, WIDTH), jnp.float32)
    x = jax.ShapeDtypeStruct((4, WIDTH), jnp.float32)
    run = jax.jit(lambda x, kernels: jax.lax.scan(layer, x, kernels)[0])
    moved = costs.traffic(
        run.lower(x, (codes, scales)).compile().as_text(), lambda kind, scopes: None
    )
    first = max(largest.of_hbm(moved), key=lambda mover: mover.written)
    assert first.operation == "fusion: mul" and first.result == f"f32[{WIDTH},{WIDTH}]"
    assert first.written == LAYERS * WIDTH * WIDTH * 4 and first.runs == LAYERS
    assert LAYERS * WIDTH * WIDTH <= first.read < 1.1 * LAYERS * WIDTH * WIDTH
    line = dequantised.__code__.co_firstlineno + 1
    assert first.source.endswith(f"tests/planning/test_largest.py:{line}")
    assert largest.of_ici(moved) == []

    parts = moved.operations.values()
    assert moved.hbm == sum(part.read + part.written for part in parts)


def test_operations_of_a_tpus_program():
    """As libtpu prints it, with tables of stack frames, of which numbers are one too large."""
    moved = costs.traffic(TPU, lambda kind, scopes: None)
    kernel, rows = 64 * 32 * 2, 16 * 32 * 2
    gather = dict(
        operation="all-gather: dot_general of attention, recomputed", result="bf16[64,32]", runs=5
    )
    line = "models/layers.py:112 < models/lora.py:40 < training/step.py:57"
    (collective,) = largest.of_ici(moved)
    assert collective == largest.Mover(
        **gather, source=line, read=5 * kernel / 4, written=5 * kernel, sent=5 * kernel * 3 / 4
    )
    readers = {mover.operation: mover for mover in largest.of_hbm(moved)}
    assert readers["all-gather: dot_general of attention, recomputed"] == collective

    # A fusion without metadata has that of its result; lines of no package are the innermost.
    fused = readers["fusion: mul of decoder.mlp, forward again"]
    assert (fused.source, fused.read, fused.written) == ("optax/_src/update.py:33", rows, rows)
    assert (fused.runs, fused.result) == (1, "bf16[16,32]")
    assert readers["copy"].source == "" and readers["negate: neg"].source == "models/rope.py:7"
    assert len(readers) == 4

    text = largest.tables(largest.of_hbm(moved), [collective])
    assert (
        text.count(
            "| all-gather: dot_general of attention, recomputed | bf16[64,32] | models/layers"
        )
        == 2
    )
    assert largest.tables([], []) == ""


TPU = """HloModule jit_step, is_scheduled=true, num_partitions=4

FileNames
1 "/home/me/unime_jax/unime_jax/training/step.py"
2 "/home/me/unime_jax/unime_jax/models/layers.py"
3 "/venv/lib/python3.11/site-packages/optax/_src/update.py"
4 "/home/me/unime_jax/unime_jax/models/lora.py"

FunctionNames
1 "step"

FileLocations
1 {file_name_id=1 function_name_id=1 line=57 end_line=57 column=2 end_column=2}
2 {file_name_id=4 function_name_id=1 line=40 end_line=40 column=2 end_column=2}
3 {file_name_id=2 function_name_id=1 line=112 end_line=112 column=2 end_column=2}
4 {file_name_id=3 function_name_id=1 line=33 end_line=33 column=2 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}
4 {file_location_id=4 parent_frame_id=1}

%fused (a: bf16[16,32]) -> bf16[16,32] {
  %a = bf16[16,32]{1,0} parameter(0)
  ROOT %m = bf16[16,32]{1,0} multiply(%a, %a), metadata={op_name="jit(step)/transpose(jvp())/while/body/jvp(decoder)/while/body/mlp/mul" stack_frame_id=4}
}

%body (s: (bf16[16,32], s32[])) -> (bf16[16,32], s32[]) {
  %s = (bf16[16,32]{1,0}, s32[]) parameter(0)
  %x = bf16[16,32]{1,0} get-tuple-element(%s), index=0
  %i = s32[] get-tuple-element(%s), index=1
  %g = (bf16[16,32]{1,0}, bf16[64,32]{1,0:T(8,128)(2,1)}) all-gather-start(%x), replica_groups=[1,4]<=[4], dimensions={0}, metadata={op_name="jit(step)/transpose(jvp())/while/body/checkpoint/rematted_computation/attention/dot_general" stack_frame_id=3}
  %d = bf16[64,32]{1,0:T(8,128)(2,1)} all-gather-done(%g)
  ROOT %t = (bf16[16,32]{1,0}, s32[]) tuple(%x, %i)
}

%condition (c: (bf16[16,32], s32[])) -> pred[] {
  %c = (bf16[16,32]{1,0}, s32[]) parameter(0)
  ROOT %p = pred[] constant(true)
}

ENTRY %main (p: bf16[16,32], q: s32[]) -> bf16[16,32] {
  %p = bf16[16,32]{1,0} parameter(0)
  %q = s32[] parameter(1)
  %state = (bf16[16,32]{1,0}, s32[]) tuple(%p, %q)
  %loop = (bf16[16,32]{1,0}, s32[]) while(%state), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %r = bf16[16,32]{1,0} get-tuple-element(%loop), index=0
  %f = bf16[16,32]{1,0} fusion(%r), kind=kLoop, calls=%fused
  %n = bf16[16,32]{1,0} negate(%f), metadata={op_name="jit(step)/neg" source_file="/x/unime_jax/models/rope.py" source_line=7}
  ROOT %e = bf16[16,32]{1,0} copy(%n)
}
"""  # noqa: E501
