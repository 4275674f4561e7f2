"""First entries for archives that have none."""
