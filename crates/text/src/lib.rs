//! Tokenizer, chat template, incremental detokeniser, stop strings.
