import math
import tomllib
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from p2pfl.errors import TopologyError, UsageError
from p2pfl.graphs.mixing import mixing_matrix, mixing_weights
from p2pfl.graphs.named import NAMES, build
from p2pfl.graphs.named import schedule as build_schedule
from p2pfl.graphs.spectra import spectral_gap
from p2pfl.graphs.topology import Topology
from p2pfl.recipe import travelling
from p2pfl.topology_files import list_files, load_note, load_schedule, load_topology, ready_folder

READY = {  # nodes and edges
    "abilene": (11, 14),
    "de-bruijn": (8, 14),
    "dodecahedron": (20, 30),
    "fastest-chain": (8, 7),
    "florentine-families": (15, 20),
    "icosahedron": (12, 30),
    "karate-club": (34, 78),
    "krackhardt-kite": (10, 18),
    "nsfnet": (14, 21),
    "office-tree": (9, 8),
    "petersen": (10, 15),
    "ring-of-cliques": (12, 16),
    "three-hospitals": (3, 2),
    "two-cliques-bridge": (8, 13),
}


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_the_ready_files_are_these() -> None:
    assert list_files() == tuple(sorted(READY))
    assert not set(list_files()) & set(NAMES)


@pytest.mark.parametrize("name", READY)
def test_ready_file_loads_by_its_bare_name(name: str) -> None:
    topology = load_topology(name, None)
    assert (topology.name, topology.nodes, len(topology.edges)) == (name, *READY[name])
    assert load_topology(name, READY[name][0]) == topology
    assert spectral_gap(mixing_matrix(topology)) > 0.01


@pytest.mark.parametrize("name", READY)
def test_ready_file_says_what_it_is_and_where_it_is_from(name: str) -> None:
    paths = [path for path in ready_folder().iterdir() if path.stem == name]
    assert len(paths) == 1
    graphml = paths[0].suffix == ".graphml"
    said = nx.read_graphml(paths[0]).graph if graphml else tomllib.loads(paths[0].read_text(encoding="utf-8"))
    assert len(said["note"]) > 20
    assert len(said["source"]) > 10


@pytest.mark.parametrize(
    ("name", "graph"),
    [
        ("dodecahedron", nx.dodecahedral_graph()),
        ("krackhardt-kite", nx.krackhardt_kite_graph()),
        ("petersen", nx.petersen_graph()),
        ("icosahedron", nx.icosahedral_graph()),
        ("karate-club", nx.karate_club_graph()),
        ("florentine-families", nx.florentine_families_graph()),
        ("ring-of-cliques", nx.ring_of_cliques(4, 3)),
        ("two-cliques-bridge", nx.barbell_graph(4, 0)),
    ],
)
def test_ready_file_is_the_known_graph(name: str, graph: nx.Graph) -> None:
    assert load_topology(name, None) == Topology.from_networkx(graph, name)


def test_petersen_gap() -> None:
    # Its adjacency has 3, 1 and -2, so W = (I + A)/4 has 1, 1/2 and -1/4.
    assert spectral_gap(mixing_matrix(load_topology("petersen", 10))) == pytest.approx(0.5, abs=1e-12)


def test_de_bruijn_is_exact_after_three_rounds_for_ever_the_same() -> None:
    schedule = load_schedule("de-bruijn", None)
    assert (schedule.period, schedule.settled_after) == (1, 3)
    matrix = mixing_matrix(schedule.at(0))
    assert np.array_equal(matrix @ matrix @ matrix, np.full((8, 8), 1 / 8))
    assert matrix[3].tolist() == [0, 0.5, 0, 0, 0, 0.5, 0, 0]


def test_fastest_chain_has_the_best_gap_of_any_weights() -> None:
    matrix = mixing_matrix(load_topology("fastest-chain", None))
    assert spectral_gap(matrix) == pytest.approx(1 - math.cos(math.pi / 8), abs=1e-12)
    assert spectral_gap(mixing_matrix(build("chain", 8))) == pytest.approx(
        2 / 3 * (1 - math.cos(math.pi / 8)), abs=1e-12
    )


@pytest.mark.parametrize(("name", "degrees"), [("nsfnet", (2, 4)), ("abilene", (2, 3))])
def test_backbones_have_no_hub_and_no_end(name: str, degrees: tuple[int, int]) -> None:
    topology = load_topology(name, None)
    assert (topology.degrees.min(), topology.degrees.max()) == degrees


def test_ready_files_are_beside_a_checkout_and_inside_an_installed_package(tmp_path: Path) -> None:
    package = tmp_path / "p2pfl"
    package.mkdir()
    assert ready_folder(package) == tmp_path / "topologies"
    (package / "_topologies").mkdir()
    assert ready_folder(package) == package / "_topologies"


def test_the_wheel_maps_the_folder_to_where_it_is_looked_for() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"] == {"topologies": "p2pfl/_topologies"}


def test_a_built_in_name_is_built_for_the_network() -> None:
    assert load_topology("torus:rows=2", 8) == build("torus:rows=2", 8)
    with pytest.raises(TopologyError, match="say how many"):
        load_topology("ring", None)


def test_a_topology_already_loaded_is_only_checked_to_fit() -> None:
    topology = Topology("mine", 2, ((0, 1),))
    assert load_topology(topology, None) is topology
    assert load_topology(topology, 2) is topology
    with pytest.raises(TopologyError, match="2 nodes, the network 3 peers"):
        load_topology(topology, 3)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("petersn", "did you mean 'petersen'"),
        ("nothing-like-it", "There are: ring, .*two-cliques-bridge"),
        ("petersen:k=3", "has no options"),
        ("no/such.toml", "no topology file 'no/such.toml'; ready ones, by bare name: abilene"),
        ("some/folder", "must end in .toml"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(spec: str, says: str) -> None:
    with pytest.raises(TopologyError, match=says):
        load_topology(spec, 10)


def test_text_of_another_form_is_refused() -> None:
    with pytest.raises(UsageError):
        load_topology("petersen:", 10)


def test_toml_with_numbered_nodes(tmp_path: Path) -> None:
    path = write(tmp_path, "t.toml", 'name = "mine"\nedges = [[0, 1], [2, 1]]\nnote = "n"\nsource = "s"')
    assert load_topology(path, 3) == Topology("mine", 3, ((0, 1), (1, 2)))
    with pytest.raises(TopologyError, match=r"t\.toml.*has 3 nodes, the network 5 peers: use 3 peers, or"):
        load_topology(path, 5)


def test_toml_named_nodes_are_numbered_as_seats_are_ordered(tmp_path: Path) -> None:
    text = 'name = "mine"\nnodes = ["z", "10", "9"]\nedges = [["z", "9"], ["z", "10"]]'
    assert load_topology(write(tmp_path, "t.toml", text), None) == Topology("mine", 3, ((0, 2), (1, 2)))


def test_toml_with_arcs(tmp_path: Path) -> None:
    expected = Topology("mine", 3, ((0, 1), (1, 2), (2, 0)), directed=True)
    text = 'name = "mine"\narcs = [[0, 1], [1, 2], [2, 0]]\n'
    assert load_topology(write(tmp_path, "t.toml", text), None) == expected
    assert load_topology(write(tmp_path, "t.toml", text + "directed = true"), None) == expected


def test_toml_weights_are_in_the_order_of_the_nodes(tmp_path: Path) -> None:
    text = """
        name = "mine"
        nodes = ["c", "a", "b"]
        edges = [["a", "b"], ["b", "c"]]
        weights = [[0.9, 0.0, 0.1], [0.0, 0.8, 0.2], [0.1, 0.2, 0.7]]
    """
    topology = load_topology(write(tmp_path, "t.toml", text), None)
    assert mixing_weights(topology, 0) == {0: 0.8, 1: 0.2}
    assert mixing_weights(topology, 1) == {1: 1 - (0.2 + 0.1), 0: 0.2, 2: 0.1}
    assert mixing_weights(topology, 2) == {2: 0.9, 1: 0.1}


def test_toml_weights_of_arcs_are_rows_of_receivers(tmp_path: Path) -> None:
    text = 'name = "m"\narcs = [[0, 1], [1, 2], [2, 0]]\nweights = [[0.7, 0, 0.3], [0.3, 0.7, 0], [0, 0.3, 0.7]]'
    assert mixing_weights(load_topology(write(tmp_path, "t.toml", text), None), 0) == {0: 1 - 0.3, 2: 0.3}


def test_a_node_alone_is_a_topology(tmp_path: Path) -> None:
    assert load_topology(write(tmp_path, "t.toml", 'name = "m"\nedges = []'), 1) == Topology("m", 1, ())


def test_toml_weights_may_drift_if_they_say_so(tmp_path: Path) -> None:
    text = 'name = "m"\nedges = [[0, 1], [1, 2]]\nweights = [[0.5, 0.5, 0], [0.25, 0.5, 0.25], [0, 0.5, 0.5]]\n'
    with pytest.raises(TopologyError, match="not symmetric"):
        load_topology(write(tmp_path, "t.toml", text), None)
    topology = load_topology(write(tmp_path, "t.toml", text + "drifting = true"), None)
    assert topology.drifting
    assert not topology.doubly_stochastic
    assert mixing_weights(topology, 1) == {1: 0.5, 0: 0.25, 2: 0.25}


# Schedules and cycles of files


def test_any_name_makes_a_schedule() -> None:
    assert load_schedule("base:k=2", 5).period == build_schedule("base:k=2", 5).period
    assert load_schedule("random-matching", 8, seed=3).name == "random-matching:seed=3"
    assert load_schedule("petersen", 10).at(7) == load_topology("petersen", None)
    topology = Topology("mine", 2, ((0, 1),))
    assert load_schedule(topology, 2).at(0) is load_schedule(topology, None).at(0) is topology
    of = load_schedule("base", 5)
    assert load_schedule(of, None) is load_schedule(of, 5) is of
    with pytest.raises(TopologyError, match="say how many"):
        load_schedule("base", None)


def test_the_topology_of_a_schedule_is_its_first_round() -> None:
    assert load_topology("one-peer-hypercube", 4).edges == ((0, 1), (2, 3))


def test_cycle_of_files_in_turn(tmp_path: Path) -> None:
    first = write(tmp_path, "first.txt", "0 1\n2 3\n")  # alone it is not connected
    second = write(tmp_path, "second.toml", 'name = "second"\nedges = [[0, 2], [1, 3]]')
    spec = f"cycle:files={first}+{second}"
    cycle = load_schedule(spec, None)
    assert (cycle.name, cycle.nodes, cycle.period, cycle.settled_after) == (spec, 4, 2, 2)
    assert [cycle.at(round).edges for round in (0, 1, 2)] == [((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 1), (2, 3))]
    assert load_schedule(spec, 4).at(1) == cycle.at(1)
    assert load_topology(spec, 4).edges == ((0, 1), (2, 3))
    with pytest.raises(TopologyError, match=r"first\.txt.*has 4 nodes, the network 5 peers"):
        load_schedule(spec, 5)


def test_cycle_of_files_travels_in_a_recipe(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.txt", "0 1\n2 3\n")
    other = write(tmp_path, "other.txt", "0 2\n1 3\n")
    written = travelling(f"cycle:files={path}+{other}")
    assert written == "cycle:edges=0-1/2-3|0-2/1-3,directed=false,of=4"
    assert travelling(written) == written
    assert build_schedule(written, 4).settled_after == 2
    assert travelling("cycle:files=petersen+petersen").count("|") == 1
    assert travelling("base:k=2") == "base:k=2"


def test_weights_of_a_file_travel_in_a_recipe() -> None:
    written = travelling("fastest-chain")
    assert written.startswith("graph:edges=0-1:0.5/1-2:0.5/")
    assert mixing_matrix(build(written, 8)).tolist() == mixing_matrix(load_topology("fastest-chain", None)).tolist()


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("cycle:files=petersen+ring", "'ring' is no file; a cycle takes files and ready ones: abilene"),
        ("cycle:files=petersen+", "not of the form cycle:files=A[+]B[+]C, with nothing else"),
        ("cycle:files=petersen,of=10", "with nothing else"),
        (
            "cycle:files=petersen+karate-club",
            "'petersen' has 10 nodes and 'karate-club' 34: in a cycle all need the same",
        ),
        ("cycle:files=petersn+petersen", "did you mean 'petersen'"),
        ("cycle:files=petersen+no.toml", "no topology file 'no.toml'"),
    ],
)
def test_a_cycle_that_cannot_be_is_refused_with_the_mend(spec: str, says: str) -> None:
    with pytest.raises(TopologyError, match=says):
        load_schedule(spec, None)


def test_a_cycle_that_leaves_parts_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.txt", "0 1\n2 3\n")
    with pytest.raises(TopologyError, match="together are not connected but leave parts of 2, 2 nodes: link them"):
        load_schedule(f"cycle:files={path}+{path}", None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name = = 3", "line 1"),
        ("edges = [[0, 1]]", "missing required field `name`"),
        ('name = "m"', "either edges or, directed, arcs"),
        ('name = "m"\nedges = []\narcs = []', "either edges or, directed, arcs"),
        ('name = "m"\nedges = [[0, 1]]\ndirected = true', "arcs with directed = true"),
        ('name = "m"\narcs = [[0, 1], [1, 0]]\ndirected = false', "arcs with directed = true"),
        ('name = "m"\nedges = [[0, 1], [1, 2, 3]]', r"at `\$\.edges\[1\]`"),
        ('name = "m"\nedges = [[0, 1.5]]', r"at `\$\.edges\[0\]\[1\]`"),
        ('name = "m"\nedges = [[0, 1]]\nweight = 1', "unknown field `weight`"),
        ('name = "m"\nedges = [[0, 0]]', "self-loop at 0"),
        ('name = "m"\nedges = [[0, 1], [1, 0]]', "0, 1 twice|1, 0 twice"),
        ('name = "m"\nnodes = 2\nedges = [[0, 1], [1, 2]]', r"edges\[1\] has node 2, but the nodes are 0, 1"),
        ('name = "m"\nedges = [[0, 1], [1, -1]]', r"edges\[1\] has node -1"),
        ('name = "m"\nnodes = 30\narcs = [[0, 30]]', r"arcs\[0\] has node 30, but there are 30 nodes"),
        ('name = "m"\nnodes = 0\nedges = []', "at least 1"),
        ('name = "m"\nnodes = ["a", "b"]\nedges = [["a", "c"]]', "has node 'c', but the nodes are a, b"),
        ('name = "m"\nnodes = ["a", "a"]\nedges = []', "stands twice in nodes"),
        ('name = "m"\nnodes = ["a", "b"]\nedges = [[0, 1]]', "has node 0, but the nodes are a, b"),
        ('name = "m"\nedges = [["a", "b"]]', "list them, nodes ="),
        ('name = "m"\nedges = [[0, 1]]\nweights = [[1.0, 0.0]]', "2 rows of 2 numbers"),
        ('name = "m"\nedges = [[0, 1]]\nweights = [[0.5, 0.5], [1.0]]', "2 rows of 2 numbers"),
        ('name = "m"\nedges = [[0, 1]]\nweights = [[0.5, 0.4], [0.4, 0.5]]', "sum to 0.9 in row 0"),
        ('name = "m"\nedges = [[0, 1]]\nweights = [[0.5, 0.5], [0.4, 0.6]]', "not symmetric"),
        (
            'name = "m"\nedges = [[0, 1], [1, 2]]\nweights = [[0.4, 0.3, 0.3], [0.3, 0.4, 0.3], [0.3, 0.3, 0.4]]',
            "a weight but no edge for what 0 receives from 2",
        ),
        ('name = "m"\nnodes = 5\nedges = [[0, 1], [3, 4], [1, 2]]', "parts of 3, 2 nodes: link them"),
        ('name = "m"\narcs = [[0, 1], [1, 2], [2, 1]]', "following the arcs, but falls into parts of 2, 1 nodes"),
    ],
)
def test_bad_toml_is_refused_with_the_file_and_the_place(tmp_path: Path, text: str, says: str) -> None:
    path = write(tmp_path, "bad.toml", text)
    with pytest.raises(TopologyError, match=says) as caught:
        load_topology(path, None)
    assert "bad.toml" in str(caught.value)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    for suffix in (".toml", ".txt", ".graphml"):
        path = tmp_path / f"binary{suffix}"
        path.write_bytes(b"\xff\xfe\x00\x81")
        with pytest.raises(TopologyError, match="binary"):
            load_topology(str(path), None)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(TopologyError, match=r"folder\.toml"):
        load_topology(str(tmp_path / "folder.toml"), None)


@pytest.mark.parametrize("directed", [False, True])
def test_graphml_as_networkx_writes_it(tmp_path: Path, directed: bool) -> None:
    topology = Topology("mine", 12, tuple((i, (i + 1) % 12) for i in range(12)), directed)
    nx.write_graphml(topology.to_networkx(), tmp_path / "mine.graphml")
    assert load_topology(str(tmp_path / "mine.graphml"), 12) == topology


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<graphml", "not GraphML that networkx can read"),
        ("<other/>", "not GraphML that networkx can read"),
        ("", "not GraphML that networkx can read"),
        ('<graph edgedefault="undirected"><node id="a"/><node id="b"/></graph>', "parts of 1, 1 nodes"),
        ('<graph edgedefault="undirected"><node id="a"/><edge source="a" target="a"/></graph>', "self-loop at a"),
        (
            '<graph edgedefault="undirected"><node id="a"/><node id="b"/>'
            '<edge source="a" target="b"/><edge source="b" target="a"/></graph>',
            "parallel edges",
        ),
    ],
)
def test_bad_graphml_is_refused(tmp_path: Path, text: str, says: str) -> None:
    if text.startswith("<graph "):
        text = f'<graphml xmlns="http://graphml.graphdrawing.org/xmlns">{text}</graphml>'
    with pytest.raises(TopologyError, match=says) as caught:
        load_topology(write(tmp_path, "bad.graphml", text), None)
    assert "bad.graphml" in str(caught.value)


@pytest.mark.parametrize("suffix", [".edgelist", ".txt", ".TXT"])
def test_edge_list(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, f"mine{suffix}", "# by hand\n1 2\n\n2 10  # the last\n10 3 {}\n")
    assert load_topology(path, 4) == Topology("mine", 4, ((0, 1), (1, 3), (2, 3)))


def test_edge_list_as_networkx_writes_it(tmp_path: Path) -> None:
    nx.write_edgelist(nx.karate_club_graph(), tmp_path / "karate.edgelist")
    assert load_topology(str(tmp_path / "karate.edgelist"), 34).edges == load_topology("karate-club", 34).edges


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0 1\n2\n", "line 2: '2' is not two nodes"),
        ("0,1\n", "line 1"),
        ("0 1 0.5\n", "line 1"),
        ("0 1\n1 0\n", "parallel edges"),
        ("0 0\n", "self-loop at 0"),
        ("0 1\n2 3\n", "parts of 2, 2 nodes"),
        ("", "at least 1"),
    ],
)
def test_bad_edge_list_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(TopologyError, match=says) as caught:
        load_topology(write(tmp_path, "bad.txt", text), None)
    assert "bad.txt" in str(caught.value)


def test_a_ready_file_says_what_it_is_good_for() -> None:
    assert all(load_note(name) == tomllib.loads(path.read_text()).get("note", "") for name, path in _toml_files())
    assert load_note("petersen")
    with pytest.raises(TopologyError, match="there is no topology 'pettersen'; did you mean 'petersen'"):
        load_note("pettersen")


def _toml_files() -> list[tuple[str, Path]]:
    return [(path.stem, path) for path in ready_folder().glob("*.toml")]
