"""Whether a language model's shallow layers can teach: measured on text, before a day of training."""
