//! `StatefulMigration` (`migration.ms2m.io/v1alpha1`) and the names users see.
#![deny(missing_docs)]

mod spec;
mod status;

pub use spec::*;
pub use status::*;

use kube::CustomResourceExt;

/// Label on everything a migration makes: the migration's name.
pub const LABEL_MIGRATION: &str = "migration.ms2m.io/migration";
/// Label that says what a made thing is for: `source`, `target`, `transfer`, `prepull`.
pub const LABEL_ROLE: &str = "migration.ms2m.io/role";
/// Finalizer: deleting the object rolls the migration back first.
pub const FINALIZER: &str = "migration.ms2m.io/unwind";
/// Readiness gate of the target pod: false until the handoff.
pub const GATE_HANDOFF: &str = "migration.ms2m.io/handoff";

/// The `CustomResourceDefinition` as YAML, as committed under `config/crd/bases`.
pub fn crd_yaml() -> Result<String, serde_saphyr::ser::Error> {
    serde_saphyr::to_string(&StatefulMigration::crd())
}
