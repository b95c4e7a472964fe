//! Proofs that a queue which is not ours holds neither ready nor unacknowledged messages.
//!
//! Three, the first that applies:
//!
//! 1. **Classic queue, live totals.** With `disable_stats=true&enable_queue_totals=true` the
//!    management API does not read its statistics but asks the queue process itself
//!    (`rabbit_mgmt_wm_queue:queue_with_totals` → `rabbit_amqqueue:info`): one answer with both
//!    counts of this instant. A broker that does not know the parameters answers with statistics,
//!    which betray themselves by `reductions`.
//! 2. **Quorum queue, live consumers.** A passive declare reads (ready, consumers) from the queue's
//!    state machine at once, and a cancelled consumer stays in that state machine until its last
//!    message is acknowledged (`rabbit_fifo:maybe_return_all`, `update_or_remove_con`). So 0/0
//!    means that nobody holds anything. But 0/0 is also the answer when the queue can't be asked
//!    (no leader, or 250 ms without reply), so it counts only if it came sooner and if the same
//!    leader, in the same term, was there before and after.
//! 3. **Anything else: the slow proof** of [`crate::proof`], with statistics.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;
use serde_json::Value;
use shadow_protocol::broker::{Counts, Emptiness, QueueType};

use super::session::{BELIEVABLE, RabbitSession};
use crate::Error;
use crate::proof::{Proof, Sample, Statistics};

/// Has the management API ask the queue instead of its statistics.
const LIVE: &str = "disable_stats=true&enable_queue_totals=true";
/// Only what the slow proof needs.
const FIGURES: &str = "columns=reductions,messages_ready,messages_unacknowledged";

/// The slow proofs under way, by queue.
#[derive(Default)]
pub(super) struct Proofs(Mutex<HashMap<String, Proof>>);

#[derive(Deserialize)]
struct Live {
    #[serde(rename = "type")]
    kind: Option<QueueType>,
    state: Option<String>,
    leader: Option<String>,
    reductions: Option<u64>,
    messages_ready: Option<u64>,
    messages_unacknowledged: Option<u64>,
}

/// A member of a quorum queue, from its status.
#[derive(Deserialize)]
struct Member {
    #[serde(rename = "Node Name")]
    node: Option<String>,
    #[serde(rename = "Raft State")]
    state: Option<String>,
    #[serde(rename = "Term")]
    term: Option<u64>,
}

impl RabbitSession {
    pub(super) async fn prove_empty(&self, queue: &str) -> Result<Emptiness, Error> {
        let live = self.live(queue).await?;
        let told = match live.kind {
            Some(QueueType::Classic) => live.classic().map(|held| held == (0, 0)),
            Some(QueueType::Quorum) => self.quorum(queue, live.leader.as_deref()).await?,
            _ => None,
        };
        match told {
            Some(empty) => {
                self.proofs().remove(queue);
                Ok(if empty { Emptiness::Proved } else { Emptiness::Unproved })
            }
            None => self.slow_proof(queue).await,
        }
    }

    pub(super) async fn prove_quiet(&self, queue: &str, stay: u32) -> Result<Emptiness, Error> {
        let live = self.live(queue).await?;
        let quiet = match live.kind {
            Some(QueueType::Classic) => matches!(live.classic(), Some((_, 0))),
            Some(QueueType::Quorum) => self.left_to(stay, queue, live.leader.as_deref()).await?,
            _ => false,
        };
        Ok(if quiet { Emptiness::Proved } else { Emptiness::Unproved })
    }

    async fn live(&self, queue: &str) -> Result<Live, Error> {
        let path = ["queues", self.management.vhost(), queue];
        let live: Option<Live> = self.management.get(&path, LIVE).await?;
        live.ok_or_else(|| {
            self.wire.failed(&format!("asking queue {queue:?} what it holds"), "no such queue")
        })
    }

    /// Proof 2 for a queue in which messages may wait: only those consume it that `stay`, so nobody else
    /// holds any.
    async fn left_to(&self, stay: u32, queue: &str, leader: Option<&str>) -> Result<bool, Error> {
        let before = self.term(queue, leader).await?;
        let (counts, took) = self.look(queue).await?;
        if counts.is_none_or(|counts| counts.consumers != stay) || took >= BELIEVABLE {
            return Ok(false);
        }
        Ok(before.is_some() && self.term(queue, leader).await? == before)
    }

    /// Proof 2; `None` where it does not apply.
    async fn quorum(&self, queue: &str, leader: Option<&str>) -> Result<Option<bool>, Error> {
        let before = self.term(queue, leader).await?;
        let (counts, took) = self.look(queue).await?;
        let Some(counts) = counts else { return Ok(Some(false)) };
        if counts.ready > 0 {
            return Ok(Some(false));
        }
        if counts != Counts::default() || took >= BELIEVABLE || before.is_none() {
            return Ok(None);
        }
        let after = self.term(queue, leader).await?;
        Ok((before == after).then_some(true))
    }

    /// The term in which `leader` leads `queue`.
    async fn term(&self, queue: &str, leader: Option<&str>) -> Result<Option<u64>, Error> {
        let path = ["queues", "quorum", self.management.vhost(), queue, "status"];
        let members: Vec<Member> = self.management.list(&path).await?;
        let leading =
            |m: &&Member| m.state.as_deref() == Some("leader") && m.node.as_deref() == leader;
        Ok(members.iter().find(leading).and_then(|member| member.term))
    }

    /// Proof 3: one more sample. The passive declare also keeps an idle queue emitting.
    async fn slow_proof(&self, queue: &str) -> Result<Emptiness, Error> {
        let (counts, _) = self.look(queue).await?;
        let path = ["queues", self.management.vhost(), queue];
        let figures: Option<Value> = self.management.get(&path, FIGURES).await?;
        let statistics = figures.as_ref().and_then(statistics);
        let sample = Sample { ready: counts.map_or(u64::MAX, |c| c.ready), statistics };
        Ok(self.proofs().entry(queue.to_owned()).or_default().take(sample))
    }

    fn proofs(&self) -> std::sync::MutexGuard<'_, HashMap<String, Proof>> {
        self.proofs.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The figures, if there are any: a queue that has not emitted yet is described by an empty list.
fn statistics(figures: &Value) -> Option<Statistics> {
    let figure = |key| figures.get(key).and_then(Value::as_u64);
    Some(Statistics {
        reductions: figure("reductions")?,
        ready: figure("messages_ready")?,
        unacknowledged: figure("messages_unacknowledged")?,
    })
}

impl Live {
    /// Proof 1, ready and unacknowledged; `None` where the figures are not live.
    fn classic(&self) -> Option<(u64, u64)> {
        if self.reductions.is_some() || self.state.as_deref() != Some("running") {
            return None;
        }
        Some((self.messages_ready?, self.messages_unacknowledged?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classic(json: &str) -> Option<(u64, u64)> {
        serde_json::from_str::<Live>(json).unwrap().classic()
    }

    #[test]
    fn live_totals_decide_and_statistics_do_not() {
        let live = r#"{"type":"classic","state":"running","messages_ready":0,
                       "messages_unacknowledged":0}"#;
        assert_eq!(classic(live), Some((0, 0)));
        assert_eq!(
            classic(&live.replace("unacknowledged\":0", "unacknowledged\":1")),
            Some((0, 1))
        );
        assert_eq!(classic(&live.replace("ready\":0", "ready\":1")), Some((1, 0)));
        assert_eq!(classic(&live.replace("running", "crashed")), None);
        assert_eq!(classic(&live.replace("\"state\"", "\"reductions\":7,\"state\"")), None);
        assert_eq!(classic(r#"{"type":"classic","state":"running"}"#), None);
    }
}
