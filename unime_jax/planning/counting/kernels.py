"""What Pallas kernels of a compiled program move between HBM and chip.

XLA sees a kernel's arguments and results, not how often its pipeline fetches a block of them. Of
splash attention that follows from the order of its grid: a block is fetched whenever another one
than before is needed.
"""

import math
import re

from unime_jax.planning.counting.hlo import Computation, Instruction, arrays, hbm_bytes

_SIDES = re.compile(r"\[([\d,]*)\]")


def is_kernel(line: Instruction) -> bool:
    """Whether an instruction is a Pallas kernel for TPUs."""
    return line.opcode == "custom-call" and '"tpu_custom_call"' in line.attributes


def kernel_bytes(scope: Computation, line: Instruction) -> float:
    """HBM bytes of a kernel: of splash attention every fetch, of another its arrays once."""
    operands = [scope[name].type for name in line.operands if name in scope]
    phase = re.match(r"splash_mha_(fwd|dq|dkv)", line.name)
    fetches = _splash_fetches(phase[1], operands, line) if phase else [1.0] * len(operands)
    read = sum(n * hbm_bytes(type) for n, type in zip(fetches, operands, strict=True))
    return read + hbm_bytes(line.type)


def _splash_fetches(phase: str, operands: list[str], line: Instruction) -> list[float]:
    """How often each argument is fetched.

    Forward and dq go through heads, blocks of queries, blocks of keys; dkv through blocks of keys,
    heads, blocks of queries. Causal kernels, which have the queries' positions and so an odd number
    of integer arrays, skip blocks above the diagonal.
    """
    q = sum(type.startswith(("s8[", "s16[")) for type in operands)  # tables of blocks come first
    ids = [i for i, type in enumerate(operands) if type.startswith("s32[")]
    segments = ids[:2] if len(ids) > 1 else []  # of queries and keys
    (heads, tokens), kv_heads = _sides(operands[q])[-3:-1], _sides(operands[q + 1])[-3]
    blocks = tokens // _block(phase, line)
    visited = (blocks + 1) / (2 * blocks) if len(ids) % 2 else 1.0  # share of pairs
    again = heads / kv_heads * blocks * visited if blocks > 1 else 1.0
    # Ids and positions have no heads: each head goes through them again, if blocks change at all.
    by_tokens = float(heads) if blocks > 1 else 1.0
    counts = []
    for i in range(len(operands)):
        keys_or_values = i in (q + 1, q + 2)
        key_ids = i in segments[1:]
        if i < q:
            counts.append(1.0)
        elif phase == "dkv":
            once = keys_or_values or key_ids
            by_pair = blocks * visited * (by_tokens if i in ids else 1.0)
            counts.append(1.0 if once else by_pair)
        elif keys_or_values:
            counts.append(again)
        elif key_ids:
            counts.append(by_tokens * blocks * visited if blocks > 1 else 1.0)
        else:
            counts.append(by_tokens if i in ids else 1.0)
    return counts


def _block(phase: str, line: Instruction) -> int:
    """Tokens of a block, from the kernel's metadata."""
    key = {"fwd": "block_q", "dq": "block_q_dq", "dkv": "block_q_dkv"}[phase]
    match = re.search(rf'\\"{key}\\": (\d+)', line.attributes)
    return int(match[1]) if match else 128


def _sides(type: str) -> list[int]:
    match = _SIDES.search(arrays(type)[0])
    sides = [int(side) for side in match[1].split(",") if side] if match else []
    assert math.prod(sides), "arguments of a kernel have elements"
    return sides
