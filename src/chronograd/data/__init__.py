"""Corpora, vocabularies, streams of aligned chunks, synthetic tasks: one module each."""
