ROPE_INIT_FUNCTIONS = {"linear": None, "llama3": None}
