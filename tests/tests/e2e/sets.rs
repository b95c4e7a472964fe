//! Pods of StatefulSets: their names are their identity, and their set keeps them.

use anyhow::{Context, ensure};
use k8s_openapi::api::apps::v1::StatefulSet;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use shadow_api::StatefulMigration;
use shadow_e2e::cluster::Cluster;
use shadow_e2e::migrate::phase;
use shadow_e2e::scenario::Move;
use shadow_e2e::workload::Workload;
use shadow_e2e::{in_lab, scenario};

use crate::{alone, assert_nothing_left, deployed, message};

/// The set has its pod on the node it was moved to, of the revision that it had.
pub async fn assert_of_the_set(
    cluster: &Cluster,
    object: &StatefulMigration,
    revision: &str,
) -> anyhow::Result<()> {
    let status = object.status.as_ref().context("a status")?;
    let name = status.target_pod.as_deref().context("a target pod")?;
    let pod = cluster.pods().get(name).await?;
    let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
    let wanted = object.spec.target_node.as_deref();
    ensure!(node.is_some() && node == wanted, "{name} is on {node:?}");
    let owner = pod.owner_references().first().context("the moved pod has an owner")?;
    ensure!(owner.kind == "StatefulSet" && owner.controller == Some(true), "owned by {owner:?}");
    ensure!(update_revision(cluster).await? == revision, "no rollout happened");
    let label = pod.labels().get("controller-revision-hash");
    ensure!(label.map(String::as_str) == Some(revision), "the pod's revision is {label:?}");
    Ok(())
}

pub async fn update_revision(cluster: &Cluster) -> anyhow::Result<String> {
    let sets: Api<StatefulSet> = Api::default_namespaced(cluster.client.clone());
    let status = sets.get("consumer").await?.status.context("a status")?;
    ensure!(status.current_revision == status.update_revision, "{status:?}");
    status.update_revision.context("a revision")
}

async fn moved_as(cluster: &Cluster, pod: &str, asked: Value) -> anyhow::Result<Move> {
    let source = cluster.pods().get(pod).await?;
    let moved = scenario::move_pod(cluster, &source, &asked, |_| {}).await?;
    ensure!(phase(&moved.object) == "Completed", "ended {}", message(&moved.object));
    Ok(moved)
}

/// Every message applied once and in order, by the process that went on.
async fn assert_settled(cluster: &Cluster, moved: &Move) -> anyhow::Result<()> {
    let report = scenario::settle(cluster, moved).await?;
    println!("{}", report.text());
    let messages = &report.messages;
    ensure!(messages.lost + messages.duplicated + messages.reordered == 0, "{}", report.text());
    ensure!(messages.republished + messages.returned == 0, "{}", report.text());
    ensure!(report.state_continued, "the process is the same");
    Ok(())
}

#[test]
fn a_stateful_sets_only_pod_moves_back_and_forth() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let workload = Workload { stateful_set: true, ..Workload::default() };
        let cluster = deployed(&workload).await?;
        let revision = update_revision(&cluster).await?;
        let mut last = None;
        for _ in 0..5 {
            // The strategy is the owner's.
            let asked = json!({ "migrationStrategy": null });
            let done = moved_as(&cluster, "consumer-0", asked).await?;
            let status = done.object.status.as_ref().context("a status")?;
            ensure!(status.strategy.as_deref() == Some("Sequential"), "{:?}", status.strategy);
            assert_of_the_set(&cluster, &done.object, &revision).await?;
            assert_nothing_left(&cluster).await?;
            last = Some(done);
        }
        assert_settled(&cluster, &last.context("moved")?).await
    })
}

#[test]
fn any_ordinal_moves_and_the_others_are_not_touched() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let workload =
            Workload { stateful_set: true, replicas: 3, probe: false, ..Workload::default() };
        let cluster = deployed(&workload).await?;
        let revision = update_revision(&cluster).await?;
        let mut last = None;
        for pod in ["consumer-0", "consumer-1", "consumer-2"] {
            let before = cluster.pods_of("consumer").await?;
            let asked = json!({ "migrationStrategy": "Sequential" });
            let done = moved_as(&cluster, pod, asked).await?;
            assert_of_the_set(&cluster, &done.object, &revision).await?;
            assert_nothing_left(&cluster).await?;
            scenario::others_untouched(&cluster, &before, pod).await?;
            last = Some(done);
        }
        assert_settled(&cluster, &last.context("moved")?).await
    })
}

#[test]
fn a_swap_of_identities_has_no_downtime() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let workload = Workload { stateful_set: true, ..Workload::default() };
        let cluster = deployed(&workload).await?;
        let revision = update_revision(&cluster).await?;
        let mut last = None;
        for swap in ["ExchangeFence", "Cutoff"] {
            let asked = json!({ "migrationStrategy": "ShadowPod", "identitySwapMode": swap });
            let done = moved_as(&cluster, "consumer-0", asked).await?;
            println!("{swap}: {:?}", done.object.status.as_ref().map(|s| &s.phase_timings));
            assert_of_the_set(&cluster, &done.object, &revision).await?;
            assert_nothing_left(&cluster).await?;
            last = Some(done);
        }
        assert_settled(&cluster, &last.context("moved")?).await
    })
}

#[test]
fn a_pod_leaves_its_set_with_its_replica() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let workload = Workload { stateful_set: true, replicas: 2, ..Workload::default() };
        let cluster = deployed(&workload).await?;
        let revision = update_revision(&cluster).await?;
        let others = cluster.pods_of("consumer").await?;
        let asked = || json!({ "migrationStrategy": "ShadowPod" });
        let mut pod = "consumer-1".to_owned();
        let mut last = None;
        for expected in ["consumer-1-shadow", "consumer-1-moved", "consumer-1-shadow"] {
            let done = moved_as(&cluster, &pod, asked()).await?;
            let status = done.object.status.as_ref().context("a status")?;
            pod = status.target_pod.clone().context("a target pod")?;
            ensure!(pod == expected, "the pod is called {pod}");
            let found = cluster.pods().get(&pod).await?;
            ensure!(found.owner_references().is_empty(), "{pod} is nobody's");
            ensure!(replicas(&cluster).await? == Some(1), "the set has one pod less");
            assert_nothing_left(&cluster).await?;
            scenario::others_untouched(&cluster, &others, "consumer-1").await?;
            last = Some(done);
        }
        ensure!(update_revision(&cluster).await? == revision, "no rollout happened");
        assert_settled(&cluster, &last.context("moved")?).await
    })
}

async fn replicas(cluster: &Cluster) -> anyhow::Result<Option<i32>> {
    let sets: Api<StatefulSet> = Api::default_namespaced(cluster.client.clone());
    Ok(sets.get("consumer").await?.spec.context("a spec")?.replicas)
}

#[test]
fn in_mode_park_a_sets_pod_keeps_its_name_too() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let workload = Workload { stateful_set: true, remember: true, ..Workload::default() };
        let cluster = deployed(&workload).await?;
        let revision = update_revision(&cluster).await?;
        let done = moved_as(&cluster, "consumer-0", sequential("Park")).await?;
        assert_of_the_set(&cluster, &done.object, &revision).await?;
        assert_nothing_left(&cluster).await?;
        assert_settled(&cluster, &done).await
    })
}

fn sequential(mode: &str) -> Value {
    json!({ "migrationStrategy": "Sequential", "replayMode": mode })
}
