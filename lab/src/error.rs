//! What can go wrong with the lab, as sentences a user can act on.

use std::path::PathBuf;

/// An error of the lab.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// This machine can't run the lab; nothing was started.
    #[error("{0}")]
    Unfit(String),

    /// Another `lab up` or `lab down` is at work.
    #[error("another `cargo xtask lab` command is at work on this machine; wait for it to end")]
    Busy,

    /// There is no running lab.
    #[error("the lab is not running; start it with `cargo xtask lab up`")]
    NotRunning,

    /// A machine or component was named that the lab doesn't have.
    #[error("the lab has no {what} {name:?}; it has {known}")]
    Unknown {
        /// "node", "component".
        what: &'static str,
        /// The name that was asked for.
        name: String,
        /// The names that exist.
        known: String,
    },

    /// A file or system call failed.
    #[error("cannot {what}")]
    Io {
        /// What was attempted, and on what.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },

    /// A program that the lab runs failed.
    #[error("cannot {what}: {program} ended with {status}{output}")]
    Program {
        /// What was attempted.
        what: String,
        /// The program.
        program: String,
        /// How it ended.
        status: String,
        /// Its last lines of output, each on a line of its own.
        output: String,
    },

    /// Something did not come up in time, or died while it was waited for.
    #[error("{what} {why}; the last lines of {log}:{tail}", log = log.display())]
    NotUp {
        /// What was waited for.
        what: String,
        /// "was not ready after 60 s", "ended".
        why: String,
        /// The log that matters.
        log: PathBuf,
        /// Its last lines, each on a line of its own.
        tail: String,
    },

    /// A certificate could not be made.
    #[error("cannot make the certificate of {subject}")]
    Certificate {
        /// Whose certificate.
        subject: String,
        /// Why.
        source: rcgen::Error,
    },

    /// The record of the running lab is not readable.
    #[error("cannot read the lab's record {path}; `cargo xtask lab down` clears it", path = path.display())]
    Record {
        /// The record.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

/// The result of the lab's operations.
pub type Result<T, E = LabError> = std::result::Result<T, E>;

/// Adds to an IO error what was attempted.
pub(crate) trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<std::io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| LabError::Io { what: what(), source: source.into() })
    }
}
