//! From node to node, without a registry: node agents on both nodes, on one, on none.

use anyhow::ensure;
use kube::ResourceExt;
use serde_json::{Value, json};
use shadow_e2e::cluster::Cluster;
use shadow_e2e::in_lab;
use shadow_e2e::migrate::phase;
use shadow_e2e::scenario::{self, Move};
use shadow_e2e::workload::Workload;

use crate::{alone, assert_clean, assert_nothing_left, deployed, message};

fn direct() -> Value {
    json!({ "transferMode": "Direct", "checkpointImageRepository": null })
}

/// Moves the one consumer.
async fn move_it(cluster: &Cluster, asked: &Value) -> anyhow::Result<Move> {
    let source = cluster.pod_of("consumer").await?;
    scenario::move_pod(cluster, &source, asked, |_| {}).await
}

fn staged(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for node in cluster.lab.nodes() {
        let pods = "/var/lib/kubelet/pods";
        let archives = ["sh", "-c", &format!("find {pods} -path '*staging*' -name '*.tar'")];
        found.extend(cluster.lab.exec(&node, &archives)?.lines().map(str::to_owned));
    }
    Ok(found)
}

#[test]
fn a_checkpoint_goes_from_agent_to_agent_and_back() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let cluster = deployed(&Workload { bare: true, ..Workload::default() }).await?;
        cluster.install_agents(&cluster.lab.nodes()).await?;
        for _ in 0..2 {
            let moved = move_it(&cluster, &direct()).await?;
            ensure!(phase(&moved.object) == "Completed", "ended {}", message(&moved.object));
            let target = cluster.pod_of("consumer").await?;
            let image = target.spec.as_ref().and_then(|it| it.containers[0].image.clone());
            ensure!(
                image
                    .as_ref()
                    .is_some_and(|it| it.contains(":9445/ms2m/") && it.contains("@sha256:")),
                "{} runs {image:?}",
                target.name_any()
            );
            ensure!(staged(&cluster)?.is_empty(), "nothing stays on a staging disk");
            assert_nothing_left(&cluster).await?;
        }
        let moved = move_it(&cluster, &direct()).await?;
        let report = scenario::settle(&cluster, &moved).await?;
        assert_clean(&report);
        cluster.remove_agents().await
    })
}

#[test]
fn where_the_source_has_no_agent_a_job_sends() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let cluster = deployed(&Workload { bare: true, ..Workload::default() }).await?;
        let source = cluster.pod_of("consumer").await?;
        let (_, target) = scenario::other_node(&cluster, &source)?;
        cluster.install_agents(&[target]).await?;
        let moved = move_it(&cluster, &direct()).await?;
        ensure!(phase(&moved.object) == "Completed", "ended {}", message(&moved.object));
        assert_nothing_left(&cluster).await?;
        assert_clean(&scenario::settle(&cluster, &moved).await?);
        // The other way there is nobody to take it in.
        let refused = move_it(&cluster, &direct()).await?;
        let why = message(&refused.object);
        ensure!(phase(&refused.object) == "Failed" && why.contains("no ready ms2m-agent"), "{why}");
        assert_nothing_left(&cluster).await?;
        cluster.remove_agents().await
    })
}

#[test]
fn an_agent_pushes_in_the_jobs_place() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let cluster = deployed(&Workload { bare: true, ..Workload::default() }).await?;
        cluster.install_agents(&cluster.lab.nodes()).await?;
        let moved = move_it(&cluster, &json!({})).await?;
        ensure!(phase(&moved.object) == "Completed", "ended {}", message(&moved.object));
        let timings = moved.object.status.clone().unwrap_or_default().phase_timings;
        println!("transferring took {:?}", timings.get("Transferring"));
        assert_nothing_left(&cluster).await?;
        assert_clean(&scenario::settle(&cluster, &moved).await?);
        cluster.remove_agents().await
    })
}
