//! The target pod: the whole source pod, with the checkpoint in place of one container's image.
//!
//! Until the handoff it has none of the labels that a Service or ReplicaSet selects, and a
//! readiness gate that only the operator opens, so that nobody reads stale state from it.
//!
//! Its image *is* the checkpoint, so its container must never be started twice:
//! `docs/adr/0001-restored-at-most-once.md`. The kubelet guarantees that by `restartPolicy: Never`.
//! After a crash the owner makes a fresh pod from its template; a bare pod has no owner, so the pod
//! carries its own spec along ([`ANNOTATION_ORIGIN`]) and the operator makes its [`successor`].

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodReadinessGate, PodSpec, PodTemplateSpec};
use kube::ResourceExt;
use kube::core::ObjectMeta;
use shadow_api::names::{ANNOTATION_SOURCE, ANNOTATION_UID, ROLE_MOVED, ROLE_TARGET};
use shadow_api::{GATE_HANDOFF, LABEL_MIGRATION, LABEL_ROLE, StatefulMigration};
use shadow_protocol::pending::{Called, target_name, written_down};
use shadow_protocol::spec::Transfer;

use crate::affinity;

/// The spec that a bare pod had before it was ever moved, as JSON.
pub const ANNOTATION_ORIGIN: &str = "migration.ms2m.io/origin";
/// The restored container and its own image, with a blank between them.
pub const ANNOTATION_BASE_IMAGE: &str = "migration.ms2m.io/base-image";
/// Keeps a copy's object from going before the operator has seen what became of it.
pub const FINALIZER_COPY: &str = "migration.ms2m.io/copy";
/// The name that a pod had before its last move, where its own has no room for it.
pub const ANNOTATION_BEFORE: &str = "migration.ms2m.io/name-before";
/// UID of the ended pod that a fresh one takes the place of.
pub const ANNOTATION_REPLACES: &str = "migration.ms2m.io/replaces";

/// Annotations that describe the source's own life, not its configuration.
const OWN_ANNOTATIONS: [&str; 13] = [
    "cni.projectcalico.org/containerID",
    "cni.projectcalico.org/podIP",
    "cni.projectcalico.org/podIPs",
    "controller.kubernetes.io/pod-deletion-cost",
    "k8s.ovn.org/pod-networks",
    "k8s.v1.cni.cncf.io/network-status",
    "k8s.v1.cni.cncf.io/networks-status",
    "kubectl.kubernetes.io/last-applied-configuration",
    "kubernetes.io/config.seen",
    ANNOTATION_BEFORE,
    ANNOTATION_REPLACES,
    ANNOTATION_SOURCE,
    ANNOTATION_UID,
];

/// Labels that say where the source is; the API server gives the target its own.
const PLACE_LABELS: [&str; 2] = ["topology.kubernetes.io/region", "topology.kubernetes.io/zone"];

/// Every ReplicaSet of a Deployment selects it.
pub(crate) const OWNERS_LABEL: &str = "pod-template-hash";

/// By which a Service finds one pod of a StatefulSet.
const OWNERS_NAME: &str = "statefulset.kubernetes.io/pod-name";

/// What the target pod is to be.
pub struct TargetPlan<'a> {
    /// The migration.
    pub migration: &'a StatefulMigration,
    /// The pod's name.
    pub name: &'a str,
    /// The container that is restored.
    pub container: &'a str,
    /// The checkpoint's image, by digest.
    pub image: &'a str,
    /// How the image gets to the node.
    pub transfer: Transfer,
    /// The container's own image.
    pub base_image: &'a str,
    /// Node to run on.
    pub node: &'a str,
    /// The source's [`ANNOTATION_SOURCE`], where it stays whole beside the copy.
    pub beside: Option<String>,
    /// Whether the source's owner replaces pods that have failed.
    pub replaced_by_owner: bool,
}

/// The target pod of `source`.
///
/// It is bound to its node directly: the preflight has checked the node, the kubelet checks
/// resources, ports and affinities again, and a later move or replacement finds the affinities of
/// the workload itself and not ours among them.
pub fn target_pod(source: &Pod, plan: &TargetPlan) -> Pod {
    let source = &affinity::free(source);
    let mut spec = source.spec.clone().unwrap_or_default();
    if spec.hostname.as_ref() == source.metadata.name.as_ref() {
        spec.hostname = None;
    }
    spec.node_name = Some(plan.node.to_owned());
    spec.ephemeral_containers = None;
    forget_what_admission_computes(&mut spec);
    // Init containers have done their work for the state that is restored. Sidecars start afresh.
    if let Some(containers) = &mut spec.init_containers {
        containers.retain(|c| c.restart_policy.as_deref() == Some("Always"));
    }
    let policy = spec.restart_policy.replace("Never".to_owned());
    for container in &mut spec.containers {
        if container.name == plan.container {
            restored(container, plan);
        } else if container.restart_policy.is_none() {
            container.restart_policy = Some(policy.clone().unwrap_or_else(|| "Always".to_owned()));
        }
    }
    let gate = PodReadinessGate { condition_type: GATE_HANDOFF.to_owned() };
    let gates = spec.readiness_gates.get_or_insert_default();
    if !gates.contains(&gate) {
        gates.push(gate);
    }
    Pod {
        metadata: ObjectMeta {
            name: Some(plan.name.to_owned()),
            namespace: source.namespace(),
            labels: Some(BTreeMap::from([
                (LABEL_MIGRATION.to_owned(), plan.migration.name_any()),
                (LABEL_ROLE.to_owned(), ROLE_TARGET.to_owned()),
            ])),
            annotations: Some(annotations(source, plan)),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

/// The pod of `source`'s owner that takes its place under its name, without image and node yet: the
/// owner's own from birth. Services find it, and its gate is closed until the handoff.
pub fn copy(source: &Pod, plan: &TargetPlan) -> PodTemplateSpec {
    let mut pod = target_pod(source, plan);
    if let Some(spec) = &mut pod.spec {
        // A StatefulSet's pod is found by it in the DNS.
        spec.hostname = source.spec.as_ref().and_then(|spec| spec.hostname.clone());
        spec.node_name = None;
    }
    let labels = pod.metadata.labels.get_or_insert_default();
    for (key, value) in labels_at_switch(source) {
        labels.entry(key).or_insert(value);
    }
    pod.metadata.owner_references.clone_from(&source.metadata.owner_references);
    PodTemplateSpec { metadata: Some(pod.metadata), spec: pod.spec }
}

/// The pod of a [`copy`] on `node`, `container` restored from `image`.
pub fn restored_copy(copy: PodTemplateSpec, container: &str, image: &str, node: &str) -> Pod {
    let (mut metadata, mut spec) =
        (copy.metadata.unwrap_or_default(), copy.spec.unwrap_or_default());
    metadata.finalizers = Some(vec![FINALIZER_COPY.to_owned()]);
    spec.node_name = Some(node.to_owned());
    let restored = spec.containers.iter_mut().find(|it| it.name == container);
    if let Some(restored) = restored {
        restored.image = Some(image.to_owned());
    }
    Pod { metadata, spec: Some(spec), status: None }
}

/// Admission computes these and refuses a pod that brings other values along.
fn forget_what_admission_computes(spec: &mut PodSpec) {
    spec.priority = None;
    spec.preemption_policy = None;
    spec.overhead = None;
}

/// The process goes on where it was: nothing that belongs to a start happens to it again, and it is
/// never started a second time.
fn restored(container: &mut Container, plan: &TargetPlan) {
    container.image = Some(plan.image.to_owned());
    let policy = match plan.transfer {
        // An image that has been retired from the registry can't be started again by accident.
        Transfer::Registry => "Always",
        // Where a pod makes room for its copy, the image on the node is all there is: an agent that has
        // just been restarted offers it no more.
        Transfer::Direct => "IfNotPresent",
    };
    container.image_pull_policy = Some(policy.to_owned());
    container.restart_policy = None;
    container.restart_policy_rules = None;
    // With `restartPolicy: Never` the API server takes no resize that restarts.
    if let Some(policies) = &mut container.resize_policy {
        policies.retain(|policy| policy.restart_policy == "NotRequired");
    }
    if let Some(lifecycle) = &mut container.lifecycle {
        lifecycle.post_start = None;
    }
    container.startup_probe = None;
    if let Some(probe) = &mut container.readiness_probe {
        probe.initial_delay_seconds = None;
    }
}

fn annotations(source: &Pod, plan: &TargetPlan) -> BTreeMap<String, String> {
    let mut annotations = source.annotations().clone();
    annotations.retain(|key, _| !OWN_ANNOTATIONS.contains(&key.as_str()));
    if let Some(before) = written_down(&source.name_any(), plan.name) {
        annotations.insert(ANNOTATION_BEFORE.to_owned(), before.to_owned());
    }
    annotations.insert(ANNOTATION_UID.to_owned(), plan.migration.uid().unwrap_or_default());
    if let Some(beside) = &plan.beside {
        annotations.insert(ANNOTATION_SOURCE.to_owned(), beside.clone());
    }
    let base = restored_container(source).map_or(plan.base_image, |(_, image)| image);
    annotations.insert(ANNOTATION_BASE_IMAGE.to_owned(), format!("{} {base}", plan.container));
    if plan.replaced_by_owner {
        annotations.remove(ANNOTATION_ORIGIN);
    } else if !annotations.contains_key(ANNOTATION_ORIGIN)
        && let Ok(origin) = serde_json::to_string(&source.spec)
    {
        annotations.insert(ANNOTATION_ORIGIN.to_owned(), origin);
    }
    annotations
}

/// Whether `migration` has made the pod, and not an earlier one of the same name.
pub fn is_of(pod: &Pod, migration: &StatefulMigration) -> bool {
    let uid = pod.annotations().get(ANNOTATION_UID);
    pod.labels().get(LABEL_MIGRATION) == Some(&migration.name_any())
        && uid.is_none_or(|uid| Some(uid) == migration.uid().as_ref())
}

/// Whether a pod has left its StatefulSet: it bears the label of the name by which the set knew it,
/// and another name.
pub fn has_left(pod: &Pod) -> bool {
    let known_as = pod.labels().get(OWNERS_NAME);
    pod.owner_references().is_empty() && known_as.is_some_and(|name| *name != pod.name_any())
}

/// The name that a pod had before its last move, if that was written down.
pub fn before(pod: &Pod) -> Option<&str> {
    pod.annotations().get(ANNOTATION_BEFORE).map(String::as_str)
}

/// The container of a moved pod that was restored, and its own image: the spec names the checkpoint.
pub fn restored_container(pod: &Pod) -> Option<(&str, &str)> {
    pod.annotations().get(ANNOTATION_BASE_IMAGE)?.split_once(' ')
}

/// The labels by which Services and the owner find the source.
pub fn labels_at_switch(source: &Pod) -> BTreeMap<String, String> {
    let mut labels = source.labels().clone();
    labels.retain(|key, _| {
        key != LABEL_MIGRATION && key != LABEL_ROLE && !PLACE_LABELS.contains(&key.as_str())
    });
    labels
}

/// The same without the label by which a Deployment tells its ReplicaSets' pods apart: Services find
/// the target, the ReplicaSet does not adopt it yet.
pub fn labels_for_services(source: &Pod) -> BTreeMap<String, String> {
    let mut labels = labels_at_switch(source);
    labels.remove(OWNERS_LABEL);
    labels
}

/// What must follow when the restored process of a moved pod has ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Successor {
    /// Delete the pod, its owner makes another one: the owner does not see by itself that it is of
    /// no use, because another container of it still runs.
    Owners,
    /// Create this pod, then delete the ended one. In this order a crash of the operator in between
    /// loses nothing: [`ANNOTATION_REPLACES`] tells whose successor a pod is. Hence the other name.
    Ours(Box<Pod>),
}

/// What has to be done about `pod`; `None`: nothing.
pub fn successor(pod: &Pod) -> Option<Successor> {
    let moved = pod.labels().get(LABEL_ROLE).is_some_and(|role| role == ROLE_MOVED);
    if !moved || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let (restored, _) = restored_container(pod)?;
    let status = pod.status.as_ref()?;
    let exit_code = status
        .container_statuses
        .iter()
        .flatten()
        .find(|container| container.name == restored)
        .and_then(|container| container.state.as_ref()?.terminated.as_ref())
        .map(|ended| ended.exit_code);
    let over = matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"));
    if pod.owner_references().iter().any(|owner| owner.controller == Some(true)) {
        return (exit_code.is_some() && !over).then_some(Successor::Owners);
    }
    if exit_code.is_none() && !over {
        return None;
    }
    let origin: PodSpec = serde_json::from_str(pod.annotations().get(ANNOTATION_ORIGIN)?).ok()?;
    match origin.restart_policy.as_deref() {
        Some("Never") => None,
        Some("OnFailure") if exit_code == Some(0) => None,
        _ => Some(Successor::Ours(Box::new(fresh_pod(pod, origin)))),
    }
}

/// The workload as the kubelet would have restarted it without a migration: on the same node, from
/// its own image, init containers first.
fn fresh_pod(moved: &Pod, mut spec: PodSpec) -> Pod {
    spec.node_name = moved.spec.as_ref().and_then(|spec| spec.node_name.clone());
    spec.ephemeral_containers = None;
    // Where there was one, it was the pod's own name.
    spec.hostname = None;
    forget_what_admission_computes(&mut spec);
    let mut annotations = moved.annotations().clone();
    annotations.retain(|key, _| {
        key != ANNOTATION_ORIGIN
            && key != ANNOTATION_BASE_IMAGE
            && !OWN_ANNOTATIONS.contains(&key.as_str())
    });
    annotations.insert(ANNOTATION_REPLACES.to_owned(), moved.uid().unwrap_or_default());
    let called = moved.name_any();
    let name =
        target_name(Called { name: &called, has_left: has_left(moved), before: before(moved) });
    if let Some(before) = written_down(&called, &name) {
        annotations.insert(ANNOTATION_BEFORE.to_owned(), before.to_owned());
    }
    Pod {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: moved.metadata.namespace.clone(),
            labels: Some(labels_at_switch(moved)),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

#[cfg(test)]
mod tests;
