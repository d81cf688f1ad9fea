"""The paper: capture, targets, importance and losses, usable in any training loop."""
