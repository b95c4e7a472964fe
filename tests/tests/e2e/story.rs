//! What a user types and sees: the specification's quick start, `get -w` and `describe`.

use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use kube::ResourceExt;
use shadow_e2e::cluster::{Cluster, operator_image};
use shadow_e2e::migrate::{self, phase};
use shadow_e2e::workload::Workload;
use shadow_e2e::{in_lab, root, scenario};

use crate::{alone, assert_nothing_left, deployed, message, moved};

/// `kubectl get statefulmigration … -w` while something happens.
struct Watch(Child);

impl Watch {
    fn start(cluster: &Cluster, name: &str) -> anyhow::Result<Self> {
        let mut kubectl = cluster.lab.kubectl()?;
        kubectl.args(["get", "statefulmigration", name, "-w"]);
        kubectl.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        Ok(Self(kubectl.spawn().context("run kubectl get -w")?))
    }

    /// What it has printed so far; it ends.
    fn printed(mut self) -> anyhow::Result<String> {
        self.0.kill()?;
        let mut text = String::new();
        let mut output = self.0.stdout.take().context("its output")?;
        std::io::Read::read_to_string(&mut output, &mut text)?;
        self.0.wait()?;
        Ok(text)
    }
}

const COLUMNS: [&str; 7] = ["NAME", "SOURCE", "TARGET NODE", "STRATEGY", "PHASE", "LAG", "AGE"];

/// The words of a line of kubectl's tables.
fn cells(line: &str) -> Vec<&str> {
    line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()
}

/// `parts` occur in `text` in this order.
fn ensure_order(text: &str, parts: &[&str]) -> anyhow::Result<()> {
    let mut rest = text;
    for part in parts {
        let split = rest.split_once(part);
        rest = split.with_context(|| format!("{part} is missing or out of order in:\n{text}"))?.1;
    }
    Ok(())
}

#[test]
fn the_quick_start_of_the_specification_moves_a_bare_pod() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let cluster = deployed(&Workload { bare: true, ..Workload::default() }).await?;
        let crd = "config/crd/bases/migration.ms2m.io_statefulmigrations.yaml";
        for file in [crd, "config/rbac/role.yaml", "config/manager/manager.yaml"] {
            cluster.kubectl(&["apply", "-f", file], "")?;
        }
        // The published image is not in the lab; its own build of the same is.
        let operator = "deployment/shadow-operator";
        let image = operator_image();
        let set = format!("operator={image}");
        cluster.kubectl(&["-n", "ms2m-system", "set", "image", operator, &set], "")?;
        let set = format!("SHADOW_TRANSFER_IMAGE={image}");
        cluster.kubectl(&["-n", "ms2m-system", "set", "env", operator, &set], "")?;
        cluster.wait_deployment("ms2m-system", "shadow-operator").await?;

        let pod = cluster.pod_of("consumer").await?;
        let (_, there) = scenario::other_node(&cluster, &pod)?;
        let sample = root().join("config/samples/migrate-consumer-0.yaml");
        let sample = std::fs::read_to_string(sample)?
            .replace("targetNode: worker-2", &format!("targetNode: {there}"));
        cluster.kubectl(&["apply", "-f", "-"], &sample)?;
        let name = "migrate-consumer-0";
        let watch = Watch::start(&cluster, name)?;
        let patience = Duration::from_mins(2);
        let done = migrate::follow(&cluster, name, patience, async |_| Ok(())).await;
        // kubectl's watch is as late as its connection.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let printed = watch.printed()?;
        let done = done?;
        ensure!(phase(&done) == "Completed", "ended {}", message(&done));
        let header = printed.lines().next().unwrap_or_default();
        ensure!(cells(header) == COLUMNS, "the columns are:\n{printed}");
        let phases = ["Checkpointing", "Transferring", "Restoring", "Replaying", "Completed"];
        ensure_order(&printed, &phases)?;
        let pod = cluster.pod_of("consumer").await?;
        ensure!(pod.name_any() == "consumer-0-shadow", "the pod is {}", pod.name_any());
        assert_nothing_left(&cluster).await
    })
}

#[test]
fn get_and_describe_tell_the_story_of_a_move() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let cluster = deployed(&Workload { probe: false, ..Workload::default() }).await?;
        let source = cluster.pod_of("consumer").await?.name_any();
        let done = moved(&cluster).await?;
        let name = done.object.name_any();
        let there = &done.nodes.1;

        let table = cluster.kubectl(&["get", "statefulmigration", &name], "")?;
        let mut lines = table.lines();
        let header = cells(lines.next().context("a header")?);
        ensure!(header == COLUMNS, "the columns are:\n{table}");
        let row = cells(lines.next().context("a row")?);
        let expected = [name.as_str(), &source, there, "ShadowPod", "Completed"];
        ensure!(row.starts_with(&expected), "the row is:\n{table}");

        let story = cluster.kubectl(&["describe", "statefulmigration", &name], "")?;
        let (state, events) = story.split_once("\nEvents:").context("events")?;
        for line in ["Phase: Completed", "Reason: Completed", "Type: Ready"] {
            let told =
                state.lines().any(|l| l.split_whitespace().collect::<Vec<_>>().join(" ") == line);
            ensure!(told, "{line} is told in:\n{story}");
        }
        let reasons: Vec<&str> =
            events.lines().filter_map(|line| line.trim().strip_prefix("Normal")).collect();
        let reasons = reasons.join("\n");
        let phases =
            ["Checkpointing", "Transferring", "Restoring", "Replaying", "Finalizing", "Completed"];
        ensure_order(&reasons, &phases)?;
        ensure!(events.contains(&format!("took over on node {there}")), "who took over:\n{story}");
        Ok(())
    })
}
