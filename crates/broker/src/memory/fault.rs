//! Where faults come in: a hook that is asked about every call of a session.

use std::sync::Arc;

use shadow_protocol::broker::{Order, Topology};

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing goes wrong.
    Pass,
    /// It fails and has done nothing.
    Before,
    /// It takes effect and fails: the answer is lost.
    After,
    /// The session's connections end before it takes effect, and the lock goes with them.
    Cut,
    /// Nothing is ever answered.
    Silence {
        /// It has taken effect.
        done: bool,
    },
}

/// Decides about calls. It must not call the broker's sessions itself.
pub type Hook = Arc<dyn Fn(&Call<'_>) -> Fault + Send + Sync>;

/// A call of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call<'a> {
    /// On whose behalf the session was opened.
    pub migration: &'a str,
    /// What it is to do.
    pub operation: Operation<'a>,
}

/// What a session is asked for, with the queue, exchange or address it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation<'a> {
    /// [`crate::Connector::open`].
    Open,
    /// [`crate::Session::lock`].
    Lock(&'a str),
    /// [`crate::Session::survey`].
    Survey(&'a str),
    /// [`crate::Session::bindings`].
    Bindings(&'a str),
    /// [`crate::Session::fed_by`].
    FedBy(&'a str),
    /// [`crate::Session::consumers`].
    Consumers(&'a str),
    /// [`crate::Session::connections_from`].
    ConnectionsFrom(&'a str),
    /// [`crate::Session::connected`].
    Connected(&'a str),
    /// [`crate::Session::counts`].
    Counts(&'a str),
    /// [`crate::Session::totals`].
    Totals(&'a str),
    /// [`crate::Session::belongings`].
    Belongings,
    /// [`crate::Session::apply`].
    Apply(&'a Topology),
    /// [`crate::Session::order`].
    Order(&'a Order),
    /// [`crate::Session::emptiness`].
    Emptiness(&'a str),
    /// [`crate::Session::quiet`].
    Quiet(&'a str),
}
