//! What has become of the messages: the publishers' confirms against the survivor's memory.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use crate::cluster::{Cluster, wait_for};
use crate::report::{Messages, number};
use crate::{http, scenario};

/// Somebody consumes again.
const ALIVE: Duration = Duration::from_mins(4);
const WORKED_OFF: Duration = Duration::from_mins(3);
/// How often somebody who is about to end is asked what it has applied.
const ASKED: Duration = Duration::from_millis(20);
/// So many messages of a publisher may have been applied since it was asked last.
const UNHEARD: u64 = 2;
/// Nothing more comes.
const QUIET: Duration = Duration::from_secs(4);

/// How it was before.
pub(super) struct Begun {
    pub(super) source: Pod,
    pub(super) url: String,
    boot_id: Value,
    last_words: LastWords,
}

/// What somebody had applied when it was last heard.
type LastWords = Arc<Mutex<Value>>;

/// What has come of it.
pub(super) struct Judged {
    pub(super) messages: Messages,
    pub(super) pause_ms: u64,
    pub(super) failed_probes: u64,
    pub(super) probe_errors: Vec<String>,
    pub(super) fresh: bool,
}

impl Begun {
    /// From now on it counts.
    pub(super) async fn now(cluster: &Cluster) -> anyhow::Result<Self> {
        let source = cluster.pod_of("consumer").await?;
        let url = Cluster::url(&source)?;
        http::post(&format!("{url}/window")).await?;
        scenario::reset_probe(cluster).await?;
        let boot_id = http::get(&format!("{url}/ledger")).await?["boot_id"].clone();
        Ok(Self { source, url, boot_id, last_words: LastWords::default() })
    }

    /// Hears what the source has applied until it says no more: who is asked to end still consumes for a while,
    /// beside the one that takes its place.
    pub(super) fn listen(&self) -> impl Future<Output = ()> + Send + 'static {
        let (url, heard) = (format!("{}/applied", self.url), self.last_words.clone());
        async move {
            loop {
                if let Ok(applied) = http::get(&url).await {
                    *heard.lock().unwrap_or_else(PoisonError::into_inner) = applied;
                }
                tokio::time::sleep(ASKED).await;
            }
        }
    }

    /// Waits until somebody consumes, ends the load and counts. The survivor's own pause counts from the
    /// beginning, or from where its window was begun anew at the switch.
    pub(super) async fn judge(&self, cluster: &Cluster, pause_ms: u64) -> anyhow::Result<Judged> {
        let url = alive(cluster).await?;
        let probe = scenario::probe(cluster).await.ok().flatten();
        let producer = scenario::stop_producer(cluster).await?;
        let before = self.last_words.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (ledger, applied) = worked_off(&url, &producer, &before, &self.boot_id).await?;
        let fresh = ledger["boot_id"] != self.boot_id;
        let (failed_probes, probe_errors) =
            probe.map_or((0, Vec::new()), |it| (it.failed, it.first_errors));
        Ok(Judged {
            failed_probes,
            probe_errors,
            messages: messages(&producer, &ledger, [&before, &applied], fresh),
            pause_ms: pause_ms.max(number(&ledger, "/window/pause_ms")),
            fresh,
        })
    }
}

/// The address of the one that consumes.
async fn alive(cluster: &Cluster) -> anyhow::Result<String> {
    wait_for("one consumer to be alive", ALIVE, async || {
        let pods = cluster.pods_of("consumer").await?;
        let running = |pod: &&Pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            phase == Some("Running")
        };
        let pods: Vec<&Pod> = pods.iter().filter(running).collect();
        ensure!(pods.len() == 1, "{} consumers run", pods.len());
        let url = Cluster::url(pods.first().context("a consumer")?)?;
        let ledger = http::get(&format!("{url}/ledger")).await?;
        Ok(ledger["queue"].is_string().then_some(url))
    })
    .await
}

/// The survivor's ledger when nothing more comes.
async fn worked_off(
    url: &str,
    producer: &Value,
    before: &Value,
    boot_id: &Value,
) -> anyhow::Result<(Value, Value)> {
    let mut grown = (0, Instant::now());
    wait_for("the consumer to work off its queue", WORKED_OFF, async || {
        let ledger = http::get(&format!("{url}/ledger")).await?;
        let applied = http::get(&format!("{url}/applied")).await?;
        let total = number(&ledger, "/applied_total");
        if total != grown.0 {
            grown = (total, Instant::now());
        }
        let fresh = ledger["boot_id"] != *boot_id;
        let whole = messages(producer, &ledger, [before, &applied], fresh).lost == 0;
        let quiet = grown.1.elapsed() > QUIET;
        Ok((whole && !fresh || quiet).then_some((ledger, applied)))
    })
    .await
}

/// Of the present publishers only. What a fresh process has not seen before its first message of a
/// publisher was another's; where that was heard to its end, it has all that the fresh one has not.
fn messages(
    producer: &Value,
    ledger: &Value,
    [before, applied]: [&Value; 2],
    fresh: bool,
) -> Messages {
    let mut messages = Messages::default();
    for (id, sent) in producer["publishers"].as_object().into_iter().flatten() {
        let of = &ledger["publishers"][id.as_str()];
        let highest = number(sent, "/highest_confirmed");
        messages.published += number(sent, "/confirmed");
        messages.republished += number(sent, "/republished");
        messages.returned += number(sent, "/returned");
        messages.applied += number(of, "/applied");
        messages.duplicated += number(of, "/duplicated");
        messages.reordered += number(of, "/inversions");
        messages.redelivered += number(of, "/redelivered");
        messages.again += number(of, "/redelivered_duplicates");
        let pairs = |applied: &Value| -> Vec<(u64, u64)> {
            let pairs = applied[id.as_str()].as_array().into_iter().flatten();
            pairs.map(|it| (number(it, "/0"), number(it, "/1"))).collect()
        };
        let (applied, before) = (pairs(applied), pairs(before));
        messages.lost += if fresh && !before.is_empty() {
            missing_of_both(&before, &applied, highest)
        } else {
            missing(&applied, highest, fresh)
        };
    }
    messages
}

/// How many of `1..=highest` neither the one before nor the one after it has applied.
fn missing_of_both(before: &[(u64, u64)], after: &[(u64, u64)], highest: u64) -> u64 {
    let last = before.last().map_or(0, |it| it.1);
    let applied = |of: &[(u64, u64)], number| of.iter().any(|it| (it.0..=it.1).contains(&number));
    let missing = (1..=highest)
        .filter(|number| !applied(before, *number) && !applied(after, *number))
        .filter(|number| !(last + 1..=last + UNHEARD).contains(number));
    u64::try_from(missing.count()).unwrap_or(u64::MAX)
}

/// How many of `1..=highest` are in none of the intervals; of a fresh process from its first on.
fn missing(intervals: &[(u64, u64)], highest: u64, fresh: bool) -> u64 {
    let first = intervals.first().map_or(1, |it| it.0);
    let first = if fresh { first } else { 1 };
    let wanted = (highest + 1).saturating_sub(first);
    let there: u64 = intervals
        .iter()
        .map(|(from, to)| ((*to).min(highest) + 1).saturating_sub((*from).max(first)))
        .sum();
    wanted.saturating_sub(there)
}

#[cfg(test)]
mod tests {
    use super::{missing, missing_of_both};

    #[test]
    fn two_at_a_time_have_it_all_between_them() {
        assert_eq!(missing_of_both(&[(1, 5), (7, 7)], &[(6, 6), (8, 12)], 12), 0);
        assert_eq!(missing_of_both(&[(1, 5)], &[(8, 12)], 12), 0, "since it was heard last");
        assert_eq!(missing_of_both(&[(1, 5)], &[(9, 12)], 12), 1);
        assert_eq!(missing_of_both(&[(1, 3), (5, 6)], &[(7, 9)], 11), 3, "4, 10 and 11");
    }

    #[test]
    fn what_is_between_and_behind_is_missing() {
        assert_eq!(missing(&[(1, 10)], 10, false), 0);
        assert_eq!(missing(&[(1, 4), (6, 8)], 10, false), 3);
        assert_eq!(missing(&[(1, 12)], 10, false), 0, "not confirmed, and yet there");
        assert_eq!(missing(&[], 10, false), 10);
    }

    #[test]
    fn a_fresh_process_is_asked_from_its_first_message_on() {
        assert_eq!(missing(&[(5, 10)], 10, true), 0);
        assert_eq!(missing(&[(5, 10)], 10, false), 4);
        assert_eq!(missing(&[(5, 6), (8, 9)], 10, true), 2);
        assert_eq!(missing(&[], 10, true), 10, "it has not seen anything");
    }
}
