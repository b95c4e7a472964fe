//! The main job on the real thing: a live consumer moves between two nodes of the lab.
//!
//! One test at a time: they share one cluster and one queue.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use shadow_api::StatefulMigration;
use shadow_e2e::cluster::{Cluster, wait_for};
use shadow_e2e::migrate::{self, phase};
use shadow_e2e::report::Report;
use shadow_e2e::scenario::{self, Move};
use shadow_e2e::workload::{Language, Workload};
use shadow_e2e::{broker, http, in_lab};

static LAB: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    LAB.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A fresh workload under load, with the operator running.
async fn deployed(workload: &Workload) -> anyhow::Result<Cluster> {
    let cluster = Cluster::connect().await?;
    cluster.install_operator().await?;
    migrate::delete_all(&cluster).await?;
    Workload::remove(&cluster).await?;
    workload.deploy(&cluster).await?;
    if workload.probe {
        scenario::reset_probe(&cluster).await?;
    }
    Ok(cluster)
}

async fn moved(cluster: &Cluster) -> anyhow::Result<Move> {
    let moved = scenario::move_consumer(cluster, |_| {}).await?;
    ensure!(phase(&moved.object) == "Completed", "ended {}", message(&moved.object));
    Ok(moved)
}

fn message(object: &StatefulMigration) -> String {
    object.status.as_ref().and_then(|status| status.message.clone()).unwrap_or_default()
}

fn assert_clean(report: &Report) {
    assert!(
        report.is_clean(),
        "every message is applied once, in order, unseen:\n{}",
        report.text()
    );
}

async fn assert_nothing_left(cluster: &Cluster) -> anyhow::Result<()> {
    let mut left = Vec::new();
    // The session closes, and with it the lock goes, just after the end is reported.
    let clean = wait_for("nothing to be left", Duration::from_secs(10), async || {
        left = scenario::leftovers(cluster).await?;
        Ok(left.is_empty().then_some(()))
    })
    .await;
    clean.with_context(|| format!("nothing of the migration is left, but found {left:?}"))
}

/// The Deployment has its one pod on `node`, owned by its one ReplicaSet; no rollout happened.
async fn assert_owned(cluster: &Cluster, node: &str) -> anyhow::Result<()> {
    cluster.wait_deployment("default", "consumer").await?;
    let pod = cluster.pod_of("consumer").await?;
    ensure!(pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(node), "on {node}");
    let owner = pod.owner_references().first().context("the moved pod has an owner")?;
    ensure!(owner.kind == "ReplicaSet" && owner.controller == Some(true), "owned by {owner:?}");
    let sets: Api<ReplicaSet> = Api::namespaced(cluster.client.clone(), "default");
    let sets = sets.list(&ListParams::default().labels("app=consumer")).await?;
    ensure!(sets.items.len() == 1, "no rollout happened, but {} ReplicaSets", sets.items.len());
    let api: Api<Deployment> = Api::namespaced(cluster.client.clone(), "default");
    let revision =
        api.get("consumer").await?.annotations().get("deployment.kubernetes.io/revision").cloned();
    ensure!(revision.as_deref() == Some("1"), "revision is {revision:?}");
    Ok(())
}

#[test]
fn a_deployments_pod_moves_back_and_forth_under_load() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let cluster = deployed(&Workload::default()).await?;
        let mut last = None;
        for _ in 0..3 {
            let done = moved(&cluster).await?;
            assert_owned(&cluster, &done.nodes.1).await?;
            assert_nothing_left(&cluster).await?;
            last = Some(done);
        }
        assert_clean(&scenario::settle(&cluster, &last.context("moved")?).await?);
        Ok(())
    })
}

#[test]
fn a_consumer_that_binds_its_queue_on_every_connect_moves_too() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let workload = Workload { rebind: true, rate: 150, ..Workload::default() };
        let cluster = deployed(&workload).await?;
        let done = moved(&cluster).await?;
        assert_clean(&scenario::settle(&cluster, &done).await?);
        assert_nothing_left(&cluster).await
    })
}

#[test]
fn a_rust_consumer_on_a_quorum_queue_moves_too() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let workload =
            Workload { consumer: Language::Rust, queue_type: "quorum", ..Workload::default() };
        let cluster = deployed(&workload).await?;
        let done = moved(&cluster).await?;
        assert_clean(&scenario::settle(&cluster, &done).await?);
        assert_nothing_left(&cluster).await
    })
}

#[test]
fn the_quick_start_of_the_specification_moves_a_bare_pod() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let cluster = deployed(&Workload { bare: true, ..Workload::default() }).await?;
        let pod = cluster.pod_of("consumer").await?;
        let (_, there) = scenario::other_node(&cluster, &pod)?;
        let file = "config/samples/migrate-consumer-0.yaml";
        cluster.apply(file, |object| object["spec"]["targetNode"] = json!(there)).await?;
        let patience = Duration::from_mins(2);
        let done =
            migrate::follow(&cluster, "migrate-consumer-0", patience, async |_| Ok(())).await?;
        ensure!(phase(&done) == "Completed", "ended {}", message(&done));
        let pod = cluster.pod_of("consumer").await?;
        ensure!(pod.name_any() == "consumer-0-shadow", "the pod is {}", pod.name_any());
        assert_nothing_left(&cluster).await
    })
}

/// Kills the consumer's process in the pod from its node.
async fn kill(cluster: &Cluster, pod: &str, node: &str) -> anyhow::Result<()> {
    let found = cluster.pods().get(pod).await?;
    let id = found
        .status
        .and_then(|status| status.container_statuses)
        .and_then(|list| list.into_iter().next())
        .and_then(|status| status.container_id)
        .context("no container")?;
    let id = id.trim_start_matches("cri-o://").to_owned();
    cluster.lab.exec(node, &["crun", "--root", "/run/crun", "kill", &id, "KILL"])?;
    Ok(())
}

#[test]
fn a_target_that_dies_during_replay_is_rolled_back_without_loss() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        // Slow enough that catching up takes a while.
        let workload = Workload { service_ms: 12, ..Workload::default() };
        let cluster = deployed(&workload).await?;
        let source = cluster.pod_of("consumer").await?;
        let nodes = scenario::other_node(&cluster, &source)?;
        let name = scenario::fresh_name();
        let manifest = migrate::manifest(&name, &source.name_any(), &nodes.1);
        migrate::create(&cluster, manifest).await?;
        let mut killed = false;
        let done = migrate::follow(&cluster, &name, Duration::from_mins(4), async |object| {
            if phase(object) == "Replaying" && !killed {
                killed = true;
                let status = object.status.as_ref().context("status")?;
                let target = status.target_pod.clone().context("target")?;
                kill(&cluster, &target, &nodes.1).await?;
            }
            Ok(())
        })
        .await?;
        ensure!(killed, "the target was killed during replay");
        ensure!(phase(&done) == "Failed", "ended {} {}", phase(&done), message(&done));
        assert_nothing_left(&cluster).await?;
        let still = cluster.pod_of("consumer").await?;
        ensure!(still.uid() == source.uid(), "the source is the same pod");
        let producer =
            http::post(&format!("{}/stop", Cluster::url(&cluster.pod_of("producer").await?)?))
                .await?;
        let url = format!("{}/ledger", Cluster::url(&still)?);
        let messages = wait_for("all messages to be applied", Duration::from_mins(2), async || {
            let ledger = http::get(&url).await?;
            let messages = shadow_e2e::report::messages(&producer, &ledger);
            Ok((messages.lost == 0).then_some(messages))
        })
        .await?;
        ensure!(messages.duplicated == 0 && messages.reordered == 0, "{messages:?}");
        Ok(())
    })
}

#[test]
fn after_the_move_a_crash_starts_the_workloads_own_image() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        for bare in [false, true] {
            let cluster = deployed(&Workload { bare, ..Workload::default() }).await?;
            let done = moved(&cluster).await?;
            let before = cluster.pod_of("consumer").await?;
            let ledger = http::get(&format!("{}/ledger", Cluster::url(&before)?)).await?;
            kill(&cluster, &before.name_any(), &done.nodes.1).await?;
            let boot = ledger["boot_id"].clone();
            let fresh = wait_for("a fresh process", Duration::from_mins(1), async || {
                for pod in cluster.pods_of("consumer").await? {
                    let Ok(url) = Cluster::url(&pod) else { continue };
                    let Ok(ledger) = http::get(&format!("{url}/ledger")).await else { continue };
                    if ledger["boot_id"] != boot {
                        return Ok(Some(ledger));
                    }
                }
                Ok(None)
            })
            .await?;
            ensure!(
                fresh["started_at"].as_u64() > ledger["started_at"].as_u64(),
                "the process is a new one (bare: {bare})"
            );
        }
        Ok(())
    })
}

/// A migration that must fail, and what its reason must be.
struct Bad {
    reason: &'static str,
    spoil: fn(&mut Value),
}

const BAD: [Bad; 9] = [
    Bad { reason: "SourceNotFound", spoil: |m| m["spec"]["sourcePod"] = json!("nobody") },
    Bad { reason: "ContainerNotFound", spoil: |m| m["spec"]["containerName"] = json!("nope") },
    Bad { reason: "TargetNodeNotFound", spoil: |m| m["spec"]["targetNode"] = json!("worker-9") },
    Bad { reason: "TargetIsSource", spoil: |m| m["spec"]["targetNode"] = json!("SOURCE") },
    Bad {
        reason: "QueueNotFound",
        spoil: |m| m["spec"]["messageQueueConfig"]["queueName"] = json!("no.such.queue"),
    },
    Bad {
        reason: "ExchangeNotBound",
        spoil: |m| m["spec"]["messageQueueConfig"]["exchangeName"] = json!("other"),
    },
    Bad {
        reason: "BrokerAccessRefused",
        spoil: |m| {
            let config = &mut m["spec"]["messageQueueConfig"];
            config["brokerUrl"] = json!("amqp://nobody:wrong@rabbitmq.default.svc:5672/%2f");
            config.as_object_mut().map(|config| config.remove("brokerSecretRef"));
        },
    },
    Bad {
        reason: "BrokerUnreachable",
        spoil: |m| {
            let config = &mut m["spec"]["messageQueueConfig"];
            config["brokerUrl"] = json!("amqp://rabbitmq.default.svc:5673/%2f");
            config.as_object_mut().map(|config| config.remove("brokerSecretRef"));
        },
    },
    Bad {
        reason: "RegistryUnreachable",
        spoil: |m| {
            m["spec"]["checkpointImageRepository"] =
                json!("registry.ms2m-system.svc:5999/checkpoints");
        },
    },
];

#[test]
fn bad_input_is_refused_with_a_reason_and_changes_nothing() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let cluster = deployed(&Workload { probe: false, ..Workload::default() }).await?;
        let source = cluster.pod_of("consumer").await?;
        let nodes = scenario::other_node(&cluster, &source)?;
        let objects = broker::objects(&cluster).await?;
        for bad in &BAD {
            let name = scenario::fresh_name();
            let mut manifest = migrate::manifest(&name, &source.name_any(), &nodes.1);
            (bad.spoil)(&mut manifest);
            if manifest["spec"]["targetNode"] == "SOURCE" {
                manifest["spec"]["targetNode"] = json!(nodes.0);
            }
            migrate::create(&cluster, manifest).await?;
            let patience = Duration::from_mins(1);
            let done = migrate::follow(&cluster, &name, patience, async |_| Ok(())).await?;
            let text = message(&done);
            ensure!(phase(&done) == "Failed", "{} is refused, but: {text}", bad.reason);
            ensure!(text.starts_with(bad.reason), "expected {}, got: {text}", bad.reason);
            ensure!(!text.contains("wrong"), "no password in: {text}");
            let what = format!("the broker to be as before {}", bad.reason);
            wait_for(&what, Duration::from_secs(10), async || {
                Ok((broker::objects(&cluster).await? == objects).then_some(()))
            })
            .await?;
        }
        let still = cluster.pod_of("consumer").await?;
        ensure!(still.uid() == source.uid(), "the source is untouched");
        Ok(())
    })
}
