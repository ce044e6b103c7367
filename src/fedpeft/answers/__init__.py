"""Answers of language models: generated, compared with references, chosen among given ones."""
