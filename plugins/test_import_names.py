"""What `plugins/` holds, once it is on the import path."""

from __future__ import annotations

from pathlib import Path


def test_a_folder_that_is_no_plugin_hides_no_library() -> None:
    """Python imports a folder without `__init__.py`, too: one called `vllm` would tell libraries that vLLM is there."""
    folders = [each for each in Path(__file__).parent.iterdir() if each.is_dir() and each.name.isidentifier()]
    others = [each.name for each in folders if each.name != "__pycache__" and not (each / "__init__.py").exists()]
    assert others
    assert all(name.endswith("_plugin") for name in others)
