#![no_main]

libfuzzer_sys::fuzz_target!(
    // A panic of the tokenizer library is caught and refused by our loader; only one that is not caught ends the fuzzer.
    init: std::panic::set_hook(Box::new(|_| {})),
    |bytes: &[u8]| {
        (fuzz_targets::target("tokenizer").run)(bytes);
    }
);
