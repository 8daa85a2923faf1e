"""What an answer rests on: attributions that sum to its change."""
