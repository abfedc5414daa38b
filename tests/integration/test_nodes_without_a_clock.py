"""Nodes whose wall clock is years off: mesh time is what the orchestrator answers to a nonce.

For a node it is the same whether its own clock or everybody else's is off, so here the others live in
another year: mesh time, and the dates of the broker's certificate.
"""

import datetime
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from imlmesh_protocol.limits import MESSAGE_EXPIRY_MS, TIME_ASK_MS
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.topics import Kind
from imlmesh_runtime.paths import Home
from scripted_control import (
    MESH,
    NODE,
    WITHIN_S,
    dispatch,
    is_birth,
    now_ms,
    opened_control,
    opened_home,
    opened_node,
    wait_for,
)

YEAR_MS = 365 * 86_400_000


def dated(years: int) -> Callable[[Home], None]:
    """Gives the broker a certificate of the year that is so many years from now."""

    def change(home: Home) -> None:
        path = home.broker / "broker.pem"
        own = x509.load_pem_x509_certificate(path.read_bytes())
        ca = serialization.load_pem_private_key((home.ca / "control-ca.key").read_bytes(), None)
        middle = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=365 * years)
        half = datetime.timedelta(days=180)
        made = x509.CertificateBuilder(
            own.issuer,
            own.subject,
            own.public_key(),
            own.serial_number,
            middle - half,
            middle + half,
        )
        for extension in own.extensions:
            made = made.add_extension(extension.value, extension.critical)
        signed = made.sign(ca, hashes.SHA256())  # type: ignore[arg-type]
        path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))

    return change


@pytest.mark.parametrize("years", [-30, -2, 2, 30])
async def test_a_node_that_lives_in_another_year_joins_and_works(
    tmp_path: Path, years: int
) -> None:
    async with opened_home(tmp_path, dated(years)) as home, opened_control(*home) as control:
        control.ahead_ms = years * YEAR_MS
        async with opened_node(*home) as node:
            birth = await control.wait(is_birth)
            assert abs(birth.iat - now_ms() - control.ahead_ms) < WITHIN_S * 1_000
            one, two = (dispatch(number, marker=f"good-{number}") for number in (1, 2))
            control.delegate(one)
            assert (await control.result(one))["outcome"] == "completed"
            # of this machine's now, which is no time of the mesh
            control.ahead_ms = 0
            control.delegate(dispatch(3, marker="bad"))
            control.ahead_ms = years * YEAR_MS
            control.delegate(two)
            assert (await control.result(two))["outcome"] == "completed"
            assert {path.name for path in (node.folder / "files").iterdir()} == {"good-1", "good-2"}
            await wait_for(lambda: '"code": "message.expired"' in node.log.read_text())


async def test_a_broker_s_certificate_that_mesh_time_does_not_allow_is_no_broker(
    tmp_path: Path,
) -> None:
    async with (
        opened_home(tmp_path, dated(-2)) as home,
        opened_control(*home) as control,
        opened_node(*home) as node,
    ):
        await control.wait(lambda m: m.kind is Kind.STATUS and m.fields["state"] == "gone")
        control.delegate(dispatch(1, marker="bad"))
        await control.wait(lambda m: m.kind is Kind.REQUEST and m.session > 1)
        assert not any(is_birth(message) for message in control.heard)
        assert not (node.folder / "files" / "bad").exists()


async def test_an_answer_of_another_time_sets_no_clock(tmp_path: Path) -> None:
    async with opened_home(tmp_path) as home, opened_control(*home) as control:
        control.tells_time = False
        async with opened_node(*home) as node:
            first = await control.wait(lambda m: m.kind is Kind.REQUEST)
            control.ahead_ms = -2 * MESSAGE_EXPIRY_MS
            old = control.tell_time(first)
            await control.wait(is_birth)
            await node.end(signal.SIGKILL)
            control.heard.clear()
            await node.start()
            asked = await control.wait(lambda m: m.kind is Kind.REQUEST)
            for _ in range(3):
                control.link.publish(topics.to_node(MESH, NODE, Kind.RESPONSE), old)
            # it waits for an answer to its own question
            await control.wait(
                lambda m: m.kind is Kind.REQUEST and m.fields["nonce"] != asked.fields["nonce"],
                2 * TIME_ASK_MS / 1_000,
            )
            assert not any(is_birth(message) for message in control.heard)
            control.ahead_ms = 0
            control.tells_time = True
            await control.wait(is_birth)
            control.delegate(one := dispatch(1, marker="good"))
            assert (await control.result(one))["outcome"] == "completed"
            assert '"code": "message.session"' in node.log.read_text()
