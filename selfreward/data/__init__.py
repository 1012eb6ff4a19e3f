"""Instruction and judging data that are made outside of a loop."""
