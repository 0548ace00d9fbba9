#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| objblk_fuzz::run("sealed", data));
