"""Engines that answer prompts: one protocol, the vLLM client, weight transfer into its workers."""
