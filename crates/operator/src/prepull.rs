//! Images on the target node before they are needed: the workload's own, on top of which CRI-O
//! restores a checkpoint and which it does not pull by itself, and the checkpoint, where a pod makes
//! room for its copy and nobody serves while it is pulled.
//!
//! A pod makes the kubelet pull them with the source's own credentials, and starts nothing: the
//! workload's own image has no such command; and to create a container of the checkpoint would be to
//! restore it, so the kubelet, which pulls first, can't work out the container's mounts.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Capabilities, Container, EmptyDirVolumeSource, Pod, PodSpec, ResourceRequirements,
    SeccompProfile, SecurityContext, Volume, VolumeMount,
};
use kube::ResourceExt;
use shadow_api::StatefulMigration;
use shadow_protocol::observation::PrePull;

use crate::transfer_job::{owners, short};

/// Which image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The workload's own.
    Base,
    /// The checkpoint.
    Checkpoint,
}

/// Name of the pod: derived, so that a crashed operator finds it again.
pub fn pod_name(migration: &StatefulMigration, wanted: Wanted) -> String {
    let id = short(&migration.uid().unwrap_or_default());
    match wanted {
        Wanted::Base => format!("ms2m-prepull-{id}"),
        Wanted::Checkpoint => format!("ms2m-pull-{id}"),
    }
}

/// The pod that has `image` pulled on `node`.
pub fn pod(
    migration: &StatefulMigration,
    wanted: Wanted,
    source: &Pod,
    image: &str,
    node: &str,
) -> Pod {
    let from = source.spec.clone().unwrap_or_default();
    let never = (wanted == Wanted::Checkpoint).then(never_created);
    let (volume, mount) = never.unzip();
    Pod {
        metadata: kube::core::ObjectMeta {
            name: Some(pod_name(migration, wanted)),
            namespace: migration.namespace(),
            labels: Some(BTreeMap::from([
                (shadow_api::LABEL_MIGRATION.to_owned(), migration.name_any()),
                (shadow_api::LABEL_ROLE.to_owned(), "prepull".to_owned()),
            ])),
            owner_references: owners(migration),
            ..kube::core::ObjectMeta::default()
        },
        spec: Some(PodSpec {
            node_name: Some(node.to_owned()),
            restart_policy: Some("Never".to_owned()),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            service_account_name: from.service_account_name,
            image_pull_secrets: from.image_pull_secrets,
            tolerations: from.tolerations,
            termination_grace_period_seconds: Some(0),
            containers: vec![Container {
                name: "image".to_owned(),
                image: Some(image.to_owned()),
                image_pull_policy: Some("IfNotPresent".to_owned()),
                command: Some(vec!["/ms2m-pull-only".to_owned()]),
                security_context: Some(nothing_allowed()),
                resources: Some(ResourceRequirements::default()),
                volume_mounts: mount.map(|mount| vec![mount]),
                ..Container::default()
            }],
            volumes: volume.map(|volume| vec![volume]),
            ..PodSpec::default()
        }),
        status: None,
    }
}

/// A mount that names a variable which no container has: `CreateContainerConfigError`, always.
fn never_created() -> (Volume, VolumeMount) {
    let name = "never".to_owned();
    let mount = VolumeMount {
        name: name.clone(),
        mount_path: "/never".to_owned(),
        sub_path_expr: Some("$(MS2M_PULL_ONLY)".to_owned()),
        ..VolumeMount::default()
    };
    let volume =
        Volume { name, empty_dir: Some(EmptyDirVolumeSource::default()), ..Volume::default() };
    (volume, mount)
}

fn nothing_allowed() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        run_as_user: Some(65_532),
        seccomp_profile: Some(SeccompProfile {
            type_: "RuntimeDefault".to_owned(),
            localhost_profile: None,
        }),
        ..SecurityContext::default()
    }
}

/// How far the pull has come: once the container could be created or failed to start, the image is
/// there.
pub fn progress(pod: &Pod) -> PrePull {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    let Some(status) = statuses.and_then(|statuses| statuses.first()) else {
        return PrePull::Running;
    };
    let state = status.state.clone().unwrap_or_default();
    if state.terminated.is_some() || state.running.is_some() {
        return PrePull::Done;
    }
    let waiting = state.waiting.unwrap_or_default();
    let message = waiting.message.unwrap_or_default();
    match waiting.reason.as_deref().unwrap_or_default() {
        "CreateContainerConfigError"
        | "CreateContainerError"
        | "RunContainerError"
        | "CrashLoopBackOff" => PrePull::Done,
        "ImagePullBackOff" | "ErrImageNeverPull" | "InvalidImageName" => PrePull::Failed(message),
        _ => PrePull::Running,
    }
}

/// The image of a running container in a form that names exactly its content, where the runtime
/// tells; the name in the pod's spec otherwise.
pub fn pullable(image: &str, image_id: &str) -> String {
    let id = image_id.trim_start_matches("docker-pullable://");
    if id.contains("@sha256:") { id.to_owned() } else { image.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_preferred_to_a_name() {
        assert_eq!(pullable("r/app:1", "r/app@sha256:00"), "r/app@sha256:00");
        assert_eq!(pullable("r/app:1", "sha256:00"), "r/app:1");
        assert_eq!(pullable("r/app:1", ""), "r/app:1");
    }
}
