//! The controllers that make and unmake pods: scheduler, node lifecycle, ReplicaSets, StatefulSets.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};
use shadow_operator::clock;
use shadow_protocol::time::Time;

use super::deployments::attracts;
use super::object::{
    condition, controlled_by, controller, has, list, map, name, namespace, number, selects,
    set_condition, terminating, text, uid,
};
use super::policies::Policies;
use super::store::{Key, Store};
use super::write::Deletion;

/// After so long the pods of a node that no longer exists are removed.
const ORPHANED_PODS: u64 = 40_000;
/// After so long a StatefulSet tries again to create a pod that was denied.
const TRIED_AGAIN: u64 = 500;

type Object = Arc<Value>;

fn objects(store: &Store, plural: &'static str) -> Vec<(Key, Object)> {
    store.all(plural).map(|(key, object)| (key.clone(), object.clone())).collect()
}

/// Neither ended nor about to end.
pub(super) fn active(pod: &Value) -> bool {
    !terminating(pod) && !matches!(text(pod, "/status/phase"), "Failed" | "Succeeded")
}

/// Binds each pod without a node to the ready and schedulable one with the fewest pods. Who is bound to
/// a node that its affinity forbids is turned away there.
pub(super) fn schedule(store: &mut Store) {
    for (key, pod) in objects(store, "pods") {
        if let Some(node) = store.get(&Key::new("nodes", "", text(&pod, "/spec/nodeName")))
            && text(&pod, "/status/phase") == "Pending"
            && !attracts(&pod, map(node, "/metadata/labels"))
        {
            let status = json!({ "phase": "Failed", "reason": "NodeAffinity" });
            store.modify(&key, |pod| pod["status"] = status);
        }
        if has(&pod, "/spec/nodeName") || terminating(&pod) {
            continue;
        }
        let mut load: BTreeMap<String, usize> = BTreeMap::new();
        for (_, other) in store.all("pods") {
            *load.entry(text(other, "/spec/nodeName").to_owned()).or_default() += 1;
        }
        let wanted = map(&pod, "/spec/nodeSelector");
        let node = store
            .all("nodes")
            .filter(|(_, node)| {
                let labels = map(node, "/metadata/labels");
                condition(node, "Ready")
                    && node["spec"]["unschedulable"] != true
                    && attracts(&pod, labels)
                    && wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
            })
            .map(|(key, _)| (load.get(&key.name).copied().unwrap_or(0), key.name.clone()))
            .min();
        if let Some((_, node)) = node {
            store.modify(&key, |pod| pod["spec"]["nodeName"] = json!(node));
        }
    }
}

/// Pods of nodes that are not Ready are not Ready either; pods of nodes that are gone are removed
/// after a while. `gone` remembers since when.
pub(super) fn node_lifecycle(
    store: &mut Store,
    gone: &mut BTreeMap<String, Time>,
    now: Time,
) -> Option<Time> {
    let mut wake = None;
    let mut missing: BTreeMap<String, Time> = BTreeMap::new();
    for (key, pod) in objects(store, "pods") {
        let node_name = text(&pod, "/spec/nodeName");
        if node_name.is_empty() {
            continue;
        }
        if let Some(node) = store.get(&Key::new("nodes", "", node_name)) {
            if !condition(node, "Ready") && condition(&pod, "Ready") {
                let at = clock::rfc3339_seconds(now);
                store.modify(&key, |pod| set_condition(pod, "Ready", false, "NodeNotReady", &at));
            }
            continue;
        }
        let since = *missing
            .entry(node_name.to_owned())
            .or_insert_with(|| gone.get(node_name).copied().unwrap_or(now));
        let due = Time(since.0 + ORPHANED_PODS);
        if now >= due {
            let how = Deletion { grace: Some(0), ..Deletion::default() };
            let _ = store.delete(&key, &how);
        } else {
            wake = Some(due);
        }
    }
    *gone = missing;
    wake
}

/// Pods as the ReplicaSets' controller sees them while its watch of them has ended: what was there then. What
/// it creates meanwhile it does not see, and waits for.
pub(super) struct Late {
    pub(super) until: Time,
    pods: Vec<(Key, Object)>,
    expected: BTreeSet<Key>,
}

impl Late {
    pub(super) fn now(store: &Store, until: Time) -> Self {
        Self { until, pods: objects(store, "pods"), expected: BTreeSet::new() }
    }
}

/// Adopts, releases, creates and deletes as the ReplicaSet controller does. Returns when it tries again to
/// create what was denied.
pub(super) fn replica_sets(
    store: &mut Store,
    policies: &Policies,
    mut late: Option<&mut Late>,
    now: Time,
) -> Option<Time> {
    let mut again = None;
    for (key, set) in objects(store, "replicasets") {
        if terminating(&set) {
            continue;
        }
        let pods = late.as_ref().map_or_else(|| objects(store, "pods"), |it| it.pods.clone());
        let mine = claim(store, pods, &key, &set, |_| true);
        let mut active: Vec<&Object> = mine.iter().filter(|pod| self::active(pod)).collect();
        let wanted = usize::try_from(number(&set, "/spec/replicas").unwrap_or(1)).unwrap_or(0);
        let missing = wanted.saturating_sub(active.len());
        if missing > 0 && late.as_mut().is_none_or(|it| it.expected.insert(key.clone())) {
            for _ in 0..missing {
                let pod = from_template(&set, &set["spec"]["template"]);
                if policies.admit("pods", &key.namespace, &pod).is_err() {
                    again = Some(Time(now.0 + TRIED_AGAIN));
                    if let Some(late) = &mut late {
                        late.expected.remove(&key);
                    }
                } else {
                    let _ = store.create("pods", &key.namespace, pod);
                }
            }
        }
        active.sort_by_key(|pod| surplus_rank(pod));
        for pod in active.iter().take(active.len().saturating_sub(wanted)) {
            let how = Deletion { uid: Some(uid(pod).to_owned()), ..Deletion::default() };
            let _ = store.delete(&Key::of("pods", pod), &how);
        }
        let ready = active.iter().filter(|pod| condition(pod, "Ready")).count();
        let status = json!({
            "replicas": active.len(), "fullyLabeledReplicas": active.len(),
            "readyReplicas": ready, "availableReplicas": ready,
            "observedGeneration": set["metadata"]["generation"],
        });
        store.modify(&key, |set| set["status"] = status);
    }
    again
}

/// Who is deleted first: not on a node, not running, not ready, cheapest, ready for the shortest
/// time, restarted most often, youngest.
fn surplus_rank(pod: &Value) -> impl Ord + use<> {
    let ready = condition(pod, "Ready");
    let cost: i64 = map(pod, "/metadata/annotations")
        .get("controller.kubernetes.io/pod-deletion-cost")
        .and_then(Value::as_str)
        .and_then(|cost| cost.parse().ok())
        .unwrap_or(0);
    let since = list(pod, "/status/conditions").iter().find(|c| c["type"] == "Ready");
    let since = since.map(|c| text(c, "/lastTransitionTime").to_owned()).unwrap_or_default();
    let restarts = list(pod, "/status/containerStatuses")
        .iter()
        .filter_map(|status| number(status, "/restartCount"))
        .max()
        .unwrap_or(0);
    (
        has(pod, "/spec/nodeName"),
        text(pod, "/status/phase") == "Running",
        ready,
        cost,
        Reverse(since),
        Reverse(restarts),
        Reverse(text(pod, "/metadata/creationTimestamp").to_owned()),
        name(pod).to_owned(),
    )
}

/// Those of `pods` that `owner` controls, after it has adopted those that match its selector, bear a name of
/// its own and have no controller, and let go those that no longer do.
fn claim(
    store: &mut Store,
    pods: Vec<(Key, Object)>,
    owner_key: &Key,
    owner: &Value,
    own: impl Fn(&Value) -> bool,
) -> Vec<Object> {
    let selector = &owner["spec"]["selector"];
    let mut mine = Vec::new();
    for (key, pod) in pods.into_iter().filter(|(key, _)| key.namespace == owner_key.namespace) {
        let matches = selects(selector, map(&pod, "/metadata/labels")) && own(&pod);
        match controller(&pod) {
            Some(by) if by == uid(owner) && matches => mine.push(pod),
            Some(by) if by == uid(owner) => store.modify(&key, |pod| {
                let rest: Vec<Value> = list(pod, "/metadata/ownerReferences")
                    .iter()
                    .filter(|o| text(o, "/uid") != uid(owner))
                    .cloned()
                    .collect();
                pod["metadata"]["ownerReferences"] = json!(rest);
            }),
            None if matches && active(&pod) => {
                store.modify(&key, |pod| {
                    let mut all = list(pod, "/metadata/ownerReferences").to_vec();
                    all.push(controlled_by(owner));
                    pod["metadata"]["ownerReferences"] = json!(all);
                });
                mine.extend(store.get(&key).cloned());
            }
            _ => {}
        }
    }
    mine
}

/// A pod made from a template, with a name of its own still to be made.
pub(super) fn from_template(owner: &Value, template: &Value) -> Value {
    json!({
        "metadata": {
            "generateName": format!("{}-", name(owner)),
            "labels": template["metadata"].get("labels").cloned().unwrap_or_else(|| json!({})),
            "annotations":
                template["metadata"].get("annotations").cloned().unwrap_or_else(|| json!({})),
            "ownerReferences": [controlled_by(owner)],
        },
        "spec": template["spec"].clone(),
    })
}

/// Keeps `name-0` … `name-N`, one after the other, and replaces those that have ended. Returns when
/// it tries again to create what was denied.
pub(super) fn stateful_sets(store: &mut Store, policies: &Policies, now: Time) -> Option<Time> {
    let mut again = None;
    for (key, set) in objects(store, "statefulsets") {
        if terminating(&set) {
            continue;
        }
        let wanted = number(&set, "/spec/replicas").unwrap_or(1);
        let ordered = text(&set, "/spec/podManagementPolicy") != "Parallel";
        let ordinal = |pod: &Value| -> Option<i64> {
            name(pod).strip_prefix(&format!("{}-", key.name))?.parse().ok()
        };
        let pods = objects(store, "pods");
        let mine = claim(store, pods, &key, &set, |pod| ordinal(pod).is_some());
        for at in 0..wanted {
            let found = mine.iter().find(|pod| ordinal(pod) == Some(at));
            let ready = match found {
                None => {
                    if create_ordinal(store, policies, &set, at).is_err() {
                        again = Some(Time(now.0 + TRIED_AGAIN));
                    }
                    false
                }
                Some(pod) if terminating(pod) => false,
                Some(pod) if !active(pod) => {
                    let _ = store.delete(&Key::of("pods", pod), &Deletion::default());
                    false
                }
                Some(pod) => condition(pod, "Ready"),
            };
            if ordered && !ready {
                break;
            }
        }
        let surplus = mine
            .iter()
            .filter(|pod| ordinal(pod).is_some_and(|at| at >= wanted) && !terminating(pod))
            .max_by_key(|pod| ordinal(pod));
        if let Some(pod) = surplus {
            let _ = store.delete(&Key::of("pods", pod), &Deletion::default());
        }
        let ready = mine.iter().filter(|pod| condition(pod, "Ready")).count();
        let status = json!({
            "replicas": mine.len(), "readyReplicas": ready, "availableReplicas": ready,
            "observedGeneration": set["metadata"]["generation"],
        });
        store.modify(&key, |set| set["status"] = status);
    }
    again
}

fn create_ordinal(
    store: &mut Store,
    policies: &Policies,
    set: &Value,
    at: i64,
) -> Result<(), super::Refusal> {
    let mut pod = from_template(set, &set["spec"]["template"]);
    let pod_name = format!("{}-{at}", name(set));
    pod["metadata"]["name"] = json!(pod_name);
    pod["metadata"]["labels"]["statefulset.kubernetes.io/pod-name"] = json!(pod_name);
    pod["metadata"]["labels"]["apps.kubernetes.io/pod-index"] = json!(at.to_string());
    pod["spec"]["hostname"] = json!(pod_name);
    pod["metadata"]["namespace"] = json!(namespace(set));
    policies.admit("pods", namespace(set), &pod)?;
    store.create("pods", namespace(set), pod).map(|_| ())
}
