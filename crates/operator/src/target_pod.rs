//! The target pod: the whole source pod, with the checkpoint in place of one container's image.
//!
//! Until the handoff it has none of the labels that a Service or ReplicaSet selects, and a
//! readiness gate that only the operator opens, so that nobody reads stale state from it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodReadinessGate, PodSpec};
use kube::core::ObjectMeta;
use kube::{Resource, ResourceExt};
use shadow_api::{GATE_HANDOFF, LABEL_MIGRATION, LABEL_ROLE, StatefulMigration};

/// Annotations that describe the source's own life, not its configuration.
const OWN_ANNOTATIONS: [&str; 3] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    "controller.kubernetes.io/pod-deletion-cost",
    "k8s.v1.cni.cncf.io/network-status",
];

/// What the target pod is to be.
pub struct TargetPlan<'a> {
    /// The migration.
    pub migration: &'a StatefulMigration,
    /// The pod's name.
    pub name: &'a str,
    /// The container that is restored.
    pub container: &'a str,
    /// The checkpoint's image.
    pub image: &'a str,
    /// Node to run on.
    pub node: &'a str,
    /// Whether the source's owner replaces pods that have failed.
    pub replaced_by_owner: bool,
}

/// The target pod of `source`.
///
/// `docs/adr/0001-restored-at-most-once.md` says why the restart and pull policies are what they
/// are: a crash must never restore the old checkpoint again.
pub fn target_pod(source: &Pod, plan: &TargetPlan) -> Pod {
    let mut spec = source.spec.clone().unwrap_or_default();
    spec.node_name = Some(plan.node.to_owned());
    spec.ephemeral_containers = None;
    spec.priority = None;
    drop_finished_init_containers(&mut spec);
    for container in &mut spec.containers {
        if container.name == plan.container {
            restored(container, plan);
        }
    }
    if plan.replaced_by_owner {
        spec.restart_policy = Some("Never".to_owned());
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
            labels: Some(our_labels(plan.migration)),
            annotations: Some(annotations(source)),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

fn restored(container: &mut Container, plan: &TargetPlan) {
    container.image = Some(plan.image.to_owned());
    let policy = if plan.replaced_by_owner { "IfNotPresent" } else { "Always" };
    container.image_pull_policy = Some(policy.to_owned());
    // The process is restored past its start; what ran once must not run again.
    if let Some(lifecycle) = &mut container.lifecycle {
        lifecycle.post_start = None;
    }
    container.startup_probe = None;
}

/// Init containers have done their work for the state that is restored. Sidecars (init containers
/// that restart always) go along and start afresh.
fn drop_finished_init_containers(spec: &mut PodSpec) {
    if let Some(containers) = &mut spec.init_containers {
        containers.retain(|c| c.restart_policy.as_deref() == Some("Always"));
    }
}

fn our_labels(migration: &StatefulMigration) -> BTreeMap<String, String> {
    BTreeMap::from([
        (LABEL_MIGRATION.to_owned(), migration.name_any()),
        (LABEL_ROLE.to_owned(), "target".to_owned()),
    ])
}

fn annotations(source: &Pod) -> BTreeMap<String, String> {
    let mut annotations = source.annotations().clone();
    annotations.retain(|key, _| !OWN_ANNOTATIONS.contains(&key.as_str()));
    annotations
}

/// The labels by which Services and the owner find the target: the source's.
pub fn labels_at_switch(source: &Pod) -> BTreeMap<String, String> {
    let mut labels = source.labels().clone();
    labels.retain(|key, _| key != LABEL_MIGRATION && key != LABEL_ROLE);
    labels
}

/// What makes it impossible to checkpoint or restore `container` of a pod, a sentence each.
pub fn pod_problems(pod: &Pod, container: &str) -> Vec<String> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let mut problems = Vec::new();
    if spec.host_users == Some(false) {
        problems
            .push("it runs in a user namespace (hostUsers: false), which CRIU can't dump".into());
    }
    if spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()) {
        problems.push("it claims devices, whose state stays behind".into());
    }
    let chosen = spec.containers.iter().find(|c| c.name == container);
    let Some(chosen) = chosen else { return problems };
    if chosen.tty == Some(true) || chosen.stdin == Some(true) {
        problems.push(format!("container {container} has a terminal (tty or stdin)"));
    }
    let limits = chosen.resources.as_ref().and_then(|resources| resources.limits.as_ref());
    for name in limits.into_iter().flatten().map(|(name, _)| name) {
        if name.contains('/') && !name.starts_with("hugepages-") {
            problems.push(format!(
                "container {container} uses device {name}, whose state stays behind"
            ));
        }
    }
    problems
}

/// Whether `pod` is the target of `migration`.
pub fn is_target_of(pod: &Pod, migration: &StatefulMigration) -> bool {
    pod.meta().labels.as_ref().is_some_and(|labels| {
        labels.get(LABEL_MIGRATION) == Some(&migration.name_any())
            && labels.get(LABEL_ROLE).is_some_and(|role| role == "target")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn source() -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "name": "consumer-abc", "namespace": "default", "uid": "1", "resourceVersion": "7",
                "labels": {"app": "consumer", "pod-template-hash": "abc"},
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "keep": "me"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs",
                    "uid": "2", "controller": true}],
            },
            "spec": {
                "nodeName": "worker-1",
                "serviceAccountName": "sa",
                "initContainers": [
                    {"name": "once", "image": "i"},
                    {"name": "side", "image": "s", "restartPolicy": "Always"}
                ],
                "containers": [
                    {"name": "app", "image": "r/app:1", "env": [{"name": "A", "value": "b"}],
                     "volumeMounts": [{"name": "v", "mountPath": "/v"}]},
                    {"name": "other", "image": "r/other:1"}
                ],
                "volumes": [{"name": "v", "emptyDir": {}}],
            },
            "status": {"phase": "Running"}
        }))
        .unwrap()
    }

    fn migration() -> StatefulMigration {
        serde_json::from_value(json!({
            "apiVersion": "migration.ms2m.io/v1alpha1", "kind": "StatefulMigration",
            "metadata": {"name": "move", "namespace": "default"},
            "spec": {"sourcePod": "consumer-abc"}
        }))
        .unwrap()
    }

    fn target(replaced_by_owner: bool) -> Pod {
        let migration = migration();
        let plan = TargetPlan {
            migration: &migration,
            name: "consumer-abc-shadow",
            container: "app",
            image: "r/ck@sha256:0",
            node: "worker-2",
            replaced_by_owner,
        };
        target_pod(&source(), &plan)
    }

    #[test]
    fn only_image_node_and_identity_change() {
        let pod = target(false);
        let mut spec = pod.spec.clone().unwrap();
        assert_eq!(spec.containers[0].image.as_deref(), Some("r/ck@sha256:0"));
        assert_eq!(spec.node_name.as_deref(), Some("worker-2"));
        let before = source().spec.unwrap();
        spec.node_name.clone_from(&before.node_name);
        spec.containers[0].image.clone_from(&before.containers[0].image);
        spec.containers[0].image_pull_policy = None;
        spec.init_containers.clone_from(&before.init_containers);
        spec.readiness_gates = None;
        assert_eq!(spec, before);
    }

    #[test]
    fn nobody_finds_it_before_the_switch() {
        let pod = target(false);
        assert!(!pod.labels().contains_key("app"));
        assert!(pod.owner_references().is_empty());
        assert_eq!(pod.annotations().keys().collect::<Vec<_>>(), ["keep"]);
        let gates = pod.spec.unwrap().readiness_gates.unwrap();
        assert_eq!(gates[0].condition_type, GATE_HANDOFF);
        assert_eq!(labels_at_switch(&source()), source().labels().clone());
    }

    #[test]
    fn init_containers_do_not_run_again_but_sidecars_do() {
        let names: Vec<String> = target(false)
            .spec
            .unwrap()
            .init_containers
            .unwrap()
            .into_iter()
            .map(|c| c.name)
            .collect();
        assert_eq!(names, ["side"]);
    }

    #[test]
    fn a_pod_that_its_owner_replaces_is_never_restarted() {
        assert_eq!(target(true).spec.unwrap().restart_policy.as_deref(), Some("Never"));
        assert_eq!(target(false).spec.unwrap().restart_policy, None);
    }

    #[test]
    fn devices_terminals_and_user_namespaces_are_problems() {
        let mut pod = source();
        let spec = pod.spec.as_mut().unwrap();
        spec.host_users = Some(false);
        spec.containers[0].tty = Some(true);
        spec.containers[0].resources =
            serde_json::from_value(json!({"limits": {"nvidia.com/gpu": "1", "cpu": "1"}})).unwrap();
        assert_eq!(pod_problems(&pod, "app").len(), 3);
        assert!(pod_problems(&source(), "app").is_empty());
    }
}
