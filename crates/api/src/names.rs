//! Names that SHADOW puts on objects.

/// Label on everything a migration makes: the migration's name.
pub const LABEL_MIGRATION: &str = "migration.ms2m.io/migration";
/// Label on everything a migration makes: what it is for.
pub const LABEL_ROLE: &str = "migration.ms2m.io/role";
/// Role of the pod that is moved.
pub const ROLE_SOURCE: &str = "source";
/// Role of the pod that takes over.
pub const ROLE_TARGET: &str = "target";
/// Role of a target that has taken over for good: its source is gone.
pub const ROLE_MOVED: &str = "moved";
/// Role of the Job that sends the checkpoint.
pub const ROLE_TRANSFER: &str = "transfer";
/// Annotation on what a migration makes that can outlive it: the migration's UID.
pub const ANNOTATION_UID: &str = "migration.ms2m.io/migration-uid";
/// Annotation on a copy beside its source: the UID of the pod and the ID of the container whose process has
/// all that the copy has, for as long as it runs, with a blank between them.
pub const ANNOTATION_SOURCE: &str = "migration.ms2m.io/made-from";
/// Finalizer on a migration: deleting the object rolls back first.
pub const FINALIZER: &str = "migration.ms2m.io/unwind";
/// Readiness gate of the target pod: it stays out of Services until the handoff.
pub const GATE_HANDOFF: &str = "migration.ms2m.io/handoff";
/// Namespace of the operator.
pub const SYSTEM_NAMESPACE: &str = "ms2m-system";
