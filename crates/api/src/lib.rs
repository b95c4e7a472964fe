//! What users of SHADOW see in Kubernetes: the `StatefulMigration` resource, its status, and the
//! names of labels, finalizer and readiness gate.
//!
//! The resource's definition in `config/crd` is generated from these types (`cargo xtask crds`). Bad
//! values are refused by the API server: by the schema where its message says what to write instead,
//! by a CEL rule ([`rules`]) where it does not.

#![deny(missing_docs)]

mod crd;
pub mod names;
pub mod rules;
mod spec;
mod status;
#[cfg(test)]
mod tests;

pub use crd::{crd, crd_yaml};
pub use names::{FINALIZER, GATE_HANDOFF, LABEL_MIGRATION, LABEL_ROLE};
pub use spec::{
    IdentitySwapMode, MessageQueueConfig, MigrationStrategy, ReplayMode, SecretKeyRef,
    StatefulMigration, StatefulMigrationSpec, TransferMode,
};
pub use status::{CutProof, HandoffStatus, Proof, QueueProof, StatefulMigrationStatus};
