//! The transfer Job: `shadow transfer` on the source node, where the archive is.

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};
use serde_json::json;
use shadow_api::{LABEL_MIGRATION, LABEL_ROLE, StatefulMigration};
use shadow_checkpoint::agent::wire::AUDIENCE;
use shadow_checkpoint::kubelet_archives::FOLDER as CHECKPOINTS;

/// How long the transfer may take, in seconds.
const DEADLINE: u32 = 600;

/// What the Job is to do.
pub struct JobPlan<'a> {
    /// The migration.
    pub migration: &'a StatefulMigration,
    /// Node the archive is on.
    pub node: &'a str,
    /// The archive, below the kubelet's checkpoint folder.
    pub archive: &'a str,
    /// Image reference to push to.
    pub reference: &'a str,
    /// The agent that it goes to in the registry's place.
    pub agent: Option<&'a Destination>,
    /// Name of the checkpointed container.
    pub container: &'a str,
    /// Image with `shadow` in it.
    pub image: &'a str,
    /// The archive stays where it is.
    pub keep: bool,
    /// How long the attempts at the checkpoint may have taken before the last of them, in seconds.
    pub attempts_within: u64,
    /// Secret of type `kubernetes.io/dockerconfigjson`.
    pub registry_secret: Option<&'a str>,
}

/// A node agent that expects the checkpoint.
pub struct Destination {
    /// Its address, `https://…`.
    pub agent: String,
    /// The authorities of its certificate, PEM.
    pub authorities: String,
    /// The transfer's name.
    pub transfer: String,
}

/// Name of the Job: derived, so that a crashed operator finds it again.
pub fn job_name(migration: &StatefulMigration) -> String {
    format!("ms2m-transfer-{}", short(&migration.uid().unwrap_or_default()))
}

/// As much of a UID as tells the migrations of a cluster apart.
pub fn short(uid: &str) -> String {
    uid.chars().filter(char::is_ascii_alphanumeric).take(10).collect()
}

/// What goes with the migration's object, should that go without its end. One that is being deleted owns
/// nothing new: what it owns may be deleted before it is, and where it is gone already at once.
pub fn owners(migration: &StatefulMigration) -> Option<Vec<OwnerReference>> {
    let stays = migration.metadata.deletion_timestamp.is_none();
    let owner = migration.controller_owner_ref(&()).filter(|_| stays);
    owner.map(|owner| vec![owner])
}

/// The Job. It is root, because archives and their folder belong to root; as their owner it needs no
/// capability to read and remove one. Of the host it sees nothing but the archives.
///
/// One pod: it tries again itself, and removes the archive when it gives up or is stopped, which takes
/// no time; a second one would find nothing to send.
///
/// It has no `ttlSecondsAfterFinished`: an operator that comes back late must find its result. The
/// operator deletes it; with the migration's object it goes anyway.
pub fn transfer_job(plan: &JobPlan) -> Job {
    let mut args = vec![
        "transfer".to_owned(),
        plan.archive.to_owned(),
        plan.agent.map_or(plan.reference, |to| &to.agent).to_owned(),
        plan.container.to_owned(),
        "--result-file=/dev/termination-log".to_owned(),
    ];
    if !plan.keep {
        args.push("--remove".to_owned());
        args.push(format!("--attempts-within={}", plan.attempts_within));
    }
    let mut mounts = vec![json!({ "name": "checkpoints", "mountPath": CHECKPOINTS })];
    let mut volumes = vec![json!({
        "name": "checkpoints", "hostPath": { "path": CHECKPOINTS, "type": "Directory" }
    })];
    let mut env = Vec::new();
    if let Some(to) = plan.agent {
        args.push(format!("--transfer={}", to.transfer));
        args.push("--token-file=/agent/token".to_owned());
        // No secret: whoever speaks to an agent may know it.
        env.push(json!({ "name": "SHADOW_AGENT_AUTHORITIES", "value": to.authorities }));
        mounts.push(json!({ "name": "agent", "mountPath": "/agent", "readOnly": true }));
        volumes.push(json!({
            "name": "agent",
            "projected": { "defaultMode": 0o400, "sources": [{ "serviceAccountToken": {
                "path": "token", "audience": AUDIENCE, "expirationSeconds": DEADLINE
            } }] }
        }));
    } else if let Some(secret) = plan.registry_secret {
        args.push("--auth-file=/registry/.dockerconfigjson".to_owned());
        mounts.push(json!({ "name": "registry", "mountPath": "/registry", "readOnly": true }));
        volumes.push(json!({
            "name": "registry", "secret": { "secretName": secret, "defaultMode": 0o400 }
        }));
    }
    let labels = BTreeMap::from([
        (LABEL_MIGRATION, plan.migration.name_any()),
        (LABEL_ROLE, "transfer".to_owned()),
    ]);
    let job = json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": job_name(plan.migration),
            "namespace": plan.migration.namespace(),
            "labels": labels,
            "ownerReferences": owners(plan.migration),
        },
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": DEADLINE,
            "template": {
                "metadata": { "labels": labels },
                "spec": {
                    "nodeName": plan.node,
                    "restartPolicy": "Never",
                    "automountServiceAccountToken": false,
                    "enableServiceLinks": false,
                    "terminationGracePeriodSeconds": 5,
                    "tolerations": [{ "operator": "Exists" }],
                    "containers": [{
                        "name": "transfer",
                        "image": plan.image,
                        "args": args,
                        "env": env,
                        "terminationMessagePolicy": "File",
                        "volumeMounts": mounts,
                        "securityContext": {
                            "runAsUser": 0,
                            "runAsNonRoot": false,
                            "allowPrivilegeEscalation": false,
                            "readOnlyRootFilesystem": true,
                            "capabilities": { "drop": ["ALL"] },
                            "seccompProfile": { "type": "RuntimeDefault" },
                        },
                        "resources": { "requests": { "cpu": "50m", "memory": "32Mi" } },
                    }],
                    "volumes": volumes,
                },
            },
        },
    });
    // The literal above is a Job; the tests below would see it if it were not.
    serde_json::from_value(job).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(secret: Option<&str>) -> Job {
        let migration: StatefulMigration = serde_json::from_value(json!({
            "apiVersion": "migration.ms2m.io/v1alpha1", "kind": "StatefulMigration",
            "metadata": {"name": "move", "namespace": "shop",
                "uid": "0f9d3c1e-aaaa-bbbb-cccc-000000000000"},
            "spec": {"sourcePod": "consumer-0"}
        }))
        .unwrap();
        transfer_job(&JobPlan {
            migration: &migration,
            node: "worker-1",
            archive: "/var/lib/kubelet/checkpoints/a.tar",
            reference: "r/ck:consumer-0",
            container: "app",
            image: "shadow:1",
            attempts_within: 150,
            keep: false,
            agent: None,
            registry_secret: secret,
        })
    }

    /// A literal with a misspelt or wrongly placed field loses it here.
    #[test]
    fn it_runs_shadow_transfer_where_the_archive_is_and_may_do_nothing_else() {
        let labels =
            json!({"migration.ms2m.io/migration": "move", "migration.ms2m.io/role": "transfer"});
        let expected = json!({
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {
                "name": "ms2m-transfer-0f9d3c1eaa",
                "namespace": "shop",
                "labels": labels,
                "ownerReferences": [{
                    "apiVersion": "migration.ms2m.io/v1alpha1",
                    "kind": "StatefulMigration",
                    "name": "move",
                    "uid": "0f9d3c1e-aaaa-bbbb-cccc-000000000000",
                    "controller": true
                }]
            },
            "spec": {
                "backoffLimit": 0,
                "activeDeadlineSeconds": 600,
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "nodeName": "worker-1",
                        "restartPolicy": "Never",
                        "automountServiceAccountToken": false,
                        "enableServiceLinks": false,
                        "terminationGracePeriodSeconds": 5,
                        "tolerations": [{"operator": "Exists"}],
                        "containers": [{
                            "name": "transfer",
                            "image": "shadow:1",
                            "args": [
                                "transfer", "/var/lib/kubelet/checkpoints/a.tar",
                                "r/ck:consumer-0", "app",
                                "--result-file=/dev/termination-log", "--remove",
                                "--attempts-within=150"
                            ],
                            "env": [],
                            "terminationMessagePolicy": "File",
                            "volumeMounts": [{
                                "name": "checkpoints", "mountPath": "/var/lib/kubelet/checkpoints"
                            }],
                            "securityContext": {
                                "runAsUser": 0,
                                "runAsNonRoot": false,
                                "allowPrivilegeEscalation": false,
                                "readOnlyRootFilesystem": true,
                                "capabilities": {"drop": ["ALL"]},
                                "seccompProfile": {"type": "RuntimeDefault"}
                            },
                            "resources": {"requests": {"cpu": "50m", "memory": "32Mi"}}
                        }],
                        "volumes": [{
                            "name": "checkpoints",
                            "hostPath": {"path": "/var/lib/kubelet/checkpoints", "type": "Directory"}
                        }]
                    }
                }
            }
        });
        assert_eq!(serde_json::to_value(job(None)).unwrap(), expected);
    }

    #[test]
    fn credentials_are_mounted_not_passed() {
        let pod = job(Some("regcred")).spec.unwrap().template.spec.unwrap();
        let container = &pod.containers[0];
        let args = container.args.as_ref().unwrap();
        assert_eq!(args.last().unwrap(), "--auth-file=/registry/.dockerconfigjson");
        let mount = &container.volume_mounts.as_ref().unwrap()[1];
        assert_eq!((mount.mount_path.as_str(), mount.read_only), ("/registry", Some(true)));
        let secret = pod.volumes.unwrap()[1].secret.clone().unwrap();
        assert_eq!(
            (secret.secret_name.as_deref(), secret.default_mode),
            (Some("regcred"), Some(256))
        );
    }
}
