"""Pretrain the small vision transformers on rendered glyphs, digits excluded.

    glyphs.py -> handwriting.py -> objectives.py: a small ViT -> AdamW, warmup, cosine

    python scripts/pretrain_vit.py                      the run behind vit-glyphs-8
    python scripts/pretrain_vit.py --side 28            the run behind vit-glyphs-28
    python scripts/pretrain_vit.py --objective mae      the run behind backbones/vit-glyphs-8-mae
    python scripts/pretrain_vit.py --objective moco     the run behind backbones/vit-glyphs-8-moco
    python scripts/pretrain_vit.py --resume             go on from the last checkpoint
    python scripts/pretrain_vit.py --export-only        write the model of the last checkpoint

The schedule is counted in steps, and batch number s is a function of (seed, s): a run that was
stopped and resumed gives the same model as a straight one with the same number of threads.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import ViTForImageClassification

from fedpeft.core import seeds
from glyph_fields import GlyphSet, render_all
from glyphs import CHOICES
from growing import grow
from handwriting import PAGES, Hand, draw, normalise
from measures import Examination, measure, pixel_floor, prepare
from model_card import Facts, write_model
from objectives import OBJECTIVES, SHAPES, Batch, Objective

_CHECKPOINT_EVERY = 90.0  # seconds
_PRINT_EVERY = 20.0  # seconds
_ROOT = Path(__file__).resolve().parent.parent
_HOMES = {  # by side and objective: name of the exported folder, and where it stands
    (8, "supervised"): ("vit-glyphs-8", "src/fedpeft/models/bundled"),
    (8, "mae"): ("vit-glyphs-8-mae", "backbones"),
    (8, "moco"): ("vit-glyphs-8-moco", "backbones"),
    (28, "supervised"): ("vit-glyphs-28", "src/fedpeft/models/bundled"),
}
_SCHEDULES = {  # steps and peak learning rate, where they are not the objective's own
    (28, "supervised"): (2_000, 1e-3)
}
_SMALLER = _ROOT / "src/fedpeft/models/bundled/vit-glyphs-8"  # the start of the model for 28 x 28


@dataclass(frozen=True)
class Settings:
    """What decides the model, apart from the fonts and the number of threads.

    Attributes:
      objective: a key of `OBJECTIVES`.
      steps: length of the schedule.
      seed: root seed.
      side: of the pictures, in pixels; a key of `SHAPES`.
      batch: pictures per step.
      lr: peak learning rate.
      warmup: share of the steps with a rising learning rate.
      weight_decay: of matrices; vectors, the class token and the positions have none.
    """

    objective: str
    steps: int
    seed: int
    side: int = 8
    batch: int = 128
    lr: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 0.05


@dataclass(frozen=True)
class Source:
    """Where batches come from.

    Attributes:
      glyphs: all glyphs.
      order_G: int64, the training glyphs ordered by label.
      start_C: int64, where each label begins in `order_G`.
      count_C: int64, how many glyphs each label has there.
      label_C: int64, the label of each class.
    """

    glyphs: GlyphSet
    order_G: Tensor
    start_C: Tensor
    count_C: Tensor
    label_C: Tensor


@dataclass(frozen=True)
class Run:
    """A run in progress; the model and the optimizer change in place."""

    settings: Settings
    labels: Sequence[str]
    model: nn.Module
    optimizer: torch.optim.AdamW
    folder: Path

    @property
    def objective(self) -> Objective:
        """What is minimised."""
        return OBJECTIVES[self.settings.objective]


def main() -> None:
    """Read the command line, then train and export, or only export."""
    options = _options()
    torch.set_num_threads(options.threads)
    objective = OBJECTIVES[options.objective]
    home = (options.side, options.objective)
    if home not in _HOMES:
        raise SystemExit(f"--side {options.side}: {options.objective} is not trained at this size")
    steps, lr = _SCHEDULES.get(home, (objective.steps, objective.lr))
    settings = Settings(
        objective=options.objective,
        steps=options.steps or steps,
        seed=options.seed,
        side=options.side,
        batch=options.batch,
        lr=options.lr or lr,
    )
    name, place = _HOMES[home]
    folder = options.checkpoint_dir or _ROOT / "build" / name
    out = options.out or _ROOT / place / name
    if options.export_only:
        _export(_load(folder)[0], out)
        return
    folder.mkdir(parents=True, exist_ok=True)
    glyphs = _glyphs(settings.side, folder / "glyphs.pt", kept=options.resume)
    trained = [name for name, out in zip(glyphs.labels, glyphs.held_out_C, strict=True) if not out]
    run, step = _start(settings, trained, folder, resume=options.resume)
    label_C = torch.cumsum(~glyphs.held_out_C, dim=0) - 1
    exam = prepare(glyphs, label_C, page=PAGES[settings.side])
    if _train(run, step, _source(glyphs, label_C), exam, options.minutes):
        _export(run, out)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--objective", choices=sorted(OBJECTIVES), default="supervised")
    parser.add_argument("--side", type=int, choices=sorted(SHAPES), default=8, help="in pixels")
    parser.add_argument("--steps", type=int, help="length of the schedule")
    parser.add_argument("--batch", type=int, default=Settings.batch, help="pictures per step")
    parser.add_argument("--lr", type=float, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="stop after this time; go on with --resume"
    )
    parser.add_argument("--out", type=Path, help="folder of the exported model")
    parser.add_argument("--checkpoint-dir", type=Path, help="default: build/NAME")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--export-only", action="store_true", help="export the last checkpoint")
    return parser.parse_args()


def _glyphs(side: int, path: Path, *, kept: bool) -> GlyphSet:
    """Render the glyphs, which takes minutes, or take those that a stopped run has kept."""
    if kept and path.exists():
        return GlyphSet(**torch.load(path, weights_only=True))
    glyphs = render_all(choice=CHOICES[side])
    torch.save(vars(glyphs), path)
    return glyphs


def _source(glyphs: GlyphSet, label_C: Tensor) -> Source:
    index_G = glyphs.select(held_out_fonts=False, held_out_classes=False)
    label_G = label_C[glyphs.class_G[index_G]]
    count_C = torch.bincount(label_G)
    order_G = index_G[torch.argsort(label_G, stable=True)]
    return Source(glyphs, order_G, torch.cumsum(count_C, dim=0) - count_C, count_C, label_C)


def _batch(source: Source, run: Run, step: int) -> Batch:
    """Draw batch number `step`."""
    settings = run.settings
    generator = seeds.generator(settings.seed, "batch", step)
    pick = _by_label if run.objective.balanced else _by_glyph
    index_B = pick(source, settings.batch, generator)
    page = PAGES[settings.side]
    views = [
        normalise(draw(source.glyphs, index_B, Hand(generator), page))
        for _ in range(run.objective.views)
    ]
    label_B = source.label_C[source.glyphs.class_G[index_B]]
    return Batch(views, label_B, generator, step / settings.steps)


def _by_label(source: Source, batch: int, generator: torch.Generator) -> Tensor:
    """Draw labels evenly, then glyphs of each label evenly."""
    label_B = torch.randint(len(source.count_C), (batch,), generator=generator)
    count_B = source.count_C[label_B]
    within_B = (torch.rand(batch, generator=generator) * count_B).long()
    return source.order_G[source.start_C[label_B] + within_B.minimum(count_B - 1)]


def _by_glyph(source: Source, batch: int, generator: torch.Generator) -> Tensor:
    """Draw different glyphs evenly."""
    return source.order_G[torch.randperm(len(source.order_G), generator=generator)[:batch]]


def _rate(settings: Settings, step: int) -> float:
    """Return the learning rate of a step, counted from 0."""
    rise = max(1, round(settings.warmup * settings.steps))
    if step < rise:
        return settings.lr * (step + 1) / rise
    share = (step - rise) / max(1, settings.steps - rise)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * share))


def _start(
    settings: Settings, labels: Sequence[str], folder: Path, *, resume: bool
) -> tuple[Run, int]:
    """Return a run and the number of steps it has behind it."""
    if not resume:
        (folder / "log.jsonl").write_text("")
        return _new_run(settings, labels, folder), 0
    run, step = _load(folder)
    if (run.settings, list(run.labels)) != (settings, list(labels)):
        raise SystemExit(f"--resume: {folder} is from other settings or fonts: {run.settings}")
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    lines = [json.dumps(record) + "\n" for record in records if record["step"] <= step]
    (folder / "log.jsonl").write_text("".join(lines))
    return run, step


def _new_run(settings: Settings, labels: Sequence[str], folder: Path) -> Run:
    with seeds.isolated(seeds.derive(settings.seed, "model")):
        model = OBJECTIVES[settings.objective].build(labels, SHAPES[settings.side])
    if settings.side == 28:
        grow(cast(ViTForImageClassification, model), _SMALLER)
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        bare = parameter.ndim < 2 or "token" in name or "pos" in name
        (free if bare else decayed).append(parameter)
    groups: list[dict[str, object]] = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr)
    return Run(settings, labels, model, optimizer, folder)


def _train(
    run: Run, step: int, source: Source, exam: Examination, minutes: float = math.inf
) -> bool:
    """Train up to the end of the schedule or for `minutes`; return whether the end was reached."""
    settings, began, first = run.settings, time.monotonic(), step
    saved = printed = began
    measure_every = max(1, settings.steps // 40)
    if step == 0:
        _log(run, {"step": step, "pixels": pixel_floor(exam)})
    while step < settings.steps and time.monotonic() - began < minutes * 60:
        loss = _step(run, source, step)
        step += 1
        if step % 10 == 0 or step == settings.steps:
            _log(run, {"step": step, "loss": round(loss, 5), "lr": _rate(settings, step - 1)})
        if step % measure_every == 0 or step == settings.steps:
            result = measure(run.objective.exported(run.model), exam)
            _log(run, {"step": step, "held_out": result})
            print(f"step {step}: {result}", flush=True)
        now = time.monotonic()
        if now - saved > _CHECKPOINT_EVERY:
            _save(run, step)
            saved = time.monotonic()
        if now - printed > _PRINT_EVERY:
            printed = now
            left = (now - began) / (step - first) * (settings.steps - step) / 60
            print(
                f"step {step}/{settings.steps}  loss {loss:.3f}  {left:.1f} minutes left",
                flush=True,
            )
    _save(run, step)
    return step == settings.steps


def _step(run: Run, source: Source, step: int) -> float:
    """Take one step and return its loss, in nats."""
    batch = _batch(source, run, step)
    for group in run.optimizer.param_groups:
        group["lr"] = _rate(run.settings, step)
    run.optimizer.zero_grad(set_to_none=True)
    loss = run.objective.loss(run.model.train(), batch)
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()
    run.objective.follow(run.model, batch.progress)
    return loss.item()


def _log(run: Run, record: Mapping[str, object]) -> None:
    with (run.folder / "log.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


def _save(run: Run, step: int) -> None:
    """Write the checkpoint beside the old one, then put it in its place."""
    state = {
        "settings": asdict(run.settings),
        "labels": list(run.labels),
        "step": step,
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
    }
    fresh = run.folder / "checkpoint.pt.new"
    torch.save(state, fresh)
    os.replace(fresh, run.folder / "checkpoint.pt")


def _load(folder: Path) -> tuple[Run, int]:
    path = folder / "checkpoint.pt"
    if not path.exists():
        raise SystemExit(f"{path}: no checkpoint; train without --resume and --export-only first")
    state = torch.load(path, weights_only=True)
    run = _new_run(Settings(**state["settings"]), state["labels"], folder)
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    return run, int(state["step"])


def _export(run: Run, out: Path) -> None:
    """Write the model folder with the last measures taken up to now."""
    records = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    measured = [record for record in records if "held_out" in record]
    if not measured:
        raise SystemExit(f"{run.folder}: nothing measured yet; train for longer, then export")
    last = measured[-1]
    facts = Facts(
        name=_HOMES[run.settings.side, run.settings.objective][0],
        about=run.objective.about,
        settings=asdict(run.settings),
        labels=tuple(run.labels),
        step=last["step"],
        held_out=last["held_out"],
        pixels=next(record["pixels"] for record in records if "pixels" in record),
    )
    write_model(run.objective.exported(run.model), facts, out)
    print(f"wrote {out}", flush=True)


if __name__ == "__main__":
    main()
