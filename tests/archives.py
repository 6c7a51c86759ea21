"""Zip archives as others than torch.save may write them."""

import io
import warnings
import zipfile


def archive(entries: list[tuple[str, bytes]], how: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", how) as made:
        warnings.simplefilter("ignore", UserWarning)  # of two entries with one name
        for name, content in entries:
            made.writestr(name, content)
    return file.getvalue()
