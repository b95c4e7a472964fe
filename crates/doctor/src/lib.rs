//! Doctor: whether pods can be moved in a cluster, and if not, why and what to do.
//!
//! **gather → check → print.** [`gather`] asks the cluster, and a short-lived pod on each node for what
//! only the node knows ([`probe`]); [`checks`] is pure and turns facts into findings; [`print`] shows them.
//! What can't be found out is `unknown`, with the reason: one missing right does not hide the rest.

pub mod checks;
pub mod facts;
pub mod finding;
pub mod gather;
pub mod print;
pub mod probe;
mod text;
mod version;

pub use text::Text;
