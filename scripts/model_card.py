"""The exported folder: config, safetensors, image processor, and a model card made from facts."""

from __future__ import annotations

import os
import tempfile
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import PreTrainedModel, ViTImageProcessorPil

__all__ = ["Facts", "write_model"]

_MAX_BYTES = 4_000_000


@dataclass(frozen=True)
class _Size:
    """What the card says of the models of one size.

    Attributes:
      opening: of the first sentence: pictures and network.
      source: of the glyphs; ends before the number of classes.
      most: number of classes of one script.
      left_out: what is not drawn, beside numbers.
      start: of the weights.
      options: of the command line.
      close: which classes are hard to tell apart.
    """

    opening: str
    source: str
    most: int
    left_out: str
    start: str
    options: str
    close: str


_SIZES: Mapping[int, _Size] = {
    8: _Size(
        opening="""
A small vision transformer for characters of 8x8 pixels: image 8, patch 2, one channel, 4 layers of
width 128 with 4 heads""",
        source="""
Glyphs rendered from the fonts that matplotlib ships (DejaVu Sans, Sans Mono and Serif, STIXGeneral,
and the ASCII letters of six Computer Modern fonts); no font file is part of this folder. The""",
        most=80,
        left_out="",
        start="initial deviation 0.08,",
        options="",
        close="cannot be told apart in 8x8 pixels",
    ),
    28: _Size(
        opening="""
A small vision transformer for characters of 28x28 pixels: image 28, patch 7, one channel, 4 layers
of width 128 with 4 heads""",
        source="""
Glyphs rendered from the fonts that matplotlib ships (DejaVu Sans, Sans Mono and Serif, STIXGeneral,
and the ASCII letters of six Computer Modern fonts) and, for more scripts, from the regular and bold
fonts of Debian's package fonts-noto-core 20201225-1 (Noto, SIL Open Font License 1.1); no font file
is part of this folder. The""",
        most=10,
        left_out=""" Every
character of the scripts Devanagari, Kannada, Malayalam, Tamil, Telugu and Thai is left out too: the
data sets `characters` and `characters-hard` are drawn from them.""",
        start="""started from vit-glyphs-8 with a
patch embedding that first shrinks 7x7 pixels to 2x2,""",
        options=" --side 28",
        close="look alike when they are distorted",
    ),
}


@dataclass(frozen=True)
class Facts:
    """What the card tells of a run.

    Attributes:
      name: of the model.
      about: one line on the objective.
      settings: the settings of the run, by name.
      labels: the classes trained on.
      step: the step of the measures.
      held_out: measures of the model.
      pixels: the same measures on bare pixels.
    """

    name: str
    about: str
    settings: Mapping[str, object]
    labels: tuple[str, ...]
    step: int
    held_out: Mapping[str, float]
    pixels: Mapping[str, float]

    @property
    def side(self) -> int:
        """Side of the pictures, in pixels."""
        return int(str(self.settings["side"]))


def write_model(model: PreTrainedModel, facts: Facts, out: Path) -> None:
    """Write the model folder file by file, each put in place when it is complete."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as temporary:
        fresh = Path(temporary)
        model.save_pretrained(fresh)
        _processor(facts.side).save_pretrained(fresh)
        (fresh / "README.md").write_text(_card(facts), encoding="utf-8")
        size = (fresh / "model.safetensors").stat().st_size
        if size > _MAX_BYTES:
            raise SystemExit(f"model.safetensors has {size} bytes, more than {_MAX_BYTES}")
        for path in sorted(fresh.iterdir()):
            path.chmod(0o644)
            os.replace(path, out / path.name)


def _processor(side: int) -> ViTImageProcessorPil:
    return ViTImageProcessorPil(
        do_resize=True,
        size={"height": side, "width": side},
        do_rescale=True,
        rescale_factor=1 / 16,
        do_normalize=True,
        image_mean=[0.5],
        image_std=[0.5],
    )


def _card(facts: Facts) -> str:
    supervised = facts.settings["objective"] == "supervised"
    size = _SIZES[facts.side]
    return _CARD.format(
        **facts.settings,
        **asdict(size),
        page=f"{4 * facts.side}x{4 * facts.side}",
        name=facts.name,
        about=facts.about,
        teaching=_TEACHING[supervised],
        network=_NETWORK[supervised],
        weights=_WEIGHTS[supervised].format(close=size.close),
        num_labels=len(facts.labels),
        scripts=_scripts(facts.labels),
        step=facts.step,
        figures=_figures(facts),
        state="" if facts.step == facts.settings["steps"] else _PRELIMINARY.format(step=facts.step),
    )


def _scripts(labels: tuple[str, ...]) -> str:
    """Count letters by script, the first word of a letter's name; rare ones are signs."""
    chars = [chr(int(label.split()[0][2:], 16)) for label in labels]
    scripts = [unicodedata.name(c).split()[0].capitalize() for c in chars if c.isalpha()]
    counts = {name: count for name, count in Counter(scripts).most_common() if count > 2}
    text = ", ".join(f"{name} {count}" for name, count in counts.items())
    text += f", signs, arrows and others {len(labels) - sum(counts.values())}"
    text = text.replace("Old", "Old Italic").replace("Nko", "NKo")
    return textwrap.fill(text.replace("Canadian", "Canadian syllabics"), 100)


def _figures(facts: Facts) -> str:
    lines = ["| measure | this model | bare pixels |", "| --- | --- | --- |"]
    for name, value in facts.held_out.items():
        floor = facts.pixels.get(name)
        lines.append(
            f"| {_MEASURES[name]} | {value:.1%} | {'' if floor is None else f'{floor:.1%}'} |"
        )
    return "\n".join(lines)


_MEASURES = {
    "held_out_font_top1": "trained classes in five fonts never trained on, top-1",
    "new_class_centroid": "60 classes never trained on, 10 shots, nearest mean of the features",
    "new_class_ridge": "60 classes never trained on, 10 shots, ridge regression on the features",
}

_TEACHING = {True: "", False: "without labels "}

_NETWORK = {True: "image-classification", False: "image-feature-extraction"}

_WEIGHTS = {
    True: """- Some classes {close}; their top-1 is a check, not a goal.
- The head knows the classes above; replace it.""",
    False: """- No head comes with it. No label was used; the classes above say what was drawn.
- The features are those of the class token; the objective never trained a classifier on it.""",
}

_PRELIMINARY = """
**Preliminary:** the training was not finished; the figures are from step {step}.
"""

_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: {network}
---

# {name}
{opening}, no dropout. It is pretrained {teaching}on drawn letters and signs,
without digits, and is meant as a backbone for fine-tuning on small pictures of characters, on a
laptop and without a download.
{state}
## Input

Pixels count the ink in blocks of 4x4 of a {page} bitmap: whole numbers 0..16, ink high. The image
processor divides by 16 and normalises with mean 0.5 and deviation 0.5. For pictures of 0..255
change `rescale_factor` to 1/255; dark ink on white paper must be inverted first.

## Training data
{source}
{num_labels} classes by script:

{scripts}.

Left out: every code point with a numeric value (digits of all scripts, circled and superscript
ones, fractions, Roman numerals), every one with a number word in its name, every glyph that equals
a digit 0 to 9 of its font pixel by pixel, accented letters, presentation forms, blank glyphs. Code
points that look the same when their size is normalised share a class (Latin A, Greek Alpha,
Cyrillic A; c and C); styled mathematical letters (script, fraktur, double-struck) count as their
plain letter. At most {most} classes come from one script.{left_out}

Each picture is drawn afresh: rotation, shear, taper, smooth elastic displacement, a pen of random
width along the skeleton (60 %) or a grown or shrunk outline (40 %), the ink's box fitted to the
height, a few flipped pixels, then block counts.

## Recipe

Objective `{objective}`: {about}. {steps} steps of {batch}
pictures, AdamW, peak learning rate {lr} after a warmup over {warmup:.0%} of the steps, cosine to
zero, weight decay {weight_decay}, gradients clipped to norm 1, {start} seed {seed},
one CPU thread. In a checkout of the project:

```
OMP_WAIT_POLICY=PASSIVE python scripts/pretrain_vit.py{options} --objective {objective} \\
    --steps {steps} --batch {batch} --lr {lr} --seed {seed} --threads 1
```

## Measured

On pictures drawn like the training pictures, of glyphs never trained on: five fonts (DejaVu Sans
Mono Oblique, DejaVu Serif Bold Italic, STIXGeneral Bold Italic, cmss10, cmti10) and 60 classes
drawn by lot were kept away from training.

{figures}

The design was chosen by such figures and by looking at drawn pictures. Handwritten digits were not
looked at for any choice.

## Limits

- Print with simulated hand movement is not handwriting.
- Letters that look like digits are in: O, l, I, Z, S, b, Cyrillic Ze and Che, and others.
{weights}

## Licence

Apache-2.0.
"""
