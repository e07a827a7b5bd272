"""What training writes beside checkpoints: metrics, timings, and other writers of them."""
