//! What counts of a migration's object when turns are given.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;
use shadow_api::{MessageQueueConfig, StatefulMigration};
use shadow_broker::rabbitmq;
use shadow_protocol::observation::Owner;
use shadow_protocol::phase::Plan;

use super::Place;
use super::order::{Alone, Claim, Entry};
use crate::cluster::Cluster;
use crate::{decide as mapping, observe};

/// How far a migration is, as far as that matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Phase Pending.
    Pending,
    /// Something may have been touched.
    Running,
    /// Nothing more will happen.
    Over,
}

/// What the object says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub stage: Stage,
    pub namespace: String,
    /// `<namespace>/<name>`.
    name: String,
    uid: String,
    created: i64,
    source_pod: String,
    target_node: Option<String>,
    pins: bool,
    queue: Option<Claim>,
    planned: Option<Planned>,
}

/// What was found out, once it was.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Planned {
    from: String,
    to: String,
    claims: BTreeMap<Claim, Alone>,
}

impl Facts {
    pub fn of(object: &StatefulMigration) -> Self {
        let namespace = object.namespace().unwrap_or_default();
        let spec = &object.spec;
        let created = object.creation_timestamp().map_or(0, |at| at.0.as_second());
        let stored = mapping::stored(object);
        let plan = stored.as_ref().ok().and_then(|it| it.as_ref()?.phase.plan());
        let stage = match &stored {
            Ok(None) => Stage::Pending,
            Ok(Some(state)) if state.phase.is_final() => Stage::Over,
            Ok(Some(_)) if plan.is_none() => Stage::Pending,
            Ok(Some(_)) => Stage::Running,
            // A newer operator's, which this one leaves alone.
            Err(_) => {
                let phase = object.status.as_ref().and_then(|status| status.phase.as_deref());
                match phase {
                    None | Some("Pending" | "Completed" | "Failed") => Stage::Over,
                    Some(_) => Stage::Running,
                }
            }
        };
        Self {
            stage,
            name: format!("{namespace}/{}", object.name_any()),
            uid: object.uid().unwrap_or_default(),
            created,
            source_pod: spec.source_pod.clone(),
            target_node: spec.target_node.clone(),
            pins: spec.pin_to_target_node != Some(false),
            queue: spec.message_queue_config.as_ref().map(|queue| queue_of(&namespace, queue)),
            planned: plan.map(|plan| Planned::of(&namespace, plan)),
            namespace,
        }
    }

    /// Who comes first of those that nobody has looked at yet.
    pub fn age(&self) -> (i64, &str) {
        (self.created, &self.name)
    }

    /// Whether the user leaves the choice of the node to the operator.
    pub fn may_choose(&self) -> bool {
        self.target_node.is_none()
    }

    /// As it takes part, where `choice` are the nodes that pods may come to.
    pub fn entry(
        &self,
        cluster: &Cluster,
        round: u64,
        place: &Place,
        choice: &[String],
        unfit: &BTreeSet<String>,
    ) -> Entry {
        let pod = cluster.pod(&self.namespace, &self.source_pod);
        let here = pod.as_ref().and_then(|pod| pod.spec.as_ref()?.node_name.clone());
        let from = self.planned.as_ref().map(|it| it.from.clone()).or_else(|| here.clone());
        let to = match (&self.planned, &self.target_node, place) {
            (Some(planned), ..) => vec![planned.to.clone()],
            (None, Some(named), _) => vec![named.clone()],
            (None, None, Place::In(_, kept)) => kept.iter().cloned().collect(),
            (None, None, Place::Out(_)) => {
                let fit = |node: &&String| !unfit.contains(*node) && here.as_ref() != Some(*node);
                choice.iter().filter(fit).cloned().collect()
            }
        };
        Entry {
            uid: self.uid.clone(),
            name: self.name.clone(),
            round,
            created: self.created,
            from,
            to,
            claims: self.claims(cluster),
            running: self.stage == Stage::Running || matches!(place, Place::In(..)),
        }
    }

    fn claims(&self, cluster: &Cluster) -> BTreeMap<Claim, Alone> {
        let source = Claim::Pod(format!("{}/{}", self.namespace, self.source_pod));
        let mut claims = BTreeMap::from([(source, true)]);
        claims.extend(self.queue.clone().map(|queue| (queue, true)));
        match &self.planned {
            Some(planned) => claims.extend(planned.claims.clone()),
            None => claims.extend(self.owner(cluster)),
        }
        claims
    }

    /// The source's owner, before there is a plan.
    fn owner(&self, cluster: &Cluster) -> Option<(Claim, Alone)> {
        let pod = cluster.pod(&self.namespace, &self.source_pod)?;
        let owner = observe::owner(cluster, &pod);
        let several = match &owner {
            Owner::Deployment { replica_set, .. } => {
                let key = ObjectRef::new(replica_set).within(&self.namespace);
                let set = cluster.replica_sets.get(&key);
                set.and_then(|set| set.spec.as_ref()?.replicas).is_some_and(|count| count > 1)
            }
            _ => false,
        };
        owner_claim(&self.namespace, &owner, self.pins && !several)
    }
}

impl Planned {
    fn of(namespace: &str, plan: &Plan) -> Self {
        let pods = [&plan.origin().source_pod, &plan.source_pod, &plan.target_pod];
        let pods = pods.map(|pod| (Claim::Pod(format!("{namespace}/{pod}")), true));
        let pins = plan.pin == shadow_protocol::phase::Pin::Yes;
        let mut claims = BTreeMap::from(pods);
        claims.extend(owner_claim(namespace, &plan.origin().owner, pins));
        Self { from: plan.origin().source_node.clone(), to: plan.target_node.clone(), claims }
    }
}

fn owner_claim(namespace: &str, owner: &Owner, pins: bool) -> Option<(Claim, Alone)> {
    match owner {
        Owner::StatefulSet(set) => Some((Claim::StatefulSet(format!("{namespace}/{set}")), true)),
        Owner::Deployment { deployment, .. } => {
            Some((Claim::Deployment(format!("{namespace}/{deployment}")), pins))
        }
        Owner::Bare | Owner::Other { .. } => None,
    }
}

/// The queue at its broker, as the object names that: who gives it two names is told apart by the lock.
fn queue_of(namespace: &str, queue: &MessageQueueConfig) -> Claim {
    let broker = match (&queue.broker_secret_ref, &queue.broker_url) {
        (Some(secret), _) => format!("secret {namespace}/{}/{}", secret.name, secret.key),
        (None, url) => rabbitmq::place(url.as_deref().unwrap_or_default()),
    };
    Claim::Queue(queue.queue_name.clone(), broker)
}
