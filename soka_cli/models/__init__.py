"""The base model: where it lies, what it holds, what an adapter would be put on."""
