//! The operator is replaced by that of another commit in the middle of a migration.

use std::path::Path;

use anyhow::ensure;
use serde::Serialize;
use serde_json::json;
use tokio::sync::Notify;

use crate::cluster::Cluster;
use crate::migrate::{self, phase};
use crate::scenario;
use crate::workload::Workload;

/// One replacement.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The operators before and after.
    pub step: String,
    /// In which phase.
    pub phase: &'static str,
    /// What has come of the migration.
    pub outcome: String,
    /// From its creation to its end.
    pub total_s: f64,
    /// Confirmed and never applied; applied twice; applied late.
    pub wrong: (u64, u64, u64),
    /// Probes without an answer.
    pub failed_probes: u64,
    /// What should be gone.
    pub leftovers: Vec<String>,
}

impl Row {
    /// Nothing has happened to the messages, and nothing is left.
    pub fn is_good(&self) -> bool {
        // An operator of before knows nothing of it; the janitor of this one removes it.
        let unknown = |left: &String| self.step.ends_with("base") && left.contains(".ms2m-wake.");
        let clean = self.leftovers.iter().all(unknown);
        self.outcome == "Completed" && self.wrong == (0, 0, 0) && clean
    }
}

/// An operator: its name, the repository that it is installed from, and its image.
pub struct Operator<'a> {
    /// What is said of it.
    pub name: &'a str,
    /// Root of a checkout.
    pub root: &'a Path,
    /// Image in the lab's registry, without its tag.
    pub image: &'a str,
}

/// Moves the consumer; when the migration comes to `at`, `before` is replaced by `after`.
pub async fn replace(
    cluster: &Cluster,
    before: &Operator<'_>,
    after: &Operator<'_>,
    at: &'static str,
) -> anyhow::Result<Row> {
    migrate::delete_all(cluster).await?;
    Workload::remove(cluster).await?;
    cluster.install_operator_from(before.root, before.image, &[]).await?;
    // Catching up takes a while.
    Workload { service_ms: 10, ..Workload::default() }.deploy(cluster).await?;
    scenario::reset_probe(cluster).await?;
    let source = cluster.pod_of("consumer").await?;
    let due = Notify::new();
    let asked = json!({});
    let moving = scenario::move_pod(cluster, &source, &asked, |object| {
        if phase(object) == at {
            due.notify_one();
        }
    });
    let replacing = async {
        due.notified().await;
        cluster.install_operator_from(after.root, after.image, &[]).await
    };
    let (done, ()) = tokio::try_join!(moving, replacing)?;
    ensure!(!phase(&done.object).is_empty(), "the migration has a phase");
    let leftovers = scenario::left_in_the_end(cluster).await;
    let report = scenario::settle(cluster, &done).await?;
    let m = &report.messages;
    Ok(Row {
        step: format!("{} -> {}", before.name, after.name),
        phase: at,
        outcome: phase(&done.object).to_owned(),
        total_s: done.total_s()?,
        wrong: (m.lost, m.duplicated, m.reordered),
        failed_probes: report.probe.map_or(0, |probe| probe.failed),
        leftovers,
    })
}
