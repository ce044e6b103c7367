"""Data requests: frozen descriptions of a data set, its columns, transforms and partition."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedpeft.data.schemes import PartitionRequest
from fedpeft.models.tasks import Task


@dataclass(frozen=True)
class Columns:
    """The names of columns; None means that a column is found by its usual names.

    Attributes:
      image: column of pictures.
      text: column of texts.
      label: column of classes.
      client: column of the natural client of each example.
      video: column of clips.
      messages: column of conversations, each a list of messages.
      prompt: column of what is asked.
      input: column of what a prompt is about, which is put below it.
      completion: column of what is answered.
    """

    image: str | None = None
    text: str | None = None
    label: str | None = None
    client: str | None = None
    video: str | None = None
    messages: str | None = None
    prompt: str | None = None
    input: str | None = None
    completion: str | None = None


@dataclass(frozen=True)
class TransformSpec:
    """How pictures become `pixel_values`.

    Attributes:
      normalize: `model` (the processor's mean and deviation), `dataset` (those of the training
        pictures) or (mean, deviation), each with one number a channel, after rescaling to [0, 1].
      resize: edge in pixels before cropping to the model's size; None is the model's size. What is
        larger than the model's size is cropped, at the centre unless `random_crop` is set.
      random_crop: None, or black pixels added on every side before a random crop; training only.
      flip: whether half of the training pictures are mirrored left to right.
      frame_offset: whether training draws a random position for the frames: the clip is divided
        into as many equal segments as the model takes frames, and the position within each segment
        is the same for all.
    """

    normalize: str | tuple[tuple[float, ...], tuple[float, ...]] = "model"
    resize: int | None = None
    random_crop: int | None = None
    flip: bool = False
    frame_offset: bool = False


@dataclass(frozen=True)
class DataRequest:
    """The data set of an experiment, and how it is divided among clients.

    Attributes:
      source: bundled name, file, folder or hub id.
      task: what the model does: a task, or the name of a row of `fedpeft.models.tasks.TASKS`.
      columns: names of columns.
      train_split: name of the split to train on; None is `train`.
      test_split: name of the split to test on; None is `test`, else a validation split, else 20 %
        of the training split, drawn from a fixed seed.
      subset: configuration name of a hub data set.
      revision: branch, tag or commit of a hub data set.
      budget: number of examples to train on, drawn from the seed before the partition; None: all.
      max_test: largest number of examples to evaluate on, drawn in proportion to the classes from a
        fixed seed of its own, so that all runs share them; None: all. Documents of a language model
        are counted before they are cut into blocks.
      fidelity: None, or `paper` to repeat two bugs of the original experiments: with a budget,
        clients index the first images instead of the drawn ones, which loses the label skew, and
        with `normalize = "dataset"` the test pictures are normalised by statistics of their own.
      max_length: longest text in tokens; None is the model's own limit (language models: at most
        1,024 for conversations and 128 for documents).
      chat_template: how a conversation is written for a language model: a name of
        `fedpeft.data.chat_templates.BUILT_IN`, or the text of a Jinja template; None is the
        tokenizer's own.
      learn: the tokens of a conversation that are learnt: of all `answers`, of the `last` answer,
        or `all`; None is `answers`.
      packing: whether short examples of a language model share a row, each read as if it stood
        alone; False keeps each in a row of its own. None: conversations have rows of their own, and
        a client's documents are joined and cut into blocks that go across them.
      truncation: the side, `left` or `right`, on which a conversation that is too long is cut; None
        is `right`.
      evaluate_on: `test`, or `validation` for searches of hyperparameters.
      seed: the run's root seed, in [0, 2**32).
      partition: which client gets which example.
      transforms: how pictures are transformed.
      classes: names of all classes in the order of their numbers, where a part of the data may lack
        some; () takes those in the data.
      whole: whether nothing is held out for a test: for the data of one site in a federation.
      header: whether the first line of a .csv or .tsv names the columns; else they are called
        `column_1`, `column_2` ...
      separator: the character between two cells of a .csv or .tsv; None is a comma in .csv and a
        tab in .tsv.
    """

    source: str = "digits"
    task: str | Task = "image-classification"
    columns: Columns = field(default_factory=Columns)
    train_split: str | None = None
    test_split: str | None = None
    subset: str | None = None
    revision: str | None = None
    budget: int | None = None
    max_test: int | None = None
    fidelity: str | None = None
    max_length: int | None = None
    chat_template: str | None = None
    learn: str | None = None
    truncation: str | None = None
    packing: bool | None = None
    evaluate_on: str = "test"
    seed: int = 1
    partition: PartitionRequest = field(default_factory=PartitionRequest)
    transforms: TransformSpec = field(default_factory=TransformSpec)
    classes: tuple[str, ...] = ()
    whole: bool = False
    header: bool = True
    separator: str | None = None
