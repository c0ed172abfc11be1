import hashlib
import json
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.checkout import CHECKOUT, DATA

from tlsmgr.prng import drbg
from tlsmgr.prng.drbg import DrbgError, SelfTestError, State, generate, instantiate, reseed

VECTORS = Path(os.environ.get("TLSMGR_VECTORS", CHECKOUT.parent / "shared" / "vectors"))
KNOWN_ANSWERS = DATA / "hash_drbg_known_answers.json"
HASHES = ("sha256", "sha512")

ENTROPY, NONCE = bytes(range(32)), bytes(range(16))


def play(case: dict[str, Any], hash_name: str) -> Iterator[tuple[dict[str, Any], Any, State]]:
    """Run a case; yield each of its steps with the output and the state after it."""
    first = case["instantiate"]
    inputs = (bytes.fromhex(first[name]) for name in ("entropy", "nonce", "personalization"))
    entropy, nonce, personalization = inputs
    state = instantiate(entropy, nonce, personalization, hash_name)
    yield first, None, state
    for step in case["steps"]:
        output = None
        additional = bytes.fromhex(step["additional"])
        if "entropy" in step:  # a reseed, or prediction resistance (section 9.3.1)
            state = reseed(state, bytes.fromhex(step["entropy"]), additional)
            additional = b""
        if step["op"] == "generate":
            output, state = generate(state, step["bytes"], additional)
        yield step, output, state


def check(case: dict[str, Any], hash_name: str) -> int:
    """Compare what a case gives with what it must give; return the number of comparisons."""
    compared = 0
    for step, output, state in play(case, hash_name):
        if step.get("returned") is not None:
            assert output is not None
            assert output.hex() == step["returned"], case["id"]
            compared += 1
        if step.get("state"):
            found = {"V": state.V.hex(), "C": state.C.hex(), "reseed_counter": state.reseed_counter}
            assert found == step["state"], case["id"]
            compared += 1
    return compared


@pytest.mark.parametrize("hash_name", HASHES)
def test_vectors_of_nist(hash_name: str) -> None:
    path = VECTORS / f"hash_drbg_{hash_name}.json"
    if not path.exists():
        pytest.skip(f"no vectors of NIST at {path}; set TLSMGR_VECTORS")
    cases = json.loads(path.read_text())["cases"]
    assert len(cases) == 62
    compared = [check(case, hash_name) for case in cases]
    assert all(compared)
    assert sum(compared) >= 2 * len(cases)


@pytest.mark.parametrize("hash_name", HASHES)
def test_known_answers(hash_name: str) -> None:
    cases = json.loads(KNOWN_ANSWERS.read_text())[hash_name]
    assert len(cases) == 4
    assert all(check(case, hash_name) == 2 * len(case["steps"]) for case in cases)


@pytest.mark.parametrize("hash_name", HASHES)
def test_lengths_of_the_state(hash_name: str) -> None:
    state = instantiate(ENTROPY, NONCE, hash_name=hash_name)
    assert len(state.V) == len(state.C) == {"sha256": 55, "sha512": 111}[hash_name]
    assert state.reseed_counter == 1


@given(n=st.integers(0, 300), additional=st.binary(max_size=100), name=st.sampled_from(HASHES))
def test_a_short_request_is_a_prefix(n: int, additional: bytes, name: str) -> None:
    state = instantiate(ENTROPY, NONCE, b"prefix", name)
    longest, next_state = generate(state, 300, additional)
    assert generate(state, n, additional) == (longest[:n], next_state)


@given(data=st.binary(min_size=1, max_size=200), name=st.sampled_from(HASHES))
def test_every_input_matters(data: bytes, name: str) -> None:
    state = instantiate(ENTROPY, NONCE, b"", name)
    states = {
        state,
        instantiate(ENTROPY, NONCE, data, name),
        reseed(state, ENTROPY),
        reseed(state, ENTROPY, data),
        reseed(state, ENTROPY + data),
        generate(state, 32)[1],
        generate(state, 32, data)[1],
    }
    # A reseed takes its two inputs one after the other (section 10.1.1.3).
    assert len(states) == 6


def test_a_carry_runs_through_all_of_v() -> None:
    ones = State(b"\xff" * 55, b"\x00" * 54 + b"\x01", 1)
    output, state = generate(ones, 96)
    hashes = [hashlib.sha256(v).digest() for v in (ones.V, bytes(55), bytes(54) + b"\x01")]
    assert output == b"".join(hashes)
    h = int.from_bytes(hashlib.sha256(b"\x03" + ones.V).digest(), "big")
    assert int.from_bytes(state.V, "big") == h + 1  # V is -1, C and the counter add 2


def test_a_state_is_not_changed() -> None:
    state = instantiate(ENTROPY, NONCE)
    copy = State(*state)
    generate(state, 100, b"x")
    reseed(state, ENTROPY)
    assert state == copy
    with pytest.raises(AttributeError):
        state.V = b""  # type: ignore[misc]


def test_a_state_does_not_tell_its_secrets() -> None:
    state = State(b"secretV" * 8, b"secretC" * 8, 7)
    for text in (repr(state), str(state), f"{state}", repr([state])):
        assert "secret" not in text
        assert "7" in text


TOO_LONG = mmap.mmap(-1, (1 << 32) + 1)  # never touched, so it takes no memory


REFUSED: dict[str, tuple[Callable[[State], object], str]] = {
    "entropy": (lambda _: instantiate(bytes(31), bytes(100)), "too little entropy: 31"),
    "no entropy": (lambda _: instantiate(b"", b""), "too little entropy: 0"),
    "nonce": (lambda _: instantiate(bytes(32), bytes(15)), "nonce too short"),
    "hash": (lambda _: instantiate(bytes(32), bytes(16), b"", "md5"), "no such hash: 'md5'"),
    "entropy of a reseed": (lambda state: reseed(state, bytes(31)), "too little entropy: 31"),
    "request": (lambda state: generate(state, 65537), "request for 65537 bytes"),
    "negative request": (lambda state: generate(state, -1), "request for -1 bytes"),
    "counter": (
        lambda state: generate(state._replace(reseed_counter=(1 << 48) + 1), 1),
        "reseed required",
    ),
    "long entropy": (lambda _: instantiate(TOO_LONG, b""), "entropy input too long"),  # type: ignore[arg-type]
    "long nonce": (lambda _: instantiate(ENTROPY, TOO_LONG), "nonce too long"),  # type: ignore[arg-type]
    "long personalization": (
        lambda _: instantiate(ENTROPY, NONCE, TOO_LONG),  # type: ignore[arg-type]
        "personalization string too long",
    ),
    "long entropy of a reseed": (lambda state: reseed(state, TOO_LONG), "entropy input too long"),  # type: ignore[arg-type]
    "long input of a reseed": (
        lambda state: reseed(state, ENTROPY, TOO_LONG),  # type: ignore[arg-type]
        "additional input too long",
    ),
    "long input of a request": (
        lambda state: generate(state, 1, TOO_LONG),  # type: ignore[arg-type]
        "additional input too long",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_limits_of_the_standard(name: str) -> None:
    call, text = REFUSED[name]
    with pytest.raises(DrbgError, match=text):
        call(instantiate(ENTROPY, NONCE))


def test_what_the_limits_allow() -> None:
    state = instantiate(bytes(55), b"")  # the entropy input may bring the nonce (section 8.6.7)
    assert len(generate(state, 65536)[0]) == 65536
    last, state = generate(state._replace(reseed_counter=1 << 48), 32)
    assert len(last) == 32
    assert reseed(state, bytes(32)).reseed_counter == 1


def test_self_test_passes() -> None:
    drbg.self_test()


@pytest.mark.parametrize("hash_name", HASHES)
def test_self_test_finds_a_broken_hash(hash_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = drbg._HASHES[hash_name]

    def new(data: bytes) -> Any:
        return row.new(data + b"!")

    monkeypatch.setitem(drbg._HASHES, hash_name, row._replace(new=new))
    monkeypatch.setitem(drbg._HASH_OF_SEED, row.seed, row._replace(new=new))
    with pytest.raises(SelfTestError, match=hash_name):
        drbg.self_test()
