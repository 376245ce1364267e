"""Every decoder of bytes from outside, fed with what is nearly right: an error of ours or a value, soon and small.

VEILFED_FUZZ is the number of inputs in all; a decoder that crashes, hangs or allocates what a header promises fails.
"""

import contextlib
import io
import json
import os
import resource
import socket
import ssl
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from safetensors.numpy import save

from client import local_socket
from client.policy import SitePolicy
from client.site import Site, SiteSettings
from client.windows import Window
from common import bundle
from common.addresses import Address
from common.append_log import AppendLog
from common.certificates import Authority, Certificate, SigningRequest, now_utc, read_roots
from common.config import fill, load_table, to_table
from common.enrolment import KIT_CONTEXT, REQUEST_CONTEXT, Kit, Request
from common.errors import FederationError, TrustError
from common.federation import Plan
from common.he.ciphertexts import Aggregate, Ciphertext
from common.he.keys import unwrap, wrap
from common.he.parameters import PRESETS
from common.he.scheme import CohortKey, encrypt, open_sum
from common.he.sealing import ExchangeKey, open_sealed, seal
from common.he.shares import SHARE_BYTES, combine_shares, split_secret
from common.keystore import load_secret, save_secret
from common.masking import Lifting, Offer, Published, split_package
from common.model_state import ModelState, ModelVersion
from common.roster import CONTEXT as ROSTER_CONTEXT
from common.roster import COORDINATOR, Roster
from common.signed_json import signed_table
from common.signing import Identity
from common.signing import verify as check
from common.tls_keys import TlsKey, public_key
from common.wire import Envelope, Kind, decode, encode, from_hex, from_json, plan_hash, to_json
from scenarios.simulation import Simulation
from server.aggregate_encrypted import BlindSum
from server.round import refusal_of
from tests.by_hand import NAMES, TINY, Coordinator, workplace
from tests.fuzz.mutations import bytes_like, json_like, nearly, tables_like

INPUTS = int(os.environ.get("VEILFED_FUZZ", "2500"))
SLOWEST_SECONDS = 20.0  # far above what any input may take, far below a hang
MOST_MEMORY = 2 << 30  # bytes on top of what the process holds when a test begins
IN_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: S108 - files that live as long as a test
RUN, PLAN = b"r" * 16, b"p" * 32
ALICE = Identity.generate()
ROSTER = Roster({"alice": ALICE.public, COORDINATOR: Identity.generate().public})
SCHEME = PRESETS["compact"]


@pytest.fixture(scope="module", autouse=True)
def little_memory() -> Iterator[None]:
    """Whatever allocates what a header promises gets a MemoryError, which is no error of ours."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + MOST_MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as place:
        yield Path(place)


def fuzz(inputs: SearchStrategy[Any], decoder: Callable[[Any], object], share: float = 0.04) -> None:
    """Feed `share` of all inputs to the decoder. It may raise errors of ours and nothing else."""

    @settings(
        max_examples=max(1, int(INPUTS * share)),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def feed(data: Any) -> None:
        started = time.perf_counter()
        try:
            decoder(data)
        except FederationError as error:
            to_json({"message": error.message})  # it can be sent in a refusal
        assert time.perf_counter() - started < SLOWEST_SECONDS

    feed()


# Bytes.


def test_envelopes():
    good = [
        encode(Envelope(kind, RUN, 7, PLAN, "alice", body), ALICE if kind.signed else None)
        for kind in Kind
        for body in (b"", b"{}", bytes(100))
    ]
    fuzz(bytes_like(good), lambda data: decode(data, ROSTER.public_key_of), 0.1)


def test_json_bodies():
    tables = [{"a": [1, {"b": "c"}], "d": None}, to_table(Plan())]

    def decoder(data: bytes) -> None:
        assert to_json(from_json(data)) == data

    fuzz(json_like(tables), decoder)
    spellings = [
        b'{"a":"\\ud800"}',
        b'{"a":1, "b":2}',
        b'{"b":1,"a":2}',
        b'{"a":1,"a":1}',
        b'{"a":1.0}',
        b'{"a":1e999}',
    ]
    fuzz(bytes_like(spellings), decoder, 0.02)
    fuzz(st.text() | st.none() | st.integers() | st.binary(), from_hex, 0.01)


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("length", [1, 200])
def test_ciphertexts(preset, length):
    scheme = PRESETS[preset]
    key = CohortKey.generate(scheme)
    good = [encrypt(np.arange(length), key).encode() for _ in range(2)]
    fuzz(bytes_like(good), lambda data: Ciphertext.decode(scheme, length, data), 0.02)


@pytest.mark.parametrize("sites", [1, 5])
def test_sums_and_what_opens_of_them(sites):
    key, total = CohortKey.generate(SCHEME), BlindSum(SCHEME, 70)
    for _ in range(sites):
        total.add(encrypt(np.arange(70), key))
    masks = np.zeros(SCHEME.coefficients(70), np.uint64)
    fuzz(
        bytes_like([total.result().encode()]),
        lambda data: [open_sum(one, key, masks) for one in Aggregate.decode_all(SCHEME, 70, data)],
        0.03,
    )


def test_cohort_keys():
    key, maker, mine = CohortKey.generate(SCHEME), ExchangeKey.generate(), ExchangeKey.generate()
    wrapped = wrap(key, maker, {"alice": mine.public}, b"context")
    box = wrapped.boxes["alice"]
    fuzz(bytes_like([key.export_for_wrapping()]), lambda data: CohortKey.load(SCHEME, data), 0.02)
    fuzz(
        bytes_like([wrapped.wrapped]),
        lambda data: unwrap(data, box, "alice", mine, maker.public, b"context", SCHEME),
        0.02,
    )
    fuzz(
        bytes_like([box]),
        lambda data: unwrap(wrapped.wrapped, data, "alice", mine, maker.public, b"context", SCHEME),
        0.02,
    )


def test_sealed_boxes_and_public_keys():
    sender, mine = ExchangeKey.generate(), ExchangeKey.generate()
    box = seal(sender, mine.public, bytes(2 * SHARE_BYTES), b"context")
    fuzz(bytes_like([box]), lambda data: open_sealed(mine, sender.public, data, b"context"))
    low_order = [bytes(32), b"\1" + bytes(31), b"\xff" * 32, sender.public]
    fuzz(bytes_like(low_order), lambda data: open_sealed(mine, data, box, b"context"), 0.02)
    fuzz(bytes_like(low_order), lambda data: mine.agree(data, b"info"), 0.02)


def test_shares_and_packages():
    shares = split_secret(bytes(32), 3, NAMES)
    fuzz(bytes_like([bytes(2 * SHARE_BYTES)]), split_package, 0.01)
    texts = st.sampled_from([*NAMES, "x"])
    fuzz(st.dictionaries(texts, bytes_like(list(shares.values())), max_size=5), lambda data: combine_shares(data, 3))


def test_published_sums():
    pairs = {("b", "c"): bytes(32), ("a", "c"): b"\1" * 32}
    good = Published(("a", "b"), ("00" * 40,), Lifting({"a": bytes(32), "b": bytes(32)}, pairs), bytes(30)).encode()
    fuzz(bytes_like([good]), Published.decode)
    heads = [from_json(good[4:-30]), {"self": {}, "pairs": []}]
    fuzz(tables_like(heads), Lifting.from_json)


def test_offers():
    good = from_json(Offer(bytes(32), b"\1" * 32, bytes(32)).encode())
    fuzz(json_like([good]), lambda body: Offer.of(Envelope(Kind.OFFER, RUN, 1, PLAN, "a", body), RUN, PLAN, 1), 0.02)


def test_refusals():
    good = {"code": "TrustError", "exit_code": 4, "message": "no"}
    fuzz(json_like([good]), lambda body: refusal_of(Envelope(Kind.REFUSAL, RUN, 1, PLAN, "a", body)), 0.02)


# Files.


def written(path: Path, reader: Callable[[Path], object]) -> Callable[[bytes], object]:
    def decoder(data: bytes) -> object:
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        path.chmod(0o600)
        return reader(path)

    return decoder


def test_model_states(memory):
    good = ModelState.initial(np.arange(5.0)).to_bytes()

    def decoder(data: bytes) -> None:
        state = ModelState.from_bytes(data)
        assert state.model.dtype == np.float32
        assert state.model.shape == (state.model.size,)
        assert {state.velocity.shape, state.second_moment.shape, state.average.shape} <= {(0,), state.model.shape}
        assert state.round_number >= 0

    def head(path: Path) -> None:
        version = ModelVersion.read(path)
        assert version.round_number >= 0
        assert version.size >= 0

    huge = json.dumps({"model": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 2**62]}}).encode()
    promise = len(huge).to_bytes(8, "little") + huge
    fuzz(bytes_like([good, promise, (2**60).to_bytes(8, "little") + good[8:]]), decoder)
    fuzz(bytes_like([good, promise, (2**60).to_bytes(8, "little") + good[8:]]), written(memory / "state", head))
    vectors = {name: np.zeros(3, np.float32) for name in ("model", "velocity", "second_moment", "average")}
    vectors["hash"] = np.frombuffer(ModelState.initial(vectors["model"]).model_hash, np.uint8)
    counters = np.array([1, 1])
    decoder(save({"counters": counters, **vectors}))
    for odd in (
        {"counters": np.array([np.inf, 0.0])},
        {"counters": np.array([-1, 0])},
        {"counters": np.array([1, 2, 3])},
        {"model": np.zeros(3)},
        {"model": np.zeros((3, 1), np.float32)},
        {"velocity": np.zeros(2, np.float32)},
        {"average": np.zeros(0, np.float32)},
        {"model": np.ones(3, np.float32)},
        {"hash": np.zeros(32, np.uint8)},
    ):
        with pytest.raises(TrustError):
            decoder(save({"counters": counters, **vectors, **odd}))


@pytest.mark.parametrize("signed", [False, True])
def test_logs(memory, signed):
    path = memory / f"log-{signed}.jsonl"
    sign = (lambda data: ALICE.sign("log", data)) if signed else None
    log = AppendLog(path, sign=sign)
    for number in range(3):
        log.append({"number": number, "text": "x"})
    good = path.read_bytes()
    verify = (lambda signature, data: check(ALICE.public, "log", data, signature)) if signed else None

    def decoder(path: Path) -> None:
        AppendLog(path, verify=verify, read_only=True)
        AppendLog(path, verify=verify, sign=sign)  # mends what a crash cut short

    fuzz(bytes_like([good, good[:-9]]), written(path, decoder))


def test_rosters(memory):
    """Broken in its bytes, and well signed but with anything inside, beside a file of roots that may be broken too."""
    path, root = memory / "roster.json", Identity.generate()
    authority = Authority.make(root, "consortium", now_utc())
    nodes = {"alice": TlsKey.generate().public}
    good = replace(ROSTER, nodes=nodes, bundles=(bytes(32),), revoked=frozenset({"bob"})).signed([root])
    path.with_name("roots.pem").write_bytes(authority.root.pem)
    Roster.read(written(path, lambda path: path)(to_json(good)))
    fuzz(bytes_like([to_json(good), b"[" * 100_000]), written(path, Roster.read))

    def signed(said: dict[str, Any]) -> Roster:
        return Roster.opened(signed_table(ROSTER_CONTEXT, said, [root]), [authority.root])

    fuzz(tables_like([good["said"]]), signed)
    path.write_bytes(to_json(good))
    fuzz(bytes_like([authority.root.pem * 2]), written(path.with_name("roots.pem"), lambda _: Roster.read(path)), 0.02)


def test_requests():
    """Broken in its bytes; well signed but with anything inside; and the certificate signing request by itself."""
    identity, node = Identity.generate(), TlsKey.generate()
    good = Request.make("adler", Address("localhost", 8443), identity, node)
    assert Request.read(good).name == "adler"
    fuzz(bytes_like([good]), Request.read)
    said = from_json(good)["said"]

    def signed(said: dict[str, Any]) -> Request:
        return Request.read(to_json(signed_table(REQUEST_CONTEXT, said, [identity])))

    fuzz(tables_like([said]), signed, 0.02)
    asked = SigningRequest.make(node, "adler", identity.public)
    fuzz(bytes_like([asked]), SigningRequest.read, 0.02)
    fuzz(nearly_der(asked, "CERTIFICATE REQUEST"), SigningRequest.read)
    lines = [node.public, Identity.generate().public.hex(), "ssh-ed25519 AAAA"]
    fuzz(
        bytes_like([line.encode() for line in lines]).map(lambda data: data.decode(errors="replace")), public_key, 0.01
    )


def test_kits():
    """Broken in their bytes; well signed but with anything inside; and the certificates in them by themselves."""
    root, node = Identity.generate(), TlsKey.generate()
    authority = Authority.make(root, "consortium", now_utc())
    issued = authority.certify_client(node.public, "alice", "site", now_utc())
    roster = replace(ROSTER, nodes={"alice": node.public}).signed([root])
    server = Address("localhost", 8443)
    good = Kit.make(server, [authority.root], Certificate.read(issued), roster, [root])
    assert Kit.read(good, authority.root).name == "alice"
    fuzz(bytes_like([good]), lambda data: Kit.read(data, authority.root))

    def signed(said: dict[str, Any]) -> Kit:
        return Kit.read(to_json(signed_table(KIT_CONTEXT, said, [root])), authority.root)

    fuzz(tables_like([from_json(good)["said"]]), signed, 0.02)

    def trusted(data: bytes) -> None:
        certificate = Certificate.read(data)
        str((certificate.name, certificate.role, certificate.consortium, certificate.public, certificate.serial))
        certificate.is_near_end(now_utc())
        certificate.require_client([authority.root], now_utc())

    for pem, reader in ((issued, trusted), (authority.root.pem, read_roots)):
        fuzz(bytes_like([pem]), reader, 0.02)
        fuzz(nearly_der(pem, "CERTIFICATE"), reader)


def nearly_der(pem: bytes, label: str) -> SearchStrategy[bytes]:
    """PEM whose frame is whole and whose inside is not: what a decoder of ASN.1 gets to see."""
    der = ssl.PEM_cert_to_DER_cert(pem.decode().replace(label, "CERTIFICATE"))
    return bytes_like([der]).map(lambda data: ssl.DER_cert_to_PEM_cert(data).replace("CERTIFICATE", label).encode())


def test_key_files(memory):
    path = memory / "secret"
    save_secret(path, bytes(32), None)
    fuzz(bytes_like([path.read_bytes()]), written(path, lambda path: load_secret(path, None)), 0.02)


def test_bundles():
    """Well signed each time, so that everything behind the signature is reached; then the signature itself."""
    good = bundle.build(Plan())
    plain = io.BytesIO()
    with zipfile.ZipFile(plain, "w") as archive:  # stored as they are: a change reaches the files within
        for name, data in bundle._files(good).items():
            archive.writestr(name, data)
    seeds = [good, plain.getvalue()]
    fuzz(bytes_like(seeds), lambda data: bundle.opened(data, bundle.sign(data, ALICE, RUN), [ALICE.public], RUN))
    signature = bundle.sign(good, ALICE, RUN)
    texts = nearly([signature.encode()]).map(lambda data: data.decode("latin-1")) | st.text(max_size=9)
    fuzz(texts, lambda text: bundle.opened(good, text, [ALICE.public], RUN), 0.02)


def test_messages_on_the_sites_own_socket():
    def received(data: bytes) -> None:
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with mine, theirs, contextlib.suppress(ConnectionError):
            mine.sendall(data)
            mine.close()
            local_socket.receive(theirs)

    head = to_json({"action": "join", "bundle": "AAAA", "signature": "00:00"})
    good = len(head).to_bytes(4, "big") + head + (5).to_bytes(8, "big") + b"order"
    fuzz(bytes_like([good, good + good]), received)
    fuzz(json_like([from_json(head)]).map(lambda head: len(head).to_bytes(4, "big") + head + bytes(8)), received, 0.02)


@pytest.mark.parametrize("into", [Simulation, SiteSettings, SitePolicy, Plan])
def test_settings(memory, into):
    site = {"name": "a", "data": {"name": "d", "loader": "m:f"}}
    policy = to_table(SitePolicy(1.0, 1e-5, windows=(Window("22:00", "06:00"),)))
    tables = {
        Simulation: [to_table(Simulation()), TINY],
        SiteSettings: [site],
        SitePolicy: [policy],
        Plan: [to_table(Plan())],
    }[into]
    fuzz(tables_like(tables), lambda table: fill(into, table), 0.02)
    texts = [tomli_w.dumps(table).encode() for table in tables]
    texts += [b"a = " + b"[" * 5000, b"[privacy]\nepsilon = 1" + b"0" * 400]
    fuzz(bytes_like(texts), written(memory / "file.toml", lambda path: fill(into, load_table(path))), 0.02)
    assert tomllib.loads(texts[0].decode())


# Orders, signed by the coordinator itself, to a site in the middle of a run.


@pytest.fixture(scope="module")
def played(memory) -> Coordinator:
    made = Coordinator.ready(memory / "run")
    made.first = made.whole_round(1)
    made.made = made.offers(2)
    made.updates = made.train(2, made.made)
    for path in made.place.sites:
        settings_file = path / "policy.toml"
        table = load_table(settings_file)
        table["max_weights"] = 1_000_000
        settings_file.write_text(tomli_w.dumps(table))
    return made


def orders(played: Coordinator, action: str) -> list[dict[str, Any]]:
    total = played.total(played.updates.values())
    wanted = played.wanted(NAMES, total)
    agreed = [played.send(name, "agree", played.order(2, wanted)).hex() for name in NAMES]
    return {
        "join": [played.join_order(), *(played.join_order(model=model) for model in GREEDY)],
        "make_key": [{"joined": played.joined}],
        "install_key": [{"joined": played.joined, "made": played.made_key}],
        "offer": [{}],
        "train": [played.training(NAMES[0], played.made)],
        "agree": [wanted],
        "unmask": [{**wanted, "agreed": agreed}],
        "stand_in": [{**wanted, "agreed": agreed, "silent": [NAMES[1]]}],
        "release": [{}],
        "apply": [{"sites": list(NAMES), "agreed": agreed, **Lifting({}, {}).to_json()}],
    }[action]


GREEDY = (
    {"factory": "mlp", "inputs": [3], "classes": 2, "hidden": [2**26, 2**26], "seed": 0},
    {"factory": "mlp", "inputs": [3], "classes": 2, "hidden": [2**20] * 3, "seed": 0},
    {"factory": "logistic", "inputs": [2**40], "classes": 2, "hidden": [], "seed": 0},
    {"factory": "cnn", "inputs": [3, 2**16, 2**16], "classes": 2**20, "hidden": [], "seed": 0},
    {"factory": "os:system", "inputs": [3], "classes": 2, "hidden": [], "seed": 0},
)
ACTIONS = ("join", "make_key", "install_key", "offer", "train", "agree", "unmask", "stand_in", "release", "apply")


def answered(played: Coordinator, action: str, data: bytes) -> None:
    """Whatever a site is sent, it answers with one signed envelope, and a refusal is on record."""
    site: Site = played.site(NAMES[0])
    before = len(site.audit.entries())
    said = played.read(played.send(NAMES[0], action, data))
    assert said.sender == NAMES[0]
    if said.kind is Kind.REFUSAL:
        assert len(site.audit.entries()) == before + 1


@pytest.mark.parametrize("action", ACTIONS)
def test_orders(played, action):
    run = played.directories[NAMES[0]] / "runs" / played.store.run.hex()
    kinds = st.sampled_from([Kind.AGGREGATE if action == "apply" else Kind.ORDER] * 5 + list(Kind))

    def decoder(sent: tuple[bytes, Kind, int, bytes]) -> None:
        body, kind, number, new_run = sent
        (run / "update-000002").unlink(missing_ok=True)  # so that training orders are read
        changes: dict[str, Any] = {"kind": kind}
        if action == "join" and new_run:
            changes["run"] = new_run
            with contextlib.suppress(FederationError, KeyError, TypeError, AttributeError):
                changes["plan"] = plan_hash(fill(Plan, from_json(body)["plan"]))
        if action == "apply":
            body = len(body).to_bytes(4, "big") + body + played.first.total
        answered(played, action, played.order(number, body, **changes))

    numbers = st.sampled_from(
        [{"join": 0, "release": 0, "make_key": 1, "install_key": 1}.get(action, 2)] * 8 + [1, 3, 2**32 - 1]
    )
    runs = st.sampled_from([b"", bytes(16), b"n" * 16])
    fuzz(st.tuples(json_like(orders(played, action)), kinds, numbers, runs), decoder)


def test_readable_orders(memory):
    readable = Coordinator(workplace(memory / "readable", NAMES, "encryption.preset=none"))
    readable.join()

    def decoder(sent: tuple[bytes, int]) -> None:
        answered(readable, "train", readable.order(sent[1], sent[0], kind=Kind.READABLE_ORDER))

    models = [np.zeros(size, "<f4").tobytes() for size in (7, 8, 9)] + [np.full(8, np.nan, "<f4").tobytes()]
    fuzz(st.tuples(bytes_like(models), st.sampled_from([0, 1, 2, 4, 2**32 - 1])), decoder, 0.02)


def test_orders_whose_envelope_is_broken(played):
    good = [played.order(2, body) for action in ("offer", "agree", "train") for body in orders(played, action)]
    fuzz(st.tuples(st.sampled_from(ACTIONS), bytes_like(good)), lambda sent: answered(played, *sent), 0.02)
