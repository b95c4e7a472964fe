//! Many migrations at once, by the operator's own loop on the cluster in memory.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "what fails here is the test"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use serde_json::{Value, json};
use shadow_broker::memory::{MemoryBroker, MemoryConnector, core};
use shadow_operator::registry::{Registry, Unusable};
use shadow_operator::settings::{Limits, Options};
use shadow_operator::{Outside, clock};
use shadow_protocol::time::Time;
use shadow_sim::kube::{
    Application, Call, Config, Deletion, Fate, Key, Kube, Life, Start, Verb, condition,
    operators_own,
};
use shadow_sim::message::Message;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

const NODES: [&str; 3] = ["n1", "n2", "n3"];
const WISHES: &str = "statefulmigrations";

/// Containers that run, and the operator's own helpers.
struct Containers;

impl Application for Containers {
    fn start(&mut self, start: Start<'_>) -> Life {
        operators_own(start, 1_000_000, Duration::from_secs(2)).unwrap_or(Life::Runs)
    }

    fn checkpoint(&mut self, _: &str, _: &str) -> Result<Duration, String> {
        Ok(Duration::from_millis(400))
    }
}

/// A registry that everybody may push to.
struct Open;

impl Registry for Open {
    fn check<'a>(&'a self, _: &'a str, _: Option<&'a str>) -> BoxFuture<'a, Result<(), Unusable>> {
        Box::pin(async { Ok(()) })
    }

    fn remove<'a>(&'a self, _: &'a str, _: Option<&'a str>) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
}

/// The cluster, and what was seen of it.
#[derive(Clone)]
struct Bench {
    kube: Kube,
    limits: Limits,
    /// StatefulSets that the operator has asked for.
    asked: Arc<Mutex<BTreeSet<String>>>,
    /// The most that went on at once: in all, from a node, to a node.
    most: Arc<Mutex<[usize; 3]>>,
}

fn simulate<F: Future<Output = ()>>(limits: Limits, scenario: impl FnOnce(Bench) -> F) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let _clock = clock::follow(Time(1_767_225_600_000));
        let kube = Kube::new(Config::default(), Box::new(Containers));
        for node in NODES {
            kube.add_node(node).unwrap();
        }
        let controllers = kube.clone();
        tokio::spawn(async move { controllers.run().await });
        let bench = Bench { kube, limits, asked: Arc::default(), most: Arc::default() };
        let asked = bench.asked.clone();
        bench.kube.set_faults(Box::new(move |call: &Call| {
            if (call.verb, call.plural) == (Verb::Get, "statefulsets") {
                asked.lock().unwrap().extend(call.name.clone());
            }
            Fate::Pass
        }));
        tokio::spawn(bench.clone().watch());
        scenario(bench).await;
    });
}

impl Bench {
    fn operator(&self, name: &str) -> JoinHandle<()> {
        let broker = MemoryBroker::<Message>::new(core::Settings::default());
        let outside = Outside {
            client: self.kube.client(name),
            connector: Arc::new(MemoryConnector(broker)),
            registry: Arc::new(Open),
            agents: None,
        };
        let options = Options {
            transfer_image: "shadow:1".into(),
            no_probe: true,
            limits: self.limits,
            identity: Some(name.to_owned()),
            ..Options::default()
        };
        tokio::spawn(async move {
            let ended = shadow_operator::run(outside, options, std::future::pending()).await;
            panic!("the operator ended by itself: {ended:?}");
        })
    }

    /// A StatefulSet of one pod, on `node`.
    async fn set(&self, namespace: &str, name: &str, node: &str) {
        for other in NODES {
            self.kube.cordon(other, other != node);
        }
        let labels = json!({ "app": name });
        let set = json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": { "name": name, "namespace": namespace },
            "spec": {
                "replicas": 1, "selector": { "matchLabels": labels },
                "template": {
                    "metadata": { "labels": labels },
                    "spec": { "containers": [{ "name": "app", "image": "r/app:1" }] },
                },
            },
        });
        self.kube.create(set).unwrap();
        let pod = format!("{name}-0");
        let ready = |pod: Arc<Value>| condition(&pod, "Ready");
        self.until(|| self.kube.get("pods", namespace, &pod).is_some_and(ready)).await;
        for other in NODES {
            self.kube.cordon(other, false);
        }
    }

    fn wish(&self, namespace: &str, name: &str, pod: &str, node: Option<&str>) {
        let mut spec = json!({
            "sourcePod": pod, "checkpointImageRepository": "registry.example/checkpoints",
        });
        if let Some(node) = node {
            spec["targetNode"] = json!(node);
        }
        let wish = json!({
            "apiVersion": "migration.ms2m.io/v1alpha1", "kind": "StatefulMigration",
            "metadata": { "name": name, "namespace": namespace }, "spec": spec,
        });
        self.kube.create(wish).unwrap();
    }

    async fn until(&self, mut reached: impl FnMut() -> bool) {
        let mut changes = self.kube.changes();
        let reaching = async {
            while !reached() {
                changes.changed().await.unwrap();
            }
        };
        let reached = timeout(Duration::from_mins(30), reaching).await;
        assert!(reached.is_ok(), "{:#?}", self.words());
    }

    /// Phase and message of each, by its name.
    fn words(&self) -> BTreeMap<String, (String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let all = self.kube.all(WISHES);
        let words = |it: &Arc<Value>| {
            let status = &it["status"];
            (text(&it["metadata"]["name"]), (text(&status["phase"]), text(&status["message"])))
        };
        all.iter().map(words).collect()
    }

    fn phase(&self, name: &str) -> String {
        self.words().get(name).map(|(phase, _)| phase.clone()).unwrap_or_default()
    }

    fn message(&self, name: &str) -> String {
        self.words().get(name).map(|(_, message)| message.clone()).unwrap_or_default()
    }

    async fn all_ended(&self) {
        let over = |(phase, _): (String, String)| matches!(phase.as_str(), "Completed" | "Failed");
        self.until(|| self.words().into_values().all(over)).await;
    }

    /// Keeps count of what goes on.
    async fn watch(self) {
        let mut changes = self.kube.changes();
        while changes.changed().await.is_ok() {
            let all = self.kube.all(WISHES);
            let going = all.iter().map(|it| &it["status"]).filter(|status| {
                let phase = status["phase"].as_str().unwrap_or("Pending");
                !matches!(phase, "Pending" | "Completed" | "Failed")
            });
            let going: Vec<&Value> = going.collect();
            let at = |field: &str| {
                let mut nodes = BTreeMap::<&str, usize>::new();
                for status in &going {
                    *nodes.entry(status[field].as_str().unwrap()).or_default() += 1;
                }
                nodes.into_values().max().unwrap_or_default()
            };
            let now = [going.len(), at("sourceNode"), at("targetNode")];
            let mut most = self.most.lock().unwrap();
            *most = std::array::from_fn(|which| most[which].max(now[which]));
        }
    }
}

/// Six StatefulSets, four of them on the first node, and a wish for each.
async fn six(bench: &Bench) {
    let six = [
        ("a", "s0", "n1", Some("n2")),
        ("a", "s1", "n1", Some("n3")),
        ("a", "s2", "n1", None),
        ("b", "s3", "n1", None),
        ("b", "s4", "n2", Some("n3")),
        ("b", "s5", "n3", None),
    ];
    for (namespace, set, node, _) in six {
        bench.set(namespace, set, node).await;
    }
    for (namespace, set, _, target) in six {
        bench.wish(namespace, &format!("move-{set}"), &format!("{set}-0"), target);
    }
}

#[test]
fn all_complete_and_never_more_at_once_than_allowed() {
    let some = Limits { at_once: 3, from_node: 2, to_node: 1 };
    let one = Limits { at_once: 1, ..some };
    for (limits, most) in [(some, [3, 2, 1]), (one, [1, 1, 1]), (Limits::default(), [4, 2, 2])] {
        simulate(limits, |bench| async move {
            six(&bench).await;
            let _operator = bench.operator("operator-0");
            bench.all_ended().await;
            for (name, (phase, message)) in bench.words() {
                assert_eq!(phase, "Completed", "{name}: {message}");
            }
            let seen = *bench.most.lock().unwrap();
            assert!((0..3).all(|which| seen[which] <= most[which]), "{seen:?} {limits:?}");
            assert_eq!(seen[0], most[0], "{limits:?}");
        });
    }
}

#[test]
fn who_waits_is_told_for_what_and_looks_at_nothing() {
    let limits = Limits { at_once: 9, from_node: 1, to_node: 2 };
    simulate(limits, |bench| async move {
        for (name, node) in [("s0", "n1"), ("s1", "n1"), ("s2", "n2")] {
            bench.set("shop", name, node).await;
        }
        let _operator = bench.operator("operator-0");
        bench.wish("shop", "first", "s0-0", Some("n2"));
        bench.until(|| bench.phase("first") == "Checkpointing").await;
        bench.wish("shop", "second", "s1-0", Some("n3"));
        bench.wish("shop", "elsewhere", "s2-0", Some("n3"));
        bench
            .until(|| !bench.message("second").is_empty() && bench.phase("elsewhere") != "Pending")
            .await;
        let why = "waiting for its turn: 1 migration from node n1 goes on, at most 1 at once: \
                   shop/first";
        bench.until(|| bench.message("second") == why).await;
        let object = bench.kube.get(WISHES, "shop", "second").unwrap();
        assert_eq!(object["status"]["conditions"][0]["reason"], "Queued");
        assert!(!bench.asked.lock().unwrap().contains("s1"));
        bench.all_ended().await;
        assert!(
            bench.words().values().all(|(phase, _)| phase == "Completed"),
            "{:?}",
            bench.words()
        );
        assert!(bench.asked.lock().unwrap().contains("s1"));
    });
}

#[test]
fn a_second_migration_of_the_same_pod_waits_and_is_then_refused() {
    simulate(Limits::default(), |bench| async move {
        bench.set("shop", "s0", "n1").await;
        let _operator = bench.operator("operator-0");
        bench.wish("shop", "first", "s0-0", Some("n2"));
        bench.wish("shop", "second", "s0-0", Some("n2"));
        let why = "waiting for its turn: migration shop/first moves the same pod";
        bench.until(|| bench.message("second") == why).await;
        bench.all_ended().await;
        assert_eq!(bench.phase("first"), "Completed");
        let message = bench.message("second");
        assert!(message.starts_with("TargetIsSource: target node n2"), "{message}");
    });
}

#[test]
fn who_waits_can_be_aborted_and_deleted_and_lets_the_next_go() {
    let limits = Limits { at_once: 1, from_node: 1, to_node: 1 };
    simulate(limits, |bench| async move {
        for name in ["s0", "s1", "s2", "s3"] {
            bench.set("shop", name, "n1").await;
        }
        let _operator = bench.operator("operator-0");
        for (name, pod) in [("a", "s0-0"), ("b", "s1-0"), ("c", "s2-0"), ("d", "s3-0")] {
            bench.wish("shop", name, pod, Some("n2"));
        }
        let waits = |name: &str| bench.message(name).starts_with("waiting for its turn");
        bench.until(|| waits("b") && waits("c") && waits("d")).await;
        let key = |name: &str| Key::new(WISHES, "shop", name);
        bench.kube.store(|store| store.modify(&key("b"), |it| it["spec"]["abort"] = json!(true)));
        let _ = bench.kube.store(|store| store.delete(&key("c"), &Deletion::default()));
        bench.until(|| bench.phase("b") == "Failed" && bench.phase("c").is_empty()).await;
        assert!(bench.message("b").starts_with("Aborted"), "{}", bench.message("b"));
        assert_ne!(bench.phase("a"), "Completed");
        bench.all_ended().await;
        assert_eq!((bench.phase("a"), bench.phase("d")), ("Completed".into(), "Completed".into()));
    });
}

#[test]
fn a_new_leader_counts_those_that_go_on() {
    let limits = Limits { at_once: 2, from_node: 2, to_node: 2 };
    simulate(limits, |bench| async move {
        six(&bench).await;
        let mut operator = bench.operator("operator-0");
        for nth in 1..8 {
            sleep(Duration::from_millis(5_300)).await;
            operator.abort();
            operator = bench.operator(&format!("operator-{nth}"));
        }
        bench.all_ended().await;
        let failed: Vec<_> =
            bench.words().into_values().filter(|(phase, _)| phase != "Completed").collect();
        // Whoever dies while a copy is created leaves its successor in doubt.
        assert!(failed.iter().all(|(_, why)| why.starts_with("TargetLost")), "{failed:?}");
        assert_eq!(bench.most.lock().unwrap()[0], 2);
    });
}
