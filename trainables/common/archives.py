"""Archives from somebody else: a small file must not fill the memory."""

from __future__ import annotations

import zipfile
from pathlib import Path


def refuse_packed(path: Path) -> None:
    """Refuses an archive whose members are larger than the file: `torch.save` does not compress.

    Raises:
        ValueError: a member is compressed, or shares its bytes with others.
        FileNotFoundError: no such file.
    """
    size = path.stat().st_size
    if not zipfile.is_zipfile(path):  # of a torch before 1.6, which wrote pickles and bytes one after the other
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if packed := [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]:
        raise ValueError(f"{packed[0]} in it is compressed; expected a file as torch.save writes it")
    if sum(member.file_size for member in members) > size:
        raise ValueError("its members overlap; expected a file as torch.save writes it")
