"""Documents in a node's folder that a disk spoilt: the error names the file, since nobody sent it now."""

from pathlib import Path

import pytest

from imlmesh_orchestrator.ca import Authority
from imlmesh_protocol.errors import TrustError
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import NodeKeys
from node_folders import make_node


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = Home(tmp_path_factory.mktemp("spoilt") / "h")
    made = home.node("pi")
    make_node(Authority.create(home, "home", "orchestrator"), "pi", made)
    return made


@pytest.mark.parametrize("how", ["empty", "other bytes", "one byte"])
@pytest.mark.parametrize("name", ["trust", "roster"])
def test_a_spoilt_document_is_named(folder: Path, name: str, how: str) -> None:
    path = folder / "keys" / name
    whole = (folder / "keys" / "trust").read_bytes()
    changed = {"empty": b"", "other bytes": b"\xd9rubbish" * 20}
    path.write_bytes(changed.get(how, whole[:-1] + bytes([whole[-1] ^ 1])))
    try:
        with pytest.raises(TrustError) as caught:
            NodeKeys.load(folder, "home")
    finally:
        (folder / "keys" / "roster").unlink(missing_ok=True)
        (folder / "keys" / "trust").write_bytes(whole)
    assert caught.value.code == "trust.file"
    assert str(path) in caught.value.message
    NodeKeys.load(folder, "home")
