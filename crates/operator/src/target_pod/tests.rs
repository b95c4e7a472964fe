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
    target_by(source, replaced_by_owner, Transfer::Registry)
}

fn target_by(source: &Pod, replaced_by_owner: bool, transfer: Transfer) -> Value {
    let migration: StatefulMigration = serde_json::from_value(json!({
        "apiVersion": "migration.ms2m.io/v1alpha1", "kind": "StatefulMigration",
        "metadata": {"name": "move", "namespace": "shop", "uid": "m-1"},
        "spec": {"sourcePod": "consumer-abc"}
    }))
    .unwrap();
    let plan = TargetPlan {
        migration: &migration,
        name: "consumer-abc-shadow",
        container: "app",
        image: "r/ck@sha256:0",
        transfer,
        base_image: "r/app@sha256:1",
        node: "worker-2",
        beside: Some("s-1 cri-o://1".to_owned()),
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
    // What came from node to node may be offered no more when the container starts.
    expected["containers"][0]["imagePullPolicy"] = json!("IfNotPresent");
    assert_eq!(target_by(&pod(source()), true, Transfer::Direct)["spec"], expected);
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
            "annotations": {
                "keep": "me",
                "migration.ms2m.io/base-image": "app r/app@sha256:1",
                "migration.ms2m.io/made-from": "s-1 cri-o://1",
                "migration.ms2m.io/migration-uid": "m-1"
            }
        })
    );
}

#[test]
fn whose_a_pod_is_its_uid_decides_where_it_tells() {
    let mut made = pod(target_of(&pod(source()), true));
    let migration = |name: &str, uid: &str| -> StatefulMigration {
        serde_json::from_value(json!({
            "apiVersion": "migration.ms2m.io/v1alpha1", "kind": "StatefulMigration",
            "metadata": {"name": name, "uid": uid}, "spec": {"sourcePod": "consumer-abc"}
        }))
        .unwrap()
    };
    assert!(is_of(&made, &migration("move", "m-1")));
    assert!(!is_of(&made, &migration("move", "m-2")), "a later one of the same name");
    assert!(!is_of(&made, &migration("other", "m-1")));
    made.metadata.annotations = None;
    assert!(is_of(&made, &migration("move", "m-2")), "made before there were UIDs on it");
}

#[test]
fn at_the_switch_it_gets_the_labels_that_select_the_source() {
    let mut source = pod(source());
    let labels = source.metadata.labels.as_mut().unwrap();
    labels.insert(LABEL_MIGRATION.to_owned(), "an-earlier-one".to_owned());
    labels.insert(LABEL_ROLE.to_owned(), ROLE_MOVED.to_owned());
    let services = serde_json::to_value(labels_for_services(&source)).unwrap();
    assert_eq!(services, json!({"app": "consumer"}), "the ReplicaSet must not see it yet");
    let all = serde_json::to_value(labels_at_switch(&source)).unwrap();
    assert_eq!(all, json!({"app": "consumer", "pod-template-hash": "abc"}));
}

/// The target after it has taken over, its restored process ended with `exit_code`, if at all.
fn moved(mut target: Value, phase: &str, exit_code: Option<i32>) -> Pod {
    target["metadata"]["labels"]["migration.ms2m.io/role"] = json!("moved");
    target["metadata"]["labels"]["app"] = json!("consumer");
    target["metadata"]["uid"] = json!("9");
    let state = match exit_code {
        Some(code) => json!({"terminated": {"exitCode": code}}),
        None => json!({"running": {}}),
    };
    let status = json!({"name": "app", "state": state, "image": "", "imageID": "", "ready": false,
        "restartCount": 0});
    target["status"] = json!({"phase": phase, "containerStatuses": [status]});
    pod(target)
}

fn owned(mut pod: Pod) -> Pod {
    pod.metadata.owner_references = self::pod(source()).metadata.owner_references;
    pod
}

fn ours(pod: &Pod) -> Pod {
    match successor(pod) {
        Some(Successor::Ours(fresh)) => *fresh,
        other => panic!("a fresh pod is expected, not {other:?}"),
    }
}

#[test]
fn a_bare_pod_that_ends_after_a_move_starts_afresh_from_its_own_spec() {
    let target = target_of(&pod(source()), false);
    let fresh = serde_json::to_value(ours(&moved(target, "Failed", Some(137)))).unwrap();
    assert_eq!(
        fresh["metadata"],
        json!({
            "name": "consumer-abc",
            "namespace": "shop",
            "labels": {"app": "consumer"},
            "annotations": {"keep": "me", "migration.ms2m.io/replaces": "9"}
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
    let once = moved(target_of(&pod(source()), false), "Running", None);
    let twice = target_of(&once, false);
    assert_eq!(twice["metadata"]["annotations"][ANNOTATION_BASE_IMAGE], "app r/app@sha256:1");
    let fresh = ours(&moved(twice, "Failed", Some(1)));
    let images: Vec<_> = fresh.spec.unwrap().containers.into_iter().map(|c| c.image).collect();
    assert_eq!(images, [Some("r/app:1".to_owned()), Some("r/other:1".to_owned())]);
}

#[test]
fn a_bare_pod_gets_a_successor_when_the_kubelet_would_have_restarted_it() {
    let bare = |policy: &str| {
        let mut source = source();
        source["spec"]["restartPolicy"] = json!(policy);
        target_of(&pod(source), false)
    };
    for (policy, phase, exit_code, expected) in [
        ("Always", "Running", None, false),
        ("Always", "Failed", Some(1), true),
        ("Always", "Succeeded", Some(0), true),
        // Evicted: the kubelet no longer knows the container.
        ("Always", "Failed", None, true),
        // Another container still runs.
        ("Always", "Running", Some(1), true),
        ("OnFailure", "Failed", Some(1), true),
        ("OnFailure", "Succeeded", Some(0), false),
        ("Never", "Failed", Some(1), false),
    ] {
        let pod = moved(bare(policy), phase, exit_code);
        let case = format!("{policy} {phase} {exit_code:?}");
        assert_eq!(successor(&pod).is_some(), expected, "{case}");
    }
}

#[test]
fn an_owner_replaces_its_pod_and_has_to_be_helped_only_while_another_container_runs() {
    let target = target_of(&pod(source()), true);
    let with = |phase, exit_code| successor(&owned(moved(target.clone(), phase, exit_code)));
    assert_eq!(with("Running", None), None);
    assert_eq!(with("Failed", Some(1)), None, "its owner has seen that");
    assert_eq!(with("Running", Some(1)), Some(Successor::Owners));
}

#[test]
fn nothing_is_replaced_before_the_commit_nor_while_it_is_deleted() {
    let ended = moved(target_of(&pod(source()), false), "Failed", Some(1));
    let mut before = ended.clone();
    let labels = before.metadata.labels.as_mut().unwrap();
    labels.insert(LABEL_ROLE.to_owned(), ROLE_TARGET.to_owned());
    assert_eq!(successor(&before), None, "the migration rolls back");

    let mut deleted = serde_json::to_value(ended).unwrap();
    deleted["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert_eq!(successor(&pod(deleted)), None, "somebody wants it gone");
    assert_eq!(successor(&pod(source())), None, "it was never moved");
}

#[test]
fn the_restored_container_can_not_be_restarted_by_a_rule_of_its_own() {
    let mut with_rule = source();
    with_rule["spec"]["containers"][0]["restartPolicy"] = json!("Always");
    let target = target_of(&pod(with_rule), true);
    assert!(target["spec"]["containers"][0]["restartPolicy"].is_null());
}
