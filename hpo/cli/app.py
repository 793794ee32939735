"""The verbs of `hpo`, in the order of a study's life."""

from __future__ import annotations

import typer

from hpo.cli import plot, search, show, single, tools

app = typer.Typer(
    name="hpo",
    help="Finds the best hyperparameters for LoRA fine-tuning, and hands over the best config with "
    "its trained adapter.\n\nStart with: hpo run search_spaces/quickstart.yaml --trials 8",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Every verb takes --debug, which shows the traceback of an error.",
)

app.command()(tools.validate)
app.command()(search.run)
app.command()(search.resume)
app.command()(search.stop)
app.command()(show.status)
app.command()(show.best)
app.command("list")(show.list_)
app.command()(show.logs)
app.command()(plot.plot)
app.command()(tools.dashboard)
app.command()(tools.export)
app.command()(single.train)
app.command()(search.delete)
app.command()(tools.schema)
