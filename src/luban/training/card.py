"""README.md of a trained model: what it is, where it comes from, what opens it."""

from __future__ import annotations

from luban import __version__
from luban.foundation.artifacts import Artifact, Work


def write_model_card(work: Work) -> None:
    """Write the card from what the stage reports. English, because hubs read it; numbers from the manifest."""
    licences = ", ".join(work.licences) or "not stated"
    numbers = "\n".join(f"| {name.replace('_', ' ')} | {value} |" for name, value in work.metrics.items())
    inputs = "\n".join(f"- {name}: {_describe(value)}" for name, value in work.inputs.items() if value)
    text = f"""---
library_name: transformers
---
# {work.name}

Trained with Luban {__version__}. It opens in transformers, vLLM, and Luban (`luban chat .`), with no step between.

## Made from
{inputs}
- licences of the data: {licences}

## Figures
| what | figure |
| --- | --- |
{numbers}

The resolved recipe stands in manifest.json, the log and samples in training/.
"""
    (work.path / "README.md").write_text(text, encoding="utf-8")


def _describe(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_describe, value))
    if isinstance(value, Artifact):
        return f"{value.path.name} ({value.kind}, {value.fingerprint})"
    return getattr(value, "name", str(value))
