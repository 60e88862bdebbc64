"""Bodies that are safetensors files of another making: on the wire only the framing of one's own layout counts."""

import asyncio
import hashlib
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.bodies import Bodies
from p2pfl.conversations import Traffic
from p2pfl.layout import Layout
from p2pfl.network.buffers import BufferPool
from p2pfl.network.memory import MemoryNetwork
from p2pfl.network.transport import Link, Service, body_of
from p2pfl.protocol.messages import Offer
from p2pfl.protocol.participant import Event, Fetch, Fetched, FetchFailed

LAYOUT = Layout((("a", (2, 3)), ("b", ())))
VECTOR = torch.arange(7.0)
HONEST = LAYOUT.header + VECTOR.numpy().tobytes()


async def _hang_up(link: Link) -> None:
    await link.close("nothing to say")


def fetched(body: bytes, told: int | None = None) -> Event:
    """What becomes of a body whose sender has signed its hash and its length (or another)."""
    said: list[Event] = []
    pool = BufferPool()

    async def run() -> None:
        memory = MemoryNetwork()
        mine, other = memory.transport(), memory.transport()
        idle = Service(_hang_up, lambda token, peer: None, lambda token, peer, size: None, lambda: b"")
        liar = Service(
            _hang_up, lambda token, peer: body_of(memoryview(body)), lambda token, peer, size: None, lambda: b""
        )
        bodies = Bodies(
            "me",
            mine,
            pool,
            Traffic(),
            lambda: LAYOUT,
            lambda peer: True,
            lambda peer: None,
            said.append,
            lambda event: None,
        )
        offer = Offer(
            kind="share",
            round=0,
            token="0.x",
            bytes=len(body) if told is None else told,
            recipe="r",
            view="v",
            layout=LAYOUT.digest,
            degree=1,
            payload=hashlib.sha256(body).digest(),
        )
        async with mine.serving(idle), other.serving(liar):
            await bodies.fetch(Fetch("liar", other.addresses, offer))

    asyncio.run(run())
    (event,) = said
    return event


def framed(header: dict[str, object]) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + HONEST[len(LAYOUT.header) :]


def entry(shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


TWICE = LAYOUT.header[:-1].replace(b'"b"', b'"a"') + LAYOUT.header[-1:] + HONEST[len(LAYOUT.header) :]
FOREIGN = {
    "truncated": HONEST[:-1],
    "tail": HONEST + b"\0",
    "empty": b"",
    "length 2^63": (1 << 63).to_bytes(8, "little") + HONEST[8:],
    "overlap": framed({"a": entry([2, 3], 0, 24), "b": entry([], 20, 24)}),
    "order": framed({"b": entry([], 24, 28), "a": entry([2, 3], 0, 24)}),
    "reshaped": framed({"a": entry([3, 2], 0, 24), "b": entry([], 24, 28)}),
    "twice": TWICE,
    "100,000 tensors": framed({f"t{number}": entry([0], 0, 0) for number in range(100_000)}),
}


def test_the_framing_of_ones_own_layout_is_taken() -> None:
    event = fetched(HONEST)
    assert isinstance(event, Fetched)
    assert torch.equal(event.vector, VECTOR)


@pytest.mark.fault(43)
@pytest.mark.parametrize("how", FOREIGN)
@pytest.mark.parametrize("lie", [False, True], ids=["its own length is told", "the right length is told"])
def test_a_body_of_another_framing_is_refused_whatever_its_sender_signs(how: str, lie: bool) -> None:
    event = fetched(FOREIGN[how], len(HONEST) if lie else None)
    assert isinstance(event, FetchFailed)
    assert event.reason in ("wrong size", "malformed header")
    assert (event.reason == "malformed header") == (len(FOREIGN[how]) == len(HONEST))


@pytest.mark.fault(43)
@given(place=st.integers(0, len(LAYOUT.header) - 1), change=st.integers(1, 255))
def test_any_byte_of_the_header_counts(place: int, change: int) -> None:
    body = bytearray(HONEST)
    body[place] ^= change
    event = fetched(bytes(body))
    assert isinstance(event, FetchFailed)
    assert event.reason == "malformed header"
