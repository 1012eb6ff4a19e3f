"""The card of a data set in the hub's format: how, from what, which model and licence, filters, limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfreward import __version__
from selfreward.data.made import Made
from selfreward.prompts.base import CardText
from selfreward.recipe import registry
from selfreward.recipe.data_settings import DataJob, EFTJob, IFTJob, JobSettings
from selfreward.recipe.filter_settings import FilterSettings

# The data sets that no prompt source makes: how the rows came to be, the paper, and what readers should know.
KINDS = {
    "filtered": CardText(
        "Rows of another data set, after filters.", limit="What the filters don't look for is still there."
    ),
    "ift": CardText(
        "Instruction data: the answers that people ranked first.",
        "2401.10020",
        "A first rank among a few answers is no promise of a good one.",
    ),
    "eft": CardText(
        "Judging data: judgements of ranked answers by a language model, kept where they agree with people.",
        "2401.10020",
        "Agreement with a ranking shows that the order is right, not that the reasons are.",
    ),
}
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def card(title: str, settings: JobSettings, made: Made) -> str:
    """The card as Markdown with its YAML header.

    Args:
        title: one of ``KINDS``, or a prompt source by its name.
        settings: what made the data set.
        made: its rows, and counts of what was made and left out.
    """
    text = KINDS.get(title) or _text_of_source(title)
    parts = [
        f"---\n{_header(title, settings, made)}\n---",
        f"# {title.replace('_', '-')}",
        _with_paper(text),
        "## How it was made",
        _table([*_origins(settings), *made.origins]),
        "## What is in it",
        _table([(name, f"{len(rows)} rows") for name, rows in made.splits.items()]),
        "Columns: " + ", ".join(f"`{name}`" for name in next(iter(made.splits.values()))[0]) + ".",
        *_filtered(settings, made.figures),
        "## Figures",
        _table([(name, _number(value)) for name, value in made.figures.items() if not name.startswith("removed_")]),
        "## Limits",
        "\n".join(f"- {line}" for line in (text.limit, *_licence_notes(settings))),
        "`data/stage.json` has every setting, and the hash of every file that was read and written; "
        "`data/removed.jsonl` has what was left out, with the reason; it stays with whoever made the data set.",
    ]
    return "\n\n".join(parts) + "\n"


def _text_of_source(name: str) -> CardText:
    found: CardText | None = registry.load_class(name, registry.PROMPT_SOURCES, "prompt source").card
    return found or CardText(f"Prompts and outputs by `{name}`.")


def _with_paper(text: CardText) -> str:
    paper = text.paper
    return text.what + (f" The method is that of [arXiv {paper}](https://arxiv.org/abs/{paper})." if paper else "")


def _header(title: str, settings: JobSettings, made: Made) -> str:
    from huggingface_hub import DatasetCardData

    num = sum(len(rows) for rows in made.splits.values())
    synthetic = title not in ("filtered", "ift")
    data = DatasetCardData(
        license=_licence(settings, made),
        task_categories=["text-generation"],
        tags=["selfreward", title.replace("_", "-"), *(["synthetic"] if synthetic else [])],
        size_categories=next((name for size, name in SIZES if num < size), "n>1M"),
        # Else a reader takes a column that is empty in the first rows for one that is empty in all.
        dataset_info={"features": _features(row for rows in made.splits.values() for row in rows)},
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": name, "path": f"data/{name}.jsonl"} for name in made.splits],
            }
        ],
    )
    return data.to_yaml().strip()


def _features(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The columns and their types, as the hub's cards have them."""
    kinds: dict[str, str] = {}
    for row in rows:
        for name, value in row.items():
            kinds[name] = kinds.get(name) or _kind(value)
    return [{"name": name, **_feature(kind)} for name, kind in kinds.items()]


def _feature(kind: str) -> dict[str, Any]:
    if kind != "list":
        return {"dtype": kind or "null"}
    # Made anew for each column: of one that stands twice, YAML would make a reference, which `datasets` trips over.
    return {"list": [{"name": "role", "dtype": "string"}, {"name": "content", "dtype": "string"}]}


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    names = {"str": "string", "int": "float64", "float": "float64", "list": "list", "NoneType": ""}
    return names[type(value).__name__]


def _licence(settings: JobSettings, made: Made) -> str:
    """The one that was given, else the one that all rows carry, else ``unknown``."""
    carried = {row.get("license") for rows in made.splits.values() for row in rows}
    one = carried.pop() if len(carried) == 1 else "other"
    return str(settings.license or one or "unknown").lower()


def _licence_notes(settings: JobSettings) -> Iterator[str]:
    if _has_model(settings):
        licence = settings.model_license or "not stated"
        yield f"The model's licence ({licence}) may bind what it wrote; the seeds' and rows' own licences hold as well."


def _has_model(settings: JobSettings) -> bool:
    return settings.model is not None or settings.engine.openai is not None


def _origins(settings: JobSettings) -> Iterator[tuple[str, str]]:
    yield "made with", f"selfreward {__version__}"
    if settings.engine.openai is not None:
        yield "model", f"`{settings.engine.openai.model}`, behind a server"
    elif settings.model is not None:
        yield "model", f"`{Path(settings.model.path).name}`"
    if _has_model(settings):
        yield "model's licence", settings.model_license or "not stated"
        yield "seed", str(settings.seed)
    if isinstance(settings, IFTJob | EFTJob):
        yield "from", f"`{settings.ranked.path.name if settings.ranked.path else settings.ranked.hub}`"
        yield "language", settings.lang or "all"
    if isinstance(settings, IFTJob) and settings.without is not None:
        yield "without", f"the prompts of `{settings.without.name}`"
    if isinstance(settings, EFTJob):
        judge = settings.eft.judge
        template = judge.template.name if judge.template else "its own prompt"
        yield "judge", f"{judge.name}, {template}, {judge.votes} votes, ties: {settings.eft.ties}"
    if isinstance(settings, DataJob):
        for source in settings.prompts.sources:
            rows = source.path.name if source.path else f"{source.hub} at {source.revision}" if source.hub else "none"
            yield "source", f"{source.source}, from `{rows}`"
            if source.needs_model:
                g = source.generation
                yield (
                    "sampling",
                    f"temperature {g.temperature:g}, top_p {g.top_p:g}",
                )


def _filtered(settings: JobSettings, figures: Mapping[str, Any]) -> list[str]:
    """A table of the filters in their order, with what each took out."""
    if not isinstance(settings, DataJob):
        return []
    filters = settings.prompts.filters
    names = settings.prompts.filter_names
    taken = Counter({n.removeprefix("removed_"): v for n, v in figures.items() if n.startswith("removed_")})
    rows = [(name, f"{_options(filters, name)}", str(taken[name])) for name in dict.fromkeys([*names, *taken])]
    return ["## Filters, in their order", _table(rows, ("filter", "settings", "taken out"))] if rows else []


def _options(filters: FilterSettings, name: str) -> str:
    key = filters.class_of(name).block
    block = None if key is None else getattr(filters, key)
    return "" if block is None else ", ".join(f"{key} {value}" for key, value in block.model_dump(mode="json").items())


def _table(rows: Iterator[tuple[str, ...]] | Sequence[tuple[str, ...]], head: tuple[str, ...] | None = None) -> str:
    every = list(rows)
    head = head or ("",) * len(every[0])
    lines = [head, ("---",) * len(head), *every]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
