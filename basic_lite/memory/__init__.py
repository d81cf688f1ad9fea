"""What a training stage will need, from sizes alone: memory part by part, time, and what fits a card."""
