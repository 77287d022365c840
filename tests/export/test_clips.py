"""Exports of models that take clips: transformers, told by their files alone, sees the same."""

import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.backbones.tiny_clips import as_tensor, clip, frames_of
from tests.backbones.tiny_qwen import write_qwen2_5_vl
from tests.backbones.tiny_qwen3 import write_qwen3_vl_embedding
from tests.models.oracle import pair_of
from unime_jax import Embedder, paths
from unime_jax.backbones import Processing, open_backbone
from unime_jax.backbones.preprocessing import video_processor_config
from unime_jax.batch import Item
from unime_jax.data.user_inputs import IMAGE_SUFFIX, TEXT_SUFFIX
from unime_jax.export import folder as hf_folder
from unime_jax.inference.encode import encode_blocks

SMALL = Processing(
    prompt="chat",
    grid_positions=True,
    fps=3.0,
    frames=(2, 6),
    frame_pixels=(64, 21 * 64),
    clip_pixels=91 * 64,
)
FLOAT32 = np.dtype(np.float32)


def test_transformers_reads_an_export_with_a_clip(tmp_path):
    source = write_qwen2_5_vl(tmp_path / "source", mrope_section=(1, 1, 2))
    # A folder that says something else, in both places.
    other = {"video_processor_type": "Qwen2VLVideoProcessor", "fps": 1, "patch_size": 4}
    (source / "processor_config.json").write_text(json.dumps({"video_processor": other}))
    video_processor_config.write(source, other)
    pair = pair_of(source, processing=SMALL)
    graph, _ = paths.split(pair.model)
    folder = tmp_path / "export"
    hf_folder.write(folder, pair.backbone, graph, pair.parameters, dtype=FLOAT32, prompts={})
    written = json.loads((folder / "video_preprocessor_config.json").read_text())
    assert written["cap_pixels_per_frame"] is True and written["fps"] == 3
    nested = json.loads((folder / "processor_config.json").read_text())["video_processor"]
    assert nested == written

    again = open_backbone(str(folder), max_length=4096)
    assert again.processing == SMALL and again.preprocess.clips == pair.backbone.preprocess.clips
    # The files alone say it, too, should the record be lost.
    plain = open_backbone(str(folder), max_length=4096, processing=Processing(prompt="chat"))
    assert plain.preprocess.clips == again.preprocess.clips

    frames = frames_of(13, 24, 40)
    item = Item("what happens?", (clip(13, 24, 40, 6.0),))
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor(
        text=[again.preprocess.prompt.rendered(item)],
        videos=[torch.tensor(as_tensor(frames))],
        video_metadata=[dict(total_num_frames=13, fps=6.0)],
        return_tensors="pt",
    )
    assert inputs["video_grid_thw"].tolist() == [[3, 10, 6]]  # nothing is resized
    assert inputs["input_ids"][0].tolist() == again.preprocess(item).tokens.tolist()
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    with torch.no_grad():
        state = model.model(**inputs).last_hidden_state[0, -1].numpy()
    ours = Embedder.from_pretrained(folder, dtype="float32")
    (blocks,) = encode_blocks(
        ours.model, [item], ours.backbone.preprocess, ours.shapes(1), window=1
    )
    row = blocks.vectors[0]
    assert row @ state / np.linalg.norm(state) >= 0.99999

    # sentence-transformers, which is told the rate, has it too; for ours an array is of that rate.
    frames = np.stack(frames_of(6, 24, 40))
    told = {"array": frames, "video_metadata": {"fps": SMALL.fps, "total_num_frames": len(frames)}}
    theirs = SentenceTransformer(str(folder), device="cpu")
    with torch.no_grad():
        found = theirs.encode([{"video": told, "text": "what happens?"}, {"video": told}])
    clip_and_text = {"video": frames, "text": "what happens?"}
    expected = ours.encode([clip_and_text, {"video": frames}])
    assert np.sum(found * expected, axis=1) == pytest.approx(1, abs=1e-5)
    # Clip and text apart, added, as UniME's first stage adds images and texts
    apart = ours.encode({"video": frames}, suffix=IMAGE_SUFFIX)
    apart += ours.encode("what happens?", suffix=TEXT_SUFFIX)
    marked = clip_and_text | {"text": "<|video_1|>\nwhat happens?"}
    assert ours.encode_sum(marked) @ apart == pytest.approx(np.linalg.norm(apart), abs=1e-5)


def test_limits_of_every_family_survive_their_files(tmp_path):
    """Qwen3-VL-Embedding's own, odd numbers of pixels, and what a file may not ask for."""
    folder = write_qwen3_vl_embedding(tmp_path / "embedder")
    preprocess = open_backbone(str(folder), max_length=512).preprocess
    rule = preprocess.clips
    # A template of sentence-transformers cannot know the times of frames.
    assert preprocess.prompt.clips and hf_folder.wording(preprocess.prompt)["clips"] is None
    assert (rule.sampling.fps, rule.sampling.least, rule.sampling.most) == (1.0, 4, 64)
    assert rule.frame_pixels == (128 * 64, 768 * 64) and rule.clip_pixels == 2 * 7680 * 64
    rng = np.random.default_rng(0)
    for write in (write_qwen2_5_vl, write_qwen3_vl_embedding):
        for i in range(6):
            odd = Processing(
                prompt="chat",
                frame_pixels=(64, int(rng.integers(65, 10**6))),
                clip_pixels=2 * int(rng.integers(1, 10**8)),
            )
            folder = write(tmp_path / f"{write.__name__}{i}") if not i else folder
            told = open_backbone(str(folder), max_length=512, processing=odd)
            video_processor_config.write(folder, told.video_processor)
            plain = open_backbone(str(folder), max_length=512, processing=Processing(prompt="chat"))
            assert plain.preprocess.clips == told.preprocess.clips
            (folder / "video_preprocessor_config.json").unlink()
    for key, value in (("patch_size", 5), ("image_mean", [0.1, 0.2, 0.3]), ("do_resize", False)):
        video_processor_config.write(folder, {key: value})
        with pytest.raises(ValueError, match=f"video_preprocessor_config.json: {key} is"):
            open_backbone(str(folder), max_length=512)
