"""A page to search a folder of pictures and texts by words, a picture, or both.

    python experiments/demo.py --model=runs/stage2/hf
    python experiments/demo.py --model=runs/stage2/hf --model=runs/llave/hf --folder=photos

Without --folder it draws the pictures of MiniMMEB, so that nothing is downloaded. It is a command,
not a recipe: there is no run, no work directory, and nothing to resume. The page is Gradio's
(`pip install 'unime_jax[demo]'`); docs/demo.md shows it.
"""

import importlib.util
import os
import pathlib
import sys
import time
from typing import TYPE_CHECKING, Any

from absl import app, flags, logging

if TYPE_CHECKING:
    from unime_jax.operations.recipes import demo_search

_MODEL = flags.DEFINE_multi_string("model", [], "A model folder or hub id; several make a switch.")
_FOLDER = flags.DEFINE_string("folder", "", "Pictures and .txt files; by default MiniMMEB's.")
_INSTRUCTION = flags.DEFINE_multi_string(
    "instruction", [], "Before queries, as in training; by default the model's own prompt."
)
_PICTURE_INSTRUCTION = flags.DEFINE_string(
    "picture_instruction", "", "Before pictures, as in training; by default the model's own prompt."
)
_SUFFIX = flags.DEFINE_string("suffix", "", "After what has an instruction.")
_DTYPE = flags.DEFINE_enum(
    "dtype", "bfloat16", ["float32", "bfloat16", "int8"], "Of weights and activations."
)
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen at.")
_PORT = flags.DEFINE_integer("port", 7860, "Port to listen at.")

NEIGHBOURS = 6
CSS = """
.gradio-container {max-width: 1280px !important; width: 100% !important; margin: auto}
#results:has(.empty) {display: none}
#head h1 {margin-bottom: 0}
#results .grid-wrap, #neighbours .grid-wrap {
  min-height: 0 !important; height: auto !important; max-height: none; overflow: visible}
#results .gallery-container, #neighbours .gallery-container {height: auto !important}
#results .grid-container, #neighbours .grid-container {padding-top: 0 !important}
#results .caption-label, #neighbours .caption-label {
  max-width: 100%; overflow: hidden; text-overflow: ellipsis; white-space: nowrap}
@media (max-width: 640px) {
  #results .grid-container {grid-template-columns: repeat(2, minmax(0, 1fr)) !important}
  #neighbours .grid-container {grid-template-columns: repeat(3, minmax(0, 1fr)) !important}
}
"""


def make_page(
    searchers: "demo_search.Searchers", wording: "demo_search.Wording", about: str
) -> Any:
    """The page, as `gradio.Blocks`."""
    import gradio as gr
    import numpy as np

    from unime_jax.operations.recipes import demo_search

    def search(text: str, image: Any, instruction: str, model: str, kind: str, k: int) -> Any:
        if not text.strip() and image is None:
            gr.Info("Write something, or choose a picture.")
            return (gr.skip(),) * 5
        started = time.perf_counter()
        try:
            searcher = searchers[model]
            query = searcher.query(text, image, instruction or "")
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        hits = searcher.search(query, int(k), kind)
        seconds = time.perf_counter() - started
        line = f"### Nearest, by cosine\n{len(hits)} of {len(searcher.entries)} in {seconds:.2f} s"
        names = [entry.name for entry, _ in hits]
        return (
            gr.Gallery(demo_search.captioned(hits), selected_index=None),
            names,
            query.tolist(),
            line,
            gr.Column(visible=False),
        )

    def renew(text: str, image: Any, *others: Any) -> Any:
        if not text.strip() and image is None:
            return (gr.skip(),) * 5
        return search(text, image, *others)

    def choose(
        event: gr.SelectData, names: list[str], query: list[float], model: str
    ) -> tuple[Any, ...]:
        searcher = searchers[model]
        entry = searcher.entries[names[event.index]]
        near = demo_search.captioned(searcher.neighbours(entry.name, NEIGHBOURS))
        title = f"### `{entry.name}`\n\n{entry.text}"
        if entry.picture is None:
            hidden = gr.Image(visible=False)
            return gr.Column(visible=True), title, hidden, hidden, near
        picture, falls = searcher.map_of(entry.name, np.array(query, np.float32))
        heat = demo_search.overlay(picture, falls)
        return (
            gr.Column(visible=True),
            title,
            gr.Image(demo_search.card(entry, side=480), visible=True),
            gr.Image(heat, visible=True),
            near,
        )

    with gr.Blocks(
        title="unime_jax: search", analytics_enabled=False, delete_cache=(3600, 3600)
    ) as page:
        names, query = gr.State([]), gr.State([])
        gr.Markdown(f"# Search pictures and texts\n{about}", elem_id="head")
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                text = gr.Textbox(label="Text", placeholder="what to look for", lines=2)
                image = gr.Image(
                    label="Picture", type="pil", height=180, sources=["upload", "clipboard"]
                )
                instruction = gr.Dropdown(
                    list(wording.instructions),
                    value=wording.instructions[0],
                    label="Instruction",
                    info="goes before the text, as in training; any may be written",
                    allow_custom_value=True,
                )
                model = gr.Radio(
                    searchers.models,
                    value=searchers.models[0],
                    label="Model",
                    elem_id="model",
                    visible=len(searchers.models) > 1,
                )
                kind = gr.Radio(["all", "pictures", "texts"], value="all", label="Look among")
                k = gr.Slider(1, 24, value=8, step=1, label="Results")
                button = gr.Button("Search", variant="primary")
                if wording.queries:
                    gr.Examples([[text] for text in wording.queries], [text])
            with gr.Column(scale=3, min_width=320):
                told = gr.Markdown("What is nearest to a text, a picture, or both, comes here.")
                results = gr.Gallery(
                    show_label=False,
                    elem_id="results",
                    columns=4,
                    height="auto",
                    object_fit="contain",
                    allow_preview=False,
                    buttons=[],
                )
                with gr.Column(visible=False) as details:
                    title = gr.Markdown()
                    with gr.Row():
                        whole = gr.Image(label="The picture", interactive=False, buttons=[])
                        heat = gr.Image(
                            label="In common with the query", interactive=False, buttons=[]
                        )
                    gr.Markdown("### Its neighbours in the folder")
                    near = gr.Gallery(
                        show_label=False,
                        elem_id="neighbours",
                        columns=6,
                        height="auto",
                        object_fit="contain",
                        allow_preview=False,
                        buttons=[],
                    )
        asked = [text, image, instruction, model, kind, k]
        shown = [results, names, query, told, details]
        for trigger in (button.click, text.submit):
            trigger(search, asked, shown, api_name=False, show_progress_on=[told, results])
        for trigger in (model.change, kind.change):  # another look at the same query
            trigger(renew, asked, shown, api_name=False, show_progress_on=[told, results])
        results.select(
            choose,
            [names, query, model],
            [details, title, whole, heat, near],
            api_name=False,
            show_progress_on=[told, results],
        )
    return page


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if not _MODEL.value:
        raise app.UsageError("--model=<folder or hub id> is required")
    spec = importlib.util.find_spec("gradio")
    if spec is None or spec.origin is None:  # without: a folder of that name, as Gradio's in /tmp
        sys.exit("error: the page is made with gradio: pip install 'unime_jax[demo]'")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # which Gradio sends at its import
    import gradio as gr

    from unime_jax import Embedder
    from unime_jax.operations.recipes import demo_search

    wording = demo_search.Wording(
        tuple(_INSTRUCTION.value) or ("",), _PICTURE_INSTRUCTION.value, _SUFFIX.value
    )
    folder = pathlib.Path(_FOLDER.value)
    if not _FOLDER.value:
        folder = demo_search.draw_mini(pathlib.Path("data/demo"))
        if not _INSTRUCTION.value:
            wording = demo_search.MINI
    entries = demo_search.entries_of(folder)
    pictures = sum(entry.picture is not None for entry in entries)

    def make(model: str) -> "demo_search.Searcher":
        logging.info("opening %s, and embedding %d entries", model, len(entries))
        dtype: Any = _DTYPE.value
        embedder = Embedder.from_pretrained(model, dtype=dtype)
        searcher = demo_search.Searcher(embedder, entries, wording)
        logging.info("%s is ready", model)
        return searcher

    searchers = demo_search.Searchers(_MODEL.value, make)
    searchers[searchers.models[0]]  # before the page is there
    about = f"{pictures} pictures and {len(entries) - pictures} texts of `{folder}`"
    page = make_page(searchers, wording, about)
    page.launch(
        server_name=_HOST.value,
        server_port=_PORT.value,
        share=False,
        css=CSS,
        theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        footer_links=[],
        max_file_size="32mb",
        ssr_mode=False,
    )


def run() -> None:
    logging.set_verbosity(logging.INFO)
    try:
        app.run(main)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    run()
