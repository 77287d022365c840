"""Figures of a benchmark as JSON and as a Markdown table."""

import json
from collections.abc import Mapping
from typing import Any

HEADER = (
    ("case", "device", "pairs or items", "step, s (least to most)", "items/s", "tokens/s")
    + ("pad", "TFLOP useful / run", "MFU (of executed)", "peak GB", "compile, s")
    + ("estimate, s (measured / estimate)", "peers, s (peer / ours)")
)


def as_json(values: Mapping[str, Any]) -> str:
    """JSON for people to read, too."""
    return json.dumps(values, indent=2) + "\n"


def note(warmup: int, repetitions: int) -> str:
    """How the figures were made, for under the table."""
    return (
        f"Random weights, generated rows that are on the devices already: input pipelines are not "
        f"in these figures. Steps are the median of {repetitions} calls after a compilation and "
        f"{warmup} more. Items are pairs of a train step, rows of an encode. Tokens are those of "
        "live rows, without padding. FLOPs are counted from the program: useful ones are a forward "
        "pass over real tokens and its backward pass by what is trained, executed ones all matrix "
        "products with padding and recomputation. MFU is their share of the published bfloat16 "
        "peak, blank where none is known. Peak memory is of the fullest device, by its allocator, "
        "which counts the making of the weights, or of the program, by the compiler. Estimates are "
        "those of job plan: lower bounds."
    )


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown table of all cases, with remarks on single lines below."""
    lines = ["| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|"]
    remarks = []
    for name, values in results.items():
        lines.append("| " + " | ".join(_cells(name, values)) + " |")
        remarks += [f"- {name}: {remark}" for remark in _remarks(values)]
    return "\n".join([*lines, *([""] if remarks else []), *remarks])


def _cells(name: str, values: Mapping[str, Any]) -> list[str]:
    if values["problem"]:
        return [name, "", "", "failed"] + [""] * (len(HEADER) - 4)
    seconds, device, memory = values["seconds"], values["device"], values["memory"]
    median, flops = seconds["median"], values["flops"]
    estimate, mfu = values["estimate"], values["mfu"]
    peers = [
        f"{peer} {of_peer['seconds']['median']:.3g} ({of_peer['seconds']['median'] / median:.2f})"
        for peer, of_peer in values.get("peers", {}).items()
        if not of_peer["problem"]
    ]
    return [
        name,
        f"{device['count']} x {device['kind']}",
        str(values["items"]),
        f"{median:.3g} ({seconds['least']:.3g} to {seconds['most']:.3g})",
        f"{values['items'] / median:.3g}",
        f"{values['tokens'] / median:,.0f}",
        f"{values['pad_share']:.0%}",
        f"{flops['useful'] / 1e12:.3g} / {flops['executed'] / 1e12:.3g}",
        "" if mfu is None else f"{mfu:.0%} ({values['hardware_mfu']:.0%})",
        _peak(memory),
        f"{values['compile_seconds']:.1f}",
        "" if estimate is None else _beside(median, estimate),
        ", ".join(peers),
    ]


def _peak(memory: Mapping[str, Any]) -> str:
    if memory["source"] == "compiler":
        return f"{memory['bytes'] / 1e9:.2f} (compiler)"
    return f"{memory['bytes'] / 1e9:.2f} (device), {memory['program'] / 1e9:.2f} (compiler)"


def _beside(median: float, estimate: Mapping[str, Any]) -> str:
    ratio = median / estimate["seconds"]
    return f"{estimate['seconds']:.3g}, {estimate['bound']} ({ratio:.2f})"


def _remarks(values: Mapping[str, Any]) -> list[str]:
    if values["problem"]:
        return [values["problem"]]
    remarks = []
    if not values["finite"]:
        remarks.append("random weights gave numbers that are not finite; the work is the same.")
    for peer, of_peer in values.get("peers", {}).items():
        if of_peer["problem"]:
            remarks.append(f"{peer}: {of_peer['problem']}")
        elif of_peer.get("cosine") is not None:
            remarks.append(f"{peer}: least cosine with our embeddings {of_peer['cosine']:.5f}.")
        if not of_peer["problem"]:
            remarks.append(f"{peer}: {of_peer['described']}")
    return remarks
