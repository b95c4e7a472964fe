//! Bad input: refused with a reason and a sentence, and nothing is changed.

mod cluster_side;
mod source_side;

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::{Value, json};
use shadow_e2e::cluster::{Cluster, wait_for};
use shadow_e2e::migrate::{self, phase};
use shadow_e2e::workload::Workload;
use shadow_e2e::{broker, http, scenario};

use crate::{deployed, message};

/// A workload as it is before a migration that must change nothing.
pub struct Untouched {
    /// Where it is.
    pub cluster: Cluster,
    source: Pod,
    /// The source's node, and another.
    pub nodes: (String, String),
    boot_id: Value,
    objects: Vec<String>,
}

impl Untouched {
    pub async fn deployed(workload: &Workload) -> anyhow::Result<Self> {
        let cluster = deployed(&Workload { probe: false, ..workload.clone() }).await?;
        let source = cluster.pod_of("consumer").await?;
        let nodes = scenario::other_node(&cluster, &source)?;
        let ledger = http::get(&format!("{}/ledger", Cluster::url(&source)?)).await?;
        let objects = broker::objects(&cluster).await?;
        Ok(Self { cluster, source, nodes, boot_id: ledger["boot_id"].clone(), objects })
    }

    /// What happens from now on has not been done by a migration.
    pub async fn look_again(&mut self) -> anyhow::Result<()> {
        self.objects = broker::objects(&self.cluster).await?;
        Ok(())
    }

    pub fn manifest(&self) -> Value {
        migrate::manifest(&scenario::fresh_name(), &self.source.name_any(), &self.nodes.1)
    }

    /// The migration is refused before it changes anything.
    pub async fn refuses(&self, manifest: Value, reason: &str, words: &str) -> anyhow::Result<()> {
        self.ends(manifest, reason, words, "; nothing was changed").await?;
        self.goes_on().await.with_context(|| format!("after {reason}"))
    }

    /// The migration fails, its message begins with `reason`, contains `words` and tells the `end`.
    async fn ends(
        &self,
        manifest: Value,
        reason: &str,
        words: &str,
        end: &str,
    ) -> anyhow::Result<()> {
        let name = manifest["metadata"]["name"].as_str().context("a name")?.to_owned();
        let begun = Instant::now();
        migrate::create(&self.cluster, manifest).await?;
        let patience = Duration::from_mins(1);
        let done = migrate::follow(&self.cluster, &name, patience, async |_| Ok(())).await?;
        let text = message(&done);
        println!("{:>5.1} s  {text}", begun.elapsed().as_secs_f64());
        ensure!(phase(&done) == "Failed", "{reason} is refused, but: {text}");
        ensure!(text.starts_with(&format!("{reason}: ")), "expected {reason}, got: {text}");
        ensure!(text.contains(words), "{reason} says `{words}`, got: {text}");
        ensure!(text.ends_with(end), "{reason} ends with `{end}`, got: {text}");
        ensure!(!text.contains("wrong-password"), "no password in: {text}");
        Ok(())
    }

    /// The broker has what it had, and the same process consumes.
    async fn goes_on(&self) -> anyhow::Result<()> {
        let cluster = &self.cluster;
        wait_for("the broker to be as before", Duration::from_secs(10), async || {
            Ok((broker::objects(cluster).await? == self.objects).then_some(()))
        })
        .await?;
        let pod = cluster.pods().get(&self.source.name_any()).await?;
        ensure!(pod.uid() == self.source.uid(), "the source is the same pod");
        ensure!(pod.metadata.deletion_timestamp.is_none(), "the source is not being deleted");
        let left = scenario::leftovers(cluster).await?;
        ensure!(left.is_empty(), "nothing is left, but found {left:?}");
        let url = format!("{}/ledger", Cluster::url(&self.source)?);
        let before = http::get(&url).await?;
        ensure!(before["boot_id"] == self.boot_id, "the source's process is the same");
        wait_for("the source to consume", Duration::from_secs(10), async || {
            let now = http::get(&url).await?;
            Ok((now["applied_total"].as_u64() > before["applied_total"].as_u64()).then_some(()))
        })
        .await
    }
}

/// A URL in place of the Secret.
fn broker_url(manifest: &mut Value, url: &str) {
    let config = &mut manifest["spec"]["messageQueueConfig"];
    config["brokerUrl"] = json!(url);
    config.as_object_mut().map(|config| config.remove("brokerSecretRef"));
}
