//! What keeps a pod from being moved, as sentences, before anything is touched.

use k8s_openapi::api::core::v1::{Container, Node, Pod, PodSpec, Taint, Toleration, Volume};
use kube::ResourceExt;

use crate::target_pod::restored_container;
use crate::usage::Usage;

/// A host name has at most so many characters; the kubelet cuts the rest of a pod's name off.
const HOST_NAME: usize = 63;

/// What makes it impossible to checkpoint or restore `container` of a pod, a sentence each.
pub fn pod_problems(pod: &Pod, container: &str) -> Vec<String> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let mut problems = host_problems(spec);
    problems.extend(name_problems(pod, spec));
    if spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()) {
        problems.push("it claims devices (resourceClaims), whose state stays behind".into());
    }
    if let Some(chosen) = spec.containers.iter().find(|c| c.name == container) {
        problems.extend(container_problems(chosen));
    }
    if let Some((restored, _)) = restored_container(pod)
        && restored != container
    {
        problems.push(format!(
            "its container {restored} was restored from a checkpoint: only that one can be moved; \
             write containerName: {restored}"
        ));
    }
    problems
}

fn host_problems(spec: &PodSpec) -> Vec<String> {
    let mut problems = Vec::new();
    if spec.host_users == Some(false) {
        problems.push("it runs in a user namespace (hostUsers: false), which CRIU can't dump");
    }
    if spec.host_network == Some(true) {
        problems.push("it uses the node's network and host name (hostNetwork: true)");
    }
    if spec.host_pid == Some(true) || spec.share_process_namespace == Some(true) {
        problems.push(
            "it shares its process IDs (hostPID or shareProcessNamespace), so that they may be \
             taken where it is restored",
        );
    }
    if spec.host_ipc == Some(true) {
        problems.push("it uses the node's shared memory (hostIPC: true), which stays behind");
    }
    problems.into_iter().map(str::to_owned).collect()
}

/// An application finds its control queue by /etc/hostname, which must be its pod's name.
fn name_problems(pod: &Pod, spec: &PodSpec) -> Vec<String> {
    let name = pod.name_any();
    let mut problems = Vec::new();
    if name.len() > HOST_NAME {
        problems.push(format!(
            "its name has more than {HOST_NAME} characters, so its /etc/hostname is not its name; \
             give it a shorter one"
        ));
    }
    let host = spec.hostname_override.as_ref().or(spec.hostname.as_ref());
    if let Some(host) = host.filter(|host| **host != name) {
        problems.push(format!(
            "its /etc/hostname would be {host} in both copies, so they would share one control \
             queue; leave hostname out of its spec"
        ));
    }
    if spec.set_hostname_as_fqdn == Some(true) {
        problems.push(
            "its /etc/hostname is not its name (setHostnameAsFQDN: true); leave that out".into(),
        );
    }
    problems
}

fn container_problems(container: &Container) -> Vec<String> {
    let name = &container.name;
    let mut problems = Vec::new();
    if container.tty == Some(true) || container.stdin == Some(true) {
        problems.push(format!(
            "container {name} has a terminal (tty or stdin), which CRIU can't dump; leave it out"
        ));
    }
    let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
    for device in limits.into_iter().flatten().map(|(resource, _)| resource) {
        if device.contains('/') && !device.starts_with("hugepages-") {
            problems.push(format!("container {name} uses {device}, whose state stays behind"));
        }
    }
    if container.volume_devices.as_ref().is_some_and(|devices| !devices.is_empty()) {
        problems.push(format!("container {name} uses a raw block device, which can't be moved"));
    }
    problems
}

/// What will be different after a move of `container`, a sentence each. Nothing of it forbids one.
pub fn pod_warnings(pod: &Pod, container: &str, usage: &Usage) -> Vec<String> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let volumes = spec.volumes.iter().flatten();
    let mut warnings: Vec<String> = volumes
        .filter(|volume| !usage.is_empty(&volume.name))
        .filter_map(|volume| volume_warning(spec, container, volume))
        .collect();
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|it| it.restart_policy.as_deref() == Some("Always"));
    let others: Vec<&str> = (spec.containers.iter().filter(|it| it.name != container))
        .chain(sidecars)
        .map(|it| it.name.as_str())
        .collect();
    if !others.is_empty() {
        warnings.push(format!(
            "only container {container} keeps its memory; these start afresh: {}",
            others.join(", ")
        ));
    }
    warnings
}

fn volume_warning(spec: &PodSpec, container: &str, volume: &Volume) -> Option<String> {
    let mounted =
        |it: &Container| it.volume_mounts.iter().flatten().any(|mount| mount.name == volume.name);
    if !spec.containers.iter().any(mounted) {
        return None;
    }
    let token = volume.projected.iter().flat_map(|it| it.sources.iter().flatten());
    let token = token.filter(|it| it.service_account_token.is_some()).count() > 0;
    if token && spec.containers.iter().any(|it| it.name == container && mounted(it)) {
        return Some(format!(
            "the service account token that container {container} has read from volume {} is its old \
             pod's, and not valid for long once that is gone: it must read the file again",
            volume.name
        ));
    }
    let name = &volume.name;
    if volume.empty_dir.is_some() || volume.ephemeral.is_some() {
        return Some(format!(
            "the files of volume {name} stay behind: the target gets an empty one"
        ));
    }
    if volume.host_path.is_some() {
        return Some(format!(
            "volume {name} is a folder of the node: the target sees its own node's"
        ));
    }
    None
}

/// What keeps `node` from taking a copy of `pod`, a sentence each. The kubelet checks resources,
/// ports and affinities itself, but not the taints that keep the scheduler away.
pub fn node_problems(node: &Node, pod: &Pod) -> Vec<String> {
    let tolerations: Vec<&Toleration> =
        pod.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten()).collect();
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    taints
        .filter(|taint| taint.effect != "PreferNoSchedule")
        .filter(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint)))
        .map(|taint| {
            let value = taint.value.as_ref().map(|value| format!("={value}")).unwrap_or_default();
            format!(
                "node {} has the taint {}{value}:{}, which the pod does not tolerate: \
                 add a toleration",
                node.name_any(),
                taint.key,
                taint.effect
            )
        })
        .collect()
}

/// As Kubernetes defines it: an absent effect or key matches all, `Equal` is the default operator.
fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    let value = toleration.value.as_deref().unwrap_or_default();
    let same_value = match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        "Equal" | "" => !key.is_empty() && value == taint.value.as_deref().unwrap_or_default(),
        _ => false,
    };
    (effect.is_empty() || effect == taint.effect)
        && (key.is_empty() || key == taint.key)
        && same_value
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        let mut pod = json!({"metadata": {"name": "consumer-0"}});
        pod["spec"] = spec;
        serde_json::from_value(pod).unwrap()
    }

    fn plain() -> serde_json::Value {
        json!({"containers": [{"name": "app", "image": "i",
            "resources": {"limits": {"cpu": "1", "hugepages-2Mi": "4Mi"}}}]})
    }

    #[test]
    fn an_ordinary_pod_has_no_problems() {
        assert!(pod_problems(&pod(plain()), "app").is_empty());
        assert!(pod_warnings(&pod(plain()), "app", &Usage::default()).is_empty());
    }

    #[test]
    fn each_obstacle_is_named() {
        for (field, value, words) in [
            ("hostUsers", json!(false), "hostUsers"),
            ("hostNetwork", json!(true), "hostNetwork"),
            ("hostPID", json!(true), "hostPID"),
            ("hostIPC", json!(true), "hostIPC"),
            ("shareProcessNamespace", json!(true), "shareProcessNamespace"),
            ("hostname", json!("other"), "/etc/hostname would be other"),
            ("hostnameOverride", json!("other"), "/etc/hostname would be other"),
            ("setHostnameAsFQDN", json!(true), "setHostnameAsFQDN"),
            ("resourceClaims", json!([{"name": "gpu"}]), "resourceClaims"),
        ] {
            let mut spec = plain();
            spec[field] = value;
            let problems = pod_problems(&pod(spec), "app");
            assert!(problems.len() == 1 && problems[0].contains(words), "{field}: {problems:?}");
        }
        for (field, value, words) in [
            ("tty", json!(true), "terminal"),
            ("stdin", json!(true), "terminal"),
            ("resources", json!({"limits": {"nvidia.com/gpu": "1"}}), "nvidia.com/gpu"),
            ("volumeDevices", json!([{"name": "v", "devicePath": "/dev/x"}]), "block device"),
        ] {
            let mut spec = plain();
            spec["containers"][0][field] = value;
            let problems = pod_problems(&pod(spec), "app");
            assert!(problems.len() == 1 && problems[0].contains(words), "{field}: {problems:?}");
        }
    }

    #[test]
    fn a_host_name_that_is_the_pods_own_is_fine_and_one_cut_off_is_not() {
        let mut spec = plain();
        spec["hostname"] = json!("consumer-0");
        assert!(pod_problems(&pod(spec), "app").is_empty());
        let mut long = pod(plain());
        long.metadata.name = Some("a".repeat(64));
        assert_eq!(pod_problems(&long, "app").len(), 1);
    }

    #[test]
    fn what_stays_behind_is_said() {
        let mut spec = plain();
        spec["containers"][0]["volumeMounts"] = json!([
            {"name": "scratch", "mountPath": "/a"}, {"name": "data", "mountPath": "/b"},
            {"name": "node", "mountPath": "/c"}, {"name": "settings", "mountPath": "/d"}
        ]);
        spec["volumes"] = json!([
            {"name": "scratch", "emptyDir": {}}, {"name": "unused", "emptyDir": {}},
            {"name": "data", "persistentVolumeClaim": {"claimName": "data-0"}},
            {"name": "node", "hostPath": {"path": "/srv"}}, {"name": "settings", "configMap": {}}
        ]);
        spec["containers"].as_array_mut().unwrap().push(json!({"name": "proxy"}));
        spec["initContainers"] =
            json!([{"name": "once"}, {"name": "mesh", "restartPolicy": "Always"}]);
        let warnings = pod_warnings(&pod(spec.clone()), "app", &Usage::default());
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        assert!(
            warnings[1].contains("node") && warnings[2].ends_with("proxy, mesh"),
            "{warnings:?}"
        );
        let empty = Usage::with_empty("scratch");
        assert_eq!(pod_warnings(&pod(spec.clone()), "app", &empty), warnings[1..]);

        let token = json!([{ "serviceAccountToken": { "path": "token" } }]);
        spec["volumes"][4] = json!({"name": "settings", "projected": { "sources": token }});
        let warnings = pod_warnings(&pod(spec), "app", &empty);
        assert!(warnings[1].contains("read the file again"), "{warnings:?}");
    }

    #[test]
    fn taints_are_tolerated_as_kubernetes_does() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "worker-2"},
            "spec": {"taints": [
                {"key": "team", "value": "a", "effect": "NoSchedule"},
                {"key": "soft", "effect": "PreferNoSchedule"}
            ]}
        }))
        .unwrap();
        let with = |tolerations: serde_json::Value| {
            let mut spec = plain();
            spec["tolerations"] = tolerations;
            node_problems(&node, &pod(spec))
        };
        assert_eq!(
            with(json!([])),
            [
                "node worker-2 has the taint team=a:NoSchedule, which the pod does not tolerate: add a \
              toleration"
            ]
        );
        for good in [
            json!([{"operator": "Exists"}]),
            json!([{"key": "team", "operator": "Exists", "effect": "NoSchedule"}]),
            json!([{"key": "team", "value": "a"}]),
        ] {
            assert!(with(good.clone()).is_empty(), "{good}");
        }
        for bad in [
            json!([{"key": "team", "value": "b"}]),
            json!([{"key": "other", "operator": "Exists"}]),
            json!([{"key": "team", "operator": "Exists", "effect": "NoExecute"}]),
        ] {
            assert_eq!(with(bad.clone()).len(), 1, "{bad}");
        }
    }
}
