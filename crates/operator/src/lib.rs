//! The operator: observe → decide → act → report, once for each migration.
//!
//! ```text
//! watch StatefulMigrations ──► one task per migration (migration.rs)
//!                                observe.rs   cluster stores, broker session
//!                                decide.rs    object ⇄ protocol; shadow-protocol decides
//!                                report.rs    the status, written before anything is done
//!                                act.rs       effects
//! ```

mod act;
mod admission;
mod affinity;
pub mod agents;
mod authority;
pub mod clock;
pub mod cluster;
mod decide;
mod failpoint;
mod health;
pub mod janitor;
mod kubelet;
pub mod leader;
mod migration;
mod observe;
mod pin;
mod prepull;
pub mod problems;
pub mod registry;
mod report;
mod revive;
mod scale;
mod secret;
pub mod settings;
pub mod target_pod;
mod transfer;
pub mod transfer_job;
mod turns;
mod usage;
mod volumes;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::StreamExt;
use kube::core::DeserializeGuard;
use kube::runtime::events::Reporter;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_objects};
use kube::{Api, Client, ResourceExt};
use shadow_api::StatefulMigration;
use shadow_broker::Connector;
use tokio::sync::watch;
use tokio::task::JoinSet;

use agents::Agents;
use cluster::Cluster;
use janitor::ledger::Ledger;
use leader::Candidate;
use migration::{Context, Seen};
use registry::Registry;
use settings::Options;
use turns::{Presence, Turns};

/// Why the operator stops.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The first listing of the cluster did not end.
    #[error("watch the cluster: the watch ended before the first listing")]
    Watch(#[from] kube::runtime::reflector::store::WriterDropped),
    /// The health endpoint can't be served.
    #[error("serve health on {address}")]
    Health {
        /// Where.
        address: std::net::SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// The operator's ways to the world outside.
pub struct Outside {
    /// To the API server.
    pub client: Client,
    /// To brokers.
    pub connector: Arc<dyn Connector>,
    /// To registries.
    pub registry: Arc<dyn Registry>,
    /// To the node agents, if there is a way.
    pub agents: Option<Agents>,
}

/// Runs the operator until `stop` resolves.
pub async fn run(
    outside: Outside,
    mut options: Options,
    stop: impl Future<Output = ()>,
) -> Result<(), Error> {
    let Outside { client, connector, registry, agents } = outside;
    let ready = health::serve(options.health).await?;
    options.protocol.admission = admission::served(&client).await;
    let cluster = Cluster::watch(client.clone()).await?;
    let reporter = Reporter { controller: "shadow-operator".to_owned(), instance: None };
    ready.set();
    tracing::info!("watching the cluster");
    let ledger = Arc::<Ledger>::default();
    let work = |generation| {
        let context = Arc::new(Context {
            cluster: cluster.clone(),
            connector: connector.clone(),
            registry: registry.clone(),
            agents: agents.clone(),
            options: options.clone(),
            turns: Turns::new(cluster.clone(), options.limits),
            reporter: reporter.clone(),
            ledger: ledger.clone(),
            generation,
        });
        work(client.clone(), context)
    };
    let candidate = options.identity.clone().map(|it| Candidate::new(client.clone(), it));
    let leading = Box::pin(async {
        match &candidate {
            Some(candidate) => Box::pin(candidate.lead(work)).await,
            None => work(0).await,
        }
    });
    tokio::select! {
        biased;
        () = stop => tracing::info!("stopping"),
        () = leading => {}
    }
    if let Some(candidate) = &candidate {
        candidate.resign().await;
    }
    Ok(())
}

/// What only the one that leads does.
async fn work(client: Client, context: Arc<Context>) {
    let certificates = keep_certificates(context.agents.is_some().then(|| client.clone()));
    tokio::select! {
        biased;
        () = revive::keep(context.cluster.clone()) => {}
        () = janitor::keep(context.clone()) => {}
        () = drive(client, context.clone()) => {}
        () = certificates => {}
    }
}

async fn keep_certificates(client: Option<Client>) {
    match client {
        Some(client) => authority::keep(client).await,
        None => std::future::pending().await,
    }
}

type Guarded = DeserializeGuard<StatefulMigration>;

/// Starts a task for every migration and brings it the newer versions of its object.
async fn drive(client: Client, context: Arc<Context>) {
    let api: Api<Guarded> = Api::all(client);
    let stream = watch_objects(api, watcher::Config::default()).backoff(cluster::backoff());
    let mut stream = std::pin::pin!(stream);
    let mut running: HashMap<String, watch::Sender<Seen>> = HashMap::new();
    let mut listed = HashSet::new();
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            event = stream.next() => match event {
                Some(Ok(Event::Apply(object) | Event::InitApply(object))) => {
                    listed.insert(object.uid().unwrap_or_default());
                    seen(object, &context, &mut running, &mut tasks);
                }
                Some(Ok(Event::Delete(object))) => {
                    let gone = object.uid().unwrap_or_default();
                    lost(&running, |uid| *uid == gone);
                }
                Some(Ok(Event::Init)) => listed.clear(),
                Some(Ok(Event::InitDone)) => {
                    // The others have gone while nobody watched.
                    lost(&running, |uid| !listed.contains(uid));
                    context.turns.listed();
                }
                Some(Err(error)) => {
                    let (kind, why) = ("StatefulMigration", observe::chain_of_watch(&error));
                    tracing::warn!(why, kind, "watch failed, retrying");
                }
                None => return,
            },
            Some(ended) = tasks.join_next() => {
                if let Ok(uid) = ended {
                    running.remove::<String>(&uid);
                }
            }
        }
    }
}

/// Tells the tasks of these migrations that their object is gone. What that means they know: most have
/// come to their end, and let it go themselves.
fn lost(running: &HashMap<String, watch::Sender<Seen>>, which: impl Fn(&String) -> bool) {
    for (_, updates) in running.iter().filter(|(uid, _)| which(uid)) {
        updates.send_modify(|seen| seen.gone = true);
    }
}

fn seen(
    object: Guarded,
    context: &Arc<Context>,
    running: &mut HashMap<String, watch::Sender<Seen>>,
    tasks: &mut JoinSet<String>,
) {
    let name = object.name_any();
    let object = match object.0 {
        Ok(object) => object,
        Err(error) => {
            tracing::warn!(migration = name, error = %error.error, "can't read the object");
            return;
        }
    };
    context.turns.seen(&object);
    let uid = object.uid().unwrap_or_default();
    if let Some(updates) = running.get(&uid)
        && updates.send(Seen { object: object.clone(), gone: false }).is_ok()
    {
        return;
    }
    if decide::is_over(&object) {
        return;
    }
    let (sender, receiver) = watch::channel(Seen { object, gone: false });
    running.insert(uid.clone(), sender);
    let context = context.clone();
    let task = async move {
        let presence = Presence { context: context.clone(), uid: uid.clone() };
        Box::pin(migration::run(context, receiver)).await;
        drop(presence);
        uid
    };
    tasks.spawn(tracing::Instrument::instrument(task, tracing::info_span!("migration", name)));
}
