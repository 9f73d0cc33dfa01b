"""Networks, integer entropy path, checkpoints. ``registry`` lists the models; ``runtime`` codes with one."""
