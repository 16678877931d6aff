"""Engines that answer prompts: the protocol, the vLLM client, and the worker's end of the weight transfer."""
