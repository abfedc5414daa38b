"""Joining over real sockets: who gets in, who does not, and what leaves the node before it is sure."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from imlmesh import trust
from imlmesh_node.entering import Door, Told, Wish, enter, find_door
from imlmesh_node.exchange import exchange
from imlmesh_node.joining import NewKeys
from imlmesh_node.main import load_setup
from imlmesh_protocol import limits
from imlmesh_protocol.errors import MeshError
from imlmesh_protocol.states import Admission
from imlmesh_protocol.wire.codec import pack, unpack
from imlmesh_protocol.wire.joining import JoinAsk, JoinToken, proof_of
from imlmesh_runtime.trust import certificates_of, signer_of
from joined import QUIET, Front, join
from waiting import eventually


@pytest.fixture
async def front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Front]:
    monkeypatch.setattr(limits, "JOIN_POLL_MS", 100)
    # who finds nobody at its door listens for so long whether mDNS tells of another
    monkeypatch.setattr(limits, "DISCOVERY_QUIET_MS", 500)
    made = Front(tmp_path / "h")
    await made.open()
    yield made
    await made.close()


def refusal(caught: pytest.ExceptionInfo[MeshError]) -> str:
    return caught.value.code


async def test_a_token_brings_a_node_in_and_its_keys_never_leave_it(front, tmp_path):
    token = await front.token(groups=["garden"])
    folder = await join(tmp_path / "pi-bed", token)
    setup = load_setup(folder)
    assert (setup.config.mesh, setup.config.id) == ("home", "pi-bed")
    record = front.state.enrolled["pi-bed"]
    assert record.identity == setup.keys.signer.raw_public
    assert (record.profile, front.state.groups) == ("local_worker", {"garden": ("pi-bed",)})
    pem = (folder / "keys" / "node.pem").read_bytes()
    certificate = x509.load_der_x509_certificate(certificates_of(pem)[0])
    assert str(certificate.serial_number) in record.certificates
    assert not list(tmp_path.glob(".pi-bed*"))
    setup.keys.context()
    groups = await front.api(lambda client: client.get("groups"))
    assert [node["alias"] for node in groups["groups"][0]["nodes"]] == ["pi-bed"]


async def test_the_secret_is_stored_nowhere(front, tmp_path):
    token = await front.token()
    await join(tmp_path / "pi-bed", token)
    await front.close()
    files = [path for path in front.home.root.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if token.secret in path.read_bytes()]


async def test_the_ledger_tells_who_got_in_by_what_and_who_failed(front, tmp_path):
    token = await front.token()
    with pytest.raises(MeshError):
        await join(tmp_path / "eve", replace(token, secret=b"x" * 16))
    await join(tmp_path / "pi-bed", token)
    wanted = {"token-created", "token-proof-failed", "node-enrolled", "token-spent"}
    wanted.add("certificate-issued")
    entries = []
    async with asyncio.timeout(20):
        while not {each["kind"] for each in entries} >= wanted:
            # the mover makes entries a moment after the commit
            entries = (await front.api(lambda client: client.get("audit")))["entries"]
    actors = {each["kind"]: each["actor"] for each in entries}
    assert actors["node-enrolled"] == f"token {token.id}"
    subjects = {each["kind"]: each["subject"] for each in entries}
    assert (subjects["token-spent"], subjects["node-enrolled"]) == (token.id, "pi-bed")


async def test_a_lost_answer_costs_no_second_use(front, tmp_path):
    token = await front.token()
    keys = NewKeys.kept(tmp_path / "pi-bed")
    await enter(Wish("pi-bed", "", token), keys, QUIET)
    await join(tmp_path / "pi-bed", token)
    assert front.state.tokens[token.id].spent == 1
    with pytest.raises(MeshError) as caught:
        await join(tmp_path / "pi-roof", token)
    assert refusal(caught) == "token.used"


async def test_fifty_at_once_with_one_token_let_exactly_one_in(front, tmp_path):
    token = await front.token()
    keys = [NewKeys.make() for _ in range(50)]
    asked = (enter(Wish(f"pi-{n}", "", token), each, QUIET) for n, each in enumerate(keys))
    ended = await asyncio.gather(*asked, return_exceptions=True)
    codes = sorted(each.code if isinstance(each, MeshError) else "in" for each in ended)
    assert codes == ["in"] + ["token.used"] * 49
    assert len(front.state.enrolled) == 1
    assert front.refused["token.used"] == 49


@pytest.mark.parametrize("ended", ["token.revoked", "token.expired", "token.unknown"])
async def test_a_token_that_ended_is_told_why(front, tmp_path, ended):
    token = await front.token(ttl_ms=1)
    if ended == "token.revoked":
        token = await front.token()
        await front.api(lambda client: client.delete(f"tokens/{token.id}"))
    if ended == "token.unknown":
        token = replace(token, id="t-0")
    with pytest.raises(MeshError) as caught:
        await join(tmp_path / "pi-bed", token)
    assert refusal(caught) == ended
    assert (front.state.enrolled, front.refused[ended]) == ({}, 1)
    assert not (tmp_path / "pi-bed").exists()


async def test_wrong_secrets_are_counted_and_burn_the_token(front, tmp_path):
    token = await front.token(uses=9)
    wrong = replace(token, secret=b"x" * 16)
    for _ in range(limits.TOKEN_WRONG_PROOFS):
        with pytest.raises(MeshError) as caught:
            await join(tmp_path / "pi-bed", wrong)
        assert refusal(caught) == "token.proof"
    with pytest.raises(MeshError) as caught:
        await join(tmp_path / "pi-bed", token)
    assert refusal(caught) == "token.burnt"
    listed = await front.api(lambda client: client.get("tokens"))
    assert [(each["state"], each["wrong_proofs"]) for each in listed["tokens"]] == [("burnt", 5)]


async def test_tokens_and_who_waits_survive_a_restart(front, tmp_path):
    token = await front.token(uses=2)
    await join(tmp_path / "pi-bed", token)
    codes: asyncio.Queue[str] = asyncio.Queue()
    told = Told(lambda code, door: codes.put_nowait(code), lambda error: None)
    joining = asyncio.create_task(join(tmp_path / "pi-roof", None, told, at=(front.address,)))
    code = await asyncio.wait_for(codes.get(), 20)
    before = front.state
    await front.close()
    await front.open()
    assert front.state.enrolled == before.enrolled
    assert (front.state.tokens, front.state.joins) == (before.tokens, before.joins)
    assert front.state.aliases == before.aliases
    waiting = await front.api(lambda client: client.get("joins"))
    assert [(each["node"], each["code"]) for each in waiting["nodes"]] == [("pi-roof", code)]
    await front.api(lambda client: client.post(f"joins/{code}/approve", {"replaces": "pi-bed"}))
    await asyncio.wait_for(joining, 20)
    assert codes.empty()
    assert front.state.alias_of("pi-roof") == "pi-bed"
    before = front.state
    await front.close()
    await front.open()
    assert (front.state.aliases, front.state.enrolled) == (before.aliases, before.enrolled)
    await join(tmp_path / "pi-attic", token)


async def test_both_sides_show_the_same_code_and_ignoring_ends_the_wait(front, tmp_path):
    shown: asyncio.Queue[tuple[str, Door]] = asyncio.Queue()
    told = Told(lambda code, door: shown.put_nowait((code, door)), lambda error: None)
    joining = asyncio.create_task(join(tmp_path / "pi-bed", None, told, at=(front.address,)))
    code, door = await asyncio.wait_for(shown.get(), 20)
    (held,) = front.state.joins.values()
    assert (held.code, held.node, door.mesh) == (code, "pi-bed", "home")
    await front.api(lambda client: client.post("joins/pi-bed/ignore", {}))
    with pytest.raises(MeshError) as caught:
        await asyncio.wait_for(joining, 20)
    assert refusal(caught) == "join.ignored"
    assert not (tmp_path / "pi-bed").exists()


async def test_the_open_door_lets_in_who_asks_but_not_with_much_power(front, tmp_path):
    opened = await front.api(lambda client: client.put("joins", {"for_ms": 240_000}))
    assert opened["open_until_ms"] == pytest.approx(opened["now_ms"] + 240_000, abs=2_000)
    await join(tmp_path / "pi-bed", None, at=(front.address,))
    waits = asyncio.Event()
    told = Told(lambda code, door: waits.set(), lambda error: None)
    wish = join(tmp_path / "pi-roof", None, told, at=(front.address,), profile="power_user")
    joining = asyncio.create_task(wish)
    await asyncio.wait_for(waits.wait(), 20)
    assert list(front.state.enrolled) == ["pi-bed"]
    joining.cancel()


async def test_a_wrong_pin_ends_it_before_anything_of_the_secret_is_sent(front, tmp_path):
    """The server is a real one of another mesh, behind a wire that keeps every byte."""
    sent = bytearray()
    foreign = replace(await front.token(), pin=b"p" * 32)
    requests: list[bytes] = []
    endpoint = front.running.joining.endpoint
    original = endpoint._request

    async def noted(reader):
        readuntil, readexactly = reader.readuntil, reader.readexactly

        async def until(mark):
            data = await readuntil(mark)
            requests.append(data)
            return data

        async def exactly(count):
            data = await readexactly(count)
            requests.append(data)
            return data

        reader.readuntil, reader.readexactly = until, exactly
        return await original(reader)

    endpoint._request = noted
    with pytest.raises(MeshError) as caught:
        await join(tmp_path / "pi-bed", foreign, at=(front.address,))
    assert refusal(caught) == "join.pin"
    sent += b"".join(requests)
    assert sent.startswith(b"GET /v1/trust HTTP/1.1\r\n")
    assert len(requests) == 1
    keys = NewKeys.kept(tmp_path / "pi-bed")
    for derived in (foreign.secret, foreign.key, foreign.id.encode(), keys.identity):
        assert derived not in sent


class Asking:
    """A client that says what it likes, with a right token and keys of its own."""

    def __init__(self, front: Front, token: JoinToken) -> None:
        self.front = front
        self.token = token
        self.keys = NewKeys.make()

    async def ask(self, certificate: bytes | None = None, **changed) -> str:
        """The code of the refusal, or the state."""
        door = await find_door(Wish("pi-bed", "", self.token))
        nonce = (await exchange(door.address, door.context, "/v1/nonce"))["nonce"]
        fields = {"node": "pi-bed", "request": self.keys.request, "nonce": nonce}
        asked = JoinAsk(
            **{"profile": "", "identity": self.keys.identity, "token": self.token.id, **fields}
            | {name: value for name, value in changed.items() if name not in ("proof", "signature")}
        )

        def body(shown: bytes):
            proven = asked.to_prove("home", certificate or shown)
            proof = changed.get("proof", proof_of(self.token.key, proven))
            signed = changed.get("signature", signer_of(self.keys.identity_key).sign(proven))
            return replace(asked, proof=proof, signature=signed).to_wire()

        try:
            return str((await exchange(door.address, door.context, "/v1/join", body))["state"])
        except MeshError as exc:
            return exc.code


def request_of(key, name="pi-bed", *, ca=False) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    )
    if ca:
        others = [x509.DNSName("broker.home.imlmesh"), x509.DNSName("join.home.imlmesh")]
        builder = builder.add_extension(x509.SubjectAlternativeName(others), critical=False)
        constraint = x509.BasicConstraints(ca=True, path_length=None)
        builder = builder.add_extension(constraint, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


BAD = [
    ({"node": "a/b"}, "name.invalid"),
    ({"node": "a+"}, "name.invalid"),
    ({"node": "#"}, "name.invalid"),
    ({"node": "a.b"}, "name.invalid"),
    ({"node": "a\n"}, "name.invalid"),
    ({"node": "A"}, "name.invalid"),
    ({"node": "orchestra"}, "node.exists"),
    ({"node": "probe-a"}, "node.exists"),
    ({"profile": "root"}, "join.invalid"),
    ({"nonce": b"n" * 16}, "join.nonce"),
    ({"nonce": b""}, "join.invalid"),
    ({"signature": b"s" * 64}, "join.signature"),
    ({"identity": b"\x01" + b"\0" * 31}, "join.signature"),
    ({"identity": b"\0" * 32}, "join.signature"),
    ({"identity": b"i" * 32}, "join.signature"),
    ({"proof": b"p" * 32}, "token.proof"),
    ({"certificate": b"another server's"}, "join.signature"),
    ({"request": b"garbage"}, "signature.invalid"),
    ({"request": request_of(ec.generate_private_key(ec.SECP256R1()), "orchestra")}, "join.request"),
    ({"request": request_of(ec.generate_private_key(ec.SECP256R1()), ca=True)}, "join.request"),
    ({"request": request_of(rsa.generate_private_key(65537, 2048))}, "signature.invalid"),
    ({"request": request_of(ec.generate_private_key(ec.SECP192R1()))}, "signature.invalid"),
    ({"request": b"r" * 9_000}, "join.too_large"),
    ({"own": b"o" * 16}, "join.invalid"),
]


async def test_bad_input_is_refused_counted_and_changes_nothing(front):
    counted: Counter[str] = Counter()
    for changed, code in BAD:
        asking = Asking(front, await front.token())
        assert await asking.ask(**changed) == code, changed
        counted[code] += 1
        assert front.refused == counted, changed
        assert (front.state.enrolled, front.state.joins) == ({}, {})
        assert front.state.tokens[asking.token.id].spent == 0
    # nothing of it used the token up, and the next one is served
    assert await asking.ask() == "in"


async def test_an_id_in_use_is_refused(front):
    token = await front.token(uses=2)
    assert await Asking(front, token).ask() == "in"
    assert await Asking(front, token).ask() == "node.exists"
    assert front.state.tokens[token.id].spent == 1


async def test_a_removed_node_gets_no_more_certificates(front):
    asking = Asking(front, await front.token(uses=2))
    assert await asking.ask() == "in"
    shell = front.running.shell
    await shell.set_admission("pi-bed", Admission.REVOKED, "stolen", "anna", 0)
    assert await asking.ask() == "node.revoked"
    assert await asking.ask(token="", proof=b"") == "node.revoked"
    assert len(front.state.enrolled["pi-bed"].certificates) == 1


async def test_a_request_is_good_once(front):
    asking = Asking(front, await front.token(uses=9))
    nonce = (await exchange(front.address, (await _door(asking)).context, "/v1/nonce"))["nonce"]
    assert await asking.ask(nonce=nonce) == "in"
    assert await asking.ask(nonce=nonce) == "join.nonce"


async def _door(asking: Asking) -> Door:
    return await find_door(Wish("pi-bed", "", asking.token))


GARBAGE = [
    (b"GET / HTTP/1.1\r\n\r\n", "join.invalid"),
    (b"POST /v1/join HTTP/1.1\r\n\r\n", "join.invalid"),
    (b"POST /v1/join HTTP/1.1\r\ncontent-length: 99999\r\n\r\n", "join.too_large"),
    (b"POST /v1/join HTTP/1.1\r\ncontent-length: -1\r\n\r\n", "join.invalid"),
    (b"POST /v1/join HTTP/1.1\r\ncontent-length: 4\r\n\r\n\xff\xff\xff\xff", "message.invalid"),
    (b"POST /v1/join HTTP/1.1\r\ncontent-length: 1\r\n\r\n\x80", "join.invalid"),
    (b"POST /v1/nonce HTTP/1.1\r\ncontent-length: 1\r\n\r\n\x90", "join.invalid"),
    (b"GET /v1/trust" + b"x" * 9_000 + b"\r\n\r\n", "join.too_large"),
]


async def test_garbage_is_answered_with_a_code(front):
    counted: Counter[str] = Counter()
    for data, code in GARBAGE:
        head, _, body = (await front.raw(data)).partition(b"\r\n\r\n")
        assert unpack(body)["code"] == code, head
        counted[code] += 1
        assert front.refused == counted, data
    assert front.state.enrolled == {}


async def test_who_says_nothing_is_shown_the_door(front, monkeypatch):
    monkeypatch.setattr(limits, "JOIN_CONNECTION_MS", 200)
    assert await front.raw(b"GET /v1") == b""
    assert front.refused["join.invalid"] == 1


async def test_one_address_cannot_hold_the_door_shut(front, monkeypatch):
    monkeypatch.setattr(limits, "JOIN_OF_ADDRESS", 3)
    held = [await asyncio.open_connection(*front.address) for _ in range(4)]
    reader, _ = held[-1]
    assert await asyncio.wait_for(reader.read(), 20) == b""
    assert front.refused["join.busy"] == 1
    for _, writer in held:
        writer.close()


async def test_what_is_written_for_one_who_asks_again_and_again_is_bounded(front, monkeypatch):
    monkeypatch.setattr(limits, "JOIN_WRITES", 3)
    asking = Asking(front, await front.token())
    assert [await asking.ask() for _ in range(4)] == ["in", "in", "in", "join.busy"]
    assert len(front.state.enrolled["pi-bed"].certificates) == 3
    door = await _door(asking)
    for number in range(4):
        committed = {"commitment": bytes([number]) * 32}
        try:
            await exchange(door.address, door.context, "/v1/nonce", lambda _, c=committed: c)
        except MeshError as exc:
            ended = (number, exc.code)
    assert ended == (3, "join.busy"), "nobody tries codes until one is the wished-for one"


NO_TOKENS = [
    ({"uses": 0}, "usage"),
    ({"uses": limits.TOKEN_USES + 1}, "usage"),
    ({"uses": True}, "usage"),
    ({"ttl_ms": limits.TOKEN_LONGEST_MS + 1}, "usage"),
    ({"groups": ["a/b"]}, "name.invalid"),
    ({"groups": "cams"}, "usage"),
    ({"profile": "root"}, "config.invalid"),
]


async def test_a_token_that_cannot_be_is_not_made(front):
    for asked, code in NO_TOKENS:
        with pytest.raises(MeshError) as caught:
            await front.token(**asked)
        assert refusal(caught) == code, asked
        assert front.state.tokens == {}


async def test_who_waits_is_told_and_who_never_came_is_listed(front, tmp_path):
    await join(tmp_path / "pi-bed", await front.token())
    health = await front.api(lambda client: client.get("health"))
    host, port = front.address
    assert health["join"] == {"endpoints": [f"{host}:{port}"], "waiting": 0}
    listed = await front.api(lambda client: client.get("nodes"))
    assert (listed["nodes"], listed["never_here"]) == ([], ["pi-bed"])
    for path, body in (("joins/x/approve", {}), ("joins/x/ignore", {})):
        with pytest.raises(MeshError) as caught:
            await front.api(lambda client, path=path, body=body: client.post(path, body))
        assert refusal(caught) == "join.not_found"
    with pytest.raises(MeshError) as caught:
        await front.api(lambda client: client.put("joins", {"for_ms": limits.JOIN_OPEN_MS + 1}))
    assert refusal(caught) == "usage"


async def test_the_port_stays_where_tokens_say_it_is(front, tmp_path):
    token, before = await front.token(), front.address
    await front.close()
    await front.open()
    assert front.address == before
    await join(tmp_path / "pi-bed", token)


async def test_the_code_is_worth_nothing_without_its_commitment(front):
    asking = Asking(front, await front.token())
    door = await _door(asking)
    for committed in (None, {"commitment": b"c" * 32}):
        made = None if committed is None else lambda _, said=committed: said
        nonce = (await exchange(door.address, door.context, "/v1/nonce", made))["nonce"]
        changed = {"token": "", "proof": b"", "own": b"o" * 16, "nonce": nonce}
        assert await asking.ask(**changed) == "join.nonce"
    assert front.state.joins == {}
    assert pack({}) == b"\x80"


async def test_who_waits_asks_again_whatever_nonce_an_ended_orchestrator_gave(front, tmp_path):
    """A restart between the nonce and the question that uses it."""
    waits = asyncio.Event()
    troubles: asyncio.Queue[MeshError | None] = asyncio.Queue()
    told = Told(lambda code, door: waits.set(), troubles.put_nowait)
    joining = asyncio.create_task(join(tmp_path / "pi-bed", None, told, at=(front.address,)))
    await asyncio.wait_for(waits.wait(), 20)
    nonces = front.running.joining._nonces
    give = nonces.give
    nonces.give = lambda now_ms, commitment=b"": b"n" * 16
    trouble = await asyncio.wait_for(troubles.get(), 20)
    assert (trouble and trouble.code) == "join.nonce"
    nonces.give = give
    await front.api(lambda client: client.post("joins/pi-bed/approve", {}))
    await asyncio.wait_for(joining, 20)
    assert await asyncio.wait_for(troubles.get(), 1) is None, "told that it is good again"


async def test_who_waits_stays_when_a_stranger_sits_in_the_place_of_its_mesh(front, tmp_path):
    """While an orchestrator starts again another mesh may take its port."""
    waits = asyncio.Event()
    told = Told(lambda code, door: waits.set(), lambda error: None)
    joining = asyncio.create_task(join(tmp_path / "pi-bed", None, told, at=(front.address,)))
    await asyncio.wait_for(waits.wait(), 20)
    address = front.address
    await front.close()
    stranger = Front(tmp_path / "other")
    await stranger.open(address)
    assert stranger.address == address
    await eventually(lambda: stranger.refused.get("join.invalid", 0) >= 1)
    assert stranger.state.joins == {}
    await stranger.close()
    await front.open(address)
    await front.api(lambda client: client.post("joins/pi-bed/approve", {}))
    await asyncio.wait_for(joining, 20)
    assert list(front.state.enrolled) == ["pi-bed"]


async def test_who_waits_follows_its_mesh_to_another_control_ca(front, tmp_path, monkeypatch):
    """Its root key tells that it is the same mesh, whatever the certificate was that it began with."""
    broker = SimpleNamespace(takes=lambda *_: True, shows=lambda *_: True)
    monkeypatch.setattr(trust, "_broker", lambda *_: broker)
    waits = asyncio.Event()
    told = Told(lambda code, door: waits.set(), lambda error: None)
    joining = asyncio.create_task(join(tmp_path / "pi-bed", None, told, at=(front.address,)))
    await asyncio.wait_for(waits.wait(), 20)
    home = str(front.home.root)
    await asyncio.to_thread(trust.rotate, home, "control-ca", None)
    await asyncio.to_thread(trust.finish, home, "control-ca", None, anyway=True)
    await eventually(lambda: front.refused.get("join.invalid", 0) >= 1)
    await front.api(lambda client: client.post("joins/pi-bed/approve", {}))
    folder = await asyncio.wait_for(joining, 20)
    assert load_setup(folder).config.id == "pi-bed"
