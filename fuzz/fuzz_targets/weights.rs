#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| squish_fuzz::models::weights(data));
