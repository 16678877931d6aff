"""vLLM serves exported language-action models: images and clips as the backbone does, and every sensor as a modality.

vLLM calls `register` in each of its processes. The architecture is `ARCHITECTURE`: an export that is served with it
needs `--trust-remote-code --hf-overrides '{"architectures": ["LanguageActionForConditionalGeneration"]}'`; without
them vLLM serves the plain backbone.
"""

ARCHITECTURE = "LanguageActionForConditionalGeneration"
"""The name under which vLLM finds the model."""


def register() -> None:
    """Tell vLLM of the model. The class is named, not imported: its module must not initialize a device here."""
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"language_action_vllm.model:{ARCHITECTURE}")
