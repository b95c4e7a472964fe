//! A whole run: move the consumer under load, then let the ledger decide.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::core::v1::{Pod, PodTemplate};
use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::{Value, json};
use shadow_api::StatefulMigration;

use crate::cluster::{Cluster, wait_for};
use crate::migrate::{self, phase};
use crate::report::{self, Probe, Report, number};
use crate::{broker, http};

const PATIENCE: Duration = Duration::from_mins(4);

/// What was seen of one move while it went on.
pub struct Move {
    /// The finished object.
    pub object: StatefulMigration,
    /// Node before and after.
    pub nodes: (String, String),
    boot_id: String,
    /// Longest time in milliseconds in which messages waited and no copy applied one.
    pub pause_ms: u64,
    ages: (u64, u64),
}

impl Move {
    /// Seconds from the object's creation to its end.
    ///
    /// The API server keeps creation times in whole seconds; the operator writes `startTime` in
    /// milliseconds when it first sees the object, which is the closest there is.
    pub fn total_s(&self) -> anyhow::Result<f64> {
        let status = self.object.status.as_ref().context("no status")?;
        let at = |time: &Option<String>| -> anyhow::Result<jiff::Timestamp> {
            Ok(time.as_deref().context("a time is missing")?.parse()?)
        };
        let spent = at(&status.completion_time)?.duration_since(at(&status.start_time)?);
        Ok(spent.as_secs_f64())
    }
}

/// A name for a migration that is not in use.
pub fn fresh_name() -> String {
    format!("move-{}", jiff::Timestamp::now().as_millisecond())
}

/// The node that `pod` is not on.
pub fn other_node(cluster: &Cluster, pod: &Pod) -> anyhow::Result<(String, String)> {
    let here = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).context("no node")?;
    let nodes = cluster.lab.nodes();
    let there = nodes.into_iter().find(|node| *node != here).context("the lab has one node")?;
    Ok((here, there))
}

/// Moves the consumer to the other node and returns when the migration has ended.
pub async fn move_consumer(
    cluster: &Cluster,
    mode: Option<&str>,
    show: impl FnMut(&StatefulMigration),
) -> anyhow::Result<Move> {
    let source = cluster.pod_of("consumer").await?;
    let asked = mode.map_or_else(|| json!({}), |mode| json!({ "replayMode": mode }));
    move_pod(cluster, &source, &asked, show).await
}

/// Moves `source` with these fields of the migration's spec.
pub async fn move_pod(
    cluster: &Cluster,
    source: &Pod,
    asked: &Value,
    mut show: impl FnMut(&StatefulMigration),
) -> anyhow::Result<Move> {
    let nodes = other_node(cluster, source)?;
    let source_url = Cluster::url(source)?;
    http::post(&format!("{source_url}/window")).await?;
    let before = http::get(&format!("{source_url}/ledger")).await?;
    let name = fresh_name();
    let mut manifest = migrate::manifest(&name, &source.name_any(), &nodes.1);
    for (field, value) in asked.as_object().into_iter().flatten() {
        manifest["spec"][field] = value.clone();
    }
    manifest["spec"]["messageQueueConfig"]["queueName"] = before["queue"].clone();
    migrate::create(cluster, manifest).await?;
    let mut watched = Watched::of(&source_url);
    let source = Source::default();
    let follow = migrate::follow(cluster, &name, PATIENCE, async |object| {
        show(object);
        watched.look(cluster, object, &source).await
    });
    let object = tokio::select! {
        object = follow => object?,
        never = source.listen(&source_url) => never,
    };
    let Watched { pause_ms, ages, .. } = watched;
    Ok(Move { object, nodes, boot_id: text(&before, "boot_id"), pause_ms, ages })
}

/// What the copies' own clocks say while a pod moves.
#[derive(Default)]
pub(crate) struct Watched {
    /// Whose clock of waiting messages counts; absent while a source is making room.
    serving: Option<String>,
    last_phase: String,
    switched: bool,
    /// The longest time in which messages waited and no copy applied one.
    pub(crate) pause_ms: u64,
    ages: (u64, u64),
}

impl Watched {
    /// The one at this address serves.
    pub(crate) fn of(url: &str) -> Self {
        Self { serving: Some(url.to_owned()), ..Self::default() }
    }

    pub(crate) async fn look(
        &mut self,
        cluster: &Cluster,
        object: &StatefulMigration,
        source: &Source,
    ) -> anyhow::Result<()> {
        let entered = std::mem::replace(&mut self.last_phase, phase(object).to_owned());
        let strategy = object.status.as_ref().and_then(|status| status.strategy.as_deref());
        let makes_room = strategy == Some("Sequential");
        let handoff = object.status.as_ref().and_then(|status| status.handoff.as_ref());
        let parked = handoff.and_then(|handoff| handoff.mode.as_deref()) == Some("Park");
        match phase(object) {
            "Restoring" | "Replaying" if makes_room => {
                self.serving = None;
                source.going.store(true, Ordering::Relaxed);
            }
            // Until now the source applied whatever waited; from now on the target's own pause
            // counts. What it caught up with stays in the ages. A parked source applied nothing.
            "Finalizing" if entered != "Finalizing" => {
                if let Ok((url, window)) = target_window(cluster, object, !parked).await {
                    let ages = [number(&window, "/max_age_ms"), number(&window, "/p99_age_ms")];
                    self.ages = (self.ages.0.max(ages[0]), self.ages.1.max(ages[1]));
                    let resumed = number(&window, "/longest_gap_began_unix_ms")
                        + number(&window, "/longest_gap_ms");
                    if makes_room {
                        let heard = source.heard.load(Ordering::Relaxed);
                        self.pause_ms = self.pause_ms.max(resumed.saturating_sub(heard));
                    }
                    self.serving = Some(url);
                }
                self.switched = true;
            }
            _ => {}
        }
        let Some(url) = &self.serving else { return Ok(()) };
        match http::get(&format!("{url}/ledger")).await {
            Ok(ledger) => {
                self.pause_ms = self.pause_ms.max(number(&ledger, "/window/pause_ms"));
                Ok(())
            }
            // A target that does not live up to it is the migration's business.
            Err(_) if self.switched => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// A source that makes room before its copy comes.
#[derive(Default)]
pub(crate) struct Source {
    going: AtomicBool,
    /// When it last answered, in Unix milliseconds.
    heard: AtomicU64,
}

impl Source {
    /// Asks a source that is going how it is.
    async fn listen(&self, url: &str) -> ! {
        let often = Duration::from_millis(20);
        let url = format!("{url}/ledger");
        loop {
            tokio::time::sleep(often).await;
            if !self.going.load(Ordering::Relaxed) {
                continue;
            }
            if matches!(tokio::time::timeout(often * 5, http::get(&url)).await, Ok(Ok(_))) {
                let now = jiff::Timestamp::now().as_millisecond();
                self.heard.store(now.unsigned_abs(), Ordering::Relaxed);
            }
        }
    }
}

/// The target, and its window so far, which begins `anew` or not.
async fn target_window(
    cluster: &Cluster,
    object: &StatefulMigration,
    anew: bool,
) -> anyhow::Result<(String, Value)> {
    let status = object.status.as_ref().context("no status")?;
    let name = status.target_pod.as_deref().context("no target pod")?;
    let url = Cluster::url(&cluster.pods().get(name).await?)?;
    let ledger = http::get(&format!("{url}/ledger")).await?;
    if anew {
        http::post(&format!("{url}/window")).await?;
    }
    Ok((url, ledger["window"].clone()))
}

fn text(document: &Value, key: &str) -> String {
    document[key].as_str().unwrap_or_default().to_owned()
}

/// Stops producer and probe and compares what was confirmed with what was applied.
pub async fn settle(cluster: &Cluster, moved: &Move) -> anyhow::Result<Report> {
    let probe = probe(cluster).await?;
    let producer = stop_producer(cluster).await?;
    let name = moved.object.status.as_ref().and_then(|status| status.target_pod.as_deref());
    let consumer = cluster.pods().get(name.context("a target pod")?).await?;
    let ledger = final_ledger(cluster, &consumer, &producer).await?;
    let status = moved.object.status.clone().unwrap_or_default();
    let mut messages = report::messages(&producer, &ledger);
    messages.max_age_ms = moved.ages.0.max(number(&ledger, "/window/max_age_ms"));
    messages.p99_age_ms = moved.ages.1.max(number(&ledger, "/window/p99_age_ms"));
    let phases_s = status
        .phase_timings
        .iter()
        .map(|(name, spent)| (name.clone(), spent.trim_end_matches('s').parse().unwrap_or(0.0)))
        .collect();
    let here = consumer.spec.as_ref().and_then(|spec| spec.node_name.clone());
    Ok(Report {
        result: phase(&moved.object).to_owned(),
        total_s: moved.total_s()?,
        phases_s,
        checkpoint_bytes: status.checkpoint_bytes.unwrap_or(0),
        probe,
        pause_ms: moved.pause_ms.max(number(&ledger, "/window/pause_ms")),
        messages,
        state_continued: text(&ledger, "boot_id") == moved.boot_id,
        source_node: moved.nodes.0.clone(),
        target_node: here.unwrap_or_default(),
        versions: versions(cluster).await?,
    })
}

/// What the probe through the Service has seen, if there is one.
pub async fn probe(cluster: &Cluster) -> anyhow::Result<Option<Probe>> {
    let Ok(pod) = cluster.pod_of("probe").await else { return Ok(None) };
    let stats = http::get(&format!("{}/stats", Cluster::url(&pod)?)).await?;
    let errors = stats["first_errors"].as_array().cloned().unwrap_or_default();
    Ok(Some(Probe {
        interval_ms: number(&stats, "/interval_ms"),
        sent: number(&stats, "/sent"),
        failed: number(&stats, "/failed"),
        longest_gap_ms: number(&stats, "/longest_gap_ms"),
        downtime_ms: number(&stats, "/downtime_ms"),
        first_errors: errors.iter().map(Value::to_string).collect(),
    }))
}

/// Begins the probe's record afresh.
pub async fn reset_probe(cluster: &Cluster) -> anyhow::Result<()> {
    let pod = cluster.pod_of("probe").await?;
    http::post(&format!("{}/window", Cluster::url(&pod)?)).await?;
    Ok(())
}

pub(crate) async fn stop_producer(cluster: &Cluster) -> anyhow::Result<Value> {
    let pod = cluster.pod_of("producer").await?;
    let stats = http::post(&format!("{}/stop", Cluster::url(&pod)?)).await?;
    if number(&stats, "/totals/unconfirmed") > 0 {
        bail!("the producer stopped with unconfirmed messages: {}", stats["totals"]);
    }
    Ok(stats)
}

/// What `consumer` has applied, and with it whoever else consumes its queue.
async fn ledger_of(cluster: &Cluster, consumer: &Pod) -> anyhow::Result<Value> {
    let own = http::get(&format!("{}/ledger", Cluster::url(consumer)?)).await?;
    let mut all = Vec::new();
    for pod in cluster.pods_of("consumer").await? {
        let url = Cluster::url(&pod)?;
        let ledger = http::get(&format!("{url}/ledger")).await?;
        if pod.uid() != consumer.uid() && ledger["queue"] == own["queue"] {
            all.push((ledger, http::get(&format!("{url}/applied")).await?));
        }
    }
    if all.is_empty() {
        return Ok(own);
    }
    let applied = http::get(&format!("{}/applied", Cluster::url(consumer)?)).await?;
    all.insert(0, (own, applied));
    Ok(report::merged(&all))
}

/// The ledger when nothing more comes: it has everything, or has not grown for five seconds.
async fn final_ledger(
    cluster: &Cluster,
    consumer: &Pod,
    producer: &Value,
) -> anyhow::Result<Value> {
    let confirmed = number(producer, "/totals/confirmed");
    let mut grown = (0, std::time::Instant::now());
    wait_for("the consumer to work off its queue", Duration::from_mins(5), async || {
        let ledger = ledger_of(cluster, consumer).await?;
        let applied = number(&ledger, "/applied_total");
        if applied != grown.0 {
            grown = (applied, std::time::Instant::now());
        }
        let whole = report::messages(producer, &ledger).lost == 0 && applied >= confirmed;
        let quiet = grown.1.elapsed() > Duration::from_secs(5);
        Ok((whole || quiet).then_some(ledger))
    })
    .await
}

async fn versions(cluster: &Cluster) -> anyhow::Result<BTreeMap<String, String>> {
    let nodes: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(cluster.client.clone());
    let list = nodes.list(&ListParams::default()).await?;
    let info = list.items.into_iter().find_map(|node| node.status?.node_info);
    let info = info.context("no node tells its versions")?;
    let node = cluster.lab.nodes().into_iter().next().context("no node")?;
    let line = |argv: &[&str]| -> anyhow::Result<String> {
        let out = cluster.lab.exec(&node, argv)?;
        Ok(out.lines().next().unwrap_or_default().trim().to_owned())
    };
    Ok(BTreeMap::from([
        ("shadow".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("kubernetes".to_owned(), info.kubelet_version),
        ("runtime".to_owned(), info.container_runtime_version),
        ("kernel".to_owned(), info.kernel_version),
        ("rabbitmq".to_owned(), broker::version(cluster).await?),
        ("criu".to_owned(), line(&["criu", "--version"])?),
        ("crun".to_owned(), line(&["crun", "--version"])?),
    ]))
}

/// What is still left after a while: the session closes, and with it the lock goes, just after the
/// end is reported.
pub async fn left_in_the_end(cluster: &Cluster) -> Vec<String> {
    let mut left = Vec::new();
    let clean = wait_for("nothing to be left", Duration::from_secs(10), async || {
        left = leftovers(cluster).await?;
        Ok(left.is_empty().then_some(()))
    });
    let clean = clean.await;
    if clean.is_err() && left.is_empty() {
        left.push(format!("{clean:?}"));
    }
    left
}

/// Fails if another pod than `moved` is not what it was `before`: the same one, never restarted since.
pub async fn others_untouched(
    cluster: &Cluster,
    before: &[Pod],
    moved: &str,
) -> anyhow::Result<()> {
    let restarts = |pod: &Pod| {
        let statuses = pod.status.as_ref().and_then(|it| it.container_statuses.as_ref());
        statuses.into_iter().flatten().map(|it| it.restart_count).sum::<i32>()
    };
    for pod in before.iter().filter(|pod| pod.name_any() != moved) {
        let now = cluster.pods().get(&pod.name_any()).await?;
        let same = now.uid() == pod.uid() && restarts(&now) == restarts(pod);
        ensure!(same, "pod {} was touched", pod.name_any());
    }
    Ok(())
}

/// What a migration should have removed and did not: pods, Jobs, broker objects.
pub async fn leftovers(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let mut left = Vec::new();
    for name in broker::objects(cluster).await? {
        if name.contains("ms2m-") || (name.starts_with("ms2m.") && !name.contains(".control.")) {
            left.push(name);
        }
    }
    let live: Vec<String> = cluster
        .pods()
        .list(&ListParams::default())
        .await?
        .iter()
        .map(ResourceExt::name_any)
        .collect();
    for name in broker::objects(cluster).await? {
        if let Some(pod) = name.strip_prefix("ms2m.control.")
            && !live.iter().any(|name| name == pod)
        {
            left.push(name);
        }
    }
    left.extend(live.into_iter().filter(|name| name.starts_with("ms2m-")));
    left.extend(kept(cluster).await?);
    let jobs: kube::Api<k8s_openapi::api::batch::v1::Job> =
        kube::Api::namespaced(cluster.client.clone(), "default");
    left.extend(jobs.list(&ListParams::default()).await?.iter().map(ResourceExt::name_any));
    for node in cluster.lab.nodes() {
        let listing = cluster.lab.exec(&node, &["ls", "/var/lib/kubelet/checkpoints"]);
        let ours = listing.unwrap_or_default();
        let ours = ours.lines().filter(|name| name.starts_with("checkpoint-consumer-"));
        left.extend(ours.map(|name| format!("{node}:{name}")));
    }
    Ok(left)
}

/// Names that admission keeps, what was written down for that, and pods that are not let go.
async fn kept(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let all = ListParams::default();
    let client = cluster.client.clone();
    let policies: kube::Api<ValidatingAdmissionPolicy> = kube::Api::all(client.clone());
    let bindings: kube::Api<ValidatingAdmissionPolicyBinding> = kube::Api::all(client.clone());
    let templates: kube::Api<PodTemplate> = kube::Api::default_namespaced(client);
    let mut left: Vec<String> = Vec::new();
    left.extend(policies.list(&all).await?.iter().map(ResourceExt::name_any));
    left.extend(bindings.list(&all).await?.iter().map(ResourceExt::name_any));
    left.extend(templates.list(&all).await?.iter().map(ResourceExt::name_any));
    let pods = cluster.pods().list(&all).await?;
    left.extend(pods.iter().filter(|pod| !pod.finalizers().is_empty()).map(ResourceExt::name_any));
    Ok(left)
}

/// The report as a JSON file.
pub fn write(report: &impl serde::Serialize, file: &std::path::Path) -> anyhow::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(file, format!("{:#}\n", json!(report)))
        .with_context(|| file.display().to_string())
}
