//! Observe: the cluster's and the broker's words in the protocol's terms.

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1 as batch;
use k8s_openapi::api::core::v1 as core;
use kube::ResourceExt;
use kube::core::Status;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use serde::Deserialize;
use shadow_api::StatefulMigration;
use shadow_broker::Session;
use shadow_protocol::freeze::Liveness;
use shadow_protocol::names::{Names, control_queue};
use shadow_protocol::observation::{
    BrokerView, Container, Heir, Interest, Job, Node, Owner, Pod, Trouble,
};
use shadow_protocol::pending::REMEMBERS;
use shadow_protocol::phase::{Evidence, Plan};

use crate::cluster::Cluster;
use crate::janitor;
use crate::prepull::pullable;
use crate::problems::{node_problems, pod_problems};
use crate::target_pod::{before, has_left, is_of, restored_container};

/// A pod in the protocol's terms.
pub fn pod(
    cluster: &Cluster,
    pod: &core::Pod,
    container: Option<&str>,
    migration: &StatefulMigration,
) -> Pod {
    let status = pod.status.clone().unwrap_or_default();
    let spec = pod.spec.clone().unwrap_or_default();
    let condition = |kind: &str| {
        let conditions = status.conditions.as_deref().unwrap_or_default();
        conditions.iter().any(|c| c.type_ == kind && c.status == "True")
    };
    let phase = status.phase.as_deref().unwrap_or_default();
    let containers: Vec<String> = spec.containers.iter().map(|c| c.name.clone()).collect();
    let chosen = container.map(str::to_owned).or_else(|| containers.first().cloned());
    Pod {
        uid: pod.uid().unwrap_or_default(),
        node: spec.node_name.clone(),
        ip: status.pod_ip.clone(),
        running: phase == "Running",
        ended: matches!(phase, "Failed" | "Succeeded"),
        ready: condition("Ready"),
        containers_ready: condition("ContainersReady"),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        owner: owner(cluster, pod),
        statuses: statuses(pod, &spec, &status),
        problems: chosen.iter().flat_map(|name| pod_problems(pod, name)).collect(),
        remembers: pod.annotations().get(REMEMBERS).is_some_and(|value| value == "true"),
        has_left: has_left(pod),
        liveness: chosen.as_ref().and_then(|name| liveness(&spec, name)),
        before: before(pod).map(str::to_owned),
        waiting: waiting(&status),
        ours: is_of(pod, migration),
        containers,
    }
}

/// The liveness probe of `container`, with the defaults of Kubernetes.
fn liveness(spec: &core::PodSpec, container: &str) -> Option<Liveness> {
    let chosen = spec.containers.iter().find(|it| it.name == container)?;
    let probe = chosen.liveness_probe.as_ref()?;
    let ms = |seconds: Option<i32>, default: u64| {
        seconds.and_then(|it| u64::try_from(it).ok()).filter(|it| *it > 0).unwrap_or(default)
            * 1_000
    };
    Some(Liveness {
        period_ms: ms(probe.period_seconds, 10),
        timeout_ms: ms(probe.timeout_seconds, 1),
        failures: probe.failure_threshold.and_then(|it| u32::try_from(it).ok()).unwrap_or(3),
    })
}

/// The containers' own images: a moved pod's spec names the checkpoint in one of them.
fn statuses(
    pod: &core::Pod,
    spec: &core::PodSpec,
    status: &core::PodStatus,
) -> BTreeMap<String, Container> {
    let restored = restored_container(pod);
    let images: BTreeMap<&str, &str> = spec
        .containers
        .iter()
        .map(|c| (c.name.as_str(), c.image.as_deref().unwrap_or_default()))
        .collect();
    let list = status.container_statuses.as_deref().unwrap_or_default();
    list.iter()
        .map(|found| {
            let container = Container {
                id: found.container_id.clone().unwrap_or_default(),
                running: found.state.as_ref().is_some_and(|state| state.running.is_some()),
                started: found.state.as_ref().is_some_and(has_started),
                restarts: u32::try_from(found.restart_count).unwrap_or(0),
                image: match restored {
                    Some((name, image)) if name == found.name => image.to_owned(),
                    _ => pullable(
                        images.get(found.name.as_str()).copied().unwrap_or_default(),
                        &found.image_id,
                    ),
                },
            };
            (found.name.clone(), container)
        })
        .collect()
}

/// A container that could not be started has ended too, but at no time that it was started at.
fn has_started(state: &core::ContainerState) -> bool {
    let ended = state.terminated.as_ref().and_then(|ended| ended.started_at.as_ref());
    state.running.is_some() || ended.is_some_and(|at| at.0.as_second() > 0)
}

fn waiting(status: &core::PodStatus) -> Option<String> {
    let list = status.container_statuses.as_deref().unwrap_or_default();
    list.iter().find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref().unwrap_or("waiting");
        Some(match &waiting.message {
            Some(message) => format!("{reason}: {message}"),
            None => reason.to_owned(),
        })
    })
}

/// Who owns a pod.
pub fn owner(cluster: &Cluster, pod: &core::Pod) -> Owner {
    let Some(owner) = pod.owner_references().iter().find(|o| o.controller == Some(true)) else {
        return Owner::Bare;
    };
    let other = || Owner::Other { kind: owner.kind.clone(), name: owner.name.clone() };
    // Others have kinds of the same names.
    if !owner.api_version.starts_with("apps/") {
        return other();
    }
    match owner.kind.as_str() {
        "StatefulSet" => Owner::StatefulSet(owner.name.clone()),
        "ReplicaSet" => {
            let namespace = pod.namespace().unwrap_or_default();
            let set = cluster.replica_sets.get(&ObjectRef::new(&owner.name).within(&namespace));
            let deployment = set.and_then(|set| {
                let owners = set.owner_references();
                owners.iter().find(|o| o.kind == "Deployment").map(|o| o.name.clone())
            });
            match deployment {
                Some(deployment) => {
                    Owner::Deployment { replica_set: owner.name.clone(), deployment }
                }
                None => other(),
            }
        }
        _ => other(),
    }
}

/// The pod in the place of the source that `plan` names: of the same name, or of the same
/// ReplicaSet. The youngest, so that one that is about to go is not chosen.
pub fn heir(cluster: &Cluster, namespace: &str, plan: &Plan) -> Option<Heir> {
    let in_its_place = |pod: &core::Pod| match &plan.owner {
        Owner::Deployment { replica_set, .. } => pod
            .owner_references()
            .iter()
            .any(|owner| owner.controller == Some(true) && owner.name == *replica_set),
        _ => pod.name_any() == plan.source_pod,
    };
    let candidates = cluster.pods.state_filter(|pod| {
        pod.namespace().as_deref() == Some(namespace)
            && pod.metadata.deletion_timestamp.is_none()
            && in_its_place(pod)
    });
    candidates
        .iter()
        .filter_map(|pod| {
            let status = pod.status.as_ref()?.container_statuses.as_ref()?;
            let status = status.iter().find(|status| status.name == plan.container)?;
            status.state.as_ref()?.running.as_ref()?;
            let heir = Heir {
                pod: pod.name_any(),
                uid: pod.uid()?,
                container_id: status.container_id.clone()?,
                listens: false,
            };
            let itself =
                heir.uid == plan.source_uid && heir.container_id == plan.source_container_id;
            (!itself).then(|| (pod.creation_timestamp(), heir))
        })
        .max_by(|(a, x), (b, y)| a.cmp(b).then_with(|| x.pod.cmp(&y.pod)))
        .map(|(_, heir)| heir)
}

/// All nodes, sorted by name, as seen by someone who wants to put a copy of `source` there.
pub fn nodes(cluster: &Cluster, source: Option<&core::Pod>) -> Vec<Node> {
    let mut nodes: Vec<Node> =
        cluster.nodes.state().iter().map(|node| self::node(node, source)).collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    nodes
}

fn node(node: &core::Node, source: Option<&core::Pod>) -> Node {
    let spec = node.spec.clone().unwrap_or_default();
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref());
    Node {
        name: node.name_any(),
        schedulable: !spec.unschedulable.unwrap_or(false),
        ready: conditions
            .unwrap_or_default()
            .iter()
            .any(|c| c.type_ == "Ready" && c.status == "True"),
        problems: source.map(|source| node_problems(node, source)).unwrap_or_default(),
        full: false,
    }
}

/// What `shadow transfer` leaves as its termination message.
#[derive(Deserialize)]
#[serde(untagged)]
enum TransferReport {
    Done { image: String, bytes: u64 },
    Failed { error: String },
}

/// The transfer Job in the protocol's terms: its pod's termination message has the result.
pub fn job(cluster: &Cluster, job: &batch::Job) -> Job {
    let status = job.status.clone().unwrap_or_default();
    let failed = status.conditions.as_deref().unwrap_or_default().iter().find(|condition| {
        matches!(condition.type_.as_str(), "Failed" | "FailureTarget") && condition.status == "True"
    });
    let name = job.name_any();
    let namespace = job.namespace().unwrap_or_default();
    let reports: Vec<TransferReport> = cluster
        .pods
        .state_filter(|pod| {
            pod.namespace().as_deref() == Some(&namespace)
                && pod.labels().get("batch.kubernetes.io/job-name") == Some(&name)
        })
        .iter()
        .filter_map(|pod| report(pod))
        .collect();
    let mut last_error = None;
    for report in reports {
        match report {
            TransferReport::Done { image, bytes } => return Job::Done { image, bytes },
            TransferReport::Failed { error } => last_error = Some(error),
        }
    }
    match failed {
        Some(condition) => Job::Failed(last_error.unwrap_or_else(|| {
            condition.message.clone().unwrap_or_else(|| "the Job failed".to_owned())
        })),
        None => Job::Running,
    }
}

fn report(pod: &core::Pod) -> Option<TransferReport> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    let ended = statuses.first()?.state.as_ref()?.terminated.as_ref()?;
    serde_json::from_str(ended.message.as_deref()?.trim()).ok()
}

/// Reads from the broker what `interest` asks for, and nothing else.
pub async fn broker(
    session: &dyn Session,
    names: &Names,
    plan: Option<&Plan>,
    interest: Interest,
) -> Result<BrokerView, shadow_broker::Error> {
    let mut view = BrokerView::default();
    if interest.primary {
        view.primary = session.counts(&names.primary).await?;
    }
    if interest.s1 {
        view.s1 = session.counts(&names.s1).await?;
    }
    if interest.s2 {
        view.s2 = session.counts(&names.s2).await?;
    }
    if interest.bindings {
        view.bindings = Some(session.bindings(&names.primary).await?);
    }
    if interest.park {
        view.park = session.counts(&names.park).await?;
    }
    if interest.park2 {
        view.park2 = session.counts(&names.park2).await?;
    }
    if interest.wake {
        view.wake = session.counts(&names.wake).await?;
    }
    if interest.consumers {
        view.consumers = Some(session.consumers(&names.primary).await?);
    }
    if interest.primary_quiet {
        let stay = plan.map_or(0, |plan| plan.consumers.saturating_sub(1));
        view.primary_quiet = Some(session.quiet(&names.primary, stay).await?);
    }
    if interest.primary_empty {
        view.primary_empty = Some(session.emptiness(&names.primary).await?);
    }
    if interest.s1_empty {
        view.s1_empty = Some(session.emptiness(&names.s1).await?);
    }
    if let Some(plan) = plan.filter(|_| interest.target_control) {
        view.target_control = session.counts(&control_queue(&plan.target_pod)).await?;
    }
    if let Some(plan) = plan.filter(|_| interest.connected) {
        let mut all = true;
        for connection in plan.connections() {
            all &= session.connected(connection).await?;
        }
        view.connected = Some(all);
    }
    if interest.totals {
        view.totals = Some(Evidence {
            primary: session.totals(&names.primary).await?,
            s1: session.totals(&names.s1).await?,
            s2: session.totals(&names.s2).await?,
        });
    }
    Ok(view)
}

/// A broker's failure in the protocol's terms.
pub fn broker_trouble(error: &shadow_broker::Error) -> Trouble {
    use shadow_broker::Error as E;
    let (reason, permanent) = match error {
        // That takes seconds. A migration's session has its namespace in its name.
        E::Locked { holder, .. } if holder.strip_prefix("shadow/") == Some(janitor::NAME) => {
            ("QueueLocked", false)
        }
        E::Locked { .. } => ("QueueLocked", true),
        E::Invalid { .. } => ("BrokerConfigInvalid", true),
        E::Unreachable { .. } => ("BrokerUnreachable", false),
        E::Refused { .. } => ("BrokerAccessRefused", true),
        E::Timeout { .. } => ("BrokerTimeout", false),
        E::Failed { .. } => ("BrokerFailed", false),
    };
    Trouble { reason: reason.to_owned(), message: chain(error), permanent }
}

/// An error and its causes in one line. The API server's answer is said once, in its own words.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut causes = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        match error.downcast_ref::<kube::Error>() {
            Some(kube::Error::Api(status)) if !status.message.is_empty() => {
                causes.push(words_of(status));
                break;
            }
            _ => causes.push(error.to_string()),
        }
        next = error.source();
    }
    causes.join(": ")
}

/// As [`chain`], of a watch, whose errors repeat their causes.
pub fn chain_of_watch(error: &watcher::Error) -> String {
    let cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    cause.map_or_else(|| chain(error), chain)
}

/// What the API server answers, and what to do where it misses a right of ours.
pub fn words_of(status: &Status) -> String {
    let words = &status.message;
    if lacks_right(status) {
        return format!("{words}; give the operator this right: apply config/rbac/role.yaml");
    }
    words.clone()
}

/// It is not a policy, a quota or a webhook that refuses.
pub fn lacks_right(status: &Status) -> bool {
    status.code == 403
        && status.message.contains("cannot ")
        && status.message.contains(" resource ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Error;

    fn refused(words: &str) -> kube::Error {
        kube::Error::Api(Status::failure(words, "Forbidden").with_code(403).boxed())
    }

    #[test]
    fn the_janitors_lock_is_waited_for_and_a_migrations_is_not() {
        let locked = |holder: &str| {
            let (queue, holder) = ("app.events".to_owned(), holder.to_owned());
            broker_trouble(&shadow_broker::Error::Locked { queue, holder }).permanent
        };
        assert!(!locked("shadow/janitor"));
        assert!(locked("shadow/shop/janitor"), "a migration of that name");
        assert!(locked(""));
    }

    #[test]
    fn the_api_servers_answer_is_said_once_and_a_missing_right_has_its_remedy() {
        let words = "secrets \"a\" is forbidden: User \"b\" cannot get resource \"secrets\" in API group \"\"";
        let remedy = "give the operator this right: apply config/rbac/role.yaml";
        let said = chain(&Error::Unread(refused(words)));
        assert_eq!(said, format!("can't be read: {words}; {remedy}"));
        let watch = watcher::Error::InitialListFailed(refused(words));
        assert_eq!(chain_of_watch(&watch), format!("{words}; {remedy}"));
        let policy = "pods \"a\" is forbidden: violates PodSecurity \"restricted\"";
        assert_eq!(chain(&refused(policy)), policy);
    }
}
