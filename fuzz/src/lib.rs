//! What reads other people's input, with what must hold of it. Each function says whether the input was
//! taken, and panics at a finding. The committed corpus goes through them in `cargo test`, too
//! (`crates/checkpoint/tests/corpus.rs`).

use std::io::Cursor;

use shadow_checkpoint::archive::{Facts, facts_of};
use shadow_checkpoint::registry::Challenge;
use shadow_checkpoint::{Credentials, ImageRef};

/// A checkpoint archive: what it says of itself is short, and in one line. It is read as it is, and with
/// its headers' sums put right, which no mutation would do.
pub fn archive(input: &[u8]) -> bool {
    is_archive(&mended(input));
    is_archive(input)
}

fn mended(input: &[u8]) -> Vec<u8> {
    let mut archive = input.to_vec();
    for block in archive.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    }
    archive
}

fn is_archive(input: &[u8]) -> bool {
    let Ok(facts) = facts_of("fuzzed", Cursor::new(input)) else { return false };
    let Facts {
        image,
        image_by_digest,
        image_requested,
        image_id,
        runtime,
        engine,
        pod,
        namespace,
        pod_uid,
        taken_at,
        criu,
        kernel,
    } = facts;
    for word in [
        image,
        image_by_digest,
        image_requested,
        image_id,
        runtime,
        engine,
        pod,
        namespace,
        pod_uid,
        taken_at,
        criu,
        kernel,
    ] {
        assert!(word.len() <= 512 && !word.contains(char::is_control), "{word:?}");
    }
    true
}

/// A `WWW-Authenticate` header: a challenge that was read survives being written.
pub fn challenge(input: &[u8]) -> bool {
    let Ok(header) = std::str::from_utf8(input) else { return false };
    let found = Challenge::bearer(header);
    if let Some(challenge) = &found {
        assert_eq!(Challenge::bearer(&challenge.to_string()).as_ref(), Some(challenge));
    }
    found.is_some()
}

/// A docker config: neither credentials nor errors show what is in it.
pub fn docker_config(input: &[u8]) -> bool {
    let Ok(config) = std::str::from_utf8(input) else { return false };
    match Credentials::from_docker_config(config, "registry:5000") {
        Ok(None) => false,
        Ok(Some(credentials)) => {
            assert_eq!(format!("{credentials:?}"), "Credentials(hidden)");
            true
        }
        Err(error) => {
            let text = error.to_string();
            let known =
                "registry registry:5000 can't be used with these credentials: the docker config";
            assert!(text.starts_with(known) && text.len() < 200, "{text}");
            false
        }
    }
}

/// The name of an image: one that was read survives being written, letter by letter.
pub fn image_ref(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else { return false };
    let Ok(name) = text.parse::<ImageRef>() else { return false };
    assert_eq!(name.to_string(), text);
    assert_eq!(name.to_string().parse(), Ok(name));
    true
}
