"""The four stages of retrieval augmented fine-tuning and what they share."""
