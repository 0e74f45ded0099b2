"""Texts, before they are embedded."""
