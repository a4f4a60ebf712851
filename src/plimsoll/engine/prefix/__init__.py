"""What is found again: contents of prompts, blocks by hash, radix trees."""
