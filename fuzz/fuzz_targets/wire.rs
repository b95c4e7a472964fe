#![no_main]

#[path = "../src/agent.rs"]
#[allow(dead_code, reason = "another target has use for the rest")]
mod agent;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = agent::wire(input);
});
