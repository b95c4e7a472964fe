//! Standard output that may be closed early, as by `head`.

use std::io::{ErrorKind, Write};

/// Prints `text`; whoever has seen enough is no error.
pub fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}
