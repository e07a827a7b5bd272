"""DataDecide's recipe for models of 4M to 150M parameters, and its published curves beside ours."""
