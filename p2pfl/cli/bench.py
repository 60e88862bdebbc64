"""`p2pfl bench`: measurements against a reference of the same run."""

import typer

app = typer.Typer(help="Measure this machine: each figure beside the reference it was measured against.", no_args_is_help=True)
