"""Measures on glyphs kept away from training: fonts never seen, and classes never seen.

    held_out_font_top1     the classifier, on trained classes in fonts never trained on
    new_class_centroid     nearest class mean of frozen features, classes never trained on
    new_class_ridge        ridge regression on the same features, same shots and questions

The last two are also taken on the bare pixels, as the floor that a backbone has to beat.
Legend of shape suffixes: N pictures, F features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, ViTForImageClassification

from fedpeft.core import seeds
from glyph_fields import GlyphSet
from handwriting import PAGES, Hand, Page, draw, normalise

__all__ = ["Examination", "measure", "pixel_floor", "prepare"]

SHOTS = 10
_QUESTIONS = 20
_NUM_FONT_PICTURES = 3000
_RIDGE = 10.0
_CHUNK = 500


@dataclass(frozen=True)
class Examination:
    """Fixed pictures to measure on: normalised [N, 1, side, side], with int64 labels [N]."""

    font_pictures: Tensor
    font_labels: Tensor
    shot_pictures: Tensor
    shot_labels: Tensor
    question_pictures: Tensor
    question_labels: Tensor


def prepare(
    glyphs: GlyphSet, label_C: Tensor, seed: int = 2026, page: Page = PAGES[8]
) -> Examination:
    """Draw the fixed pictures.

    Args:
      glyphs: all glyphs.
      label_C: the label that the classifier uses for each class; any number for held-out classes.
      seed: decides the pictures; the same for every run, so that runs compare.
      page: size of the pictures.
    """
    generator = seeds.generator(seed, "examination")
    font_G = glyphs.select(held_out_fonts=True, held_out_classes=False)
    font_N = font_G[torch.randint(len(font_G), (_NUM_FONT_PICTURES,), generator=generator)]
    new_classes = torch.nonzero(glyphs.held_out_C)[:, 0]
    rows = [torch.nonzero(glyphs.class_G == number)[:, 0] for number in new_classes]
    picks = [
        row[torch.randint(len(row), (SHOTS + _QUESTIONS,), generator=generator)] for row in rows
    ]
    index_CN = torch.stack(picks)
    shot_N, question_N = index_CN[:, :SHOTS].flatten(), index_CN[:, SHOTS:].flatten()
    number_N = torch.arange(len(new_classes))
    return Examination(
        font_pictures=normalise(draw(glyphs, font_N, Hand(generator), page)),
        font_labels=label_C[glyphs.class_G[font_N]],
        shot_pictures=normalise(draw(glyphs, shot_N, Hand(generator), page)),
        shot_labels=number_N.repeat_interleave(SHOTS),
        question_pictures=normalise(draw(glyphs, question_N, Hand(generator), page)),
        question_labels=number_N.repeat_interleave(_QUESTIONS),
    )


@torch.no_grad()
def measure(model: PreTrainedModel, exam: Examination) -> dict[str, float]:
    """Return the measures of a model (without dropout), as shares of right answers.

    A bare backbone has only the two on new classes.
    """
    if not isinstance(model, ViTForImageClassification):
        return _few_shot(lambda pictures: _features(model, pictures), exam)
    few_shot = _few_shot(lambda pictures: _features(model.vit, pictures), exam)
    return {"held_out_font_top1": _top1(model, exam), **few_shot}


def _top1(classifier: ViTForImageClassification, exam: Examination) -> float:
    logits = [classifier(pixel_values=part).logits for part in _parts(exam.font_pictures)]
    right = torch.cat(logits).argmax(dim=1) == exam.font_labels
    return round(right.double().mean().item(), 4)


def pixel_floor(exam: Examination) -> dict[str, float]:
    """Return the two measures on new classes with the bare pixels as features."""
    return _few_shot(lambda pictures: pictures.flatten(1), exam)


def _features(backbone: PreTrainedModel, pictures: Tensor) -> Tensor:
    parts = [backbone(pixel_values=part).last_hidden_state[:, 0] for part in _parts(pictures)]
    return torch.cat(parts)


def _parts(pictures: Tensor) -> Sequence[Tensor]:
    return torch.tensor_split(pictures, max(1, len(pictures) // _CHUNK))


def _few_shot(features: Callable[[Tensor], Tensor], exam: Examination) -> dict[str, float]:
    shot_NF, question_NF = features(exam.shot_pictures), features(exam.question_pictures)
    mean_F, spread_F = shot_NF.mean(dim=0), shot_NF.std(dim=0) + 1e-6
    shot_NF, question_NF = (shot_NF - mean_F) / spread_F, (question_NF - mean_F) / spread_F
    wanted_NC = functional.one_hot(exam.shot_labels).float()
    means_CF = wanted_NC.T @ shot_NF / SHOTS
    gram_FF = shot_NF.T @ shot_NF + _RIDGE * torch.eye(shot_NF.shape[1])
    ridge_FC = torch.linalg.solve(gram_FF, shot_NF.T @ (wanted_NC - wanted_NC.mean(dim=0)))
    answers = {
        "new_class_centroid": torch.cdist(question_NF, means_CF).argmin(dim=1),
        "new_class_ridge": (question_NF @ ridge_FC).argmax(dim=1),
    }
    return {
        name: round((answer == exam.question_labels).double().mean().item(), 4)
        for name, answer in answers.items()
    }
