HF_HUB_CACHE = "/nowhere/hub"
