"""Whatever bytes come, decoders end in their typed errors, at once and in bounded memory.

The corpora under fuzz/corpus were found by a fuzzer that coverage guides (fuzz/run.py, by hand); here each of them is
fed again, and valid inputs that hypothesis has damaged.
"""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live import SLACK

FUZZ = Path(__file__).resolve().parent / "fuzz"
sys.path.insert(0, str(FUZZ))

from targets import TARGETS, Target  # noqa: E402  # it lies in the folder added above

LIMIT_S = 0.05  # for one input, however hostile
GROWTH_BYTES = 32 << 20  # for all of a corpus

BY_NAME = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


def corpus(target: Target) -> list[bytes]:
    return [path.read_bytes() for path in sorted((FUZZ / "corpus" / target.name).iterdir()) if path.is_file()]


def fed(target: Target, data: bytes) -> None:
    """Feed it; three tries to be quick, as the machine may have something else to do."""
    for _ in range(3):
        began = time.process_time()
        target.feed(data)
        took_s = time.process_time() - began
        if took_s <= LIMIT_S * SLACK:
            return
    raise AssertionError(f"{target.name}: {took_s:.3f} s for {len(data)} bytes that begin with {data[:64]!r}")


@st.composite
def damaged(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A valid input, or two, with a few bytes changed, cut out, repeated or put in."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.sampled_from((1, 1, 2, 4, 8, 64)))
        match draw(st.integers(0, 5)):
            case 0:
                data[at : at + length] = draw(st.binary(min_size=length, max_size=length))
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length] * draw(st.sampled_from((1, 2, 100)))
            case 3:
                data[at:at] = draw(st.sampled_from((b"\xff" * 8, b"\0" * 8, b'"', b"[" * 200, b"\xdd\xff\xff\xff\xff")))
            case 4:
                other = draw(st.sampled_from(seeds))
                data[at:] = other[draw(st.integers(0, len(other))) :]
            case 5:
                if at < len(data):
                    data[at] ^= 1 << draw(st.integers(0, 7))
    return bytes(data)


@BY_NAME
def test_every_decoder_has_valid_inputs_and_a_corpus(target: Target) -> None:
    assert target.seeds()
    assert 1 <= len(corpus(target)) <= 64
    assert all(len(data) <= 8192 for data in corpus(target))


@pytest.mark.fault(40)
@BY_NAME
def test_a_corpus_ends_in_typed_errors_at_once(target: Target) -> None:
    inputs = [*target.seeds(), *corpus(target)]
    target.feed(inputs[0])  # what it imports is not what is measured
    for data in inputs:
        fed(target, data)


@pytest.mark.fault(40)
@BY_NAME
def test_damaged_inputs_end_in_typed_errors_at_once(target: Target) -> None:
    seeds = [*target.seeds(), *corpus(target)]
    target.feed(seeds[0])
    differ = 0

    @settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(damaged(seeds))
    def feed(data: bytes) -> None:
        nonlocal differ
        differ += data not in seeds
        fed(target, data)

    feed()
    assert differ > 100  # the fault happened: it was damaged


@pytest.mark.fault(40)
def test_no_decoder_needs_much_memory() -> None:
    """By the highest mark of a process of its own, which counts the libraries below Python, too."""
    program = """
import resource, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:]
from targets import TARGETS
for target in TARGETS.values():
    for seed in target.seeds():
        target.feed(seed)  # what it imports is not what is measured
for target in TARGETS.values():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in sorted(Path(sys.argv[1], "corpus", target.name).iterdir()):
        target.feed(path.read_bytes())
    print(target.name, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    command = [sys.executable, "-c", program, str(FUZZ), str(FUZZ.parents[1])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    grown = {name: int(count) for name, count in map(str.split, done.stdout.splitlines())}
    assert set(grown) == set(TARGETS)
    assert max(grown.values()) < GROWTH_BYTES, grown


def test_a_decoder_that_raises_anything_else_is_found() -> None:
    def feed(data: bytes) -> None:
        if data.startswith(b"\xff"):
            raise IndexError("as a decoder does that trusts a length")

    with pytest.raises(IndexError):
        fed(Target("bad", feed, list), b"\xff")


def test_a_decoder_that_takes_long_is_found() -> None:
    def feed(data: bytes) -> None:
        until = time.process_time() + 2 * LIMIT_S * SLACK
        while time.process_time() < until:
            pass

    with pytest.raises(AssertionError, match=r"bad: 0\.\d+ s for 1 bytes"):
        fed(Target("bad", feed, list), b"\xff")
