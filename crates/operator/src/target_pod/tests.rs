use super::*;
use serde_json::{Value, json};

/// A pod as the API server shows it, with all that admission and kubelet have added.
fn source() -> Value {
    json!({
        "metadata": {
            "name": "consumer-abc", "namespace": "shop", "uid": "1", "resourceVersion": "7",
            "generateName": "consumer-", "creationTimestamp": "2026-01-01T00:00:00Z",
            "finalizers": ["example.com/x"],
            "labels": {"app": "consumer", "pod-template-hash": "abc",
                "topology.kubernetes.io/zone": "z1"},
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}",
                "cni.projectcalico.org/podIP": "10.0.0.1", "keep": "me"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs",
                "uid": "2", "controller": true}]
        },
        "spec": {
            "nodeName": "worker-1",
            "hostname": "consumer-abc", "subdomain": "consumers",
            "serviceAccountName": "sa", "serviceAccount": "sa",
            "priorityClassName": "high", "priority": 1000, "preemptionPolicy": "Never",
            "restartPolicy": "Always",
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"key": "team", "operator": "Exists"}],
            "securityContext": {"runAsUser": 1000},
            "imagePullSecrets": [{"name": "pull"}],
            "terminationGracePeriodSeconds": 7,
            "ephemeralContainers": [{"name": "debug", "image": "d"}],
            "initContainers": [
                {"name": "once", "image": "i"},
                {"name": "side", "image": "s", "restartPolicy": "Always"}
            ],
            "containers": [
                {"name": "app", "image": "r/app:1", "imagePullPolicy": "IfNotPresent",
                    "env": [{"name": "A", "value": "b"}],
                    "resources": {"limits": {"memory": "64Mi"}},
                    "resizePolicy": [
                        {"resourceName": "cpu", "restartPolicy": "NotRequired"},
                        {"resourceName": "memory", "restartPolicy": "RestartContainer"}
                    ],
                    "lifecycle": {"postStart": {"sleep": {"seconds": 1}},
                        "preStop": {"sleep": {"seconds": 1}}},
                    "startupProbe": {"tcpSocket": {"port": 1}},
                    "readinessProbe": {"tcpSocket": {"port": 1}, "initialDelaySeconds": 30},
                    "livenessProbe": {"tcpSocket": {"port": 1}, "initialDelaySeconds": 30},
                    "volumeMounts": [
                        {"name": "v", "mountPath": "/v"},
                        {"name": "kube-api-access-x7", "readOnly": true,
                            "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}
                    ]},
                {"name": "other", "image": "r/other:1"}
            ],
            "volumes": [
                {"name": "v", "emptyDir": {}},
                {"name": "kube-api-access-x7", "projected": {"sources": [
                    {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}}]}}
            ]
        },
        "status": {"phase": "Running", "podIP": "10.0.0.1"}
    })
}

fn pod(value: Value) -> Pod {
    serde_json::from_value(value).unwrap()
}

fn target_of(source: &Pod, replaced_by_owner: bool) -> Value {
    let migration: StatefulMigration = serde_json::from_value(json!({
        "apiVersion": "migration.ms2m.io/v1alpha1", "kind": "StatefulMigration",
        "metadata": {"name": "move", "namespace": "shop"},
        "spec": {"sourcePod": "consumer-abc"}
    }))
    .unwrap();
    let plan = TargetPlan {
        migration: &migration,
        name: "consumer-abc-shadow",
        container: "app",
        image: "r/ck@sha256:0",
        base_image: "r/app@sha256:1",
        node: "worker-2",
        replaced_by_owner,
    };
    serde_json::to_value(target_pod(source, &plan)).unwrap()
}

/// The whole difference: whatever else a spec has goes along.
#[test]
fn only_image_node_identity_and_what_belongs_to_a_start_change() {
    let mut expected = source()["spec"].clone();
    expected["nodeName"] = json!("worker-2");
    expected["restartPolicy"] = json!("Never");
    expected["readinessGates"] = json!([{"conditionType": "migration.ms2m.io/handoff"}]);
    expected["initContainers"].as_array_mut().unwrap().remove(0);
    for gone in ["ephemeralContainers", "priority", "preemptionPolicy", "hostname"] {
        expected.as_object_mut().unwrap().remove(gone);
    }
    let app = &mut expected["containers"][0];
    app["image"] = json!("r/ck@sha256:0");
    app["imagePullPolicy"] = json!("Always");
    app.as_object_mut().unwrap().remove("startupProbe");
    app["lifecycle"].as_object_mut().unwrap().remove("postStart");
    app["readinessProbe"].as_object_mut().unwrap().remove("initialDelaySeconds");
    app["resizePolicy"].as_array_mut().unwrap().remove(1);
    expected["containers"][1]["restartPolicy"] = json!("Always");
    assert_eq!(target_of(&pod(source()), true)["spec"], expected);
}

#[test]
fn nobody_finds_it_before_the_switch() {
    let metadata = &target_of(&pod(source()), true)["metadata"];
    assert_eq!(
        *metadata,
        json!({
            "name": "consumer-abc-shadow",
            "namespace": "shop",
            "labels": {"migration.ms2m.io/migration": "move", "migration.ms2m.io/role": "target"},
            "annotations": {"keep": "me", "migration.ms2m.io/base-image": "app r/app@sha256:1"}
        })
    );
}

#[test]
fn at_the_switch_it_gets_the_labels_that_select_the_source() {
    let mut source = pod(source());
    let labels = source.metadata.labels.as_mut().unwrap();
    labels.insert(LABEL_MIGRATION.to_owned(), "an-earlier-one".to_owned());
    labels.insert(LABEL_ROLE.to_owned(), ROLE_MOVED.to_owned());
    let labels = serde_json::to_value(labels_at_switch(&source)).unwrap();
    assert_eq!(labels, json!({"app": "consumer", "pod-template-hash": "abc"}));
}

/// `moved` as a bare pod that has taken over and then ended in `phase`.
fn moved(mut target: Value, phase: &str) -> Pod {
    target["metadata"]["labels"]["migration.ms2m.io/role"] = json!("moved");
    target["metadata"]["labels"]["app"] = json!("consumer");
    target["metadata"]["uid"] = json!("9");
    target["status"] = json!({"phase": phase});
    pod(target)
}

#[test]
fn a_bare_pod_that_ends_after_a_move_starts_afresh_from_its_own_spec() {
    let target = target_of(&pod(source()), false);
    let fresh = serde_json::to_value(fresh_pod(&moved(target, "Failed")).unwrap()).unwrap();
    assert_eq!(
        fresh["metadata"],
        json!({
            "name": "consumer-abc-shadow",
            "namespace": "shop",
            "labels": {"app": "consumer"},
            "annotations": {"keep": "me"}
        })
    );
    let mut expected = source()["spec"].clone();
    expected["nodeName"] = json!("worker-2");
    for gone in ["ephemeralContainers", "priority", "preemptionPolicy", "hostname"] {
        expected.as_object_mut().unwrap().remove(gone);
    }
    assert_eq!(fresh["spec"], expected);
}

#[test]
fn after_any_number_of_moves_the_origin_is_the_first_one() {
    let once = moved(target_of(&pod(source()), false), "Running");
    let twice = target_of(&once, false);
    assert_eq!(twice["metadata"]["annotations"][ANNOTATION_BASE_IMAGE], "app r/app@sha256:1");
    let fresh = fresh_pod(&moved(twice, "Failed")).unwrap();
    let images: Vec<_> = fresh.spec.unwrap().containers.into_iter().map(|c| c.image).collect();
    assert_eq!(images, [Some("r/app:1".to_owned()), Some("r/other:1".to_owned())]);
}

#[test]
fn only_a_moved_bare_pod_that_has_ended_is_replaced() {
    let target = target_of(&pod(source()), false);
    assert!(fresh_pod(&moved(target.clone(), "Failed")).is_some());
    assert!(fresh_pod(&moved(target.clone(), "Succeeded")).is_some());
    assert!(fresh_pod(&moved(target.clone(), "Running")).is_none(), "it lives");
    assert!(fresh_pod(&moved(target_of(&pod(source()), true), "Failed")).is_none(), "owned");

    let mut before_the_commit = moved(target.clone(), "Failed");
    let labels = before_the_commit.metadata.labels.as_mut().unwrap();
    labels.insert(LABEL_ROLE.to_owned(), ROLE_TARGET.to_owned());
    assert!(fresh_pod(&before_the_commit).is_none(), "the migration rolls back");

    let mut once_only = source();
    once_only["spec"]["restartPolicy"] = json!("Never");
    let target = target_of(&pod(once_only), false);
    assert!(fresh_pod(&moved(target, "Failed")).is_none(), "as without a migration");
}

#[test]
fn the_restored_container_can_not_be_restarted_by_a_rule_of_its_own() {
    let mut with_rule = source();
    with_rule["spec"]["containers"][0]["restartPolicy"] = json!("Always");
    let target = target_of(&pod(with_rule), true);
    assert!(target["spec"]["containers"][0]["restartPolicy"].is_null());
}
