//! A pod template's affinity for one node, put in and taken out again.
//!
//! Templates stay JSON: a field that this operator's types do not know must not get lost, or the
//! Deployment's template and its ReplicaSet's would differ.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Map, Value, json};

/// Annotation of a pinned template: the host name in the affinity that is ours.
pub const ANNOTATION_PINNED_TO: &str = "migration.ms2m.io/pinned-to";
/// Annotation of a pinned template: the UID of the migration that did it. It makes every template
/// another one, since a Deployment takes the oldest ReplicaSet whose template equals its own.
pub const ANNOTATION_PINNED_BY: &str = "migration.ms2m.io/pinned-by";
/// The label with a node's host name.
pub const HOST_NAME: &str = "kubernetes.io/hostname";

/// `template`, for `node` and no other, whatever node it was for before.
pub fn pinned(template: &Value, node: &str, by: &str) -> Value {
    let mut template = unpinned(template);
    let affinity = &mut template["spec"]["affinity"];
    *affinity = required(affinity.take(), node);
    let annotations = &mut template["metadata"]["annotations"];
    annotations[ANNOTATION_PINNED_TO] = json!(node);
    annotations[ANNOTATION_PINNED_BY] = json!(by);
    template
}

/// `template` without what [`pinned`] has put in.
pub fn unpinned(template: &Value) -> Value {
    let mut template = template.clone();
    let Some(annotations) =
        template.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut)
    else {
        return template;
    };
    annotations.remove(ANNOTATION_PINNED_BY);
    let node = annotations.remove(ANNOTATION_PINNED_TO);
    if annotations.is_empty() {
        remove(&mut template["metadata"], "annotations");
    }
    let Some(Value::String(node)) = node else { return template };
    let spec = &mut template["spec"];
    let affinity = released(spec["affinity"].take(), &node);
    if is_empty(&affinity) {
        remove(spec, "affinity");
    } else {
        spec["affinity"] = affinity;
    }
    template
}

/// `pod` without the affinity of a template that was pinned to a node: the kubelet of another one
/// would reject it.
pub fn free(pod: &Pod) -> Pod {
    let free = serde_json::to_value(pod).map(|pod| unpinned(&pod)).and_then(serde_json::from_value);
    free.unwrap_or_else(|_| pod.clone())
}

/// Which migration has pinned `template`.
pub fn pinned_by(template: &Value) -> Option<&str> {
    template["metadata"]["annotations"][ANNOTATION_PINNED_BY].as_str()
}

fn ours(node: &str) -> Value {
    json!({ "key": HOST_NAME, "operator": "In", "values": [node] })
}

const TERMS: &str =
    "/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";

/// Terms are alternatives, so each of them gets it; one that is empty matches no node, and stays so.
fn required(mut affinity: Value, node: &str) -> Value {
    let mut terms = affinity.pointer(TERMS).and_then(Value::as_array).cloned().unwrap_or_default();
    if terms.is_empty() {
        terms.push(json!({ "matchExpressions": [ours(node)] }));
    } else {
        for term in terms.iter_mut().filter(|term| !is_empty(term)) {
            match term["matchExpressions"].as_array_mut() {
                Some(all) => all.push(ours(node)),
                None => term["matchExpressions"] = json!([ours(node)]),
            }
        }
    }
    let required = &mut affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    required["nodeSelectorTerms"] = Value::Array(terms);
    affinity
}

fn released(mut affinity: Value, node: &str) -> Value {
    let Some(terms) = affinity.pointer_mut(TERMS).and_then(Value::as_array_mut) else {
        return affinity;
    };
    let ours = ours(node);
    terms.retain_mut(|term| {
        let Some(all) = term.get_mut("matchExpressions").and_then(Value::as_array_mut) else {
            return true;
        };
        // The last one: the user may have written the same.
        let Some(at) = all.iter().rposition(|it| *it == ours) else { return true };
        all.remove(at);
        if all.is_empty() {
            remove(term, "matchExpressions");
        }
        !is_empty(term)
    });
    if terms.is_empty() {
        let node_affinity = &mut affinity["nodeAffinity"];
        remove(node_affinity, "requiredDuringSchedulingIgnoredDuringExecution");
        if is_empty(node_affinity) {
            remove(&mut affinity, "nodeAffinity");
        }
    }
    affinity
}

fn remove(object: &mut Value, field: &str) {
    object.as_object_mut().and_then(|object| object.remove(field));
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_object().is_some_and(Map::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";

    fn terms(template: &Value) -> &Value {
        &template["spec"]["affinity"]["nodeAffinity"][REQUIRED]["nodeSelectorTerms"]
    }

    fn zone() -> Value {
        json!({ "key": "zone", "operator": "In", "values": ["a"] })
    }

    #[test]
    fn a_plain_template_is_pinned_and_is_plain_again() {
        let plain =
            json!({ "metadata": { "labels": { "app": "a" } }, "spec": { "containers": [] } });
        let there = pinned(&plain, "worker-2", "1");
        assert_eq!(*terms(&there), json!([{ "matchExpressions": [ours("worker-2")] }]));
        assert_eq!(pinned_by(&there), Some("1"));
        assert_eq!(unpinned(&there), plain);
        let back = pinned(&there, "worker-1", "2");
        assert_eq!(*terms(&back), json!([{ "matchExpressions": [ours("worker-1")] }]));
        assert_ne!(pinned(&back, "worker-2", "3"), there, "no template is ever one of before");
    }

    #[test]
    fn what_the_user_wants_stays() {
        let preferred = json!([{ "weight": 1, "preference": { "matchExpressions": [zone()] } }]);
        let field = json!({ "matchFields": [{ "key": "metadata.name", "operator": "Exists" }] });
        let theirs = json!({
            "metadata": { "annotations": { "keep": "me" } },
            "spec": { "affinity": {
                "podAntiAffinity": {},
                "nodeAffinity": {
                    "preferredDuringSchedulingIgnoredDuringExecution": preferred,
                    REQUIRED: { "nodeSelectorTerms":
                        [{ "matchExpressions": [zone(), ours("worker-2")] }, field, {}] },
                },
            } },
        });
        let there = pinned(&theirs, "worker-2", "1");
        let mine = ours("worker-2");
        assert_eq!(terms(&there)[0]["matchExpressions"], json!([zone(), mine, mine]));
        assert_eq!(terms(&there)[1]["matchExpressions"], json!([mine]));
        assert_eq!(terms(&there)[2], json!({}), "it matches no node, as before");
        assert_eq!(unpinned(&there), theirs);
    }

    #[test]
    fn a_pod_of_a_pinned_template_may_go_elsewhere() {
        let mut pod = pinned(&json!({ "spec": { "containers": [] } }), "worker-2", "1");
        pod["metadata"]["name"] = json!("a");
        let free = free(&serde_json::from_value(pod).unwrap());
        assert!(free.spec.unwrap().affinity.is_none());
        assert!(free.metadata.annotations.is_none());
    }
}
