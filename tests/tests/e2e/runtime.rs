//! A runtime that can't checkpoint or restore: refused before anything is touched and, for who knows
//! better, tried: told in words, and the source works on without a loss.

use std::time::Duration;

use anyhow::ensure;
use kube::ResourceExt;
use serde_json::json;
use shadow_e2e::cluster::{Cluster, wait_for};
use shadow_e2e::migrate::{self, phase};
use shadow_e2e::workload::Workload;
use shadow_e2e::{http, in_lab, report, scenario};
use shadow_lab::Lab;

use crate::refusals::Untouched;
use crate::{alone, assert_nothing_left, deployed, message};

/// Although `ignored` is not checked, the checkpoint fails for `reason` with `words`; the source has lost
/// nothing by it.
async fn rolls_back(
    cluster: &Cluster,
    ignored: &str,
    reason: &str,
    words: &[&str],
) -> anyhow::Result<()> {
    let source = cluster.pod_of("consumer").await?;
    let (here, there) = scenario::other_node(cluster, &source)?;
    let name = scenario::fresh_name();
    let mut manifest = migrate::manifest(&name, &source.name_any(), &there);
    manifest["metadata"]["annotations"] = json!({ "migration.ms2m.io/ignore-checks": ignored });
    migrate::create(cluster, manifest).await?;
    let patience = Duration::from_mins(3);
    let done = migrate::follow(cluster, &name, patience, async |_| Ok(())).await?;
    let text = message(&done);
    println!("{text}");
    ensure!(phase(&done) == "Failed", "ended {}: {text}", phase(&done));
    ensure!(text.starts_with(&format!("{reason}: ")), "expected {reason}, got: {text}");
    ensure!(text.ends_with("; everything was undone"), "says what it did: {text}");
    let named = format!("container consumer of pod {} on node {here}", source.name_any());
    for words in [&[named.as_str()], words].concat() {
        ensure!(text.contains(words), "says `{words}`, got: {text}");
    }
    ensure!(!text.contains("--work-path"), "no command line in: {text}");
    assert_nothing_left(cluster).await?;
    let still = cluster.pod_of("consumer").await?;
    ensure!(still.uid() == source.uid(), "the source is the same pod");
    let producer = Cluster::url(&cluster.pod_of("producer").await?)?;
    let producer = http::post(&format!("{producer}/stop")).await?;
    let url = format!("{}/ledger", Cluster::url(&still)?);
    let messages = wait_for("all messages to be applied", Duration::from_mins(1), async || {
        let messages = report::messages(&producer, &http::get(&url).await?);
        Ok((messages.lost == 0).then_some(messages))
    })
    .await?;
    ensure!(messages.duplicated == 0 && messages.reordered == 0, "{messages:?}");
    Ok(())
}

#[test]
fn a_process_that_criu_refuses_is_rolled_back_and_told() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        // Of a family whose state CRIU can't dump, and of which the kernel's lists say nothing.
        let prelude = "import socket; held = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)";
        let workload = Workload { probe: false, prelude: Some(prelude), ..Workload::default() };
        let cluster = deployed(&workload).await?;
        let words = ["failed: CRIU checkpointing failed", "sockets other than TCP"];
        Box::pin(rolls_back(&cluster, "", "CheckpointFailed", &words)).await
    })
}

#[test]
fn a_process_that_is_known_not_to_be_dumped_is_refused() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        // What `kubectl exec -it` leaves in a process that it started: a terminal without its other end.
        let prelude = "import os; master, held = os.openpty(); os.close(master)";
        let workload = Workload { prelude: Some(prelude), ..Workload::default() };
        let untouched = Untouched::deployed(&workload).await?;
        let words = "check open-terminal of pod default/consumer";
        untouched.refuses(untouched.manifest(), "PreflightFailed", words).await
    })
}

const CONFIG: &str = "/etc/crio/crio.conf";

/// CRI-O of one node without CRIU, until dropped.
pub struct WithoutCriu<'a> {
    lab: &'a Lab,
    node: &'a str,
}

impl<'a> WithoutCriu<'a> {
    /// Switches it off on `node`.
    pub fn on(lab: &'a Lab, node: &'a str) -> anyhow::Result<Self> {
        let without = Self { lab, node };
        without.restart_with("false")?;
        Ok(without)
    }

    fn restart_with(&self, value: &str) -> anyhow::Result<()> {
        let edit = format!("s/^enable_criu_support = .*/enable_criu_support = {value}/");
        self.lab.exec(self.node, &["sed", "-i", &edit, CONFIG])?;
        self.lab.stop(self.node, "crio")?;
        self.lab.start(self.node, "crio")?;
        Ok(())
    }
}

impl Drop for WithoutCriu<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.restart_with("true") {
            eprintln!("CRI-O of {} is still without CRIU: {error}", self.node);
        }
    }
}

#[test]
fn a_node_whose_runtime_has_no_criu_is_refused_and_else_rolled_back() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let untouched = Untouched::deployed(&Workload::default()).await?;
        let cluster = &untouched.cluster;
        let (here, there) = untouched.nodes.clone();
        let without = WithoutCriu::on(&cluster.lab, &there)?;
        wait_for_runtime(cluster, &there).await?;
        let words = format!("check restore of node {there}: CRI-O's enable_criu_support is false");
        let refused = async {
            untouched.refuses(untouched.manifest(), "TargetNodeRefuses", &words).await?;
            // It is not chosen either, and there is no other.
            let mut any = untouched.manifest();
            any["spec"].as_object_mut().map(|spec| spec.remove("targetNode"));
            untouched.refuses(any, "NoTargetNode", &here).await
        };
        let refused = Box::pin(refused).await;
        drop(without);
        wait_for_runtime(cluster, &there).await?;
        refused?;

        let without = WithoutCriu::on(&cluster.lab, &here)?;
        wait_for_runtime(cluster, &here).await?;
        let ended = async {
            let words = format!("check checkpoint of node {here}");
            untouched.refuses(untouched.manifest(), "PreflightFailed", &words).await?;
            let words = ["checkpoint/restore support not available", "enable_criu_support = true"];
            let reason = "CheckpointUnsupported";
            Box::pin(rolls_back(cluster, "kernel, checkpoint", reason, &words)).await
        };
        let ended = Box::pin(ended).await;
        drop(without);
        wait_for_runtime(cluster, &here).await?;
        ended
    })
}

/// The node's runtime answers, and the node is Ready as seen by the API server.
pub async fn wait_for_runtime(cluster: &Cluster, node: &str) -> anyhow::Result<()> {
    wait_for(&format!("CRI-O on {node}"), Duration::from_secs(30), async || {
        cluster.lab.exec(node, &["test", "-S", "/run/crio/crio.sock"])?;
        ensure!(cluster.lab.is_up(node, "crio")?, "crio runs");
        Ok(Some(()))
    })
    .await?;
    let ready = format!("node/{node}");
    cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=60s", &ready], "")?;
    Ok(())
}
