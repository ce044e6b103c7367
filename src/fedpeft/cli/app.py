"""The commands. Each parses, calls one function of the package, prints and ends with a code.

    0  done    2  bad input or config    3  too few replies    4  engine failed    130  interrupted

Modules that are slow to import are imported inside the command that needs them.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import logging
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from fedpeft.cli.completing import choices, lists
from fedpeft.cli.ending import ending
from fedpeft.cli.options import (
    AfterOnly,
    DrawSeed,
    File,
    Form,
    Json,
    MaxNewTokens,
    Out,
    Overs,
    Results,
    Sets,
    Temperature,
    expanded,
)
from fedpeft.cli.printing import say

app = typer.Typer(
    help="Federated parameter-efficient fine-tuning: send the delta, not the model.",
    epilog="Start with `fedpeft run`: it needs no file and no network. Exit codes: 0 done, 2 bad "
    "input or config, 3 too few replies, 4 engine failed.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and end the process with its exit code.

    Args:
      args: without the program's name; None takes those of the process.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # all is done by then
    with _few_collections(), warnings_once():
        app(args, prog_name="fedpeft")


@contextlib.contextmanager
def warnings_once() -> Iterator[None]:
    """Print a warning about the data once, also where each row of a sweep reads them again."""
    printed: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        if not {*record.name.split(".")[1:2]} & {"data", "plan"}:
            return True
        line = record.getMessage()
        return line not in printed and not printed.add(line)  # type: ignore[func-returns-value]  # None

    printer = logging.lastResort
    if printer is None:
        yield
        return
    printer.addFilter(is_new)
    try:
        yield
    finally:
        printer.removeFilter(is_new)


@contextlib.contextmanager
def _few_collections() -> Iterator[None]:
    """Collect garbage less often inside the block, and never scan what exists at its end.

    torch, transformers and peft make some hundred thousand objects that live to the end.
    Collections that scan them find nothing, and cost half a second at the start, as much in the
    middle of a run, and a second at the end.
    """
    before = gc.get_threshold()
    gc.set_threshold(20_000, 10, 10)
    try:
        yield
    finally:
        gc.freeze()
        gc.set_threshold(*before)


def _version(requested: bool) -> None:
    if requested:
        from fedpeft.core.version import VERSION

        say(f"fedpeft {VERSION}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Federated parameter-efficient fine-tuning: send the delta, not the model."""


@app.command()
@ending()
def run(
    experiment: File = None,
    sets: Sets = None,
    out: Out = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out; no file is needed.")
    ] = False,
    json: Json = False,
) -> None:
    """Run one experiment and write a run folder.

    Without a file, the bundled quickstart is run; every key of a file is optional.

    \b
    Examples:
      fedpeft run
      fedpeft run --set tuning.method=lora --set federation.rounds=10
      fedpeft run my.toml --out runs/mine
      fedpeft run my.toml --out runs/mine --resume
    """
    import fedpeft.cli.running as running

    running.run_command(experiment, sets or [], out, resume=resume, as_json=json)


@app.command()
@ending()
def sweep(
    experiment: File = None,
    sets: Sets = None,
    over: Overs = None,
    out: Out = None,
    results: Results = None,
    json: Json = False,
) -> None:
    """Run the file's [[sweep]] rows, times --over.

    Without a file, the quickstart is run with each tuning method of the paper.
    Finished runs are skipped, partial ones resumed. The exit code is the worst of its runs.

    \b
    Examples:
      fedpeft sweep
      fedpeft sweep --over seed=1,42,3407 --out runs/seeds
      fedpeft sweep my.toml --results results/my.jsonl
      fedpeft sweep my.toml --over tuning.method=bias,lora --over seed=1,42,3407
    """
    import fedpeft.cli.running as running

    code = running.sweep_command(experiment, (sets or [], over or []), out, results, as_json=json)
    raise typer.Exit(code)


@app.command()
@ending()
def plan(experiment: File = None, sets: Sets = None, json: Json = False) -> None:
    """Show parameters, bytes and memory before training.

    Without a file, the quickstart is planned. Neither weights nor a network are needed.

    \b
    Examples:
      fedpeft plan
      fedpeft plan --set model.name=preset:vit-base-patch16-224
      fedpeft plan my.toml --json
    """
    import fedpeft.cli.planning as planning

    planning.plan_command(experiment, sets or [], as_json=json)


@app.command()
@ending()
def check(experiment: File = None, sets: Sets = None) -> None:
    """List every problem of an experiment at once.

    Neither weights, data nor a network are needed.

    \b
    Examples:
      fedpeft check my.toml
      fedpeft check my.toml --set tuning.method=lora
    """
    import fedpeft.cli.planning as planning

    planning.check_command(experiment, sets or [])


@app.command("show")
@ending()
def show_(
    experiment: File = None,
    sets: Sets = None,
    examples: Annotated[
        int, typer.Option("--examples", metavar="N", min=1, help="Number of examples.")
    ] = 3,
    json: Json = False,
) -> None:
    """Show examples as the model gets them.

    Of a text, what is read and what is learnt have different colours, or brackets where there are
    none. The examples are the first of each client, cut and packed as in training.

    \b
    Examples:
      fedpeft show my.toml --examples 3
      fedpeft show my.toml --set data.learn=last --json
    """
    import fedpeft.cli.showing as showing

    showing.show_command(experiment, sets or [], examples, as_json=json)


@app.command()
@ending()
def advise(
    experiment: File = None,
    sets: Sets = None,
    upload: Annotated[
        str | None,
        typer.Option(
            "--upload",
            metavar="BYTES",
            help="Most that a client uploads in the whole run, on average: 500kB, 20MB.",
        ),
    ] = None,
    evidence: Annotated[
        Path | None,
        typer.Option(
            "--evidence",
            metavar="FILE.json",
            help="Other measurements than those of the package.",
            callback=expanded,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Rank tuning methods for a setting, as measured.

    Accuracy is that of the nearest measured settings; bytes are those of the file's model. Outside
    of what was measured the answer is "no evidence". The file's own method plays no part.

    \b
    Examples:
      fedpeft advise my.toml
      fedpeft advise my.toml --upload 500kB
      fedpeft advise --set data.source=characters --set model.name=vit-glyphs-28
    """
    import fedpeft.cli.advising as advising

    advising.advise_command(experiment, sets or [], upload, evidence, as_json=json)


@app.command("list")
@ending()
def list_(
    what: Annotated[
        str,
        typer.Argument(metavar="WHAT", hidden=True, autocompletion=lists),
    ],
    json: Json = False,
) -> None:
    """List the names that an experiment file can use.

    WHAT is one of methods, models, tasks, datasets, partitions, algorithms, samplers, stages,
    callbacks, scores, engines. Names that installed packages add are listed with their package.

    \b
    Examples:
      fedpeft list methods
      fedpeft list models --json
    """
    import fedpeft.cli.listing as listing

    listing.list_command(what, as_json=json)


@app.command()
@ending()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", hidden=True, callback=expanded)],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE.html",
            help="Default: report.html in the first RUN.",
            callback=expanded,
        ),
    ] = None,
    target: Annotated[
        float | None,
        typer.Option("--target", metavar="VALUE", help="Draw a line at this accuracy, 0 to 1."),
    ] = None,
    title: Annotated[
        str, typer.Option("--title", metavar="TEXT", help="Default: the experiments' names.")
    ] = "",
    diagnostics: Annotated[
        bool,
        typer.Option("--diagnostics", help="Show true figures of private runs; do not publish."),
    ] = False,
) -> None:
    """Write an HTML page with tables and figures.

    RUN is a run folder, the folder of a sweep, a folder of sweeps, or a results file.

    \b
    Examples:
      fedpeft report runs/demo
      fedpeft report runs/lora runs/bias --target 0.85 --out comparison.html
      fedpeft report runs/table1 runs/table2 --title "Two tables" --out page.html
    """
    from fedpeft.report.write import ReportOptions, write_report

    options = ReportOptions(target, title, diagnostics)
    say(f"report: {write_report(runs, out, options)}")


@app.command()
@ending()
def claims(
    sweeps: Annotated[
        list[Path], typer.Argument(metavar="SWEEP...", hidden=True, callback=expanded)
    ],
    gaps: Annotated[
        list[Path] | None,
        typer.Option(
            "--gap",
            metavar="FILE",
            help="Measured gaps of data sets, for claims 4 and 5.",
            callback=expanded,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Check the paper's claims on finished sweeps.

    SWEEP is the folder of a sweep, or a results file. Each test bed, a data set with a backbone,
    has its own verdicts. Margins are means over paired seeds.

    \b
    Examples:
      fedpeft claims runs/small/table1 runs/small/table2 runs/small/table4
      fedpeft claims results/gap.jsonl --gap runs/gap/gap.json
    """
    import fedpeft.cli.claiming as claiming

    claiming.claims_command(sweeps, gaps or [], as_json=json)


@app.command()
@ending()
def figures(
    experiment: File = None,
    sets: Sets = None,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="Folder of the pictures.", callback=expanded),
    ] = Path("figures"),
) -> None:
    """Draw the bytes that are sent, and the trained parts.

    The figures follow from the plan and the tuned modules of the file's model, without training.

    \b
    Examples:
      fedpeft figures experiments/paper/table1-cifar100.toml --out figures
    """
    from fedpeft.experiment.read import read_experiment
    from fedpeft.plan.pictures import write_figures

    for file in write_figures(read_experiment(experiment, sets or []), out):
        say(f"figure: {file}")


@app.command()
@ending()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", hidden=True, callback=expanded)],
    to: Annotated[
        Path, typer.Option("--to", metavar="DIR", help="A new or empty folder.", callback=expanded)
    ],
    form: Form = "",
) -> None:
    """Write a run's model for other libraries.

    RUN is the folder of a finished run.

    The folder loads with transformers, peft or fedpeft.load; its model card says how.

    \b
    Examples:
      fedpeft export runs/mine --to my-model
      fedpeft export runs/mine --to my-model --as merged
    """
    from fedpeft.export.export import export_run

    say(f"exported: {export_run(run, to, form=form)}")


@app.command()
@ending()
def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", hidden=True, callback=expanded)],
    name: Annotated[str, typer.Argument(metavar="NAME", hidden=True)],
    form: Form = "",
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository public; else it is private.")
    ] = False,
) -> None:
    """Upload a run's model to the Hugging Face hub.

    RUN is the folder of a finished run; NAME is OWNER/NAME of the repository.

    What `fedpeft export` writes is uploaded, model card included, with the log-in of this machine.

    \b
    Examples:
      fedpeft push runs/mine my-name/my-model
      fedpeft push runs/mine my-name/my-model --as merged --public
    """
    from fedpeft.core.text import byte_words
    from fedpeft.export.push import push_run

    done = push_run(run, name, form=form, public=public)
    say(f"pushed: {done.url} ({done.files} files, {byte_words(done.size)})")


@app.command()
@ending()
def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", hidden=True, callback=expanded)],
    given: Annotated[str, typer.Argument(metavar="INPUT", hidden=True)],
    after_only: AfterOnly = False,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Temperature = 0.0,
    seed: DrawSeed = 1,
    json: Json = False,
) -> None:
    """Show what a finished model makes of an input.

    RUN is the folder of a finished run, or an export.

    INPUT is a picture, clip or text file, a folder of them, a table (.jsonl, .csv, .tsv or
    .parquet), a text, or - for lines of standard input. A classifier gives a label with its
    probability, a language model an answer; beside them stands what the model gave before training.

    \b
    Examples:
      fedpeft predict runs/mine photo.jpg
      fedpeft predict runs/texts "where is my card?"
      fedpeft predict runs/llm questions.jsonl --max-new-tokens 64 --json
    """
    import fedpeft.cli.trying as trying

    options = trying.Trying(max_new_tokens, temperature, seed, not after_only)
    trying.predict_command(run, given, options, as_json=json)


@app.command()
@ending()
def chat(
    run: Annotated[Path, typer.Argument(metavar="RUN", hidden=True, callback=expanded)],
    after_only: AfterOnly = False,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Temperature = 0.0,
    seed: DrawSeed = 1,
) -> None:
    """Talk to a finished language model and the one before it.

    RUN is the folder of a finished run, or an export.

    /new starts a new conversation, /bye ends. Lines can be piped.

    \b
    Examples:
      fedpeft chat runs/llm
      fedpeft chat runs/llm --after-only --temperature 0.7
      echo "What does os.walk do?" | fedpeft chat runs/llm
    """
    import fedpeft.cli.trying as trying

    trying.chat_command(run, trying.Trying(max_new_tokens, temperature, seed, not after_only))


@app.command()
@ending()
def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", hidden=True, callback=expanded)],
    scheme: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="SCHEME",
            help="mae, moco-v3, dino or mobilenet-v2.",
            autocompletion=choices(("mae", "moco-v3", "dino", "mobilenet-v2")),
        ),
    ],
    to: Annotated[
        Path, typer.Option("--to", metavar="DIR", help="A new or empty folder.", callback=expanded)
    ],
    size: Annotated[
        int | None,
        typer.Option(
            "--size", metavar="PIXELS", help="Side of the pictures, for mobilenet-v2; 224."
        ),
    ] = None,
) -> None:
    """Turn a raw checkpoint of a vision model into a model folder.

    FILE is a .safetensors file, or a .pth that is read as tensors only.

    \b
    Examples:
      fedpeft convert mae_pretrain_vit_base.pth --as mae --to vit-mae
      fedpeft convert mobilenet_v2.pth --as mobilenet-v2 --size 96 --to mobilenet
    """
    from fedpeft.models.convert import convert_checkpoint

    done = convert_checkpoint(file, scheme=scheme, to=to, image_size=size)
    say(
        f"converted: {done.folder} ({done.num_tensors} tensors, {done.num_params:,} "
        f"parameters); {len(done.dropped)} tensors of {file.name} are no part of the model"
    )


@app.command()
@ending()
def doctor(json: Json = False) -> None:
    """Show what is installed and what works here.

    Trains one client for one round as a check; exit code 4 if that fails.

    \b
    Examples:
      fedpeft doctor
    """
    import fedpeft.cli.doctor as examine

    examine.doctor_command(as_json=json)


@app.command()
@ending()
def gap(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="[[NAME=]RUN]...", hidden=True)
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="[NAME=]SOURCE", help="A set to compare; repeatable."),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", help="Set to compare with; default: glyphs, or the first RUN."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Default: vit-glyphs-8.")
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            "--split",
            help="test or train.",
            autocompletion=choices(("test", "train")),
        ),
    ] = "test",
    normalize: Annotated[
        str | None,
        typer.Option(
            "--normalize",
            help="model or dataset.",
            autocompletion=choices(("model", "dataset")),
        ),
    ] = None,
    sample: Annotated[
        int | None, typer.Option("--sample", min=2, help="Largest number of examples of a set.")
    ] = None,
    expect: Annotated[
        list[str] | None,
        typer.Option("--expect", metavar="NAME=VALUE", help="Expected value of a measure."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the sample.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="For gap.json and the pictures.", callback=expanded
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Measure how far data sets lie from a reference set.

    Features are the inputs of the model's head; LDA, with the set as label, gives the plane. At
    least two sets and the reference are needed. With RUN folders, the distances between the
    features of the tuned models are measured.

    \b
    Examples:
      fedpeft gap --data digits --data digits-inverted --out runs/gap
      fedpeft gap --reference seen=glyphs@train --data glyphs@test --data digits
      fedpeft gap runs/head runs/bias runs/full --out runs/gap-methods
    """
    import fedpeft.cli.analysis as analysis

    choice = analysis.GapChoice(
        runs or [], model, reference, data or [], split, normalize, sample, seed, expect or []
    )
    analysis.gap_command(choice, out, as_json=json)


@app.command()
@ending()
def theorem(
    run: Annotated[Path, typer.Argument(metavar="RUN", hidden=True, callback=expanded)],
    sample: Annotated[
        int, typer.Option("--sample", min=1, help="Number of training examples in the loss.")
    ] = 512,
    every: Annotated[int, typer.Option("--every", min=1, help="Check every N-th round.")] = 1,
    points: Annotated[
        int, typer.Option("--points", min=2, help="Points of the segment where beta is measured.")
    ] = 11,
    json: Json = False,
) -> None:
    """Check the bound of Theorem 1 on a run.

    RUN is the folder of a finished run made with run.keep_deltas = true.

    \b
    Examples:
      fedpeft run --set run.keep_deltas=true --out runs/kept
      fedpeft theorem runs/kept
    """
    import fedpeft.cli.analysis as analysis

    analysis.theorem_command(run, analysis.theorem_request(sample, every, points), as_json=json)
