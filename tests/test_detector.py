import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.protocol.clock import Clock
from p2pfl.protocol.detector import AskFor, Dead, Deaf, Detector, PingIt, Suspect, Swim, Verdict, pings, suspicion_s

SWIM = Swim()
ALL = ("bob", "carol", "dave", "erin")


class Eye:
    """A detector, and what it said so far, at which time."""

    def __init__(self, watched: tuple[str, ...] = ALL, linked: tuple[str, ...] = ALL) -> None:
        self.detector = Detector("alice", SWIM)
        self.watched, self.linked = watched, linked
        self.said: list[tuple[float, Verdict]] = []
        self.answers: set[str] = set()  # who answers a ping at once
        self.now = 0.0

    def run(self, until: float) -> None:
        while True:
            for verdict in self.detector.due(self.watched, lambda peer: peer in self.linked, self.now):
                self.said.append((self.now, verdict))
                if isinstance(verdict, Dead):
                    self.watched = tuple(peer for peer in self.watched if peer != verdict.peer)
                if isinstance(verdict, PingIt) and verdict.peer in self.answers:
                    self.detector.heard(verdict.peer)
            deadline = self.detector.next_deadline(len(self.watched))
            if deadline is None or deadline > until:
                self.now = until
                return
            self.now = max(self.now, deadline)

    def times(self, kind: type) -> list[float]:
        return [time for time, verdict in self.said if isinstance(verdict, kind)]


@pytest.mark.parametrize(
    ("confirmations", "others", "seconds"),
    [(0, 0, 2.5), (0, 1, 4.0), (1, 1, 2.5), (0, 8, 4.0), (1, 8, 3.25), (3, 8, 2.5), (9, 8, 2.5)],
)
def test_suspicion_shortens_with_confirmations(confirmations: int, others: int, seconds: float) -> None:
    assert suspicion_s(SWIM, confirmations, others) == pytest.approx(seconds)


@pytest.mark.parametrize(("others", "count"), [(1, 1), (2, 2), (3, 2), (4, 2), (7, 3), (15, 5), (24, 8), (500, 8)])
def test_a_third_of_the_others_is_pinged_each_period_two_at_least_and_eight_at_most(others: int, count: int) -> None:
    assert pings(SWIM, others) == count


def test_everybody_is_pinged_once_each_time_round() -> None:
    eye = Eye()
    eye.answers = set(ALL)
    eye.run(7.5)
    pinged = [verdict.peer for _, verdict in eye.said if isinstance(verdict, PingIt)]
    assert len(pinged) == 16
    assert all(sorted(pinged[i : i + 4]) == sorted(ALL) for i in range(0, 16, 4))
    assert len({tuple(pinged[i : i + 4]) for i in range(0, 16, 4)}) > 1  # in another order


def test_who_is_silent_is_asked_after_suspected_and_dead_in_that_order() -> None:
    eye = Eye()
    eye.answers = {"carol", "dave", "erin"}
    eye.run(12.0)
    about = [(time, verdict) for time, verdict in eye.said if getattr(verdict, "peer", "") == "bob"]
    first = about[0][0]
    assert [type(verdict) for _, verdict in about[:5]] == [PingIt, PingIt, AskFor, AskFor, AskFor]
    assert {verdict.helper for _, verdict in about if isinstance(verdict, AskFor)} == {"carol", "dave", "erin"}
    assert about[1][0] == first + SWIM.timeout_s
    assert eye.times(Suspect) == [first + SWIM.period_s]
    assert eye.times(Dead) == [first + SWIM.period_s + SWIM.suspicion_max_s]


def test_an_answer_to_a_helper_counts_and_that_of_a_stranger_does_not() -> None:
    eye = Eye(watched=("bob", "carol"), linked=("carol",))
    eye.detector.doubt("bob", 0.0)
    eye.run(0.1)
    [asked] = [verdict for _, verdict in eye.said if isinstance(verdict, AskFor) and verdict.peer == "bob"]
    assert eye.detector.acknowledged(asked.number, "mallory", 0.1) is None
    assert eye.detector.acknowledged(asked.number + 7, "carol", 0.1) is None
    assert eye.detector.acknowledged(asked.number, "carol", 0.1) == "bob"
    assert eye.detector.acknowledged(asked.number, "carol", 0.1) is None


def test_accusers_hasten_a_death_but_are_no_reason_for_it() -> None:
    eye = Eye()
    eye.answers = {"carol", "dave", "erin", "bob"}
    for accuser in ("carol", "dave", "erin"):
        eye.detector.accused("bob", accuser, 0.0)
    eye.run(10.0)
    assert eye.times(Dead) == []
    eye.answers.discard("bob")
    for accuser in ("carol", "dave", "erin"):
        eye.detector.accused("bob", accuser, 10.0)
    eye.run(20.0)
    [suspected], [dead] = eye.times(Suspect), eye.times(Dead)
    assert dead - suspected == pytest.approx(SWIM.suspicion_min_s)


def test_a_peer_heard_again_is_suspected_no_more() -> None:
    eye = Eye()
    eye.answers = {"carol", "dave", "erin"}
    eye.run(3.0)
    assert eye.detector.suspects("bob")
    eye.detector.heard("bob")
    eye.answers.add("bob")
    eye.run(20.0)
    assert eye.times(Dead) == []


def test_a_link_over_which_nothing_comes_is_given_up_while_others_hear_its_peer() -> None:
    eye = Eye(watched=("bob", "carol"), linked=("bob", "carol"))
    eye.answers = {"carol"}
    while not eye.times(Deaf) and eye.now < 60.0:
        eye.run(eye.now + 0.25)
        for _, verdict in eye.said:
            if isinstance(verdict, AskFor):
                eye.detector.acknowledged(verdict.number, verdict.helper, eye.now)
    assert eye.times(Deaf)
    assert eye.times(Suspect) == []


def test_a_process_that_was_kept_waiting_gives_everybody_all_their_time_again() -> None:
    eye = Eye()
    eye.run(3.0)
    assert eye.times(Suspect)
    eye.now = 23.0
    eye.detector.lagged(23.0)
    eye.answers = set(ALL)
    eye.run(40.0)
    assert eye.times(Dead) == []


@given(st.lists(st.sampled_from(["hear", "ack", "wait", "lag", "accuse", "doubt"]), max_size=60), st.randoms())
def test_who_answers_every_ping_is_never_dead(steps: list[str], rng: object) -> None:
    eye = Eye()
    eye.answers = set(ALL)
    for step in steps:
        if step == "lag":
            eye.now += 30.0
            eye.detector.lagged(eye.now)
        elif step == "accuse":
            eye.detector.accused("bob", "carol", eye.now)
        elif step == "doubt":
            eye.detector.doubt("dave", eye.now)
        elif step == "hear":
            eye.detector.heard("erin")
        eye.run(eye.now + 0.4)
    eye.run(eye.now + 20.0)
    assert eye.times(Dead) == []
    assert 0 <= eye.detector.health <= SWIM.worst_health


def test_time_goes_on_where_it_stood_after_a_sleep_or_a_leap() -> None:
    clock = Clock(0.75)
    assert clock.read(10.0) == (10.0, False)
    clock.expect(11.0)
    assert clock.read(11.5) == (11.5, False)  # a little late
    clock.expect(12.0)
    assert clock.read(40.0) == (12.0, True)
    assert clock.given(13.0) == 41.0
    clock.expect(13.0)
    assert clock.read(40.5) == (12.5, False)
    assert clock.read(-86400.0) == (12.5, True)
    clock.expect(None)
    now, lagged = clock.read(-86399.0)
    assert (pytest.approx(now), lagged) == (13.5, False)
