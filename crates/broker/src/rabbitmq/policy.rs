//! Users' policies must not reach the side queues: a TTL or a length limit would lose messages.
//!
//! Of all policies that match a queue, one applies: that with the highest priority. So a policy of
//! ours, on exactly one side queue's name, displaces the users'. *Operator* policies are merged
//! with it and can't be displaced: one that matches is refused.

use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use shadow_protocol::broker::Arguments;

use super::session::RabbitSession;
use super::topology::DELIVERY_LIMIT;
use crate::Error;

/// How long the effective policy may take to be known: it is part of the statistics.
const PATIENCE: Duration = Duration::from_secs(13);
const PAUSE: Duration = Duration::from_millis(250);
/// The only part of the answer that is needed, asked of the queue instead of the statistics.
const LIVE: &str = "disable_stats=true&enable_queue_totals=true";

#[derive(Deserialize)]
struct Policy {
    name: String,
    #[serde(default)]
    priority: i64,
}

#[derive(Deserialize)]
struct Effective {
    /// Absent until the queue has emitted statistics.
    effective_policy_definition: Option<Value>,
    operator_policy: Option<String>,
}

#[derive(Deserialize)]
struct Applied {
    policy: Option<String>,
}

impl RabbitSession {
    /// Makes sure that no policy but ours applies to the side queue `queue`.
    pub(super) async fn free_of_policies(&self, queue: &str) -> Result<(), Error> {
        let ours = policy_name(queue);
        if self.applied_policy(queue).await?.is_some_and(|policy| policy != ours) {
            self.displace_policies(queue, &ours).await?;
        }
        let vhost = self.management.vhost();
        let operator: Vec<Policy> = self.management.list(&["operator-policies", vhost]).await?;
        if operator.is_empty() { Ok(()) } else { self.no_operator_policy(queue).await }
    }

    async fn displace_policies(&self, queue: &str, ours: &str) -> Result<(), Error> {
        let vhost = self.management.vhost();
        let all: Vec<Policy> = self.management.list(&["policies", vhost]).await?;
        let others = all.iter().filter(|policy| policy.name != *ours);
        let priority = others.map(|policy| policy.priority).max().unwrap_or(0).saturating_add(1);
        // A policy must define something: here what the queue's arguments say already.
        let body = json!({
            "pattern": format!("^{}$", escaped(queue)),
            "apply-to": "queues",
            "priority": priority,
            "definition": { "delivery-limit": DELIVERY_LIMIT },
        });
        self.management.put(&["policies", vhost, ours], &body).await?;
        let begun = Instant::now();
        while self.applied_policy(queue).await?.as_deref() != Some(ours) {
            if begun.elapsed() >= PATIENCE {
                let attempted = format!("keeping other policies off {queue:?}");
                return Err(self.wire.failed(&attempted, "ours does not apply"));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    async fn no_operator_policy(&self, queue: &str) -> Result<(), Error> {
        let path = ["queues", self.management.vhost(), queue];
        let begun = Instant::now();
        let attempted = format!("reading the operator policy of {queue:?}");
        loop {
            let effective: Option<Effective> = self.management.get(&path, "").await?;
            let known = effective.filter(|e| e.effective_policy_definition.is_some());
            match known.map(|known| known.operator_policy.filter(|name| !name.is_empty())) {
                Some(None) => return Ok(()),
                Some(Some(policy)) => {
                    let answer = format!(
                        "the operator policy {policy:?} matches it and can't be overridden; \
                         exempt the names {queue:?}"
                    );
                    return Err(self.wire.failed(&attempted, answer));
                }
                None if begun.elapsed() >= PATIENCE => {
                    return Err(self.wire.failed(&attempted, "the broker does not tell it"));
                }
                None => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// Deletes the policy that was made for `queue`, if any. Who may not read policies has none.
    pub(super) async fn drop_own_policy(&self, queue: &str) -> Result<(), Error> {
        let vhost = self.management.vhost();
        let name = policy_name(queue);
        match self.management.get::<Policy>(&["policies", vhost, &name], "").await {
            Ok(Some(_)) => self.management.delete(&["policies", vhost, &name]).await,
            Ok(None) | Err(Error::Refused { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The user policy that applies to `queue` at this moment.
    pub(super) async fn applied_policy(&self, queue: &str) -> Result<Option<String>, Error> {
        let path = ["queues", self.management.vhost(), queue];
        let applied: Option<Applied> = self.management.get(&path, LIVE).await?;
        Ok(applied.and_then(|applied| applied.policy).filter(|policy| !policy.is_empty()))
    }

    /// What the user policy `name` defines.
    pub(super) async fn policy_definition(&self, name: &str) -> Result<Arguments, Error> {
        #[derive(Deserialize)]
        struct Definition {
            #[serde(default)]
            definition: Arguments,
        }
        let path = ["policies", self.management.vhost(), name];
        let found: Option<Definition> = self.management.get(&path, "").await?;
        Ok(found.map(|found| found.definition).unwrap_or_default())
    }
}

fn policy_name(queue: &str) -> String {
    format!("ms2m.{queue}")
}

/// `text` as a pattern that matches only itself.
fn escaped(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if c.is_ascii() && !c.is_ascii_alphanumeric() && c != '_' {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_no_pattern() {
        assert_eq!(escaped("app.events-1_x/ü"), r"app\.events\-1_x\/ü");
    }
}
