"""A model answers well only in the format it was trained on; this is where that is asserted before serving."""

from __future__ import annotations

import json
from pathlib import Path

from luban.foundation.artifacts import MANIFEST
from luban.foundation.errors import DataError
from luban.tokenizer.tokenizer import Tokenizer


def trained_fingerprint(model_dir: Path) -> str | None:
    """The tokenizer and template fingerprint that training wrote into the manifest; None for a model made elsewhere."""
    # The manifest is read as it is: open_artifact would call an edited template damage before it can be named here.
    try:
        manifest = json.loads((model_dir / MANIFEST).read_bytes())
        return manifest.get("resolved", {}).get("template_fingerprint")
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError) as error:
        raise DataError(
            "{path} is damaged: {error}", "", "remove the folder and run its recipe again", path=model_dir / MANIFEST, error=error
        ) from None


def check_template(model_dir: Path, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer or chat template other than the one that the model was trained with.

    Raises DataError with both fingerprints. A directory without a record (made by transformers, say) passes:
    its tokenizer is the only truth there is.
    """
    trained, found = trained_fingerprint(model_dir), tokenizer.fingerprint()
    if trained is not None and trained != found:
        raise DataError(
            "{path}: the tokenizer or chat template is not the one the model was trained with (trained: {trained}, found: {found})",
            "tokenizer.json, tokenizer_config.json or chat_template.jinja was changed after training; the model would read another format than it learned",
            "restore the files, or accept the change with allow_template_mismatch=true",
            path=model_dir,
            trained=trained,
            found=found,
        )
