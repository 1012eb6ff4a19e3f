"""What is taken out of instruction data, and the records of it."""
