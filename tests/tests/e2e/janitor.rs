//! What migrations have left of which nobody knows any more how far they were.

use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::Event;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use shadow_e2e::cluster::{Cluster, wait_for};
use shadow_e2e::migrate::{self, phase};
use shadow_e2e::workload::Workload;
use shadow_e2e::{broker, in_lab, scenario};

use crate::{alone, assert_nothing_left, deployed};

const SOON: Duration = Duration::from_mins(1);

/// Whether an event with this reason was published about a migration.
async fn told(cluster: &Cluster, about: &str, reason: &str) -> anyhow::Result<()> {
    let events: Api<Event> = Api::namespaced(cluster.client.clone(), "default");
    let wanted = format!("involvedObject.name={about},reason={reason}");
    let found = events.list(&ListParams::default().fields(&wanted)).await?;
    found.items.first().map(drop).with_context(|| format!("no event {reason} about {about}"))
}

async fn side_queue(cluster: &Cluster) -> anyhow::Result<Option<String>> {
    let all = broker::objects(cluster).await?;
    Ok(all.into_iter().find(|name| name.contains(".ms2m-source.") && name.ends_with(".2")))
}

/// Nothing tells whose an archive on a node is: those stay (docs/operations.md, "The janitor").
fn remove_archives(cluster: &Cluster) -> anyhow::Result<()> {
    let remove = "rm -f /var/lib/kubelet/checkpoints/checkpoint-consumer-*";
    for node in cluster.lab.nodes() {
        cluster.lab.exec(&node, &["sh", "-c", remove])?;
    }
    Ok(())
}

/// The operators are stopped amid a migration, and its object is removed by force.
async fn abandon_a_migration(cluster: &Cluster) -> anyhow::Result<()> {
    let source = cluster.pod_of("consumer").await?;
    let (_, target) = scenario::other_node(cluster, &source)?;
    let name = scenario::fresh_name();
    migrate::create(cluster, migrate::manifest(&name, &source.name_any(), &target)).await?;
    wait_for("the checkpoint to be carried", SOON, async || {
        let object = migrate::migrations(cluster).get(&name).await?;
        Ok((phase(&object) == "Transferring").then_some(()))
    })
    .await?;
    let scale = ["-n", "ms2m-system", "scale", "deployment/shadow-operator", "--replicas=0"];
    cluster.kubectl(&scale, "")?;
    cluster.wait_deployment("ms2m-system", "shadow-operator").await?;
    migrate::remove_by_force(cluster, &name).await
}

/// What is of no use goes, whoever is at work goes on, and what holds messages stays and is told of.
#[test]
fn what_nobody_owns_goes_and_messages_stay() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let cluster = deployed(&Workload::default()).await?;
        abandon_a_migration(&cluster).await?;
        cluster.install_operator_of("shadow/shadow", &[("SHADOW_JANITOR_EVERY", "2")]).await?;
        // By this one the janitor knows the queue, and about it it tells.
        let source = cluster.pod_of("consumer").await?;
        let (_, target) = scenario::other_node(&cluster, &source)?;
        let name = scenario::fresh_name();
        let mut manifest = migrate::manifest(&name, &source.name_any(), &target);
        manifest["spec"]["abort"] = json!(true);
        migrate::create(&cluster, manifest).await?;
        wait_for("the consumer of a side queue to be told of", SOON, async || {
            told(&cluster, &name, "SideQueueInUse").await.map(Some)
        })
        .await?;
        wait_for("the source to be alone", SOON, async || {
            let pods = cluster.pods().list(&ListParams::default()).await?;
            let copies = pods.iter().filter(|pod| pod.name_any().ends_with("-shadow"));
            Ok((copies.count() == 0).then_some(()))
        })
        .await?;
        // Who starts afresh wakes on its own queue.
        cluster.pods().delete(&source.name_any(), &DeleteParams::default()).await?;
        wait_for("messages that nobody consumes to be told of", SOON, async || {
            told(&cluster, &name, "SideQueueHoldsMessages").await.map(Some)
        })
        .await?;
        let held = side_queue(&cluster).await?.context("the queue with messages is gone")?;
        broker::purge(&cluster, &held).await?;
        wait_for("the empty side queue to be gone", SOON, async || {
            Ok(side_queue(&cluster).await?.is_none().then_some(()))
        })
        .await?;
        remove_archives(&cluster)?;
        assert_nothing_left(&cluster).await?;
        cluster.install_operator().await
    })
}
