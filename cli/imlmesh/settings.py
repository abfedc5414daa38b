"""What the flags that every verb takes say: where the home is, how to print, how much.

The one rule: they mean the same everywhere, so they stand here once; `grammar` fills them in
before a verb runs. Deliberately absent: defaults of single verbs.
"""

from dataclasses import dataclass, fields
from typing import Literal

Output = Literal["table", "json", "jsonl", "yaml"]


@dataclass(slots=True)
class Settings:
    """The shared flags of this call."""

    home: str | None = None
    output: Output = "table"
    quiet: bool = False
    verbose: bool = False
    no_color: bool = False

    def reset(self) -> None:
        """Forget the flags of an earlier call in this process."""
        for field in fields(self):
            setattr(self, field.name, field.default)


settings = Settings()
