//! The main job on the real thing: a live consumer moves between two nodes of the lab.
//!
//! One test at a time: they share one cluster and one queue.

mod admission;
mod crashes;
mod deployments;
mod direct;
mod doctor;
mod janitor;
mod moves;
mod operators;
mod queueless;
mod refusals;
mod runtime;
mod secrets;
mod sets;
mod story;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, ensure};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use shadow_api::StatefulMigration;
use shadow_e2e::cluster::Cluster;
use shadow_e2e::migrate::{self, phase};
use shadow_e2e::report::Report;
use shadow_e2e::scenario::{self, Move};
use shadow_e2e::workload::Workload;

static LAB: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    LAB.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The operator runs as `config/` has it.
async fn with_operator() -> anyhow::Result<Cluster> {
    static INSTALLED: AtomicBool = AtomicBool::new(false);
    let cluster = Cluster::connect().await?;
    // Once for all tests: what is installed stays the same, and a new pod takes its time.
    if INSTALLED.load(Ordering::Relaxed) {
        cluster.wait_deployment("ms2m-system", "shadow-operator").await?;
    } else {
        cluster.install_operator().await?;
        INSTALLED.store(true, Ordering::Relaxed);
    }
    Ok(cluster)
}

/// A fresh workload under load, with the operator running.
async fn deployed(workload: &Workload) -> anyhow::Result<Cluster> {
    let cluster = with_operator().await?;
    migrate::delete_all(&cluster).await?;
    Workload::remove(&cluster).await?;
    workload.deploy(&cluster).await?;
    if workload.probe {
        scenario::reset_probe(&cluster).await?;
    }
    Ok(cluster)
}

async fn moved(cluster: &Cluster) -> anyhow::Result<Move> {
    moved_in(cluster, None).await
}

async fn moved_in(cluster: &Cluster, mode: Option<&str>) -> anyhow::Result<Move> {
    let moved = scenario::move_consumer(cluster, mode, |_| {}).await?;
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
    let left = scenario::left_in_the_end(cluster).await;
    ensure!(left.is_empty(), "nothing of the migration is left, but found {left:?}");
    Ok(())
}

/// The Deployment has its one pod on `node`, owned by the one ReplicaSet that has any: nobody is on the
/// way, and nothing is rolled out.
async fn assert_owned(cluster: &Cluster, node: &str) -> anyhow::Result<()> {
    cluster.wait_deployment("default", "consumer").await?;
    let pod = cluster.pod_of("consumer").await?;
    ensure!(pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(node), "on {node}");
    let owner = pod.owner_references().first().context("the moved pod has an owner")?;
    ensure!(owner.kind == "ReplicaSet" && owner.controller == Some(true), "owned by {owner:?}");
    let sets: Api<ReplicaSet> = Api::namespaced(cluster.client.clone(), "default");
    let sets = sets.list(&ListParams::default().labels("app=consumer")).await?;
    let wants = |set: &&ReplicaSet| set.spec.as_ref().and_then(|spec| spec.replicas) != Some(0);
    let active: Vec<String> = sets.iter().filter(wants).map(ResourceExt::name_any).collect();
    ensure!(active == [owner.name.as_str()], "ReplicaSets {active:?} have pods");
    let status = deployment(cluster).await?.status.unwrap_or_default();
    ensure!(status.updated_replicas == Some(1), "a rollout goes on: {status:?}");
    Ok(())
}

async fn deployment(cluster: &Cluster) -> anyhow::Result<Deployment> {
    let api: Api<Deployment> = Api::namespaced(cluster.client.clone(), "default");
    Ok(api.get("consumer").await?)
}
