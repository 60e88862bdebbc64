"""Topologies out of files: TOML, GraphML or an edge list; the user's own, or one of the ready files by its bare name.

A TOML file names its topology and lists its edges; all else is optional:

    name = "two-offices"
    note = "what it is good for"
    source = "where it is from"
    nodes = ["berlin", "madrid"]            # or their number; without it, the highest number in the edges plus one
    edges = [["berlin", "madrid"]]          # or, directed, arcs = [[sender, receiver], …]
    weights = [[0.5, 0.5], [0.5, 0.5]]      # rows and columns in the order of the nodes
    drifting = false                        # true if columns of the weights need not sum to 1

Named nodes are numbered in sorted order, as members are by their seats. Only for a spec this machine's user wrote: it
reads the file it names.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias
from xml.etree.ElementTree import ParseError

import msgspec
import networkx as nx

from p2pfl.errors import TopologyError
from p2pfl.graphs import named, schedules
from p2pfl.graphs.schedule import Schedule
from p2pfl.graphs.topology import Topology
from p2pfl.spelling import parse
from p2pfl.types import seat_order

_Node: TypeAlias = int | str
_SUFFIXES = (".toml", ".graphml", ".edgelist", ".txt")
_MOST_NODES = 1 << 14  # in a file; more admits larger graphs, and costs more on a file with a slip in a number


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    note: str = ""
    source: str = ""
    nodes: int | list[str] | None = None
    edges: list[tuple[_Node, _Node]] | None = None
    arcs: list[tuple[_Node, _Node]] | None = None
    directed: bool | None = None
    weights: list[list[float]] | None = None
    drifting: bool = False


def load_topology(spec: str | Topology, nodes: int | None) -> Topology:
    """The topology of a built-in name, a file, or the bare name of a ready file.

    Args:
        spec: `ring`, `torus:rows=2`, `office.toml`, `petersen`; a topology already loaded is only checked to fit.
        nodes: of the network; None takes what the file has.

    Raises:
        TopologyError: no such topology or file, a file that cannot be read or is not connected, or not so many nodes.
        UsageError: the text is not of the form NAME or NAME:key=value,….
    """
    if isinstance(spec, Topology):
        return spec if nodes is None else named.fitting(spec, nodes)
    if _built_in(spec):
        if nodes is None:
            raise TopologyError(f"topology {spec!r} is made for any number of peers: say how many")
        return load_schedule(spec, nodes).at(0)
    return _file(spec, nodes)


def load_schedule(spec: str | Topology | Schedule, nodes: int | None, seed: int = 0) -> Schedule:
    """The topology of every round: as `load_topology`, any schedule by its name, and `cycle:files=A+B+C`.

    Args:
        spec: of a cycle each file is a path or the name of a ready one; they are one round each, in turn.
        nodes: of the network; None takes what the files have.
        seed: for what draws at random and whose spec has no `seed=` of its own.

    Raises:
        TopologyError: as `load_topology`, or the files of a cycle do not fit each other.
        UsageError: the text is not of the form NAME or NAME:key=value,….
    """
    if not isinstance(spec, str) and nodes is not None:
        return named.schedule(spec, nodes, seed)
    if isinstance(spec, Schedule):
        return spec
    if isinstance(spec, str):
        options = parse(spec).options if _built_in(spec) else {}
        if "files" in options:
            return _cycle(spec, options, nodes)
        if _built_in(spec) and nodes is not None:
            return named.schedule(spec, nodes, seed)
    return Schedule.of(load_topology(spec, nodes))


def list_files() -> tuple[str, ...]:
    """The names of the ready files, sorted."""
    return tuple(_ready_files())


def load_note(name: str) -> str:
    """What a ready file, by its bare name, says of itself; empty where it says nothing.

    Raises:
        TopologyError: there is no such ready file, or it cannot be read.
    """
    ready = _ready_files()
    if name not in ready:
        raise named.unknown(name, tuple(ready))
    path = ready[name]
    if path.suffix == ".toml":
        return _toml_file(path).note
    return str(_graph(path).graph.get("note", "")) if path.suffix == ".graphml" else ""


def ready_folder(package: Path = Path(__file__).parent) -> Path:
    """Where the ready files are: inside an installed package, beside it in a checkout."""
    # Inside first: beside an installed package are everybody's packages. pyproject.toml maps the one to the other.
    inside = package / "_topologies"
    return inside if inside.is_dir() else package.parent / "topologies"


def _ready_files() -> dict[str, Path]:
    return {path.stem: path for path in sorted(ready_folder().glob("*.*")) if path.suffix in _SUFFIXES}


def _built_in(spec: str) -> bool:
    return spec.partition(":")[0].strip() in named.NAMES


def _file(spec: str, nodes: int | None, connected: bool = True) -> Topology:
    """The topology of a file, by its path or the bare name of a ready one."""
    if Path(spec).suffix.lower() in _SUFFIXES:
        return _read(Path(spec), nodes, connected)
    if "/" in spec or "\\" in spec:
        raise TopologyError(f"{spec!r} is no topology file: its name must end in {', '.join(_SUFFIXES)}")
    spelled = parse(spec)
    ready = _ready_files()
    if spelled.name not in ready:
        raise named.unknown(spelled.name, (*named.NAMES, *ready))
    if spelled.options:
        raise TopologyError(f"topology {spelled.name!r} is a file and has no options: write the name alone")
    return _read(ready[spelled.name], nodes, connected)


def _cycle(spec: str, options: Mapping[str, str], nodes: int | None) -> Schedule:
    files = options["files"].split("+")
    if len(options) > 1 or not all(files):
        raise TopologyError(f"{spec!r} is not of the form cycle:files=A+B+C, with nothing else")
    for file in files:
        if _built_in(file):
            raise TopologyError(f"{spec!r}: {file!r} is no file; a cycle takes files and ready ones: {_ready()}")
    return schedules.in_turn(spec, [_file(file, nodes, connected=False) for file in files])


def _ready() -> str:
    return ", ".join(list_files())


def _read(path: Path, nodes: int | None, connected: bool) -> Topology:
    kind = path.suffix.lower()
    try:
        topology = _toml(path) if kind == ".toml" else _graphml(path) if kind == ".graphml" else _edge_list(path)
        if connected and not topology.connected:
            sizes = [str(len(part)) for part in topology.components]
            shown = ", ".join(sizes if len(sizes) <= 20 else [*sizes[:20], "…"])
            one_way = ", following the arcs," if topology.directed else ""
            raise TopologyError(f"it is not connected{one_way} but falls into parts of {shown} nodes: link them")
        return topology if nodes is None else named.fitting(topology, nodes)
    except FileNotFoundError as error:
        raise TopologyError(f"there is no topology file {str(path)!r}; ready ones, by bare name: {_ready()}") from error
    except (OSError, UnicodeDecodeError, TopologyError) as error:
        raise TopologyError(f"topology file {str(path)!r}: {error}") from error


def _toml_file(path: Path) -> _File:
    try:
        return msgspec.toml.decode(path.read_text(encoding="utf-8"), type=_File)
    except msgspec.DecodeError as error:
        raise TopologyError(str(error)) from error


def _toml(path: Path) -> Topology:
    file = _toml_file(path)
    if (file.edges is None) == (file.arcs is None):
        raise TopologyError("it needs either edges or, directed, arcs")
    directed = file.arcs is not None
    if file.directed not in (None, directed):
        raise TopologyError("directed does not fit: give edges with directed = false, or arcs with directed = true")
    key: Literal["arcs", "edges"] = "arcs" if directed else "edges"
    pairs = (file.arcs if directed else file.edges) or []
    at = _positions(file, pairs)
    for place, pair in enumerate(pairs):
        for node in pair:
            if node not in at:
                known = f"the nodes are {', '.join(map(str, at))}" if len(at) <= 20 else f"there are {len(at)} nodes"
                raise TopologyError(f"{key}[{place}] has node {node!r}, but {known}")
    links = tuple((at[i], at[j]) for i, j in pairs)
    weights = _triples(file.weights, list(at.values()), links, directed)
    return Topology(file.name, len(at), links, directed, weights, file.drifting)


def _positions(file: _File, pairs: list[tuple[_Node, _Node]]) -> dict[_Node, int]:
    """The position of each node, in the file's order of nodes."""
    if isinstance(file.nodes, list):
        if len(set(file.nodes)) < len(file.nodes):
            raise TopologyError("a name stands twice in nodes")
        rank = {name: position for position, name in enumerate(sorted(file.nodes, key=seat_order))}
        return {name: rank[name] for name in file.nodes}
    numbers = [node for pair in pairs for node in pair if isinstance(node, int)]
    if len(numbers) < 2 * len(pairs):
        raise TopologyError("its edges go between names: list them, nodes = [name, …]")
    count = 1 + max(numbers, default=0) if file.nodes is None else file.nodes
    if count > _MOST_NODES:
        raise TopologyError(f"it has {count} nodes; a file has at most {_MOST_NODES}: number them from 0 on")
    return {number: number for number in range(count)}


def _triples(
    matrix: list[list[float]] | None, order: list[int], links: tuple[tuple[int, int], ...], directed: bool
) -> tuple[tuple[int, int, float], ...] | None:
    if matrix is None:
        return None
    if {len(matrix), *map(len, matrix)} != {len(order)}:
        raise TopologyError(f"weights must have {len(order)} rows of {len(order)} numbers, one for each node")
    linked = {(receiver, sender) for sender, receiver in links} | (set() if directed else set(links))
    cells = ((i, j, matrix[row][col]) for row, i in enumerate(order) for col, j in enumerate(order))
    # A zero on an edge stays: Topology wants a weight for every edge, and for no other pair.
    return tuple((i, j, weight) for i, j, weight in cells if weight or (i, j) in linked)


def _graph(path: Path) -> nx.Graph:
    try:
        return nx.read_graphml(path)
    except (nx.NetworkXException, ParseError, ValueError, LookupError) as error:
        raise TopologyError(f"it is not GraphML that networkx can read: {error}") from error


def _graphml(path: Path) -> Topology:
    return Topology.from_networkx(_graph(path), name=path.stem)


def _edge_list(path: Path) -> Topology:
    """One edge a line, two nodes apart by spaces; # begins a comment, and what networkx writes in {} is not read."""
    graph = nx.MultiGraph()  # keeps an edge that stands twice, so that it is refused
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        fields = line.partition("#")[0].split()
        if fields and (len(fields) < 2 or (len(fields) > 2 and not fields[2].startswith("{"))):
            raise TopologyError(f"line {number}: {line.strip()!r} is not two nodes apart by spaces")
        if fields:
            graph.add_edge(fields[0], fields[1])
    return Topology.from_networkx(graph, name=path.stem)
