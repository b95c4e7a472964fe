//! The janitor: what no migration owns any more is found and removed.
//!
//! A migration removes what it has made. Something is left only where its object was removed by force while no
//! operator could go on with it, or was lost. Whose something is tells its name or its UID; whoever exists by
//! a list that is made afterwards, or is worked on by a task of this process, keeps what is its own.
//!
//! ```text
//! left.rs      pure: what was found in the cluster → what to do and what to say
//! protocol::janitor      the same for a broker
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use shadow_api::StatefulMigration;
use tokio::time::{sleep, timeout};

use crate::migration::Context;
use crate::observe::chain;
use crate::report;
use crate::transfer_job::short;

mod broker;
mod cluster;
pub mod ledger;
mod left;

use left::Living;

/// Limit for each half of a round; what is left undone then, the next one does.
const LIMIT: Duration = Duration::from_mins(2);

struct Janitor {
    context: Arc<Context>,
    /// By which its connections are known. The next leader's closes those of one that was deposed.
    name: String,
    /// What has been said, each once.
    said: BTreeSet<String>,
}

/// Tidies up for as long as this one leads, if it is to.
pub async fn keep(context: Arc<Context>) {
    let Some(every) = context.options.janitor_every else { return std::future::pending().await };
    let mut janitor = Janitor { context, name: NAME.to_owned(), said: BTreeSet::new() };
    loop {
        Box::pin(janitor.round()).await;
        sleep(every).await;
    }
}

/// The name of its sessions; a migration's has its namespace in it.
pub const NAME: &str = "janitor";

impl Living {
    /// As they are in names at the broker.
    fn ids(&self) -> BTreeSet<String> {
        self.uids.iter().map(|uid| short(uid)).collect()
    }
}

impl Janitor {
    async fn round(&mut self) {
        let cluster = timeout(LIMIT, self.tidy_cluster()).await;
        self.failed("in the cluster", cluster).await;
        let brokers = timeout(LIMIT, self.tidy_brokers()).await;
        self.failed("at the brokers", brokers).await;
    }

    async fn failed(
        &mut self,
        place: &str,
        done: Result<Result<(), kube::Error>, tokio::time::error::Elapsed>,
    ) {
        let why = match done {
            Ok(Ok(())) => return,
            Ok(Err(error)) => chain(&error),
            Err(_) => format!("not done within {} s", LIMIT.as_secs()),
        };
        let message = format!("look for what migrations have left {place}: {why}");
        self.say("JanitorFailed", message, None).await;
    }

    /// All migrations, as the API server has them now.
    async fn migrations(&self) -> Result<Vec<StatefulMigration>, kube::Error> {
        let api: Api<StatefulMigration> = Api::all(self.context.cluster.client.clone());
        Ok(api.list(&ListParams::default()).await?.items)
    }

    /// Who must be left alone: what was made by one that is not among them, nobody goes on with.
    async fn living(&self) -> Result<Living, kube::Error> {
        // First: whoever ends meanwhile is listed, or has removed what was its own.
        let mut uids: BTreeSet<String> = self.context.ledger.running().into_keys().collect();
        let migrations = self.migrations().await?;
        uids.extend(migrations.iter().filter_map(StatefulMigration::uid));
        let name = |it: &StatefulMigration| (it.namespace().unwrap_or_default(), it.name_any());
        Ok(Living { uids, names: migrations.iter().map(name).collect() })
    }

    /// In the log, and as an event on whom it is about; once.
    async fn say(
        &mut self,
        reason: &'static str,
        message: String,
        about: Option<&ObjectReference>,
    ) {
        if !self.said.insert(message.clone()) {
            return;
        }
        tracing::warn!(reason, message, "janitor");
        let Some(about) = about else { return };
        self.context.publish(&report::event(reason, message, true), about).await;
    }
}
