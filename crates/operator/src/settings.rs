//! How the operator was started.

use shadow_protocol::spec::Settings;

pub use crate::turns::order::Limits;

/// Options of `shadow run operator`.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Image of the transfer Job: this project's own.
    pub transfer_image: String,
    /// No pod looks at the nodes before a migration.
    pub no_probe: bool,
    /// Secret of type `kubernetes.io/dockerconfigjson` in the migration's namespace with the
    /// registry's credentials.
    pub registry_secret: Option<String>,
    /// Checkpoint images stay in the registry, and archives on the nodes.
    pub keep_checkpoints: bool,
    /// How many migrations may go on at once.
    pub limits: Limits,
    /// How often the janitor looks for what no migration owns; absent: never.
    pub janitor_every: Option<std::time::Duration>,
    /// The protocol's settings.
    pub protocol: Settings,
    /// By which it is known among operators, one of which leads; absent: it leads always.
    pub identity: Option<String>,
    /// Address of the health endpoint; absent: none.
    pub health: Option<std::net::SocketAddr>,
}
