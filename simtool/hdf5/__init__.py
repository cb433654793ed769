"""HDF5 files that are written whole or not at all, and read without trusting them.

Every file has the root attributes ``format`` (states, model) and ``format_version``, and a dataset ``header``
holding JSON as bytes. A reader refuses what it does not know: soft and external links, external, virtual,
filtered or object datasets, and shapes that claim more bytes than the file stores.

``writing`` and ``checksum`` make a file, ``checking`` says what one of ours may hold and ``foreign`` what one of somebody
else's may, ``guard`` lets a child process (``child``) open a file first, and ``reading`` puts these together.
"""

from simtool.hdf5.checking import DAMAGE, FORMAT_VERSION, read_header
from simtool.hdf5.checksum import verify_content
from simtool.hdf5.foreign import open_foreign
from simtool.hdf5.reading import kind_of, open_checked
from simtool.hdf5.writing import (
    check_written,
    create,
    output_error,
    writable_target,
    write_array,
    write_header,
)

__all__ = [
    "DAMAGE",
    "FORMAT_VERSION",
    "check_written",
    "create",
    "kind_of",
    "open_checked",
    "open_foreign",
    "output_error",
    "read_header",
    "verify_content",
    "writable_target",
    "write_array",
    "write_header",
]
