"""Whom a peer dials and when: what strangers and liars can make of it is bounded."""

from virtual import identity

from p2pfl.protocol.links import BETWEEN_HASTES_S, FORGOTTEN_AFTER_S, MAX_TARGETS, Links

ME, BOB, CAROL = (identity(number).peer for number in (1, 2, 3))


def fail(links: Links, until: float, now: float = 0.0) -> list[tuple[float, str]]:
    """Every dial comes to nothing, at once."""
    dials = []
    while now < until:
        for dial in links.due(now):
            dials.append((now, dial.key))
            links.dial_failed(dial.key, now)
        now = max(now + 1e-3, min(links.next_dial(now) or until, until))
    return dials


def crowd(links: Links, count: int, now: float = 0.0) -> None:
    for number in range(count):
        address = f"10.1.{number // 250}.{number % 250 + 1}:7470"
        links.propose(address, (address,), now)


def test_strangers_make_room_for_newcomers_members_and_whom_the_user_named() -> None:
    links = Links(ME, "home")
    links.propose("10.9.9.9:7470", ("10.9.9.9:7470",), 0.0, named=True)
    links.propose(BOB, ("10.0.0.2:7470",), 0.0, known=True)
    crowd(links, 2 * MAX_TARGETS)
    assert len(links._targets) == MAX_TARGETS
    assert {BOB, "10.9.9.9:7470"} <= links._targets.keys()
    links.propose(CAROL, ("10.0.0.3:7470",), 0.1, known=True)
    assert CAROL in links._targets
    assert {BOB, CAROL, "10.9.9.9:7470"} <= {dial.key for dial in links.due(0.1)}


def test_newcomer_after_a_flood_is_dialed_within_a_second() -> None:
    links = Links(ME, "home")
    crowd(links, 2 * MAX_TARGETS)
    fail(links, until=5.0)
    links.propose("real", ("10.0.0.2:7470",), 5.0)
    assert "real" in {key for _, key in fail(links, until=6.0, now=5.0)}


def test_member_whose_addresses_never_answered_costs_few_dials_in_an_hour() -> None:
    links = Links(ME, "home")
    links.propose(BOB, ("203.0.113.7:80",), 0.0, known=True)
    assert len(fail(links, until=FORGOTTEN_AFTER_S)) <= 30


def test_dead_member_is_forgotten_after_a_while_unless_the_user_named_it() -> None:
    links = Links(ME, "home")
    links.propose(BOB, ("203.0.113.7:80",), 0.0, known=True)
    links.propose(CAROL, ("203.0.113.8:80",), 0.0, known=True, named=True)
    links.gone(BOB)
    links.gone(CAROL)
    fail(links, until=2 * FORGOTTEN_AFTER_S)
    assert links._targets.keys() == {CAROL}
    assert links.next_dial(2 * FORGOTTEN_AFTER_S) is not None


def test_addresses_that_change_all_the_time_hasten_no_more_than_one_dial_in_some_seconds() -> None:
    links = Links(ME, "home")
    links.propose(BOB, ("203.0.113.7:80",), 0.0, known=True)
    fail(links, until=60.0)
    dials = []
    for step in range(1000):
        now = 60.0 + step * 0.01
        links.propose(BOB, (f"203.0.113.7:{step + 1}",), now)
        for dial in links.due(now):
            dials.append(now)
            links.dial_failed(dial.key, now)
    assert 1 <= len(dials) <= 10.0 / BETWEEN_HASTES_S + 1


def test_many_members_that_were_never_reached_are_dialed_within_a_budget() -> None:
    links = Links(ME, "home")
    for number in range(300):
        links.propose(identity(number + 10).peer, ("203.0.113.7:80",), 0.0, known=True)
    assert len(links.due(0.0)) == 64


def test_event_among_a_thousand_ghosts_goes_through_no_table() -> None:
    links = Links(ME, "home")
    crowd(links, MAX_TARGETS)
    assert len(links.due(0.0)) == 16
    later = links.next_dial(0.0)
    assert later is None
    links._targets = None  # type: ignore[assignment]  # whoever looks at it fails
    assert links.due(0.1) == []
