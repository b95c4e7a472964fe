//! Random bytes from the kernel.

use std::fmt::Write;
use std::fs::File;
use std::io::{self, Read};

/// `count` random bytes; they neither compress nor deduplicate.
pub fn bytes(count: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// An identifier that no other process has.
pub fn id() -> io::Result<String> {
    Ok(bytes(8)?.iter().fold(String::new(), |mut id, byte| {
        // Writing to a String cannot fail.
        let _ = write!(id, "{byte:02x}");
        id
    }))
}
