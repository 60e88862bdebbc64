"""The command `p2pfl`: each subcommand in a module of its own, imported when it is called."""

import sys
from typing import Annotated

import typer

from p2pfl.cli import (
    analyze,
    average,
    bench,
    chaos,
    demo,
    doctor,
    evaluate,
    network,
    peers,
    predict,
    recipe,
    simulate,
    start,
    sweep,
    topology,
)
from p2pfl.errors import P2pflError
from p2pfl.plain import printable_lines

app = typer.Typer(
    name="p2pfl",
    help="Peer-to-peer decentralized learning: peers find each other, train on their own data, and average by gossip.",
    epilog="Begin with: p2pfl demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (demo, start, peers, doctor, evaluate, predict, analyze, average, simulate, sweep, chaos):
    app.command(name=module.__name__.rpartition(".")[2], epilog=module.EXAMPLES)(module.command)
app.add_typer(network.app, name="network")
app.add_typer(recipe.app, name="recipe")
app.add_typer(bench.app, name="bench")
app.add_typer(topology.app, name="topology")


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"p2pfl {version('p2pfl')}")
        except PackageNotFoundError:
            typer.echo("p2pfl, not installed: run from its sources")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Take the options that stand before the command."""


def main() -> None:
    """Run the command line; an error of ours is one line and exit status 2."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app()
    except P2pflError as error:
        if debug:
            raise
        typer.echo(printable_lines(f"p2pfl: {error}"), err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # of the user's own functions, or a fault of ours: still one line
        if debug:
            raise
        typer.echo(f"p2pfl: {type(error).__name__}: {error} (p2pfl --debug … shows where)", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
