//! Moves that end well.

use anyhow::{Context, ensure};
use kube::ResourceExt;
use serde_json::json;
use shadow_e2e::cluster::Cluster;
use shadow_e2e::migrate::phase;
use shadow_e2e::workload::{Language, Workload};
use shadow_e2e::{in_lab, scenario};

use crate::{
    alone, assert_clean, assert_nothing_left, assert_owned, deployed, message, moved, moved_in,
};

const IN_A_ROW: usize = 10;

/// Seconds that the kubelet of `node` has spent on checkpoints, by its own account.
async fn checkpoint_seconds(cluster: &Cluster, node: &str) -> anyhow::Result<f64> {
    const SUM: &str = r#"kubelet_runtime_operations_duration_seconds_sum{operation_type="checkpoint_container"} "#;
    let path = format!("/api/v1/nodes/{node}/proxy/metrics");
    let metrics = cluster.client.request_text(http::Request::get(path).body(Vec::new())?).await?;
    // Absent until the first one.
    let sum = metrics.lines().find_map(|line| line.strip_prefix(SUM));
    sum.map_or(Ok(0.0), |sum| sum.trim().parse().context("the kubelet's sum"))
}

fn median(of: &[f64]) -> f64 {
    let mut sorted = of.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

#[test]
fn a_deployments_pod_moves_back_and_forth_under_load() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let cluster = deployed(&Workload::default()).await?;
        let mut last = None;
        let mut took = Vec::new();
        let mut cgroups = Vec::new();
        for _ in 0..IN_A_ROW {
            let source = cluster.pod_of("consumer").await?;
            let (here, _) = scenario::other_node(&cluster, &source)?;
            let before = checkpoint_seconds(&cluster, &here).await?;
            let done = moved(&cluster).await?;
            took.push(checkpoint_seconds(&cluster, &here).await? - before);
            assert_owned(&cluster, &done.nodes.1).await?;
            assert_nothing_left(&cluster).await?;
            cgroups.push(cluster.lab.cgroup_count()?);
            last = Some(done);
        }
        println!("checkpoints took {took:.3?} s; cgroups {cgroups:?}");
        ensure!(took.iter().all(|seconds| *seconds > 0.0), "each move took one checkpoint");
        // What grows here doubles with every move (a copied cgroup tree did): a thousandfold after
        // ten. A factor of three and half a second are what a busy machine may add to it.
        let (first, end) = (median(&took[..3]), median(&took[IN_A_ROW - 3..]));
        ensure!(end < 3.0 * first + 0.5, "checkpoints take longer and longer: {took:?}");
        // A restore may leave one cgroup behind where both versions are mounted; the pods of a
        // Deployment that is just ending have some more.
        let grown = cgroups[IN_A_ROW - 1].saturating_sub(cgroups[0]);
        ensure!(grown <= 2 * IN_A_ROW, "the number of cgroups grows: {cgroups:?}");
        assert_clean(&scenario::settle(&cluster, &last.context("moved")?).await?);
        Ok(())
    })
}

#[test]
fn a_consumer_without_a_service_moves_too() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let workload = Workload { service: false, probe: false, ..Workload::default() };
        let cluster = deployed(&workload).await?;
        let before = cluster.pod_of("consumer").await?;
        let done = moved(&cluster).await?;
        ensure!(cluster.pod_of("consumer").await?.uid() != before.uid(), "another pod took over");
        let report = scenario::settle(&cluster, &done).await?;
        ensure!(report.probe.is_none(), "nothing probes it");
        assert_clean(&report);
        assert_owned(&cluster, &done.nodes.1).await?;
        assert_nothing_left(&cluster).await
    })
}

#[test]
fn in_mode_drain_nothing_is_forced() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let cluster = deployed(&Workload::default()).await?;
        let done = moved_in(&cluster, Some("Drain")).await?;
        assert_clean(&scenario::settle(&cluster, &done).await?);
        assert_nothing_left(&cluster).await
    })
}

#[test]
fn in_mode_park_the_feed_is_left_alone() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        for queue_type in ["classic", "quorum"] {
            let workload = Workload { remember: true, queue_type, ..Workload::default() };
            let cluster = deployed(&workload).await?;
            let done = moved_in(&cluster, Some("Park")).await?;
            let handoff = done.object.status.as_ref().and_then(|status| status.handoff.as_ref());
            ensure!(handoff.and_then(|h| h.mode.as_deref()) == Some("Park"), "{handoff:?}");
            assert_clean(&scenario::settle(&cluster, &done).await?);
            assert_owned(&cluster, &done.nodes.1).await?;
            assert_nothing_left(&cluster).await?;
        }
        Ok(())
    })
}

#[test]
fn a_feed_that_can_not_be_diverted_is_parked() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        for (exchange_type, why) in [("default", "no exchange"), ("x-consistent-hash", "of type")] {
            let workload = Workload { remember: true, exchange_type, ..Workload::default() };
            let cluster = deployed(&workload).await?;
            let source = cluster.pod_of("consumer").await?;
            let asked = json!({ "messageQueueConfig": workload.queue_config() });
            let done = scenario::move_pod(&cluster, &source, &asked, |_| {}).await?;
            ensure!(phase(&done.object) == "Completed", "ended {}", message(&done.object));
            let handoff = done.object.status.as_ref().and_then(|status| status.handoff.as_ref());
            let handoff = handoff.context("a handoff")?;
            ensure!(handoff.mode.as_deref() == Some("Park"), "{handoff:?}");
            ensure!(handoff.reason.as_ref().is_some_and(|it| it.contains(why)), "{handoff:?}");
            assert_clean(&scenario::settle(&cluster, &done).await?);
            assert_owned(&cluster, &done.nodes.1).await?;
            assert_nothing_left(&cluster).await?;
        }
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
