//! The in-memory cluster keeps the rules of a real one, as far as the operator relies on them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "what fails here is the test"
)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicyBinding;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{
    DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy,
    WatchEvent, WatchParams,
};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use shadow_operator::clock;
use shadow_protocol::time::Time;
use shadow_sim::kube::{Application, Config, Kube, Life, Start, condition};

/// Containers that do what a test wants.
#[derive(Clone, Default)]
struct Containers(Arc<Mutex<Wanted>>);

#[derive(Default)]
struct Wanted {
    /// By container name, the first start and the later ones; absent: it runs.
    lives: BTreeMap<String, Vec<Life>>,
    missing_image: bool,
    unready: bool,
    refuses_checkpoint: bool,
    ended: Vec<String>,
}

impl Application for Containers {
    fn pull(&mut self, _: &str, image: &str) -> Result<Duration, String> {
        let missing = self.0.lock().unwrap().missing_image;
        if missing { Err(format!("{image}: not found")) } else { Ok(Duration::from_secs(1)) }
    }

    fn start(&mut self, start: Start<'_>) -> Life {
        let name = start.container["name"].as_str().unwrap();
        let mut wanted = self.0.lock().unwrap();
        let lives = wanted.lives.get_mut(name).filter(|lives| !lives.is_empty());
        lives.map_or(Life::Runs, |lives| lives.remove(0))
    }

    fn ready(&mut self, _: &str) -> bool {
        !self.0.lock().unwrap().unready
    }

    fn stop(&mut self, _: &str) -> Duration {
        Duration::from_secs(3)
    }

    fn ended(&mut self, id: &str) {
        self.0.lock().unwrap().ended.push(id.to_owned());
    }

    fn checkpoint(&mut self, _: &str, _: &str) -> Result<Duration, String> {
        if self.0.lock().unwrap().refuses_checkpoint {
            return Err("CRIU failed".to_owned());
        }
        Ok(Duration::from_millis(400))
    }
}

fn simulate<F: Future<Output = ()>>(scenario: impl FnOnce(Kube, Client, Containers) -> F) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let _clock = clock::follow(Time(1_767_225_600_000));
        let containers = Containers::default();
        let kube = Kube::new(Config::default(), Box::new(containers.clone()));
        kube.add_node("n1").unwrap();
        let controllers = tokio::spawn({
            let kube = kube.clone();
            async move { kube.run().await }
        });
        let client = kube.client("test");
        scenario(kube, client, containers).await;
        controllers.abort();
    });
}

async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

fn pod(name: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": { "containers": [{ "name": "app", "image": "r/app:1" }] },
    }))
    .unwrap()
}

fn code<T>(result: kube::Result<T>) -> u16 {
    match result {
        Err(kube::Error::Api(status)) => status.code,
        Err(error) => panic!("{error}"),
        Ok(_) => 200,
    }
}

fn secret(name: &str) -> Secret {
    serde_json::from_value(json!({ "metadata": { "name": name } })).unwrap()
}

#[test]
fn versions_and_uids_are_preconditions() {
    simulate(|_, client, _| async move {
        let secrets: Api<Secret> = Api::namespaced(client, "shop");
        let first = secrets.create(&PostParams::default(), &secret("a")).await.unwrap();
        assert_eq!(code(secrets.create(&PostParams::default(), &secret("a")).await), 409);
        let mut newer = first.clone();
        newer.metadata.labels = Some(BTreeMap::from([("k".into(), "v".into())]));
        let newer = secrets.replace("a", &PostParams::default(), &newer).await.unwrap();
        assert_eq!(code(secrets.replace("a", &PostParams::default(), &first).await), 409);
        let same = secrets.replace("a", &PostParams::default(), &newer).await.unwrap();
        assert_eq!(same.resource_version(), newer.resource_version(), "nothing was changed");
        let other = Patch::Merge(json!({ "metadata": { "uid": "another" } }));
        assert_eq!(code(secrets.patch("a", &PatchParams::default(), &other).await), 409);
        let of = |uid: Option<String>| DeleteParams {
            preconditions: Some(Preconditions { uid, resource_version: None }),
            ..DeleteParams::default()
        };
        assert_eq!(code(secrets.delete("a", &of(Some("another".into()))).await), 409);
        assert_eq!(code(secrets.delete("a", &of(first.uid())).await), 200);
        assert_eq!(code(secrets.get("a").await), 404);
        assert_eq!(code(secrets.delete("a", &of(first.uid())).await), 404);
    });
}

#[test]
fn a_finalizer_holds_an_object_and_its_deletion_cannot_be_taken_back() {
    simulate(|_, client, _| async move {
        let secrets: Api<Secret> = Api::namespaced(client, "shop");
        let mut held = secret("a");
        held.metadata.finalizers = Some(vec!["x/y".into()]);
        secrets.create(&PostParams::default(), &held).await.unwrap();
        secrets.delete("a", &DeleteParams::default()).await.unwrap();
        let back = Patch::Merge(json!({ "metadata": { "deletionTimestamp": null } }));
        let found = secrets.patch("a", &PatchParams::default(), &back).await.unwrap();
        assert!(found.metadata.deletion_timestamp.is_some());
        let free = Patch::Merge(json!({ "metadata": { "finalizers": [] } }));
        secrets.patch("a", &PatchParams::default(), &free).await.unwrap();
        assert_eq!(code(secrets.get("a").await), 404);
    });
}

#[test]
fn spec_and_status_are_written_apart() {
    simulate(|kube, client, _| async move {
        let pods: Api<Pod> = Api::namespaced(client, "shop");
        pods.create(&PostParams::default(), &pod("p")).await.unwrap();
        pass(5).await;
        let before = kube.get("pods", "shop", "p").unwrap();
        let both = json!({ "spec": { "schedulerName": "s" }, "status": { "phase": "Failed" } });
        pods.patch("p", &PatchParams::default(), &Patch::Merge(both.clone())).await.unwrap();
        let after = kube.get("pods", "shop", "p").unwrap();
        assert_eq!(after["status"], before["status"]);
        assert_eq!(after["spec"]["schedulerName"], "s");
        let generation = |pod: &Value| pod["metadata"]["generation"].as_i64().unwrap();
        assert_eq!(generation(&after), generation(&before) + 1);
        let gate = json!({ "spec": { "schedulerName": "t" },
            "status": { "conditions": [{ "type": "example.com/gate", "status": "True" }] } });
        pods.patch_status("p", &PatchParams::default(), &Patch::Strategic(gate)).await.unwrap();
        let last = kube.get("pods", "shop", "p").unwrap();
        assert_eq!(last["spec"], after["spec"]);
        assert_eq!(generation(&last), generation(&after));
        assert!(condition(&last, "example.com/gate") && condition(&last, "Ready"), "{last:#}");
    });
}

#[test]
fn a_watch_tells_what_leaves_its_selection_and_what_it_missed() {
    simulate(|kube, client, _| async move {
        let secrets: Api<Secret> = Api::namespaced(client, "shop");
        let labels =
            |value: &str| Patch::Merge(json!({ "metadata": { "labels": { "k": value } } }));
        secrets.create(&PostParams::default(), &secret("a")).await.unwrap();
        let list = secrets.list(&ListParams::default()).await.unwrap();
        let since = list.metadata.resource_version.unwrap();
        secrets.patch("a", &PatchParams::default(), &labels("v")).await.unwrap();
        let params = WatchParams::default().labels("k=v");
        let mut events = secrets.watch(&params, &since).await.unwrap().boxed();
        let next = events.try_next().await.unwrap();
        assert!(matches!(next, Some(WatchEvent::Added(_))), "{next:?}");
        secrets.patch("a", &PatchParams::default(), &labels("w")).await.unwrap();
        let next = events.try_next().await.unwrap();
        assert!(matches!(next, Some(WatchEvent::Deleted(_))), "{next:?}");
        kube.cut_watches(Some("secrets"));
        assert!(events.try_next().await.unwrap().is_none());
        kube.forget_history();
        let mut events = secrets.watch(&params, &since).await.unwrap().boxed();
        let next = events.try_next().await.unwrap();
        assert!(matches!(&next, Some(WatchEvent::Error(error)) if error.code == 410), "{next:?}");
    });
}

#[test]
fn a_pod_gets_its_grace_and_its_containers_stop() {
    simulate(|kube, client, containers| async move {
        let pods: Api<Pod> = Api::namespaced(client, "shop");
        pods.create(&PostParams::default(), &pod("p")).await.unwrap();
        pass(5).await;
        pods.delete("p", &DeleteParams::default()).await.unwrap();
        pass(1).await;
        assert!(kube.get("pods", "shop", "p").is_some(), "it takes 3 s to stop");
        pass(3).await;
        assert!(kube.get("pods", "shop", "p").is_none());
        assert_eq!(containers.0.lock().unwrap().ended.len(), 1);
        pods.create(&PostParams::default(), &pod("p")).await.unwrap();
        pass(5).await;
        kube.set_node_away("n1", true);
        pods.delete("p", &DeleteParams::default()).await.unwrap();
        pass(60).await;
        assert!(kube.get("pods", "shop", "p").is_some(), "nobody confirms that it has stopped");
        pods.delete("p", &DeleteParams::default().grace_period(0)).await.unwrap();
        assert!(kube.get("pods", "shop", "p").is_none());
        assert_eq!(containers.0.lock().unwrap().ended.len(), 1, "undead");
        kube.set_node_away("n1", false);
        pass(1).await;
        assert_eq!(containers.0.lock().unwrap().ended.len(), 2);
    });
}

#[test]
fn readiness_waits_for_probes_and_gates() {
    simulate(|kube, client, containers| async move {
        let pods: Api<Pod> = Api::namespaced(client, "shop");
        let mut gated = serde_json::to_value(pod("p")).unwrap();
        gated["spec"]["readinessGates"] = json!([{ "conditionType": "g" }]);
        containers.0.lock().unwrap().unready = true;
        pods.create(&PostParams::default(), &serde_json::from_value(gated).unwrap()).await.unwrap();
        pass(5).await;
        let seen = || {
            let pod = kube.get("pods", "shop", "p").unwrap();
            (condition(&pod, "ContainersReady"), condition(&pod, "Ready"))
        };
        assert_eq!(seen(), (false, false));
        containers.0.lock().unwrap().unready = false;
        pass(1).await;
        assert_eq!(seen(), (true, false));
        let open = json!({ "status": { "conditions": [{ "type": "g", "status": "True" }] } });
        pods.patch_status("p", &PatchParams::default(), &Patch::Strategic(open)).await.unwrap();
        pass(1).await;
        assert_eq!(seen(), (true, true));
    });
}

#[test]
fn what_ends_is_started_again_by_its_policy_and_a_missing_image_is_a_reason_to_wait() {
    simulate(|kube, _, containers| async move {
        let create = |name: &str, policy: &str| {
            kube.create(json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": { "name": name, "namespace": "shop" },
                "spec": { "restartPolicy": policy,
                    "containers": [{ "name": "app", "image": "r/app:1" }] },
            }))
            .unwrap();
        };
        let exits = || Life::Exits { after: Duration::from_secs(1), code: 3, message: "m".into() };
        let crash = || BTreeMap::from([("app".to_owned(), vec![exits()])]);
        let status = |name: &str| kube.get("pods", "shop", name).unwrap()["status"].clone();
        containers.0.lock().unwrap().lives = crash();
        create("always", "Always");
        pass(20).await;
        assert_eq!(status("always")["containerStatuses"][0]["restartCount"], 1);
        assert_eq!(status("always")["phase"], "Running");
        containers.0.lock().unwrap().lives = crash();
        create("never", "Never");
        pass(20).await;
        let ended = &status("never")["containerStatuses"][0]["state"]["terminated"];
        assert_eq!((&ended["exitCode"], &ended["message"]), (&json!(3), &json!("m")));
        assert_eq!(status("never")["phase"], "Failed");
        containers.0.lock().unwrap().missing_image = true;
        create("missing", "Always");
        pass(5).await;
        let waiting = &status("missing")["containerStatuses"][0]["state"]["waiting"];
        assert_eq!(waiting["reason"], "ImagePullBackOff");
        assert_eq!(waiting["message"], "r/app:1: not found");
        assert_eq!(status("missing")["phase"], "Pending");
    });
}

fn template() -> Value {
    json!({
        "metadata": { "labels": { "app": "a" } },
        "spec": { "containers": [{ "name": "app", "image": "r/app:1" }] },
    })
}

fn workload(kind: &str, replicas: u32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": kind,
        "metadata": { "name": "w", "namespace": "shop" },
        "spec": { "replicas": replicas, "selector": { "matchLabels": { "app": "a" } },
            "template": template() },
    })
}

#[test]
fn a_replica_set_adopts_an_orphan_and_deletes_the_cheapest() {
    simulate(|kube, client, _| async move {
        kube.create(workload("ReplicaSet", 3)).unwrap();
        pass(10).await;
        let names: Vec<String> = kube
            .all("pods")
            .iter()
            .map(|p| p["metadata"]["name"].as_str().unwrap().into())
            .collect();
        assert_eq!(names.len(), 3);
        let pods: Api<Pod> = Api::namespaced(client, "shop");
        pods.create(&PostParams::default(), &pod("orphan")).await.unwrap();
        pass(10).await;
        let cost = json!({ "metadata": { "annotations":
            { "controller.kubernetes.io/pod-deletion-cost": "-5" } } });
        pods.patch(&names[1], &PatchParams::default(), &Patch::Merge(cost)).await.unwrap();
        let label = Patch::Merge(json!({ "metadata": { "labels": { "app": "a" } } }));
        pods.patch("orphan", &PatchParams::default(), &label).await.unwrap();
        pass(10).await;
        let left = pods.list(&ListParams::default()).await.unwrap();
        let left: Vec<String> = left.iter().map(ResourceExt::name_any).collect();
        let mut wanted = vec![names[0].clone(), names[2].clone(), "orphan".to_owned()];
        wanted.sort();
        assert_eq!(left, wanted, "exactly the cheapest is gone");
        // One that no longer matches is let go and another takes its place.
        let other = Patch::Merge(json!({ "metadata": { "labels": { "app": "b" } } }));
        let released = pods.patch("orphan", &PatchParams::default(), &other).await.unwrap();
        assert_eq!(released.owner_references().len(), 1);
        pass(10).await;
        assert!(pods.get("orphan").await.unwrap().owner_references().is_empty());
        assert_eq!(kube.all("pods").len(), 4);
        kube.cordon("n1", true);
        pods.delete(&names[0], &DeleteParams::default()).await.unwrap();
        pass(10).await;
        let pending = kube.all("pods").iter().filter(|p| p["status"]["phase"] == "Pending").count();
        assert_eq!(pending, 1, "there is no node for the next one");
    });
}

/// A policy, in force, that only who bears the label `mover` may create the pod `name`.
fn keeps(name: &str) -> (Value, Value) {
    let api = "admissionregistration.k8s.io/v1";
    let policy = json!({
        "apiVersion": api, "kind": "ValidatingAdmissionPolicy", "metadata": { "name": "keep" },
        "spec": {
            "matchConstraints": { "resourceRules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"],
                "resources": ["pods"],
            }] },
            "matchConditions": [
                { "name": "it", "expression": format!("object.metadata.name == '{name}'") },
            ],
            "validations": [{ "expression": "object.metadata.labels['mover'] == 'm'" }],
        },
    });
    let binding = json!({
        "apiVersion": api, "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": { "name": "keep" },
        "spec": { "policyName": "keep", "validationActions": ["Deny"] },
    });
    (policy, binding)
}

#[test]
fn a_stateful_set_makes_its_pods_again_under_their_names_unless_they_are_kept() {
    simulate(|kube, client, _| async move {
        kube.create(workload("StatefulSet", 2)).unwrap();
        pass(20).await;
        let uid = |name: &str| kube.get("pods", "shop", name).unwrap()["metadata"]["uid"].clone();
        let (first, second) = (uid("w-0"), uid("w-1"));
        let (policy, binding) = keeps("w-0");
        kube.create(policy).unwrap();
        kube.create(binding).unwrap();
        let pods: Api<Pod> = Api::namespaced(client.clone(), "shop");
        // The source is still there: a policy that is heeded speaks first.
        let mut own = pod("w-0");
        let try_out = PostParams { dry_run: true, ..PostParams::default() };
        assert_eq!(code(pods.create(&try_out, &own).await), 409);
        pass(1).await;
        assert_eq!(code(pods.create(&try_out, &own).await), 403);
        pods.delete("w-0", &DeleteParams::default().grace_period(1)).await.unwrap();
        pass(20).await;
        assert!(kube.get("pods", "shop", "w-0").is_none(), "its name is kept");
        own.metadata.labels = Some([("mover".to_owned(), "m".to_owned())].into());
        pods.create(&try_out, &own).await.unwrap();
        assert!(kube.get("pods", "shop", "w-0").is_none(), "tried out only");
        let policies: Api<ValidatingAdmissionPolicyBinding> = Api::all(client);
        policies.delete("keep", &DeleteParams::default()).await.unwrap();
        pass(20).await;
        assert_ne!(uid("w-0"), first);
        assert_eq!(uid("w-1"), second);
        assert!(condition(&kube.get("pods", "shop", "w-0").unwrap(), "Ready"));
    });
}

#[test]
fn a_job_tries_again_and_its_pods_go_with_it() {
    simulate(|kube, client, containers| async move {
        let exits = |code| Life::Exits { after: Duration::from_secs(1), code, message: "m".into() };
        let lives = BTreeMap::from([("app".to_owned(), vec![exits(1), exits(0)])]);
        containers.0.lock().unwrap().lives = lives;
        let mut template = template();
        template["spec"]["restartPolicy"] = json!("Never");
        let job = json!({
            "metadata": { "name": "j" }, "spec": { "backoffLimit": 1, "template": template },
        });
        let jobs: Api<Job> = Api::namespaced(client, "shop");
        let job: Job = serde_json::from_value(job).unwrap();
        jobs.create(&PostParams::default(), &job).await.unwrap();
        pass(8).await;
        assert_eq!(kube.get("jobs", "shop", "j").unwrap()["status"]["failed"], 1);
        pass(20).await;
        assert!(condition(&kube.get("jobs", "shop", "j").unwrap(), "Complete"));
        assert_eq!(kube.all("pods").len(), 2);
        let how = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            ..DeleteParams::default()
        };
        jobs.delete("j", &how).await.unwrap();
        pass(1).await;
        assert!(kube.all("pods").is_empty());
        // Without a policy, a Job's pods stay.
        containers.0.lock().unwrap().lives.insert("app".into(), vec![exits(1), exits(1)]);
        jobs.create(&PostParams::default(), &job).await.unwrap();
        pass(60).await;
        assert!(condition(&kube.get("jobs", "shop", "j").unwrap(), "Failed"));
        jobs.delete("j", &DeleteParams::default()).await.unwrap();
        pass(1).await;
        assert!(kube.all("jobs").is_empty());
        assert_eq!(kube.all("pods").len(), 2);
    });
}

#[test]
fn a_checkpoint_needs_the_container_on_that_node() {
    simulate(|kube, client, containers| async move {
        let pods: Api<Pod> = Api::namespaced(client.clone(), "shop");
        pods.create(&PostParams::default(), &pod("p")).await.unwrap();
        pass(5).await;
        kube.add_node("n2").unwrap();
        let ask = async |path: &str| {
            let path = format!("/api/v1/nodes/{path}?timeout=9");
            client.request_text(http::Request::post(path).body(Vec::new()).unwrap()).await
        };
        let answer: Value =
            serde_json::from_str(&ask("n1/proxy/checkpoint/shop/p/app").await.unwrap()).unwrap();
        let archive = answer["items"][0].as_str().unwrap();
        assert!(archive.starts_with("/var/lib/kubelet/checkpoints/checkpoint-p_shop-app-2026-"));
        assert_eq!(code(ask("n1/proxy/checkpoint/shop/p/other").await), 404);
        assert_eq!(code(ask("n2/proxy/checkpoint/shop/p/app").await), 404);
        containers.0.lock().unwrap().refuses_checkpoint = true;
        assert_eq!(code(ask("n1/proxy/checkpoint/shop/p/app").await), 500);
        kube.set_node_away("n1", true);
        assert_eq!(code(ask("n1/proxy/checkpoint/shop/p/app").await), 500);
    });
}

#[test]
fn pods_of_a_node_that_is_gone_go_too() {
    simulate(|kube, client, _| async move {
        let pods: Api<Pod> = Api::namespaced(client, "shop");
        pods.create(&PostParams::default(), &pod("p")).await.unwrap();
        pass(5).await;
        kube.set_node_away("n1", true);
        pass(1).await;
        assert!(!condition(&kube.get("pods", "shop", "p").unwrap(), "Ready"));
        let nodes: Vec<_> = kube.all("nodes");
        assert!(!condition(&nodes[0], "Ready"));
        let key = shadow_sim::kube::Key::new("nodes", "", "n1");
        kube.store(|store| store.delete(&key, &shadow_sim::kube::Deletion::default())).unwrap();
        pass(30).await;
        assert_eq!(kube.all("pods").len(), 1);
        pass(20).await;
        assert!(kube.all("pods").is_empty());
    });
}
