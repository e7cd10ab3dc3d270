"""The web page, built with Gradio: it takes a photo and expressions, and shows colored masks."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ..visualization import COLORS
from . import pictures
from .examples import Example
from .predictions import Answers, Photo, Segmenter


# With more expressions, two masks would have the same color.
MOST_EXPRESSIONS = len(COLORS)

# System fonts, so that the page loads nothing from other servers.
THEME = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])

STYLE = """
.gradio-container { max-width: 1200px !important; margin: 0 auto !important; }
.legend { list-style: none; margin: 0; padding: 0; }
.legend li { display: grid; grid-template-columns: 1.1em 1fr auto; gap: 0.1em 0.6em; padding: 0.35em 0; margin: 0; }
.legend .swatch { width: 1em; height: 1em; border-radius: 3px; align-self: center; }
.legend .absent .swatch { opacity: 0.35; }
.legend .expression { font-weight: 600; overflow-wrap: anywhere; }
.legend .score { font-variant-numeric: tabular-nums; }
.legend .notes { grid-column: 2 / 4; font-size: 0.9em; opacity: 0.8; }
.message { border-left: 4px solid #D55E00; padding: 0.5em 0.8em; margin: 0; overflow-wrap: anywhere; }
.cascade h4 { margin: 0.8em 0 0.3em; }
.cascade .stage { display: grid; grid-template-columns: repeat(4, 1fr); gap: 0.6em; }
@media (max-width: 640px) { .cascade .stage { grid-template-columns: repeat(2, 1fr); } }
.cascade figure { margin: 0; }
.cascade img { width: 100%; border-radius: 4px; display: block; }
.cascade figcaption { font-size: 0.85em; margin-top: 0.2em; }
#download { position: absolute; width: 1px; height: 1px; overflow: hidden; opacity: 0; pointer-events: none; }
"""

# On a phone, the result is below the visible part of the page.
SHOW_RESULT = (
    "() => { if (window.innerWidth < 700) document.querySelector('#result').scrollIntoView({behavior: 'smooth'}) }"
)
START_DOWNLOAD = "() => { setTimeout(() => document.querySelector('#download').click(), 100) }"

CASCADE_HELP = (
    "The model predicts a mask in stages, coarse to fine. Bright areas show the mask, the other objects that the "
    "expression names (landmarks), where the context tokens attend to, and where the progressive alignment network "
    "(PAN) keeps the prediction of the stage instead of the previous one."
)


@dataclass(frozen=True)
class Session:
    """The data of one visitor between two clicks."""

    source: str
    photo: Photo
    answers: Answers


def file_of(upload: Any) -> str | None:
    """Returns the uploaded file without the preprocessing of Gradio, so that the page can report problems with it."""
    return None if upload is None else upload.path or upload.url


def split_expressions(text: str) -> list[str]:
    """
    Splits the text into expressions, one per line.

    Raises:
        ValueError: If there is no expression, or if there are more than the page has colors.
    """
    expressions = [line.strip() for line in text.splitlines() if line.strip()]
    if not expressions:
        raise ValueError("Say what to find, such as “the red circle”: one expression per line.")
    if len(expressions) > MOST_EXPRESSIONS:
        raise ValueError(f"There are {len(expressions)} expressions; the page shows up to {MOST_EXPRESSIONS} at once.")
    return expressions


class Page:
    """The event handlers of the page. Each method returns one value per output."""

    def __init__(self, segmenter: Segmenter):
        self.segmenter = segmenter

    def find(
        self, source: str | None, text: str, session: Session | None, mask_threshold: float, threshold: float
    ) -> tuple[Session | None, Image.Image | None, str, Any, str]:
        """Runs the model. The photo is encoded only if it has changed."""
        no_choice = gr.Dropdown(choices=[], value=None)
        try:
            if not source:
                raise ValueError("Choose a photo first: drop one into the field, or click an example.")
            expressions = split_expressions(text)
            same = session is not None and session.source == source
            photo = session.photo if session is not None and same else self.segmenter.encode(source)
            answers = self.segmenter.ask(photo, expressions)
        except ValueError as error:
            # Gradio stores uploads under long paths, which mean nothing to a visitor.
            said = str(error) if not source else str(error).replace(source, Path(source).name)
            return None, None, pictures.message(said), no_choice, ""
        session = Session(source, photo, answers)
        choices = [(expression, index) for index, expression in enumerate(expressions)]
        choice = gr.Dropdown(choices=choices, value=0)
        return session, *self.draw(session, mask_threshold, threshold), choice, self.look_inside(session, 0)

    def draw(self, session: Session | None, mask_threshold: float, threshold: float) -> tuple[Image.Image | None, str]:
        """Draws the overlay and the legend for these thresholds, without running the model."""
        if session is None:
            return None, ""
        image = pictures.fit(session.photo.image)
        results = self.segmenter.results(session.answers, (image.height, image.width), threshold, mask_threshold)
        return pictures.overlay(image, results), pictures.legend(results)

    def look_inside(self, session: Session | None, index: int | None) -> str:
        """Draws the stages of one expression."""
        if session is None or index is None:
            return ""
        return pictures.cascade(session.photo.image, self.segmenter.cascade(session.answers, index), index)

    def save(
        self, kind: str, session: Session | None, index: int | None, mask_threshold: float, threshold: float
    ) -> str:
        """Writes a file at the size of the photo: "mask" or "cut-out" of one expression, or "rle" of all."""
        if session is None or index is None:
            raise gr.Error("There is nothing to download yet: choose a photo, say what to find, and click Find.")
        image = session.photo.image
        results = self.segmenter.results(session.answers, (image.height, image.width), threshold, mask_threshold)
        folder = Path(tempfile.mkdtemp(prefix="jmceln-"))
        if kind == "rle":
            path = folder / "masks.json"
            path.write_text(json.dumps(pictures.run_lengths(results), indent=1), encoding="utf-8")
        elif kind == "mask":
            path = folder / "mask.png"
            pictures.mask_image(results[index].mask).save(path)
        else:
            path = folder / "cut-out.png"
            pictures.cut_out(image, results[index].mask).save(path)
        return str(path)


def build_page(segmenter: Segmenter, name: str, examples: Sequence[Example] = ()) -> gr.Blocks:
    """
    Builds the page.

    Args:
        segmenter ([`Segmenter`]): The model with its processor.
        name (`str`): Name of the model on the page.
        examples (`Sequence` of [`Example`]): Shown below the form; one click runs the model.
    """
    page = Page(segmenter)
    with gr.Blocks(title="JMCELN: find what words mean in a photo", analytics_enabled=False) as blocks:
        session = gr.State(None)
        gr.Markdown(
            "# Find what words mean in a photo\n"
            f"Drop a photo, say what to find, and the model `{name}` marks it. One expression per line."
        )
        with gr.Row():
            with gr.Column(min_width=320):
                photo = gr.Image(
                    label="Photo", type="filepath", sources=["upload", "clipboard", "webcam"], height=300,
                    elem_id="photo", buttons=[],
                )  # fmt: skip
                photo.preprocess = file_of
                text = gr.Textbox(
                    label="What to find", lines=2, max_lines=MOST_EXPRESSIONS, elem_id="expressions",
                    placeholder="the woman left of the blue car\nthe dog in front",
                )  # fmt: skip
                button = gr.Button("Find", variant="primary", elem_id="find")
                shown_examples = gr.Column()
            with gr.Column(min_width=320):
                picture = gr.Image(
                    label="Result", interactive=False, format="png", elem_id="result", buttons=["fullscreen"]
                )
                legend = gr.HTML(elem_id="legend")
                mask_threshold = gr.Slider(
                    0, 1, 0.5, step=0.01, label="Mask threshold", elem_id="mask-threshold",
                    info="A pixel belongs to a mask if its probability is above this.",
                )  # fmt: skip
                threshold = gr.Slider(
                    0, 1, 0.5, step=0.01, label="Score threshold", elem_id="threshold",
                    info="Below this score, the model says that it is not in the image.",
                )  # fmt: skip
                choice = gr.Dropdown(
                    choices=[], label="Expression to download or to look into", elem_id="choice", interactive=True
                )
                with gr.Row():
                    saves = {
                        kind: gr.Button(label, size="sm", min_width=90, elem_id=f"save-{kind}")
                        for kind, label in (
                            ("mask", "Mask (PNG)"), ("cut-out", "Cut-out (PNG)"), ("rle", "RLE (JSON)")
                        )
                    }  # fmt: skip
                file = gr.DownloadButton(elem_id="download")
        with gr.Accordion("Look inside the cascade", open=False, elem_id="inside"):
            gr.Markdown(CASCADE_HELP)
            stages = gr.HTML(elem_id="stages")

        asked = [photo, text, session, mask_threshold, threshold]
        answered = [session, picture, legend, choice, stages]
        button.click(page.find, asked, answered, api_name="find").then(None, js=SHOW_RESULT)
        gr.on(
            [mask_threshold.change, threshold.change],
            page.draw,
            [session, mask_threshold, threshold],
            [picture, legend],
            trigger_mode="always_last",
            show_progress="hidden",
            concurrency_limit=4,
            api_name=False,
        )
        choice.input(page.look_inside, [session, choice], stages, show_progress="hidden", api_name=False)
        for kind, save in saves.items():
            made = save.click(
                partial(page.save, kind), [session, choice, mask_threshold, threshold], file, api_name=False
            )
            made.success(None, js=START_DOWNLOAD)
        if examples:
            with shown_examples:
                shown = gr.Examples(
                    [[str(example.image), "\n".join(example.expressions)] for example in examples],
                    [photo, text],
                    [*answered, mask_threshold, threshold],
                    lambda source, words: (*page.find(source, words, None, 0.5, 0.5), 0.5, 0.5),
                    run_on_click=True,
                    cache_examples=False,
                    visible_columns=[0],
                    label="Examples: one click",
                    elem_id="examples",
                )
                shown.load_input_event.then(None, js=SHOW_RESULT)
                named = [example.attribution for example in examples if example.attribution]
                if named:
                    gr.Markdown("Photos: " + "; ".join(named) + ".")
    return blocks


def launch(blocks: gr.Blocks, **settings: Any) -> Any:
    """Serves the page with its theme and style. `settings` are arguments of `gradio.Blocks.launch`."""
    return blocks.launch(theme=THEME, css=STYLE, footer_links=[], **settings)
