//! The cluster as the operator watches it: local stores of pods, Jobs and nodes, and one bell that
//! rings when any of them changes.

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backon::ExponentialBuilder;
use futures::StreamExt;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::utils::{Backoff, ResetTimerBackoff};
use kube::runtime::watcher::ExponentialBackoff;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use shadow_protocol::observation::Trouble;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::observe::{chain_of_watch, lacks_right};

/// A watch that is refused is tried again more often than that.
const STILL: Duration = Duration::from_mins(1);

/// Stores that follow the API server.
#[derive(Clone)]
pub struct Cluster {
    /// The API server.
    pub client: Client,
    /// Pods of all namespaces: the source may be anyone's.
    pub pods: Store<Pod>,
    /// The migrations' transfer Jobs.
    pub jobs: Store<Job>,
    /// Nodes.
    pub nodes: Store<Node>,
    /// ReplicaSets, to find a pod's Deployment.
    pub replica_sets: Store<ReplicaSet>,
    bell: watch::Sender<u64>,
    blind: Blind,
    /// What fills the stores: ends with the last clone.
    _followers: Arc<JoinSet<()>>,
}

/// The last watch that was refused, and when.
#[derive(Clone, Default)]
struct Blind(Arc<Mutex<Option<(Instant, String)>>>);

impl Blind {
    fn say(&self, why: String) {
        // Nothing panics half-way through a change.
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), why));
    }

    fn said(&self) -> Option<String> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        last.filter(|(at, _)| at.elapsed() < STILL).map(|(_, why)| why)
    }
}

fn refused(error: &watcher::Error) -> bool {
    let cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    let api = cause.and_then(|cause| cause.downcast_ref::<kube::Error>());
    matches!(api, Some(kube::Error::Api(status)) if lacks_right(status))
}

impl Cluster {
    /// Begins to watch and returns when all stores are filled.
    pub async fn watch(client: Client) -> Result<Self, reflector::store::WriterDropped> {
        let (bell, _) = watch::channel(0);
        let blind = Blind::default();
        let ours = watcher::Config::default().labels(shadow_api::LABEL_MIGRATION);
        let all = watcher::Config::default();
        let mut followers = JoinSet::new();
        let tasks = &mut followers;
        let cluster = Self {
            pods: follow(Api::all(client.clone()), all.clone(), &bell, &blind, tasks),
            jobs: follow(Api::all(client.clone()), ours, &bell, &blind, tasks),
            nodes: follow(Api::all(client.clone()), all.clone(), &bell, &blind, tasks),
            replica_sets: follow(Api::all(client.clone()), all, &bell, &blind, tasks),
            client,
            bell,
            blind,
            _followers: Arc::new(followers),
        };
        cluster.pods.wait_until_ready().await?;
        cluster.jobs.wait_until_ready().await?;
        cluster.nodes.wait_until_ready().await?;
        cluster.replica_sets.wait_until_ready().await?;
        Ok(cluster)
    }

    /// A receiver that changes whenever a store does.
    pub fn bell(&self) -> watch::Receiver<u64> {
        self.bell.subscribe()
    }

    /// How often the bell has rung.
    pub fn rung(&self) -> u64 {
        *self.bell.borrow()
    }

    /// Rings the bell, once it is called: something has happened that no store shows.
    pub fn ring(&self) -> impl FnOnce() + Send + use<> {
        let bell = self.bell.clone();
        move || bell.send_modify(|count| *count = count.wrapping_add(1))
    }

    /// Why a store may be behind for long: the operator lacks a right.
    pub fn blind(&self) -> Option<Trouble> {
        let message = self.blind.said()?;
        Some(Trouble { reason: "ApiRefused".to_owned(), message, permanent: false })
    }

    /// The pod `name` in `namespace`, as last seen.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.pods.get(&ObjectRef::new(name).within(namespace))
    }

    /// The node `name`, as last seen.
    pub fn node(&self, name: &str) -> Option<Arc<Node>> {
        self.nodes.get(&ObjectRef::new(name))
    }

    /// The Job `name` in `namespace`, as last seen.
    pub fn job(&self, namespace: &str, name: &str) -> Option<Arc<Job>> {
        self.jobs.get(&ObjectRef::new(name).within(namespace))
    }
}

/// Between two attempts at a watch: an API server that was away is looked at again soon, for migrations stand
/// still until then. Without jitter: there are few watches, and a simulation can be repeated.
pub(crate) fn backoff() -> impl Backoff + 'static {
    let (shortest, longest) = (Duration::from_millis(200), Duration::from_secs(2));
    let growing = ExponentialBuilder::default().with_factor(2.0).without_max_times();
    let growing = growing.with_min_delay(shortest).with_max_delay(longest);
    ResetTimerBackoff::new(ExponentialBackoff::from(growing), Duration::from_secs(20))
}

fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    bell: &watch::Sender<u64>,
    blind: &Blind,
    tasks: &mut JoinSet<()>,
) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Eq + Hash + Clone,
{
    let (store, writer) = reflector::store();
    let (bell, blind) = (bell.clone(), blind.clone());
    let stream = watcher(api, config).backoff(backoff()).reflect(writer);
    tasks.spawn(async move {
        let mut stream = std::pin::pin!(stream);
        while let Some(event) = stream.next().await {
            match event {
                Ok(_) => bell.send_modify(|count| *count = count.wrapping_add(1)),
                Err(error) => {
                    let (kind, why) = (K::kind(&()), chain_of_watch(&error));
                    tracing::warn!(why, %kind, "watch failed, retrying");
                    if refused(&error) {
                        blind.say(format!("watch every {kind}: {why}"));
                    }
                }
            }
        }
    });
    store
}
