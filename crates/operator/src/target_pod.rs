//! The target pod: the whole source pod, with the checkpoint in place of one container's image.
//!
//! Until the handoff it has none of the labels that a Service or ReplicaSet selects, and a
//! readiness gate that only the operator opens, so that nobody reads stale state from it.
//!
//! Its image *is* the checkpoint, so its container must never be started twice:
//! `docs/adr/0001-restored-at-most-once.md`. The kubelet guarantees that by `restartPolicy: Never`.
//! After a crash the owner makes a fresh pod from its template; a bare pod has no owner, so the pod
//! carries its own spec along ([`ANNOTATION_ORIGIN`]) and the operator makes [`fresh_pod`] of it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodReadinessGate, PodSpec};
use kube::ResourceExt;
use kube::core::ObjectMeta;
use shadow_api::names::{ROLE_MOVED, ROLE_TARGET};
use shadow_api::{GATE_HANDOFF, LABEL_MIGRATION, LABEL_ROLE, StatefulMigration};

pub use crate::problems::pod_problems;

/// The spec that a bare pod had before it was ever moved, as JSON.
pub const ANNOTATION_ORIGIN: &str = "migration.ms2m.io/origin";
/// The restored container and its own image, with a blank between them.
pub const ANNOTATION_BASE_IMAGE: &str = "migration.ms2m.io/base-image";

/// Annotations that describe the source's own life, not its configuration.
const OWN_ANNOTATIONS: [&str; 9] = [
    "cni.projectcalico.org/containerID",
    "cni.projectcalico.org/podIP",
    "cni.projectcalico.org/podIPs",
    "controller.kubernetes.io/pod-deletion-cost",
    "k8s.ovn.org/pod-networks",
    "k8s.v1.cni.cncf.io/network-status",
    "k8s.v1.cni.cncf.io/networks-status",
    "kubectl.kubernetes.io/last-applied-configuration",
    "kubernetes.io/config.seen",
];

/// Labels that say where the source is; the API server gives the target its own.
const PLACE_LABELS: [&str; 2] = ["topology.kubernetes.io/region", "topology.kubernetes.io/zone"];

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
    /// The container's own image.
    pub base_image: &'a str,
    /// Node to run on.
    pub node: &'a str,
    /// Whether the source's owner replaces pods that have failed.
    pub replaced_by_owner: bool,
}

/// The target pod of `source`.
///
/// It is bound to its node directly: the preflight has checked the node, the kubelet checks
/// resources, ports and affinities again, and a later move or replacement finds the affinities of
/// the workload itself and not ours among them.
pub fn target_pod(source: &Pod, plan: &TargetPlan) -> Pod {
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
            restored(container, plan.image);
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

/// Admission computes these and refuses a pod that brings other values along.
fn forget_what_admission_computes(spec: &mut PodSpec) {
    spec.priority = None;
    spec.preemption_policy = None;
    spec.overhead = None;
}

/// The process goes on where it was: nothing that belongs to a start happens to it again, and it is
/// never started a second time.
fn restored(container: &mut Container, image: &str) {
    container.image = Some(image.to_owned());
    // An image that has been retired from the registry can't be started again by accident.
    container.image_pull_policy = Some("Always".to_owned());
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

/// The container of a moved pod that was restored, and its own image: the spec names the checkpoint.
pub fn restored_container(pod: &Pod) -> Option<(&str, &str)> {
    pod.annotations().get(ANNOTATION_BASE_IMAGE)?.split_once(' ')
}

/// The labels by which Services and the owner find the target: the source's.
pub fn labels_at_switch(source: &Pod) -> BTreeMap<String, String> {
    let mut labels = source.labels().clone();
    labels.retain(|key, _| {
        key != LABEL_MIGRATION && key != LABEL_ROLE && !PLACE_LABELS.contains(&key.as_str())
    });
    labels
}

/// The pod that takes the place of a moved bare pod whose process has ended, as the kubelet would
/// have restarted it without a migration: on the same node, from the workload's own image, init
/// containers first. `None`: nobody has to do anything.
pub fn fresh_pod(moved: &Pod) -> Option<Pod> {
    if moved.labels().get(LABEL_ROLE).map(String::as_str) != Some(ROLE_MOVED)
        || moved.metadata.deletion_timestamp.is_some()
        || moved.metadata.owner_references.as_ref().is_some_and(|owners| !owners.is_empty())
    {
        return None;
    }
    let origin = moved.annotations().get(ANNOTATION_ORIGIN)?;
    let mut spec: PodSpec = serde_json::from_str(origin).ok()?;
    let phase = moved.status.as_ref()?.phase.as_deref()?;
    match (phase, spec.restart_policy.as_deref().unwrap_or("Always")) {
        ("Failed", "Always" | "OnFailure") | ("Succeeded", "Always") => {}
        _ => return None,
    }
    spec.node_name = moved.spec.as_ref().and_then(|spec| spec.node_name.clone());
    spec.ephemeral_containers = None;
    spec.hostname = None;
    forget_what_admission_computes(&mut spec);
    let mut annotations = moved.annotations().clone();
    annotations.retain(|key, _| {
        key != ANNOTATION_ORIGIN
            && key != ANNOTATION_BASE_IMAGE
            && !OWN_ANNOTATIONS.contains(&key.as_str())
    });
    Some(Pod {
        metadata: ObjectMeta {
            name: moved.metadata.name.clone(),
            namespace: moved.metadata.namespace.clone(),
            labels: Some(labels_at_switch(moved)),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    })
}

#[cfg(test)]
mod tests;
