"""soka: fine-tune language models with SoKA, SVD on Kronecker Adaptation (arXiv 2506.15251)."""

__version__ = "0.1.0"
