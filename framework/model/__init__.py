"""The language-action model: backbone, sensor encoders, codecs, constrained decoding, Hugging Face in and out."""
