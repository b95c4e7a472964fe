#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = shadow_fuzz::docker_config(input);
});
