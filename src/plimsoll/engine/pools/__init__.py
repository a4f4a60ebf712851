"""Machines for prompts and machines for decodes, and the link between them."""
