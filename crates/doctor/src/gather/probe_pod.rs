//! The pod that looks at one node. It is there for seconds, and deleted however this ends.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, LogParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use serde_json::{Value, json};
use shadow_api::names::SYSTEM_NAMESPACE;

use super::{Stop, ask as ask_api, refusal};
use crate::facts::{FORMAT, Known, Report};
use crate::text::{Text, chain};

/// From the pod's creation to its end, the image's pull included.
const DEADLINE: Duration = Duration::from_secs(90);
/// Of what the pod prints: a CPU's features are 2 KB, all else is less. Too much for a termination message,
/// which ends at 4 KB.
const LARGEST: i64 = 64 << 10;
/// Where the node's root is in the pod.
pub const NODE: &str = "/node";
/// Why a pod that waits will not start.
const HOPELESS: [&str; 6] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
];

/// What is asked of a node.
pub struct Probe<'a> {
    /// Which of the nodes.
    pub index: usize,
    /// Its name.
    pub node: String,
    /// The image.
    pub image: &'a str,
    /// ID of a container whose processes are looked at.
    pub container: Option<String>,
}

/// Makes the pod, reads what it prints, and deletes it.
pub async fn ask(client: &Client, probe: &Probe<'_>, stop: Stop) -> Known<Report> {
    let api: Api<Pod> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let name = format!("shadow-doctor-{}-{}", run(), probe.index);
    let failed = |why: Text| Text::from(format!("a pod that looks at the node: {why}"));
    let pod: Pod = serde_json::from_value(pod(&name, probe)).map_err(|error| chain(&error))?;
    // Not given up half-way: a pod that is made later would stay.
    let made = ask_api(async { api.create(&PostParams::default(), &pod).await }).await;
    let told = match &made {
        Ok(_) => tokio::select! {
            told = read(&api, &name) => told,
            () = stop => Err(Text::from("stopped by a signal")),
        },
        Err(why) => Err(why.clone()),
    };
    let now = DeleteParams::default().grace_period(0);
    if let Err(why) = ask_api(async { api.delete(&name, &now).await }).await
        && made.is_ok()
    {
        tracing::warn!(pod = name, %why, "could not delete the pod; delete it by hand");
    }
    told.and_then(|text| parse(&text)).map_err(failed)
}

async fn read(api: &Api<Pod>, name: &str) -> Known<String> {
    let over = |pod: Option<&Pod>| pod.is_some_and(|pod| has_ended(pod) || obstacle(pod).is_some());
    let waited = tokio::time::timeout(DEADLINE, await_condition(api.clone(), name, over)).await;
    let pod = match waited {
        Ok(Ok(pod)) => pod,
        Ok(Err(error)) => return Err(refusal(&error)),
        Err(_) => ask_api(async { api.get_opt(name).await }).await?,
    };
    let pod = pod.ok_or_else(|| Text::from("somebody has deleted it"))?;
    if let Some(why) = obstacle(&pod) {
        return Err(Text::from(format!("it can't start: {why}")));
    }
    if !has_ended(&pod) {
        let (seconds, phase) = (DEADLINE.as_secs(), phase(&pod));
        return Err(Text::from(format!("it has not ended within {seconds} s, it is {phase}")));
    }
    let limits = LogParams { limit_bytes: Some(LARGEST), ..LogParams::default() };
    let printed = ask_api(async { api.logs(name, &limits).await }).await?;
    if printed.trim().is_empty() {
        return Err(Text::from(format!("it printed nothing, and ended {}", phase(&pod))));
    }
    Ok(printed)
}

fn has_ended(pod: &Pod) -> bool {
    matches!(phase(pod).as_str(), "Succeeded" | "Failed")
}

/// Its phase and, if it is told, why.
fn phase(pod: &Pod) -> String {
    let status = pod.status.clone().unwrap_or_default();
    let phase = status.phase.unwrap_or_default();
    match status.message.or(status.reason) {
        Some(why) if phase != "Succeeded" && phase != "Failed" => format!("{phase}: {why}"),
        _ => phase,
    }
}

/// Why it will not start.
fn obstacle(pod: &Pod) -> Option<String> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    let waiting = statuses.first()?.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref().filter(|reason| HOPELESS.contains(reason))?;
    let message = waiting.message.as_deref().unwrap_or_default();
    Some(format!("{reason}: {message}; check --probe-image"))
}

/// The one document among what it printed. It is a node's word: sizes and characters are limited.
fn parse(printed: &str) -> Known<Report> {
    let line = printed.lines().rev().find(|line| line.starts_with('{'));
    let line = line.ok_or_else(|| Text::from(format!("it printed no facts, but: {printed}")))?;
    let other =
        |what: String| Text::from(format!("{what}; use the image of this version (--probe-image)"));
    let value: Value = serde_json::from_str(line)
        .map_err(|error| other(format!("its facts are not understood: {error}")))?;
    if value["format"] != FORMAT {
        return Err(other(format!("its facts have format {}, not {FORMAT}", value["format"])));
    }
    serde_json::from_value(value)
        .map_err(|error| other(format!("its facts are not understood: {error}")))
}

/// Tells this run's pods from another's.
fn run() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{:x}-{:x}", std::process::id(), now.as_secs() & 0xff_ffff)
}

/// The pod, with the least that works.
fn pod(name: &str, probe: &Probe<'_>) -> Value {
    let mut arguments = vec!["node-facts".to_owned(), format!("--root={NODE}")];
    arguments.extend(probe.container.iter().map(|id| format!("--container={id}")));
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "labels": {
            "app.kubernetes.io/name": "shadow-doctor", "app.kubernetes.io/part-of": "shadow",
        } },
        "spec": {
            // Straight to the node, whatever its taints: nothing is scheduled.
            "nodeName": probe.node,
            "tolerations": [{ "operator": "Exists" }],
            "restartPolicy": "Never",
            // Should doctor be killed, its pod ends by itself.
            "activeDeadlineSeconds": DEADLINE.as_secs(),
            "terminationGracePeriodSeconds": 0,
            // It asks the API server for nothing.
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "containers": [{
                "name": "node-facts",
                "image": probe.image,
                "args": arguments,
                "securityContext": security(probe.container.is_some()),
                "resources": {
                    "requests": { "cpu": "10m", "memory": "16Mi" }, "limits": { "memory": "128Mi" },
                },
                "volumeMounts": [{
                    "name": "node", "mountPath": NODE,
                    // Not recursively: CRI-O mounts the root folder so that what the node mounts is seen in
                    // it, and refuses both together. The probe writes nowhere in it.
                    "readOnly": true,
                }],
            }],
            // The node's CRIU needs its own libraries, and the runtimes' settings, the disks and the
            // processes are there, too: /proc in it is the node's, so that hostPID is not needed.
            "volumes": [{ "name": "node", "hostPath": { "path": "/", "type": "Directory" } }],
        },
    })
}

/// What `criu check` needs was tried out: it is content with these three, and not with two of them.
fn security(processes: bool) -> Value {
    let mut capabilities = vec![
        // To make the node's root this process's.
        "SYS_CHROOT",
        // `criu check` makes namespaces, and mounts in them; and it needs a /proc and a /tmp to write to.
        "SYS_ADMIN",
        // It tries TCP repair mode, and a network of its own.
        "NET_ADMIN",
    ];
    if processes {
        // To read what another user's process has open: its folder in /proc, and where the links in it lead.
        capabilities.extend(["DAC_READ_SEARCH", "SYS_PTRACE"]);
    }
    json!({
        // Who owns nothing in /proc may read nothing in it.
        "runAsUser": 0,
        "runAsGroup": 0,
        "runAsNonRoot": false,
        "privileged": false,
        "readOnlyRootFilesystem": true,
        "capabilities": { "drop": ["ALL"], "add": capabilities },
        // The kernel lets nobody who is filtered suspend another's filter, which `criu check` tries.
        "seccompProfile": { "type": "Unconfined" },
        // The runtime's profile denies mounts.
        "appArmorProfile": { "type": "Unconfined" },
        // With SELinux a container's own type may read nothing of the node.
        "seLinuxOptions": { "type": "spc_t" },
    })
}

#[cfg(test)]
mod tests;
