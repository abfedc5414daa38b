"""What the actions of `filesystem` return. Paths are absolute, times ISO 8601 in UTC."""

from typing import Any, Literal, NotRequired, TypedDict

#: of archives that are made; those that are read are told by their content
Format = Literal["zip", "tar", "tar.gz", "tar.bz2"]


class Text(TypedDict):
    path: str
    content: str
    size_bytes: int


class Written(TypedDict):
    path: str
    bytes_written: int


class Appended(TypedDict):
    path: str
    bytes_appended: int


class Transferred(TypedDict):
    """A copy, a move, or what was unpacked."""

    source: str
    destination: str


class Unpacked(Transferred):
    #: files that were written
    files: int


class Deleted(TypedDict):
    deleted: str


class Created(TypedDict):
    path: str
    #: False when it was there
    created: bool


class FileInfo(TypedDict):
    path: str
    name: str
    #: "file", "directory", "symlink" or "other"
    type: str
    size_bytes: int
    created: str
    modified: str
    permissions: str
    is_symlink: bool
    suffix: str


class Listing(TypedDict):
    path: str
    entries: list[dict[str, Any]]
    count: int
    #: present when there was more than `max_results`
    truncated: NotRequired[bool]


class Found(TypedDict):
    #: name, path, type, size_bytes, modified; with a content pattern line and text of the first hit
    matches: list[dict[str, Any]]
    count: int
    #: present when there was more than could be looked at or returned
    truncated: NotRequired[bool]


class Archive(TypedDict):
    archive: str
    source: str
    #: files and folders in it
    entries: int
    #: links, devices and the like, which are left out
    skipped: int


class Checksum(TypedDict):
    path: str
    algorithm: str
    checksum: str


class Watched(TypedDict):
    path: str
    #: "created", "modified", "deleted" or "moved"; None when nothing happened in time
    event: str | None
    timeout: bool
    detected_at: str | None
    #: of the file that it happened to
    name: str | None
