//! The broker's refusals, in AMQP's terms.

use super::Name;

/// What a refusal is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Object {
    /// A queue.
    Queue,
    /// An exchange.
    Exchange,
}

impl std::fmt::Display for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Queue => "queue",
            Self::Exchange => "exchange",
        })
    }
}

/// Why the broker does not do what it is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// 404.
    #[error("NOT_FOUND - no {object} {name:?}")]
    NotFound {
        /// Its type.
        object: Object,
        /// Its name.
        name: Name,
    },
    /// 403: no right, or something nobody may do.
    #[error("ACCESS_REFUSED - {object} {name:?}: {why}")]
    AccessRefused {
        /// Its type.
        object: Object,
        /// Its name.
        name: Name,
        /// What is forbidden.
        why: &'static str,
    },
    /// 405: an exclusive queue of another connection.
    #[error("RESOURCE_LOCKED - cannot obtain exclusive access to locked queue {name:?}")]
    Locked {
        /// The queue.
        name: Name,
    },
    /// 406.
    #[error("PRECONDITION_FAILED - {name:?}: {why}")]
    PreconditionFailed {
        /// The object, as far as there is one.
        name: Name,
        /// The condition.
        why: &'static str,
    },
    /// 540.
    #[error("NOT_IMPLEMENTED - {name:?}: {why}")]
    NotImplemented {
        /// The object.
        name: Name,
        /// What is missing.
        why: &'static str,
    },
    /// The connection is closed, whoever closed it.
    #[error("the connection is closed")]
    ConnectionGone,
    /// The consumer is gone: its queue was deleted, its channel or connection closed, or it was
    /// cancelled and has settled all it held.
    #[error("the consumer is gone")]
    ConsumerGone,
}

impl Refusal {
    /// AMQP's reply code, where AMQP has one.
    #[cfg(test)]
    pub(super) fn code(&self) -> Option<u16> {
        match self {
            Self::AccessRefused { .. } => Some(403),
            Self::NotFound { .. } => Some(404),
            Self::Locked { .. } => Some(405),
            Self::PreconditionFailed { .. } => Some(406),
            Self::NotImplemented { .. } => Some(540),
            Self::ConnectionGone | Self::ConsumerGone => None,
        }
    }

    /// There is no such queue.
    pub fn no_queue(name: &str) -> Self {
        Self::NotFound { object: Object::Queue, name: name.into() }
    }

    pub(super) fn no_exchange(name: &str) -> Self {
        Self::NotFound { object: Object::Exchange, name: name.into() }
    }
}
