//! A Kubernetes cluster in memory: an API server that a `kube::Client` talks to, and around it the
//! controllers and kubelets that make the objects come true.
//!
//! ```text
//! kube::Client ──► service.rs   faults.rs decides about each request
//!                     │
//!                policies.rs    who may create what
//!                     │
//!                  write.rs     the API server's rules: versions, preconditions, finalizers
//!                     │
//!                  store.rs     objects, versions, watches ◄── controllers.rs, jobs.rs, kubelet.rs
//! ```
//!
//! All of it is synchronous and behind one lock; what takes time, takes tokio's.

mod application;
mod call;
mod controllers;
mod deployments;
mod faults;
mod jobs;
mod kinds;
mod kubelet;
mod object;
mod patch;
mod policies;
mod refusal;
mod selector;
mod service;
mod store;
mod write;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use shadow_operator::clock;
use shadow_protocol::time::Time;
use tokio::sync::watch;
use tokio::time::sleep;

pub use application::{Application, Life, Start, operators_own};
pub use call::{Call, Verb};
pub use faults::{Failure, Fate, Faults, NoFaults};
pub use kinds::{KINDS, Kind};
pub use kubelet::Pace;
pub use object::condition;
pub use refusal::Refusal;
pub use service::Connection;
pub use store::{Key, Store};
pub use write::{Deletion, Part};

use jobs::Memory;
use kubelet::Kubelets;
use policies::Policies;

/// How fast a cluster is, and what its names are made from.
#[derive(Debug, Clone)]
pub struct Config {
    /// UIDs and name suffixes follow from it.
    pub seed: u64,
    /// How long each request takes.
    pub latency: Duration,
    /// How long controllers and kubelets take to react to a change.
    pub reaction: Duration,
    /// How fast the kubelets are.
    pub kubelet: Pace,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            seed: 0,
            latency: Duration::from_millis(1),
            reaction: Duration::from_millis(5),
            kubelet: Pace::default(),
        }
    }
}

/// Client, verb, kind, subresource.
type CallId = (String, Verb, &'static str, Option<String>);

struct Inner {
    config: Config,
    store: Store,
    kubelets: Kubelets,
    applications: Box<dyn Application>,
    faults: Box<dyn Faults>,
    policies: Policies,
    late: Option<controllers::Late>,
    calls: BTreeMap<CallId, u64>,
    requests: u64,
    jobs: Memory,
    gone_nodes: BTreeMap<String, Time>,
}

impl Inner {
    fn checkpoint(&mut self, call: &Call) -> Result<(String, Duration), Refusal> {
        let node = call.subresource.as_deref().unwrap_or_default();
        let target = call.name.as_deref().unwrap_or_default();
        self.kubelets.checkpoint(&self.store, &mut *self.applications, node, target)
    }

    /// One step of every controller and kubelet; returns when the next one is due.
    fn tick(&mut self) -> Option<Time> {
        let now = clock::now();
        let store = &mut self.store;
        controllers::schedule(store);
        deployments::deployments(store);
        self.late.take_if(|late| late.until <= now);
        let late = self.late.as_ref().map(|late| late.until);
        let refused = controllers::replica_sets(store, &self.policies, self.late.as_mut(), now);
        let heeded = self.policies.tick(store, now);
        let denied = controllers::stateful_sets(store, &self.policies, now);
        let jobs = jobs::jobs(store, &mut self.jobs, now);
        let kubelets = self.kubelets.tick(store, &mut *self.applications, now);
        let nodes = controllers::node_lifecycle(store, &mut self.gone_nodes, now);
        store.collect_garbage();
        [jobs, kubelets, nodes, heeded, denied, refused, late].into_iter().flatten().min()
    }
}

/// The cluster. Clones are the same one.
#[derive(Clone)]
pub struct Kube(Arc<Shared>);

struct Shared {
    inner: Mutex<Inner>,
    changes: watch::Sender<u64>,
}

impl Kube {
    /// An empty cluster in whose containers `applications` runs.
    ///
    /// It seeds the thread's generator too, from which a client's watches draw the jitter of their
    /// backoff.
    pub fn new(config: Config, applications: Box<dyn Application>) -> Self {
        fastrand::seed(config.seed);
        let mut kubelets = Kubelets::default();
        kubelets.pace = config.kubelet.clone();
        let inner = Inner {
            store: Store::new(config.seed),
            kubelets,
            applications,
            faults: Box::new(NoFaults),
            policies: Policies::default(),
            late: None,
            calls: BTreeMap::new(),
            requests: 0,
            jobs: Memory::new(),
            gone_nodes: BTreeMap::new(),
            config,
        };
        let (changes, _) = watch::channel(0);
        Self(Arc::new(Shared { inner: Mutex::new(inner), changes }))
    }

    fn with<R>(&self, access: impl FnOnce(&mut Inner) -> R) -> R {
        let mut inner = self.0.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let result = access(&mut inner);
        let version = inner.store.version();
        drop(inner);
        self.0.changes.send_if_modified(|seen| std::mem::replace(seen, version) != version);
        result
    }

    /// A client; `name` tells faults whose requests these are. Needs tokio's runtime.
    pub fn client(&self, name: &str) -> kube::Client {
        let connection = Connection { kube: self.clone(), client: name.to_owned() };
        kube::Client::new(connection, "default")
    }

    /// Runs the controllers and kubelets, for ever.
    pub async fn run(&self) {
        let mut changes = self.0.changes.subscribe();
        let reaction = self.with(|inner| inner.config.reaction);
        loop {
            changes.borrow_and_update();
            let wake = self.with(Inner::tick);
            let alarm = async {
                match wake {
                    Some(at) => sleep(Duration::from_millis(at.since(clock::now()).max(1))).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = changes.changed() => sleep(reaction).await,
                () = alarm => {}
            }
        }
    }

    /// Follows the version of the newest change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Makes controllers and kubelets look again: an application has become ready or has ended.
    pub fn poke(&self) {
        self.0.changes.send_modify(|_| {});
    }

    /// Access to the objects, past clients and faults.
    pub fn store<R>(&self, access: impl FnOnce(&mut Store) -> R) -> R {
        self.with(|inner| access(&mut inner.store))
    }

    /// Creates an object, status included, past clients and faults.
    pub fn create(&self, object: Value) -> Result<Arc<Value>, Refusal> {
        let kind = KINDS
            .iter()
            .find(|kind| object["kind"] == kind.kind && object["apiVersion"] == kind.api_version());
        let kind = kind.ok_or_else(|| Refusal::bad_request("no such kind"))?;
        let status = object.get("status").cloned();
        let namespace = match object::namespace(&object) {
            "" => "default".to_owned(),
            own => own.to_owned(),
        };
        self.store(|store| {
            let created = store.create(kind.plural, &namespace, object)?;
            let Some(status) = status else { return Ok(created) };
            let key = Key::of(kind.plural, &created);
            store.patch(&key, &json!({ "status": status }), patch::Style::Merge, Part::Status)
        })
    }

    /// An object as it is now.
    pub fn get(&self, plural: &'static str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.store(|store| store.get(&Key::new(plural, namespace, name)).cloned())
    }

    /// All objects of a kind.
    pub fn all(&self, plural: &'static str) -> Vec<Arc<Value>> {
        self.store(|store| store.all(plural).map(|(_, object)| object.clone()).collect())
    }

    /// A Ready node.
    pub fn add_node(&self, name: &str) -> Result<Arc<Value>, Refusal> {
        self.create(json!({
            "apiVersion": "v1", "kind": "Node", "spec": {},
            "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
            "status": {
                "conditions": [{ "type": "Ready", "status": "True" }],
                "nodeInfo": {
                    "kubeletVersion": "v1.36.3", "containerRuntimeVersion": "cri-o://1.36.3",
                    "kernelVersion": "6.18.5", "architecture": "amd64",
                    "bootID": "", "kubeProxyVersion": "",
                    "machineID": "", "operatingSystem": "linux", "osImage": "", "systemUUID": "",
                },
            },
        }))
    }

    /// Cuts a node off (its containers go on unseen, and it is not Ready), or lets it come back.
    pub fn set_node_away(&self, name: &str, away: bool) {
        self.with(|inner| {
            if away {
                inner.kubelets.away.insert(name.to_owned());
            } else {
                inner.kubelets.away.remove(name);
            }
            let at = clock::rfc3339_seconds(clock::now());
            inner.store.modify(&Key::new("nodes", "", name), |node| {
                object::set_condition(node, "Ready", !away, "", &at);
            });
        });
    }

    /// Cordons a node, or lifts that.
    pub fn cordon(&self, name: &str, cordoned: bool) {
        let key = Key::new("nodes", "", name);
        self.store(|store| {
            store.modify(&key, |node| node["spec"]["unschedulable"] = json!(cordoned));
        });
    }

    /// Ends a container with `code`, as if it had crashed.
    pub fn crash(&self, namespace: &str, pod: &str, container: &str, code: i64) {
        self.with(|inner| {
            if let Some(uid) = kubelet::pod_uid(&inner.store, namespace, pod) {
                inner.kubelets.crash(&uid, container, code, clock::now());
            }
        });
        self.poke();
    }

    /// From now on `faults` decides about every request.
    pub fn set_faults(&self, faults: Box<dyn Faults>) {
        self.with(|inner| inner.faults = faults);
    }

    /// The ReplicaSets' controller sees no more of pods than what is there now, for so long.
    pub fn hide_pods(&self, lasts: u64) {
        let mut inner = self.0.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let until = Time(clock::now().0 + lasts);
        inner.late = Some(controllers::Late::now(&inner.store, until));
    }

    /// Ends the watches of a kind, or all of them.
    pub fn cut_watches(&self, plural: Option<&str>) {
        self.with(|inner| inner.store.cut_watches(plural));
    }

    /// Forgets the past: a watch that is cut is told 410 when it wants to go on.
    pub fn forget_history(&self) {
        self.with(|inner| inner.store.forget_history());
    }

    /// How many requests there have been.
    pub fn requests(&self) -> u64 {
        self.with(|inner| inner.requests)
    }
}
