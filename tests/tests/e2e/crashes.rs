//! The moved process dies: before the commit point, and after it.

use std::time::Duration;

use anyhow::{Context, ensure};
use kube::ResourceExt;
use shadow_e2e::cluster::{Cluster, wait_for};
use shadow_e2e::migrate::{self, phase};
use shadow_e2e::workload::Workload;
use shadow_e2e::{http, in_lab, scenario};

use crate::{alone, assert_nothing_left, deployed, message, moved};

/// Kills the consumer's process in the pod from its node.
async fn kill(cluster: &Cluster, pod: &str, node: &str) -> anyhow::Result<()> {
    cluster.kill_container(&cluster.pods().get(pod).await?, node)
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
