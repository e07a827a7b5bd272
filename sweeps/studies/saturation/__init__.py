"""When small models saturate: collapse of the rank and turn of the loss, by block, rate, precision, decay and width."""
