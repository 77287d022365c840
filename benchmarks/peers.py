"""The work of a benchmark case in PyTorch: GradCache with PEFT, and sentence-transformers.

Job benchmark (--config.peers.names) runs this file: a JSON request on standard input, figures as
JSON in the file that the request names. It reads the same weights and rows, and knows nothing of
this package. Rows go in chunks of one length, so that nothing is padding; of several chunk sizes
the fastest counts. Rows are on the device before a call, as ours are.
"""

import contextlib
import json
import pathlib
import re
import sys
import time
import traceback

import numpy as np
import torch

if __name__ == "__main__":  # started by its path: only the folder of this file is searched
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
from benchmarks.peer_rows import Rows, UnsupportedError

MULTIPLES = (1, 4, 16)  # of the case's chunk, in tokens; each is tried
BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def main() -> None:
    request = json.load(sys.stdin)
    try:
        values = measure(request)
    except Exception as error:
        traceback.print_exc()
        problem = f"{type(error).__name__}: {error}"
        values = {"problem": problem, "unsupported": isinstance(error, UnsupportedError)}
    pathlib.Path(request["result"]).write_text(json.dumps(values, indent=2) + "\n")


def measure(request: dict) -> dict:
    """Figures of one peer on one case."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wanted = {"gpu": "cuda", "cpu": "cpu"}.get(request["platform"], device.type)
    if device.type != wanted:
        raise UnsupportedError(f"PyTorch runs on {device.type} here, the case on {wanted}")
    if "int8" in (request["dtype"], request.get("frozen_dtype")):
        raise UnsupportedError("int8 weights are not measured in PyTorch")
    import_torchvision()
    if request["peer"] == "sentence_transformers":
        model = sentence_transformer(request, device)
    else:
        model = transformer(request, device)
    rows = Rows(request, device, model.config)
    if request["work"] == "encode":
        call = lambda budget: encode_all(model, rows, budget)  # noqa: E731
    else:
        call = Step(request, model, rows, device)
    chunk = request.get("chunk_size") or 4
    budgets = [chunk * int(rows.lengths.max()) * multiple for multiple in MULTIPLES]
    best = fastest(call, budgets, device)
    rows.chunks(best)  # on the device before the first call that counts
    for _ in range(request["warmup"]):
        timed(call, best, device)
    seconds, result = [], None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(request["repetitions"]):
        took, result = timed(call, best, device)
        seconds.append(took)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    return {
        "problem": "",
        "unsupported": False,
        "seconds": {
            "median": float(np.median(seconds)),
            "least": min(seconds),
            "most": max(seconds),
            "all": seconds,
        },
        "memory": None if peak is None else {"bytes": peak, "source": "device"},
        "chunk_tokens": best,
        "cosine": cosine(request, result) if request["work"] == "encode" else None,
        "described": f"{versions(request['peer'])}, {best} tokens a chunk, on {device.type}",
    }


def transformer(request: dict, device: torch.device) -> torch.nn.Module:
    """The model of the case's weights with SDPA, and adapters or trained parameters."""
    from transformers import AutoModel

    train = request["work"] == "train"
    frozen = request["frozen_dtype"] if train else request["dtype"]
    full = train and not request["lora"]["rank"]
    dtype = torch.float32 if full else getattr(torch, frozen)
    model = AutoModel.from_pretrained(request["model"], dtype=dtype, attn_implementation="sdpa").to(
        device
    )
    model.requires_grad_(False)
    if not train:
        return model.eval()
    if request["remat"] != "none":
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()  # transformers recomputes in training mode only
    config = model.config
    if request["lora"]["rank"]:
        from peft import LoraConfig, get_peft_model

        lora = request["lora"]
        *chosen, rest = lora["targets"]
        if rest != [".*", False] or not all(use for _, use in chosen):
            raise UnsupportedError(f"PEFT is not told of the targets {lora['targets']}")
        model = get_peft_model(
            model,
            LoraConfig(
                r=lora["rank"],
                lora_alpha=lora["alpha"],
                use_dora=lora["dora"],
                target_modules="|".join(f"(?:{pattern})" for pattern, _ in chosen),
            ),
        )
        model.config = config
    else:
        for name, parameter in model.named_parameters():
            rules = (use for pattern, use in request["trainable"] if re.fullmatch(pattern, name))
            parameter.requires_grad_(next(rules, False))
    return model


def sentence_transformer(request: dict, device: torch.device) -> torch.nn.Module:
    """sentence-transformers' modules of the exported folder; its tokenizer is not measured."""
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(
        request["model"],
        device=str(device),
        model_kwargs={"dtype": request["dtype"], "attn_implementation": "sdpa"},
    ).eval()
    loaded.config = next(m for m in loaded.modules() if hasattr(m, "config")).config
    return loaded


def embed(model: torch.nn.Module, inputs: dict) -> torch.Tensor:
    """Unit-norm embeddings of a chunk: the last token's, or sentence-transformers' own."""
    if hasattr(model, "encode"):
        return torch.nn.functional.normalize(
            model(dict(inputs))["sentence_embedding"].float(), dim=-1
        )
    dtype = next(model.parameters()).dtype
    if "pixel_values" in inputs:
        inputs = inputs | {"pixel_values": inputs["pixel_values"].to(dtype)}
    hidden = model(**inputs, use_cache=False).last_hidden_state
    return torch.nn.functional.normalize(hidden[:, -1].float(), dim=-1)


@torch.inference_mode()
def encode_all(model: torch.nn.Module, rows: Rows, budget: int) -> torch.Tensor:
    """Embeddings of all rows, in order."""
    parts = [(numbers, embed(model, inputs)) for numbers, inputs in rows.chunks(budget)]
    order = torch.tensor([n for numbers, _ in parts for n in numbers])
    return torch.cat([vectors for _, vectors in parts]).cpu()[torch.argsort(order)]


class Step:
    """A training step by GradCache: embeddings, loss, then each chunk again with its gradient."""

    def __init__(self, request: dict, model: torch.nn.Module, rows: Rows, device: torch.device):
        self.request, self.model, self.rows = request, model, rows
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=request["learning_rate"])
        half = request["dtype"] == "bfloat16"
        self.precision = lambda: (
            torch.autocast(device.type, torch.bfloat16) if half else contextlib.nullcontext()
        )
        count, width = len(rows.lengths), 256
        generator = torch.Generator().manual_seed(0)
        teacher = torch.randn(count, width, generator=generator)
        self.teacher = torch.nn.functional.normalize(teacher, dim=-1).to(device)

    def __call__(self, budget: int) -> float:
        chunks = self.rows.chunks(budget)
        with torch.no_grad(), self.precision():
            parts = [embed(self.model, inputs) for _, inputs in chunks]
        order = torch.argsort(torch.tensor([n for numbers, _ in chunks for n in numbers]))
        leaves = [part.detach().requires_grad_() for part in parts]
        loss = self._loss(torch.cat(leaves)[order.to(leaves[0].device)])
        loss.backward()
        for (_, inputs), leaf in zip(chunks, leaves):
            with self.precision():
                vectors = embed(self.model, inputs)
            vectors.backward(leaf.grad)
        parameters = self.optimizer.param_groups[0]["params"]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def _loss(self, vectors: torch.Tensor) -> torch.Tensor:
        """InfoNCE of queries, or the KL divergence from random vectors in a teacher's place."""
        scale = self.request["temperature"]
        if self.request["objective"] == "distillation":
            wanted = torch.softmax(self.teacher @ self.teacher.T / scale, dim=-1)
            log = torch.log_softmax(vectors @ vectors.T / scale, dim=-1)
            return torch.nn.functional.kl_div(log, wanted, reduction="batchmean")
        if self.request["objective"] != "contrastive":
            raise UnsupportedError(f"the objective {self.request['objective']} is not measured")
        pairs = self.request["pairs"]
        logits = vectors[:pairs] @ vectors[pairs:].T / scale
        return torch.nn.functional.cross_entropy(logits, torch.arange(pairs, device=logits.device))


def fastest(call, budgets: list[int], device: torch.device) -> int:
    """The chunk size in tokens with the fastest second call; those without memory are left out."""
    took = {}
    for budget in budgets:
        try:
            timed(call, budget, device)
            took[budget], _ = timed(call, budget, device)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
    if not took:
        raise MemoryError(f"none of the chunks of {budgets} tokens fits the device")
    return min(took, key=took.__getitem__)


def timed(call, budget: int, device: torch.device) -> tuple[float, object]:
    """Seconds of a call until its results are there, and the result."""
    started = time.perf_counter()
    result = call(budget)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def cosine(request: dict, vectors: torch.Tensor) -> float:
    """The least cosine of a row's embedding with ours."""
    ours = torch.from_numpy(np.load(request["embeddings"]))
    return float((torch.nn.functional.normalize(ours, dim=-1) * vectors).sum(-1).min())


def versions(peer: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    names = ["torch", "transformers"]
    names += ["sentence-transformers"] if peer == "sentence_transformers" else ["peft"]
    installed = []
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            installed.append(f"{name} {version(name)}")
    return ", ".join(installed)


_library: list = []  # operators live as long as their library


def import_torchvision() -> None:
    """Imports torchvision, which transformers does, where its operators are of another torch."""
    try:
        import torchvision
    except ImportError:
        return
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
        for name in [x for x in sys.modules if x.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms" + BOXES)
        library.define("qnms" + BOXES)
        _library.append(library)
        import torchvision  # noqa: F401


if __name__ == "__main__":
    main()
