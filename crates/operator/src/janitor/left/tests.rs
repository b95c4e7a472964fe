use serde_json::{Value, json};

use super::*;

const UID: &str = "0f9d3c1e-aaaa-bbbb-cccc-000000000000";
const NOW: Time = Time(1_767_225_600_000);

fn object(value: Value) -> ObjectMeta {
    serde_json::from_value(value).unwrap()
}

fn pod(value: Value) -> Arc<Pod> {
    Arc::new(serde_json::from_value(value).unwrap())
}

/// The migration `move` exists, or is only worked on, or neither.
fn living(exists: bool, runs: bool) -> Living {
    let mut living = Living::default();
    if exists {
        living.names.insert(("shop".to_owned(), "move".to_owned()));
    }
    if exists || runs {
        living.uids.insert(UID.to_owned());
    }
    living
}

fn source(container: &str) -> Arc<Pod> {
    pod(json!({
        "metadata": { "name": "consumer", "namespace": "shop", "uid": "source" },
        "status": { "phase": "Running", "containerStatuses": [{
            "name": "app", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "containerID": container, "state": { "running": { "startedAt": null } },
        }] },
    }))
}

fn copy(labels: &Value) -> Arc<Pod> {
    let mut all = json!({
        "migration.ms2m.io/migration": "move", "migration.ms2m.io/role": "target",
    });
    all.as_object_mut().unwrap().extend(labels.as_object().unwrap().clone());
    pod(json!({ "metadata": {
        "name": "consumer-copy", "namespace": "shop", "uid": "copy", "labels": all,
        "annotations": {
            "migration.ms2m.io/migration-uid": UID,
            "migration.ms2m.io/made-from": "source cri-o://1",
        },
    } }))
}

fn of(pods: &[Arc<Pod>], living: &Living) -> (Vec<What>, Vec<Notice>) {
    let found = Found { pods: pods.to_vec(), ..Found::default() };
    let (todo, notices) = chores(&found, living, NOW);
    (todo.into_iter().map(|chore| chore.what).collect(), notices)
}

const BEFORE: &str = "cri-o://1";
const SINCE: &str = "cri-o://2";

fn made() -> Found {
    let labels = json!({ "migration.ms2m.io/migration": "move" });
    let with_role = |role: &str| json!({ "migration.ms2m.io/migration": "move", "migration.ms2m.io/role": role });
    let policy = object(json!({ "name": format!("shadow-{UID}"), "labels": labels }));
    Found {
        policies: vec![policy.clone()],
        bindings: vec![policy],
        templates: vec![object(json!({
            "name": "shadow-consumer-0", "namespace": "shop", "labels": labels,
            "ownerReferences": [{ "apiVersion": "v1", "kind": "K", "name": "move", "uid": UID }],
        }))],
        jobs: vec![object(json!({
            "name": "ms2m-transfer-0f9d3c1eaa", "namespace": "shop", "labels": with_role("transfer"),
        }))],
        pods: ["ms2m-prepull-0f9d3c1eaa", "ms2m-pull-0f9d3c1eaa"]
            .map(|name| {
                let labels = with_role("prepull");
                pod(json!({ "metadata": { "name": name, "namespace": "shop", "labels": labels } }))
            })
            .into(),
        deployments: Vec::new(),
    }
}

#[test]
fn what_belongs_to_nobody_goes_and_the_binding_before_its_policy() {
    let (todo, notices) = chores(&made(), &living(false, false), NOW);
    let todo: Vec<What> = todo.into_iter().map(|chore| chore.what).collect();
    let all = [What::Binding, What::Policy, What::Template, What::Job, What::Pod, What::Pod];
    assert_eq!((todo.as_slice(), notices.as_slice()), (all.as_slice(), [].as_slice()));
}

#[test]
fn whoever_exists_or_is_worked_on_keeps_what_is_his() {
    for living in [living(true, false), living(false, true)] {
        assert_eq!(chores(&made(), &living, NOW), (Vec::new(), Vec::new()));
        assert_eq!(of(&[copy(&json!({})), source(BEFORE)], &living), (Vec::new(), Vec::new()));
    }
}

#[test]
fn another_of_the_same_name_keeps_nothing() {
    let mut other = living(true, false);
    other.uids = BTreeSet::from(["another".to_owned()]);
    assert_eq!(chores(&made(), &other, NOW).0.len(), 6);
    assert_eq!(of(&[copy(&json!({})), source(BEFORE)], &other).0, [What::Pod]);
}

#[test]
fn other_peoples_objects_are_not_looked_at() {
    let theirs =
        pod(json!({ "metadata": { "name": "ms2m-pull-0f9d3c1eaa", "namespace": "shop" } }));
    let moved = copy(&json!({ "migration.ms2m.io/role": "moved" }));
    assert_eq!(of(&[theirs, moved, source(BEFORE)], &living(false, false)), (vec![], vec![]));
}

#[test]
fn a_copy_goes_only_if_nobody_knows_it_and_its_source_is_whole() {
    let nobody = living(false, false);
    assert_eq!(of(&[copy(&json!({})), source(BEFORE)], &nobody), (vec![What::Pod], vec![]));
    let known = copy(&json!({ "app": "consumer" }));
    for pods in [
        vec![copy(&json!({}))],
        // Started afresh since: it knows nothing.
        vec![copy(&json!({})), source(SINCE)],
        vec![known.clone()],
        vec![known.clone(), source(BEFORE)],
    ] {
        let (todo, notices) = of(&pods, &nobody);
        assert!(todo.is_empty(), "{todo:?}");
        assert_eq!(notices.len(), 1);
        assert_eq!(notices[0].about.name.as_deref(), Some("consumer-copy"));
    }
    let (_, notices) = of(&[known], &nobody);
    assert!(notices[0].message.contains("may be the only one"), "{}", notices[0].message);
}

#[test]
fn a_held_copy_is_let_go_and_stays() {
    let mut held = Pod::clone(&copy(&json!({ "app": "consumer" })));
    held.metadata.finalizers = Some(vec![FINALIZER_COPY.to_owned()]);
    let (todo, notices) = of(&[Arc::new(held)], &living(false, false));
    assert_eq!((todo, notices.len()), (vec![What::HeldPod], 1));
}

#[test]
fn what_has_looked_at_a_node_is_gone_after_ten_minutes() {
    let doctors = |phase: &str, created: &str| {
        pod(json!({
            "metadata": {
                "name": "d", "namespace": SYSTEM_NAMESPACE, "creationTimestamp": created,
                "labels": { "app.kubernetes.io/name": "shadow-doctor" },
            },
            "status": { "phase": phase },
        }))
    };
    let long_since = "2025-12-31T23:49:00Z";
    let nobody = living(false, false);
    assert_eq!(of(&[doctors("Succeeded", long_since)], &nobody).0, [What::Pod]);
    assert_eq!(of(&[doctors("Failed", long_since)], &nobody).0, [What::Pod]);
    assert!(of(&[doctors("Running", long_since)], &nobody).0.is_empty());
    assert!(of(&[doctors("Succeeded", "2025-12-31T23:51:00Z")], &nobody).0.is_empty());
}

#[test]
fn a_deployment_that_is_half_pinned_is_told_of() {
    let paused = object(json!({
        "name": "app", "namespace": "shop", "annotations": { PAUSED_BY: UID },
    }));
    let found = Found { deployments: vec![paused], ..Found::default() };
    let (todo, notices) = chores(&found, &living(false, false), NOW);
    assert!(todo.is_empty() && notices.len() == 1 && notices[0].message.contains("shop/app"));
    assert!(chores(&found, &living(false, true), NOW).1.is_empty());
}
