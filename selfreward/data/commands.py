"""``selfreward data``: instruction and judging data, by the same sources, journal and filters as the loop."""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from selfreward.prompts.base import DataCommand
from selfreward.recipe import registry
from selfreward.recipe.filter_settings import PAPER, PAPER_INSTANCES
from selfreward.recipe.loader import edit
from selfreward.runtime.shutdown import stop

app = typer.Typer(
    help="Makes, filters and describes instruction and judging data. Run the same command again to go on with one that "
    "was interrupted.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Model = Annotated[
    str,
    typer.Option(metavar="PATH_OR_SERVER", help="A folder, a hub model, or a server such as http://localhost:8000/v1."),
]
Served = Annotated[str | None, typer.Option(help="The model's name on that server. Default: the only one it serves.")]
Out = Annotated[
    Path, typer.Option(help="The folder of the data set: new, empty, or one that was begun by this command.")
]
Rows = Annotated[
    Path, typer.Option("--rows", "--seeds", "--documents", help="What to start from: JSONL, JSON or Parquet.")
]
Num = Annotated[int, typer.Option(min=1, help="How many rows to make.")]
Seed = Annotated[int, typer.Option(help="Every random choice derives from it.")]
Licence = Annotated[str | None, typer.Option("--license", help="The licence that you give to what is made.")]
ModelLicence = Annotated[str | None, typer.Option("--model-license", help="The licence of the model.")]
Push = Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="Push it to the hub, where only you see it.")]
Public = Annotated[bool, typer.Option("--public", help="With --push: for everybody.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Settings of docs/recipe.md: those of the block prompts by their own names, such as self_instruct.tasks=5 "
        "or filters.rouge_l.threshold=0.6, others as model.dtype=float32 or engine.vllm.max_model_len=4096.",
    ),
]
MAX_ROW_CHARACTERS = 1 << 20  # characters of a row that is filtered
COMMAND = "the command line"  # where errors say that a setting is wrong
GRACE_S = 60.0  # seconds after SIGTERM or Ctrl-C in which what is in flight may finish
RankedOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Further settings: of the rows, such as ranked.on_bad_line=skip; of `eft`, such as eft.ties=allow or "
        "eft.judge.votes=3; or model.dtype=float32.",
    ),
]
# The blocks of a job; any other key belongs to its prompts.
OF_THE_JOB = ("seed", "model", "engine", "license", "model_license", "prompts", "eft")


def _maker(source: str) -> Callable[..., None]:
    def make(
        rows: Rows,
        num: Num,
        model: Model,
        out: Out,
        overrides: Overrides = None,
        served: Served = None,
        seed: Seed = 0,
        licence: Licence = None,
        model_licence: ModelLicence = None,
        push: Push = None,
        public: Public = False,
    ) -> None:
        _may_push(push, public)
        from selfreward.data.job import rows_of

        prompts = {"source": source, "path": str(rows_of(rows)), "num": num}
        given = {"seed": seed, "license": licence, "model_license": model_licence, **_model(model, served)}
        _make(source, {"prompts": prompts, **given}, overrides or [], out)
        _push(out, push, public)

    return make


for _source in registry.PROMPT_SOURCES:
    _command: DataCommand | None = registry.load_class(_source, registry.PROMPT_SOURCES, "prompt source").command
    if _command is not None:
        app.command(_command.name, help=_command.help)(_maker(_source))


@app.command("filter")
def filter_rows(
    rows: Rows,
    out: Out,
    overrides: Overrides = None,
    use: Annotated[str, typer.Option(help="Filters by name in their order, with commas between.")] = ",".join(
        [*PAPER, *PAPER_INSTANCES]
    ),
    licence: Licence = None,
    push: Push = None,
    public: Public = False,
) -> None:
    """Takes out what filters find, and keeps a record of it. Bad rows are skipped and counted."""
    _may_push(push, public)
    _filter(rows, out, [name.strip() for name in use.split(",") if name.strip()], overrides or [], licence)
    _push(out, push, public)


class Measure(Enum):
    rouge_l = "rouge_l"
    minhash = "minhash"
    embedding = "embedding"


@app.command()
def dedup(
    rows: Rows,
    out: Out,
    overrides: Overrides = None,
    by: Annotated[
        Measure,
        typer.Option(help="rouge_l (exact), minhash (for millions), or embedding (filters.embedding.model=...)."),
    ] = Measure.rouge_l,
    licence: Licence = None,
    push: Push = None,
    public: Public = False,
) -> None:
    """Takes out rows that are there twice, and instructions that are nearly alike, each recorded with its neighbour.

    An instruction with several inputs is one instruction. Bad rows are skipped and counted.
    """
    _may_push(push, public)
    tokens = "filters.rouge_l.tokens=unicode"  # for rows of any language; the paper's knows a to z alone
    _filter(rows, out, [by.value], [tokens, *(overrides or [])], licence)
    _push(out, push, public)


Ranked = Annotated[
    Path, typer.Option(help="Ranked answers: trees or messages as OASST has them, or rows with prompt, response, rank.")
]
Language = Annotated[str | None, typer.Option("--lang", help="The language of the prompts, such as en. Default: all.")]


@app.command()
def ift(
    ranked: Ranked,
    out: Out,
    overrides: RankedOverrides = None,
    lang: Language = None,
    without: Annotated[
        Path | None, typer.Option(help="A data set of `data eft`, whose held-out prompts are left out.")
    ] = None,
    licence: Licence = None,
    push: Push = None,
    public: Public = False,
) -> None:
    """Instruction data: the answer that people ranked first to each prompt."""
    _may_push(push, public)
    from selfreward.data import seed_jobs
    from selfreward.data.job import make, rows_of
    from selfreward.recipe.data_settings import IFTJob

    held_out = str(rows_of(without, "held_out")) if without is not None else None
    data = {"ranked": {"path": str(ranked)}, "lang": lang, "without": held_out, "license": licence}
    job = edit(IFTJob, data, overrides or [], COMMAND)
    print(make(job, "ift", out, partial(seed_jobs.ift, job)))
    _push(out, push, public)


@app.command()
def eft(
    ranked: Ranked,
    model: Model,
    out: Out,
    overrides: RankedOverrides = None,
    lang: Language = None,
    served: Served = None,
    seed: Seed = 0,
    licence: Licence = None,
    model_licence: ModelLicence = None,
    push: Push = None,
    public: Public = False,
) -> None:
    """Judging data: a model's judgements of ranked answers, where they agree with people; a part is held out."""
    _may_push(push, public)
    from selfreward.data import seed_jobs
    from selfreward.data.job import make
    from selfreward.preflight import check_model
    from selfreward.recipe.data_settings import EFTJob

    given = {"seed": seed, "license": licence, "model_license": model_licence, **_model(model, served)}
    job = edit(EFTJob, {"ranked": {"path": str(ranked)}, "lang": lang, **given}, overrides or [], COMMAND)
    if job.model is not None:
        check_model("model", job.model)
    stop.listen(GRACE_S)
    print(make(job, "eft", out, partial(seed_jobs.eft, job)))
    _push(out, push, public)


@app.command()
def stats(
    data: Annotated[list[Path], typer.Argument(help="Files, or folders that these commands made.")],
    embedding: Annotated[
        str | None, typer.Option(help="A sentence-transformers model, for the spread of meanings.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Size, lengths, licences, diversity and most frequent verbs and nouns of instruction data."""
    from selfreward.data.stats import stats as figures_of
    from selfreward.data.stats import table

    found = {str(path): figures_of(path, embedding) for path in data}
    print(json.dumps(found, indent=2, ensure_ascii=False) if as_json else table(found))


def _filter(rows: Path, out: Path, use: list[str], overrides: list[str], licence: str | None) -> None:
    from selfreward.data.job import rows_of

    prompts = {
        "path": str(rows_of(rows)),
        "on_bad_line": "skip",
        "max_characters": MAX_ROW_CHARACTERS,
        "filters": {"use": use},
    }
    _make("filtered", {"prompts": prompts, "license": licence}, overrides, out)


def _make(title: str, data: dict[str, Any], overrides: list[str], out: Path) -> None:
    from selfreward.data import prompt_jobs
    from selfreward.data.job import make
    from selfreward.recipe.data_settings import DataJob

    job = edit(DataJob, data, [_full(override) for override in overrides], COMMAND)
    prompt_jobs.check(job)
    stop.listen(GRACE_S)
    print(make(job, title, out, partial(prompt_jobs.work, job)))


def _full(override: str) -> str:
    """An override whose key is a setting of ``prompts`` unless it is one of the job's own."""
    return override if override.partition("=")[0].partition(".")[0] in OF_THE_JOB else f"prompts.{override}"


def _model(name: str, served: str | None) -> dict[str, Any]:
    """The model that writes, as settings.

    Raises:
        ValueError: a server that serves no model, or several of which none was named.
    """
    if not name.startswith(("http://", "https://")):
        if served is not None:
            raise ValueError(f"--served is {served}, and {name} is no server. Take it out")
        return {"model": {"path": name}}
    from selfreward.engines.openai import served_models

    models = [served] if served else served_models(name)
    if len(models) != 1:
        raise ValueError(f"{name} serves {', '.join(models) or 'no model'}. Name one of its models: --served NAME")
    return {"engine": {"name": "openai", "openai": {"base_url": name, "model": models[0]}}}


def _may_push(name: str | None, public: bool) -> None:
    """Raises ValueError for what could not be pushed, before anything is made."""
    if public and name is None:
        raise ValueError("--public is for --push OWNER/NAME, and nothing is pushed. Add one or take the other out")
    if name is not None:
        from selfreward.data.push import check

        check(name)


def _push(out: Path, name: str | None, public: bool) -> None:
    if name is not None:
        from selfreward.data.push import push

        print(push(out, name, public))
