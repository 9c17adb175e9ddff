CONFIG_MAPPING_NAMES = {"llama": "LlamaConfig"}
