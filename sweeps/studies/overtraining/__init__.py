"""Fine-tuning after more and more tokens of pre-training, at several fine-tuning rates (overtraining.py)."""
