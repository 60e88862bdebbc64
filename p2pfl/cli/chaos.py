"""`p2pfl chaos`: real peers of this machine learn while faults are injected by seed; what held, and what did not."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from p2pfl.cli import options
from p2pfl.cli.options import fresh_folder, percent, print_json

EXAMPLES = """Examples:

p2pfl chaos --minutes 2
p2pfl chaos --peers 8 --minutes 30 --seed 1 --json
p2pfl chaos --minutes 5 --faults kill,pause,garbage
sudo p2pfl chaos --minutes 5 --hosts"""


def command(
    peers: Annotated[int, typer.Option(min=4, max=64, help="Encrypted peers, each a process.")] = 8,
    minutes: Annotated[float, typer.Option(min=0.1, help="How long faults are injected.")] = 5.0,
    seed: Annotated[int, typer.Option(min=0, help="Decides what goes wrong, when, and with whom.")] = 0,
    faults: Annotated[
        str | None, typer.Option(help="Only these, with commas between them \\[default: all that can be made here].")
    ] = None,
    hosts: Annotated[
        bool, typer.Option("--hosts", help="Give each peer a host of its own, in a network namespace: Linux and root.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the files of the run \\[default: runs/chaos-…].")] = None,
    reference: Annotated[
        bool, typer.Option("--reference/--no-reference", help="Also learn without faults, to compare the accuracy.")
    ] = True,
    slack: Annotated[
        float, typer.Option(min=1.0, help="How much longer than promised things may take: this machine is busy.")
    ] = 1.0,
    json: options.Json = False,
) -> None:
    """Test this machine and its network stack: peers learn while they are killed, held, cut off and lied to.

    Exit status 1 says that a promise was broken.
    """
    from p2pfl.chaos.soak import Soak, run

    console = options.console(json)
    soak = Soak(
        peers=peers,
        seconds=60.0 * minutes,
        seed=seed,
        kinds=tuple(faults.split(",")) if faults else (),
        hosts=hosts,
        reference=reference,
        slack=slack,
    )
    folder = fresh_folder(out, "chaos", time.strftime("%Y%m%d-%H%M%S"))
    report = run(soak, folder, lambda line: console.print(Text(line)))
    if json:
        print_json(report)
    else:
        _show(console, report, folder)
    if not report["held"]:
        raise typer.Exit(1)


def _show(console: Console, report: dict[str, Any], folder: Path) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for title in ("fault", "times", "seen", "promise", "held", "back after"):
        table.add_column(title, justify="left" if title in ("fault", "promise") else "right")
    for row in report["faults"]:
        back = f"{row['back_s']:.1f} s" if row["back_s"] is not None else ""
        fault = f"{row['fault']} ({row['numbers']})"
        cells = [fault, str(row["times"]), str(row["seen"]), row["promise"], str(row["held"])]
        table.add_row(*cells, back, style="" if row["held"] == row["times"] == row["seen"] else "red")
    console.print()
    console.print(table)
    console.print()
    console.print(
        Text(
            f"{report['lives']} processes did {report['rounds_of_all']} rounds; every one of {report['rows_summed']} "
            f"rows was summed. Longest wait of a peer without a fault of its own: {report['longest_gap_s']:.1f} s "
            f"(allowed {report['longest_wait_s']:.1f} s)."
        )
    )
    against = report["reference_accuracy"]
    compared = f", {percent(against)} without faults" if against is not None else ""
    console.print(Text(f"Test accuracy {percent(report['accuracy'])}{compared}."))
    for line in report["told"]:
        console.print(Text(f"broken: {line}", style="red"))
    console.print(Text("Every promise held." if report["held"] else "Promises were broken: see above.", style="bold"))
    console.print(Text(f"Files: {folder}"))
