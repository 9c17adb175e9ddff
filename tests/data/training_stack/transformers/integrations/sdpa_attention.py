def use_gqa_in_sdpa(attention_mask, key):
    del attention_mask, key
    return True
