#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| cinderfs_fuzz::bodies::run("clouds", data));
