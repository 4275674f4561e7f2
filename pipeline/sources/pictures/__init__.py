"""Readers of pictures, and of tables whose rows are pictures; crops and patches."""
