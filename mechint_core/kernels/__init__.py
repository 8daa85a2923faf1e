"""Numerics that several families share."""
