"""What runs inside of a vLLM server's workers: nothing here may need more than torch."""
