//! Without a queue: a StatefulSet's pod that counts what it is asked moves with its count.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use shadow_api::StatefulMigration;
use shadow_e2e::cluster::{Cluster, wait_for};
use shadow_e2e::migrate::{self, phase};
use shadow_e2e::workload::Workload;
use shadow_e2e::{http, in_lab, scenario};

use crate::sets::{assert_of_the_set, update_revision};
use crate::{alone, assert_nothing_left, message, with_operator};

/// It counts its ticks and what it is told, and knows itself by a number that it drew once.
const COUNTER: &str = r#"
import http.server, json, os, signal, threading, time, uuid
state = {"boot_id": uuid.uuid4().hex, "ticks": 0, "told": 0}
def tick():
    while True:
        time.sleep(0.01)
        state["ticks"] += 1
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
        body = json.dumps(state).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_GET = answer
    def do_POST(self):
        state["told"] += 1
        self.answer()
    def log_message(self, *_):
        pass
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
threading.Thread(target=tick, daemon=True).start()
http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
"#;
const PATIENCE: Duration = Duration::from_mins(2);
/// Between two things that it is told, while it moves.
const OFTEN: Duration = Duration::from_millis(20);

fn counts(object: &mut Value) {
    for path in ["/spec/template/spec/containers/0", "/spec/containers/0"] {
        if let Some(container) = object.pointer_mut(path) {
            container["command"] = json!(["/usr/bin/python3", "-c", COUNTER]);
            container["env"] = json!([]);
        }
    }
}

/// Counters in the place of the consumer that `file` deploys.
async fn counters(file: &str, replicas: u32) -> anyhow::Result<Cluster> {
    let cluster = with_operator().await?;
    migrate::delete_all(&cluster).await?;
    Workload::remove(&cluster).await?;
    let edit = |object: &mut Value| {
        counts(object);
        if object["kind"] != "Pod" {
            object["spec"]["replicas"] = json!(replicas);
        }
    };
    cluster.apply(&format!("eval/workloads/{file}"), edit).await?;
    wait_for("the counters to count", Duration::from_mins(2), async || {
        let pods = cluster.pods_of("consumer").await?;
        for pod in &pods {
            http::get(&Cluster::url(pod)?).await?;
        }
        Ok((pods.len() == replicas as usize).then_some(()))
    })
    .await?;
    Ok(cluster)
}

async fn state_of(cluster: &Cluster, pod: &str) -> anyhow::Result<Value> {
    http::get(&Cluster::url(&cluster.pods().get(pod).await?)?).await
}

fn number(state: &Value, field: &str) -> u64 {
    state[field].as_u64().unwrap_or_default()
}

/// A migration that says nothing of a queue.
async fn wish(cluster: &Cluster, pod: &str, asked: &Value) -> anyhow::Result<(String, Value)> {
    let source = cluster.pods().get(pod).await?;
    let (_, there) = scenario::other_node(cluster, &source)?;
    let name = scenario::fresh_name();
    let mut manifest = migrate::manifest(&name, pod, &there);
    for field in ["messageQueueConfig", "replayCutoffSeconds", "migrationStrategy"] {
        manifest["spec"].as_object_mut().map(|spec| spec.remove(field));
    }
    for (field, value) in asked.as_object().into_iter().flatten() {
        manifest["spec"][field] = value.clone();
    }
    Ok((name, manifest))
}

/// When the counter answered, and how often it had been told something by then.
type Answers = Vec<(Instant, u64)>;

/// Moves `pod`, which is told something all the time until it has gone.
async fn moved(cluster: &Cluster, pod: &str) -> anyhow::Result<(StatefulMigration, Answers)> {
    let (name, manifest) = wish(cluster, pod, &json!({})).await?;
    let url = Cluster::url(&cluster.pods().get(pod).await?)?;
    let mut answers = Answers::new();
    let tell = async {
        loop {
            tokio::time::sleep(OFTEN).await;
            if let Ok(Ok(state)) = tokio::time::timeout(OFTEN * 5, http::post(&url)).await {
                answers.push((Instant::now(), number(&state, "told")));
            }
        }
    };
    migrate::create(cluster, manifest).await?;
    let follow = migrate::follow(cluster, &name, PATIENCE, async |_| Ok(()));
    let object = tokio::select! {
        object = follow => object?,
        never = tell => never,
    };
    ensure!(phase(&object) == "Completed", "ended {}", message(&object));
    Ok((object, answers))
}

/// It is the same process, its set's, and knows everything but what it was told after its checkpoint.
async fn assert_moved(
    cluster: &Cluster,
    pod: &str,
    before: &Value,
    object: &StatefulMigration,
    answers: &Answers,
) -> anyhow::Result<()> {
    let status = object.status.as_ref().context("a status")?;
    let now = state_of(cluster, pod).await?;
    ensure!(now["boot_id"] == before["boot_id"], "the process is the same: {before} → {now}");
    ensure!(number(&now, "ticks") > number(before, "ticks"), "it went on: {before} → {now}");
    let told = number(&now, "told");
    ensure!(told >= number(before, "told"), "what it knew before it knows: {before} → {now}");
    let since = answers.iter().find(|(_, count)| *count > told).map(|(at, _)| *at);
    let last = answers.last().map(|(at, _)| *at);
    let forgotten = since.zip(last).map_or(Duration::ZERO, |(since, last)| last - since);
    let handoff = status.handoff.clone().context("a handoff")?;
    let reported = Duration::from_millis(handoff.unreplayed_millis.context("it is reported")?);
    println!("forgotten: {forgotten:?}, reported: {reported:?}, {:?}", status.phase_timings);
    ensure!(forgotten <= reported + Duration::from_millis(100), "no more than is reported");
    ensure!(handoff.mode.as_deref() == Some("None") && handoff.proof.is_none(), "{handoff:?}");
    ensure!(status.strategy.as_deref() == Some("Sequential"), "{:?}", status.strategy);
    ensure!(message(object).contains("is lost"), "{}", message(object));
    assert_nothing_left(cluster).await
}

#[test]
fn a_sets_only_pod_moves_back_and_forth_with_what_it_knows() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let cluster = counters("consumer-statefulset.yaml", 1).await?;
        let revision = update_revision(&cluster).await?;
        for _ in 0..3 {
            let before = state_of(&cluster, "consumer-0").await?;
            let (object, answers) = moved(&cluster, "consumer-0").await?;
            assert_moved(&cluster, "consumer-0", &before, &object, &answers).await?;
            assert_of_the_set(&cluster, &object, &revision).await?;
            assert_warned(&cluster, &object.name_any()).await?;
        }
        Ok(())
    })
}

/// The user was told that something would be lost, before it was.
async fn assert_warned(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    type Event = k8s_openapi::api::events::v1::Event;
    let events: Api<Event> = Api::default_namespaced(cluster.client.clone());
    wait_for("the warning", Duration::from_secs(5), async || {
        let list = events.list(&ListParams::default()).await?;
        let warns = |event: &Event| {
            let about = event.regarding.as_ref().and_then(|it| it.name.as_deref());
            about == Some(name)
                && event.type_.as_deref() == Some("Warning")
                && event.reason.as_deref() == Some("NothingReplays")
        };
        Ok(list.iter().any(warns).then_some(()))
    })
    .await
}

#[test]
fn a_middle_pod_moves_and_the_others_are_not_touched() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let cluster = counters("consumer-statefulset.yaml", 3).await?;
        let revision = update_revision(&cluster).await?;
        let others = cluster.pods_of("consumer").await?;
        let before = state_of(&cluster, "consumer-1").await?;
        let (object, answers) = moved(&cluster, "consumer-1").await?;
        assert_moved(&cluster, "consumer-1", &before, &object, &answers).await?;
        assert_of_the_set(&cluster, &object, &revision).await?;
        scenario::others_untouched(&cluster, &others, "consumer-1").await
    })
}

#[test]
fn before_the_source_goes_everything_can_be_undone_and_nothing_is_forgotten() -> anyhow::Result<()>
{
    let _alone = alone();
    in_lab(async {
        let cluster = counters("consumer-statefulset.yaml", 1).await?;
        let source = cluster.pods().get("consumer-0").await?;
        let url = Cluster::url(&source)?;
        let before = http::post(&url).await?;
        let (name, manifest) = wish(&cluster, "consumer-0", &json!({})).await?;
        migrate::create(&cluster, manifest).await?;
        let api = migrate::migrations(&cluster);
        let mut aborted = false;
        let done = migrate::follow(&cluster, &name, PATIENCE, async |object| {
            if phase(object) == "Transferring" && !std::mem::replace(&mut aborted, true) {
                let abort = Patch::Merge(json!({ "spec": { "abort": true } }));
                api.patch(&name, &PatchParams::default(), &abort).await?;
            }
            Ok(())
        })
        .await?;
        ensure!(message(&done).starts_with("Aborted"), "ended {}", message(&done));
        let found = cluster.pods().get("consumer-0").await?;
        ensure!(found.uid() == source.uid(), "the source is the same pod");
        let after = http::post(&url).await?;
        ensure!(after["boot_id"] == before["boot_id"], "the process is the same");
        ensure!(number(&after, "told") == number(&before, "told") + 1, "{before} → {after}");
        // A transfer Job that is deleted before it runs leaves the archive (SECURITY.md).
        for node in cluster.lab.nodes() {
            let remove = "rm -f /var/lib/kubelet/checkpoints/checkpoint-consumer-*";
            cluster.lab.exec(&node, &["sh", "-c", remove])?;
        }
        assert_nothing_left(&cluster).await
    })
}

#[test]
fn of_two_migrations_of_one_pod_one_moves_it() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let cluster = counters("consumer-statefulset.yaml", 1).await?;
        let before = state_of(&cluster, "consumer-0").await?;
        let (first, one) = wish(&cluster, "consumer-0", &json!({})).await?;
        migrate::create(&cluster, one).await?;
        let (second, other) = wish(&cluster, "consumer-0", &json!({})).await?;
        migrate::create(&cluster, other).await?;
        let follow =
            async |name: &str| migrate::follow(&cluster, name, PATIENCE, async |_| Ok(())).await;
        let (first, second) = tokio::try_join!(follow(&first), follow(&second))?;
        println!("{}\n{}", message(&first), message(&second));
        let mut ends = [phase(&first), phase(&second)];
        ends.sort_unstable();
        ensure!(ends == ["Completed", "Failed"], "they ended {ends:?}");
        let now = state_of(&cluster, "consumer-0").await?;
        ensure!(now["boot_id"] == before["boot_id"], "the process is the same: {before} → {now}");
        assert_nothing_left(&cluster).await
    })
}

#[test]
fn other_pods_need_a_queue() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        for file in ["consumer-pod.yaml", "consumer-deployment.yaml"] {
            let cluster = counters(file, 1).await?;
            let source = cluster.pod_of("consumer").await?.name_any();
            let before = state_of(&cluster, &source).await?;
            for strategy in [Value::Null, json!("Sequential")] {
                let asked = json!({ "migrationStrategy": strategy });
                let (name, manifest) = wish(&cluster, &source, &asked).await?;
                migrate::create(&cluster, manifest).await?;
                let done = migrate::follow(&cluster, &name, PATIENCE, async |_| Ok(())).await?;
                let text = message(&done);
                println!("{text}");
                ensure!(text.starts_with("QueueMissing: "), "{text}");
                ensure!(text.ends_with("; nothing was changed"), "{text}");
            }
            for (asked, words) in [
                (json!({ "migrationStrategy": "ShadowPod" }), "ShadowPod runs two copies"),
                (json!({ "replayMode": "Drain" }), "replayMode says how"),
            ] {
                let (_, manifest) = wish(&cluster, &source, &asked).await?;
                let refused = migrate::create(&cluster, manifest).await;
                let text = format!("{:#}", refused.err().context("it is refused")?);
                println!("{text}");
                ensure!(text.contains(words), "{text}");
            }
            let now = state_of(&cluster, &source).await?;
            ensure!(now["boot_id"] == before["boot_id"], "the process is the same");
            assert_nothing_left(&cluster).await?;
        }
        Ok(())
    })
}
