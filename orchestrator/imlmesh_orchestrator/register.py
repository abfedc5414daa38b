"""The nodes that are enrolled, as senders of messages: their keys and what people call them.

The one rule: it looks at the core's state and keeps nothing of its own but parsed keys.
"""

from nacl.signing import VerifyKey

from imlmesh_orchestrator.core.state import State
from imlmesh_protocol.errors import TrustError
from imlmesh_protocol.states import Admission
from imlmesh_runtime.trust import PublicKey


class Register:
    """Reads `state.enrolled`."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._keys: dict[bytes, PublicKey] = {}

    def find_key(self, key_id: bytes, node: str) -> VerifyKey | None:
        """The key that `node` signs with, when it is the one named `key_id`; `node.revoked`."""
        if self._state.admissions and self._state.admission_of(node) is Admission.REVOKED:
            raise TrustError("node.revoked", f"{node} was removed from the mesh")
        record = self._state.enrolled.get(node)
        if record is None:
            return None
        key = self._keys.get(record.identity)
        if key is None:
            key = self._keys[record.identity] = PublicKey.of_raw(record.identity)
        return key.key if key.key_id == key_id else None

    def alias(self, node: str) -> str:
        """What people call an enrolled node; its id when nobody is."""
        record = self._state.enrolled.get(node)
        return record.alias if record is not None else node
