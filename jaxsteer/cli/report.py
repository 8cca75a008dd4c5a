"""`jaxsteer report`: the texts of a sweep as a page."""

from pathlib import Path

import click

from jaxsteer.cli.inputs import PAGE, TEXTS, check_new, measures_of
from jaxsteer.cli.options import examples, metric_options, output_options
from jaxsteer.cli.terminal import print_json
from jaxsteer.runtime import guarded
from jaxsteer.texts import Table, Texts


@click.command(
    "report",
    epilog=examples(
        "jaxsteer report sweep --contains wait,hmm",
        "jaxsteer report sweep/texts.jsonl --metric words --out words.html",
    ),
)
@click.argument("sweep", metavar="DIR_OR_SWEEP")
@metric_options
@click.option("--title", help="Of the page.  [default: the folder's name]")
@output_options("The page.  [default: report.html beside the texts]")
@guarded("report")
def report_command(
    sweep: str,
    wanted: tuple[str, ...],
    metrics: tuple[str, ...],
    title: str | None,
    out: str | None,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Write the page of a sweep.

    DIR_OR_SWEEP is the folder that `jaxsteer sweep --out` wrote, or texts.jsonl in it. The page is
    one HTML file that opens from the disk: the plot, and every text to browse.
    """
    file = texts_file(Path(sweep))
    target = Path(out) if out else file.with_name(PAGE)
    check_new(target, overwrite)
    table = Table.of(Texts.load(file), measures_of(wanted, metrics))
    table.report(target, title=title or file.absolute().parent.name)
    if as_json:
        print_json({"page": str(target), "texts": len(table.texts), "bytes": target.stat().st_size})
    else:
        print(f"{target}: {len(table.texts)} texts, {target.stat().st_size / 1e6:.1f} MB")
    return 0


def texts_file(path: Path) -> Path:
    """The texts that a path means.

    Raises:
        FileNotFoundError: if there are none, naming what makes the page of a run of the paper.
    """
    if path.is_file():
        return path
    if (path / TEXTS).is_file():
        return path / TEXTS
    if (path / "page" / PAGE).is_file():
        raise FileNotFoundError(f"{path}: is a run, whose page is {path / 'page' / PAGE}")
    if (path / "directions").is_dir():
        raise FileNotFoundError(
            f"{path}: is a run; python -m experiments.report --out {path} makes its page"
        )
    raise FileNotFoundError(f"{path}: expected a folder with {TEXTS}, or that file")
