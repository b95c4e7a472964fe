//! What keeps a pod from being moved, as sentences, before anything is touched.

use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use kube::ResourceExt;
use shadow_doctor::checks::pod::{different, movable, spec_of};
use shadow_doctor::finding::{Finding, Verdict};

use crate::target_pod::restored_container;
use crate::usage::Usage;

/// Whom doctor's words are about goes without saying here.
const IT: &str = "";

/// What makes it impossible to checkpoint or restore `container` of a pod, a sentence each.
pub fn pod_problems(pod: &Pod, container: &str) -> Vec<String> {
    let findings = movable(IT, pod, container);
    let failures = findings.iter().filter(|it| it.verdict == Verdict::Failure);
    let mut problems: Vec<String> = failures.map(sentence).collect();
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

/// What will be different after a move of `container`, a sentence each. Nothing of it forbids one.
pub fn pod_warnings(pod: &Pod, container: &str, usage: &Usage) -> Vec<String> {
    let Some((spec, container)) = spec_of(pod, container) else { return Vec::new() };
    let findings = different(IT, spec, container, &|volume| usage.is_empty(volume));
    let alone = |it: &&Finding| it.verdict == Verdict::Warning || it.check == "containers";
    findings.iter().filter(alone).map(sentence).collect()
}

/// A finding's reason, and what to do.
pub fn sentence(finding: &Finding) -> String {
    match &finding.remedy {
        Some(remedy) => format!("{}; {remedy}", finding.reason),
        None => finding.reason.clone(),
    }
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
            ("volumeDevices", json!([{"name": "v", "devicePath": "/dev/x"}]), "volumeDevices"),
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
