//! What can go wrong with a broker.

/// A failure of a broker operation. No variant carries a password.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The queue is being migrated by someone else.
    #[error("queue {queue:?} is being migrated already: {holder} holds its lock")]
    Locked {
        /// The primary queue's lock.
        queue: String,
        /// Who holds it, as far as the broker says.
        holder: String,
    },
    /// The URL or an argument is not usable.
    #[error("{what}: {why}")]
    Invalid {
        /// What was given.
        what: String,
        /// Why it can't be used.
        why: String,
    },
    /// The broker can't be reached or the connection is gone: worth another try.
    #[error(
        "{attempted} at broker {host}: not reachable; check the address and the network policy"
    )]
    Unreachable {
        /// The operation.
        attempted: String,
        /// Host and port.
        host: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The credentials are wrong or lack a right.
    #[error("{attempted} at broker {host}: access refused; check user, password, vhost and rights")]
    Refused {
        /// The operation.
        attempted: String,
        /// Host and port.
        host: String,
    },
    /// The broker took longer than the operation may.
    #[error("{attempted} at broker {host}: no answer within {seconds} s")]
    Timeout {
        /// The operation.
        attempted: String,
        /// Host and port.
        host: String,
        /// The limit.
        seconds: u64,
    },
    /// The broker said no.
    #[error("{attempted} at broker {host}: {answer}")]
    Failed {
        /// The operation.
        attempted: String,
        /// Host and port.
        host: String,
        /// The broker's words.
        answer: String,
    },
}
