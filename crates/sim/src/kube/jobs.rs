//! The Job controller: one pod at a time until one succeeds, too many failed, or time is over.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use shadow_operator::clock;
use shadow_protocol::time::Time;

use super::controllers::{active, from_template};
use super::object::{controller, has, number, set_condition, terminating, text, uid};
use super::store::{Key, Store};
use super::write::Deletion;

/// Before the second pod; doubled before each further one.
const BACKOFF: u64 = 10_000;

/// What the controller remembers of each Job, by UID: since when it runs, and how many pods had
/// failed when the last of them was seen, and when that was.
pub(super) type Memory = BTreeMap<String, (Time, i64, Time)>;

/// Does what is due; returns when something will be.
pub(super) fn jobs(store: &mut Store, memory: &mut Memory, now: Time) -> Option<Time> {
    let all: Vec<(Key, Value)> =
        store.all("jobs").map(|(key, job)| (key.clone(), Value::clone(job))).collect();
    memory.retain(|known, _| all.iter().any(|(_, job)| uid(job) == known));
    all.into_iter().filter_map(|(key, job)| one(store, memory, &key, &job, now)).min()
}

fn one(store: &mut Store, memory: &mut Memory, key: &Key, job: &Value, now: Time) -> Option<Time> {
    if terminating(job) || has(job, "/status/completionTime") || failed(job) {
        return None;
    }
    let pods: Vec<(Key, std::sync::Arc<Value>)> = store
        .all("pods")
        .filter(|(_, pod)| controller(pod) == Some(uid(job)))
        .map(|(key, pod)| (key.clone(), pod.clone()))
        .collect();
    let count = |phase: &str| {
        let ended = pods.iter().filter(|(_, pod)| text(pod, "/status/phase") == phase).count();
        i64::try_from(ended).unwrap_or(i64::MAX)
    };
    let (succeeded, failures) = (count("Succeeded"), count("Failed"));
    let running = pods.iter().filter(|(_, pod)| active(pod)).count();
    let (since, seen, last) = memory.entry(uid(job).to_owned()).or_insert((now, 0, now));
    if failures > *seen {
        (*seen, *last) = (failures, now);
    }
    let deadline = number(job, "/spec/activeDeadlineSeconds")
        .map(|seconds| Time(since.0 + u64::try_from(seconds).unwrap_or(0) * 1_000));
    let retry = match failures {
        0 => *since,
        _ => Time(last.0 + (BACKOFF << (failures - 1).min(5))),
    };
    let verdict = if succeeded > 0 {
        Some(("Complete", "CompletionsReached"))
    } else if failures > number(job, "/spec/backoffLimit").unwrap_or(6) {
        Some(("Failed", "BackoffLimitExceeded"))
    } else if deadline.is_some_and(|deadline| now >= deadline) {
        Some(("Failed", "DeadlineExceeded"))
    } else {
        None
    };
    if verdict.is_some_and(|(kind, _)| kind == "Failed") {
        for (pod, _) in pods.iter().filter(|(_, pod)| active(pod)) {
            let _ = store.delete(pod, &Deletion::default());
        }
    }
    if verdict.is_none() && running == 0 && now >= retry {
        let _ = store.create("pods", &key.namespace, pod_of(job));
    }
    let at = clock::rfc3339_seconds(now);
    store.modify(key, |job| {
        job["status"]["active"] = json!(running);
        job["status"]["succeeded"] = json!(succeeded);
        job["status"]["failed"] = json!(failures);
        match verdict {
            Some((kind, reason)) => {
                set_condition(job, kind, true, reason, &at);
                if kind == "Complete" {
                    job["status"]["completionTime"] = json!(at);
                }
            }
            None if !has(job, "/status/startTime") => job["status"]["startTime"] = json!(at),
            None => {}
        }
    });
    if verdict.is_some() {
        return None;
    }
    let waits = (running == 0 && retry > now).then_some(retry);
    [waits, deadline].into_iter().flatten().min()
}

fn failed(job: &Value) -> bool {
    super::object::condition(job, "Failed")
}

fn pod_of(job: &Value) -> Value {
    let mut pod = from_template(job, &job["spec"]["template"]);
    let labels = &mut pod["metadata"]["labels"];
    labels["batch.kubernetes.io/job-name"] = job["metadata"]["name"].clone();
    labels["batch.kubernetes.io/controller-uid"] = job["metadata"]["uid"].clone();
    labels["job-name"] = job["metadata"]["name"].clone();
    pod
}
