"""Stores: the contract, and the back-ends that keep it."""
