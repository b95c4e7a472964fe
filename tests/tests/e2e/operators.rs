//! Two operators, of which one leads.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, ResourceExt};
use shadow_e2e::cluster::{Cluster, wait_for};
use shadow_e2e::migrate::phase;
use shadow_e2e::workload::Workload;
use shadow_e2e::{in_lab, scenario};
use tokio::sync::Notify;

use crate::{alone, assert_clean, assert_nothing_left, assert_owned, deployed, message};

/// Of a new leader where the old one is killed.
const TAKES_OVER: Duration = Duration::from_secs(5);
/// Where it is asked to end.
const HANDS_OVER: Duration = Duration::from_secs(2);

/// Who leads, and which in the row it is.
async fn leader(cluster: &Cluster) -> anyhow::Result<(String, i32)> {
    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), "ms2m-system");
    let spec = leases.get("shadow-operator").await?.spec.context("an empty lease")?;
    let holder = spec.holder_identity.context("nobody leads")?;
    Ok((holder, spec.lease_transitions.context("no generation")?))
}

/// Its identity begins with the pod's name.
async fn pod_that_leads(cluster: &Cluster) -> anyhow::Result<Pod> {
    let (holder, _) = leader(cluster).await?;
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "ms2m-system");
    let found = pods.list(&ListParams::default()).await?;
    found.into_iter().find(|pod| holder.starts_with(&pod.name_any())).context("no pod leads")
}

/// How long it took until another one led.
async fn until_another_leads(cluster: &Cluster, before: i32) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    wait_for("another operator to lead", Duration::from_secs(30), async || {
        let (_, generation) = leader(cluster).await?;
        Ok((generation > before).then_some(()))
    })
    .await?;
    Ok(begun.elapsed())
}

#[derive(Clone, Copy)]
enum Way {
    Killed,
    AskedToEnd,
}

async fn end_the_leader(cluster: &Cluster, way: Way) -> anyhow::Result<Duration> {
    let (_, before) = leader(cluster).await?;
    let pod = pod_that_leads(cluster).await?;
    match way {
        Way::Killed => {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
            cluster.kill_container(&pod, &node.context("a node")?)?;
        }
        Way::AskedToEnd => {
            let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "ms2m-system");
            pods.delete(&pod.name_any(), &DeleteParams::default()).await?;
        }
    }
    until_another_leads(cluster, before).await
}

/// Ends the leader when a migration comes to `when`, and gives how long nobody led.
async fn move_without(when: &str, way: Way) -> anyhow::Result<Duration> {
    let cluster = deployed(&Workload::default()).await?;
    let due = Notify::new();
    let moving = scenario::move_consumer(&cluster, None, |object| {
        if phase(object) == when {
            due.notify_one();
        }
    });
    let ending = async {
        due.notified().await;
        end_the_leader(&cluster, way).await
    };
    let (done, took) = tokio::try_join!(moving, ending)?;
    ensure!(phase(&done.object) == "Completed", "ended {}", message(&done.object));
    let led = done.object.status.as_ref().and_then(|status| status.leader_generation);
    ensure!(led == Some(leader(&cluster).await?.1), "the one that leads has written last: {led:?}");
    assert_clean(&scenario::settle(&cluster, &done).await?);
    assert_owned(&cluster, &done.nodes.1).await?;
    assert_nothing_left(&cluster).await?;
    Ok(took)
}

#[test]
fn a_killed_leader_is_followed_within_five_seconds() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        for when in ["Transferring", "Replaying"] {
            let took = Box::pin(move_without(when, Way::Killed)).await?;
            println!("{when}: another one led after {} ms", took.as_millis());
            ensure!(took < TAKES_OVER, "it took {took:?}");
        }
        Ok(())
    })
}

#[test]
fn a_leader_that_is_asked_to_end_hands_over_at_once() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let took = Box::pin(move_without("Replaying", Way::AskedToEnd)).await?;
        println!("another one led after {} ms", took.as_millis());
        ensure!(took < HANDS_OVER, "it took {took:?}");
        Ok(())
    })
}
