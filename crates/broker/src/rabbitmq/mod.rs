//! RabbitMQ: AMQP 0-9-1 for what must be ordered and fenced, the management API for what AMQP does
//! not tell.
//!
//! ```text
//! session ─┬─ topology connection    lock queue, declare, bind, delete, count; never publishes
//!          ├─ publisher connection   orders, confirmed; replaced after a timeout
//!          ├─ mover connection       while something is moved from queue to queue
//!          └─ management API         bindings, consumers, figures, policies, connections
//! ```
//!
//! All connections bear the migration's name, and a session of their own: whoever takes the lock
//! closes the predecessor's connections of that name, so a deposed leader's late operation fails.
//!
//! `SHADOW_CA_FILE` names a PEM file with a certificate authority trusted besides the system's.

use async_trait::async_trait;

use crate::{Connector, Error, Session, Target};

mod address;
mod belongings;
mod client;
mod emptiness;
mod management;
mod moving;
mod order;
mod policy;
mod session;
mod survey;
mod table;
mod topology;

pub use address::place;

/// Opens sessions with RabbitMQ 4.
#[derive(Debug, Clone, Default)]
pub struct RabbitMq {
    ca: Option<String>,
}

impl RabbitMq {
    /// Trusts the system's certificate authorities, and the one given as PEM, if any.
    pub fn new(ca: Option<String>) -> Self {
        Self { ca }
    }

    /// As [`Self::new`], with the certificate authority from the file that `SHADOW_CA_FILE` names.
    pub fn from_env() -> Result<Self, Error> {
        let Some(path) = std::env::var_os("SHADOW_CA_FILE") else {
            return Ok(Self::default());
        };
        let pem = std::fs::read_to_string(&path).map_err(|error| Error::Invalid {
            what: format!("SHADOW_CA_FILE {}", path.display()),
            why: error.to_string(),
        })?;
        Ok(Self::new(Some(pem)))
    }
}

#[async_trait]
impl Connector for RabbitMq {
    async fn open(&self, target: &Target, name: &str) -> Result<Box<dyn Session>, Error> {
        let session = session::RabbitSession::open(self.ca.clone(), target, name).await?;
        Ok(Box::new(session))
    }
}
