"""Hash_DRBG of NIST SP 800-90A Rev. 1 (section 10.1.1): a state goes in, a state comes out.

The mechanism behind the pool, and nothing else: no clock, no kernel, no memory of its own. The
pool uses it with SHA-256; SHA-512 runs through the same code. Both give a security strength of
256 bits (SP 800-57 part 1, table 3), and that is the only strength offered here.

Hash_DRBG, because with a short request it costs three hash calls and one addition, a fifth of
what HMAC_DRBG takes here. Nothing is cached, and a state is never changed: an old state can repeat
its output (section 8.8 asks for its destruction), so the caller overwrites it.

The standard's limits are enforced: 65,536 bytes a request, 2**48 requests between reseeds, inputs
of at most 2**32 bytes, and not less entropy than the strength. A call beyond one raises DrbgError.
self_test() must pass before the first output is used (section 11.3); its failure is fatal.
"""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

STRENGTH = 32  # bytes; security_strength of section 8.4, the highest that the standard knows
LONGEST_REQUEST = 65536  # bytes; table 2: 2**19 bits
LONGEST_INPUT = 1 << 32  # bytes; table 2: 2**35 bits
RESEED_INTERVAL = 1 << 48  # requests; table 2


class DrbgError(ValueError):
    """An input or a request that SP 800-90A does not allow; the text says which."""


class SelfTestError(Exception):
    """The mechanism does not give its known answers: none of its output may be used."""


class State(NamedTuple):
    """The working state of section 10.1.1.1: two secret values as long as the seed, and a count."""

    V: bytes
    C: bytes
    reseed_counter: int

    def __repr__(self) -> str:
        """Return a text without secrets, for logs and tracebacks."""
        return f"<State of Hash_DRBG, reseed_counter {self.reseed_counter}>"


class _Hash(NamedTuple):
    """A row of table 2: the hash, the bytes it gives, and the bytes of the seed."""

    new: Callable[[bytes], Any]
    size: int
    seed: int
    mask: int


_HASHES = {
    "sha256": _Hash(hashlib.sha256, 32, 55, (1 << 440) - 1),
    "sha512": _Hash(hashlib.sha512, 64, 111, (1 << 888) - 1),
}
_HASH_OF_SEED = {row.seed: row for row in _HASHES.values()}
_number = int.from_bytes


def instantiate(
    entropy: bytes, nonce: bytes, personalization: bytes = b"", hash_name: str = "sha256"
) -> State:
    """Make the first state (section 10.1.1.2) for the hash "sha256" or "sha512".

    `entropy` has at least 32 bytes, and with `nonce` at least 48: half the strength more
    (sections 8.6.7 and 9.1). Raises DrbgError.
    """
    if hash_name not in _HASHES:
        raise DrbgError(f"no such hash: {hash_name!r}; known: {', '.join(_HASHES)}")
    _check_entropy(entropy)
    _check_input("nonce", nonce)
    _check_input("personalization string", personalization)
    if len(entropy) + len(nonce) < STRENGTH * 3 // 2:
        wanted = STRENGTH * 3 // 2
        raise DrbgError(f"nonce too short: {wanted} bytes wanted with the entropy input")
    return _state_of_seed(_HASHES[hash_name], entropy + nonce + personalization)


def reseed(state: State, entropy: bytes, additional_input: bytes = b"") -> State:
    """Mix at least 32 bytes of fresh entropy into `state` (section 10.1.1.3). Raises DrbgError."""
    _check_entropy(entropy)
    _check_input("additional input", additional_input)
    material = b"\x01" + state.V + entropy + additional_input
    return _state_of_seed(_HASH_OF_SEED[len(state.V)], material)


def generate(state: State, n: int, additional_input: bytes = b"") -> tuple[bytes, State]:
    """Return `n` bytes, 0 to 65,536, and the next state (section 10.1.1.4). Raises DrbgError.

    `state` must not be used again. The next state does not depend on `n`.
    """
    v, c, reseed_counter = state
    output, v = step(v, c, reseed_counter, n, additional_input)
    return output, State(v, c, reseed_counter + 1)


def step(
    v_bytes: bytes, c_bytes: bytes, reseed_counter: int, n: int, additional_input: bytes
) -> tuple[bytes, bytes]:
    """Do what generate() does on a state in pieces: return `n` bytes and the next V.

    C stays as it is, and the next reseed_counter is one more.
    """
    if not 0 <= n <= LONGEST_REQUEST:
        raise DrbgError(f"request for {n} bytes: 0 to {LONGEST_REQUEST} are allowed")
    if reseed_counter > RESEED_INTERVAL:
        raise DrbgError("reseed required: the reseed interval is over")
    new, size, length, mask = row = _HASH_OF_SEED[len(v_bytes)]
    v = _number(v_bytes, "big")
    if additional_input:
        _check_input("additional input", additional_input)
        v += _number(new(b"\x02" + v_bytes + additional_input).digest(), "big")
        v_bytes = (v & mask).to_bytes(length, "big")
    output = new(v_bytes).digest()[:n] if n <= size else _hashgen(row, v_bytes, n)
    v += _number(new(b"\x03" + v_bytes).digest(), "big") + _number(c_bytes, "big")
    return output, ((v + reseed_counter) & mask).to_bytes(length, "big")


def self_test() -> None:
    """Run the known-answer tests of section 11.3. Raises SelfTestError."""
    for hash_name, answer in _KNOWN_ANSWERS.items():
        state = instantiate(bytes(range(32)), bytes(range(32, 48)), b"self-test", hash_name)
        state = reseed(state, bytes(range(64, 96)), b"reseed")
        first, state = generate(state, 80, b"generate")
        second, state = generate(state, 32)
        found = hashlib.sha256(first + second + state.V + state.C).hexdigest()
        if found != answer or state.reseed_counter != 3:
            raise SelfTestError(f"Hash_DRBG with {hash_name} does not give its known answer")


_KNOWN_ANSWERS = {  # SHA-256 of what self_test() makes, so that all of it is in the test
    "sha256": "a5346c63a9385ea28f50ed90b3e722bb920d804a52f5de78d1c04354f9fdd096",
    "sha512": "b2eb23ba0f12861e1d187888540fb9b4e9185d73896def0e956bd6b8d1cae868",
}


def _hashgen(row: _Hash, v_bytes: bytes, n: int) -> bytes:
    """Return `n` bytes made of the hashes of V, V + 1, ... (Hashgen of section 10.1.1.4)."""
    new, size, length, mask = row
    v = _number(v_bytes, "big")
    blocks = [new(((v + i) & mask).to_bytes(length, "big")).digest() for i in range(-(-n // size))]
    return b"".join(blocks)[:n]


def _state_of_seed(row: _Hash, material: bytes) -> State:
    """Derive V from `material` and C from V (sections 10.1.1.2 and 10.1.1.3)."""
    v = _hash_df(row, material)
    return State(v, _hash_df(row, b"\x00" + v), 1)


def _hash_df(row: _Hash, material: bytes) -> bytes:
    """Derive as many bytes as a seed has from `material` (Hash_df of section 10.3.1)."""
    tail = (row.seed * 8).to_bytes(4, "big") + material
    blocks = [row.new(bytes([i + 1]) + tail).digest() for i in range(-(-row.seed // row.size))]
    return b"".join(blocks)[: row.seed]


def _check_entropy(entropy: bytes) -> None:
    """Refuse an entropy input that is shorter than the strength or longer than allowed."""
    if len(entropy) < STRENGTH:
        raise DrbgError(f"too little entropy: {len(entropy)} bytes, at least {STRENGTH} wanted")
    _check_input("entropy input", entropy)


def _check_input(name: str, data: bytes) -> None:
    """Refuse an input that is longer than table 2 allows."""
    if len(data) > LONGEST_INPUT:
        raise DrbgError(f"{name} too long: {len(data)} bytes, at most {LONGEST_INPUT} allowed")
