//! The suite that every adapter must pass, whatever broker is behind it.
//!
//! It measures again, on the broker at hand, what `docs/handoff.md` claims of brokers. A case works
//! with an adapter's [`Connector`] and with a [`Rig`], which plays the applications and publishers
//! around it. Cases are independent (each has a prefix for its names) and run side by side. They tell
//! the time by tokio's clock, so that a broker without a network can be tested with it paused.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use shadow_protocol::broker::{Binding, QueueType};
use shadow_protocol::effect::EffectId;
use shadow_protocol::phase::State;
use shadow_protocol::time::Time;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{Connector, Session, Target};

mod application;
mod belongings;
mod cuts;
mod emptiness;
mod fence;
mod kills;
mod ledger;
mod parking;
mod plant;
mod sequences;
mod topology;

pub use application::{Application, Habits, Load};
pub use ledger::{Ledger, Verdict};

/// Cases that run at the same time.
const CONCURRENCY: usize = 4;
/// Limit for one case.
const CASE_DEADLINE: Duration = Duration::from_secs(100);
/// Limit for one wait within a case.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What the suite needs of a broker besides the adapter under test.
#[async_trait]
pub trait Rig: Send + Sync + 'static {
    /// The adapter.
    fn connector(&self) -> Arc<dyn Connector>;

    /// Where the broker is.
    fn target(&self) -> Target;

    /// The broker at the end of a line that can be cut.
    async fn line(&self) -> Result<Line, Failure>;

    /// Declares a durable exchange of the type `kind`.
    async fn declare_exchange(&self, name: &str, kind: &str) -> Result<(), Failure>;

    /// Declares a durable queue.
    async fn declare_queue(&self, name: &str, kind: &QueueType) -> Result<(), Failure>;

    /// Binds a queue, as an application would.
    async fn bind(&self, queue: &str, binding: &Binding) -> Result<(), Failure>;

    /// A publisher with a connection of its own; with `confirms`, [`Publisher::publish`] returns
    /// once the broker has the message.
    async fn publisher(
        &self,
        exchange: &str,
        key: &str,
        confirms: bool,
    ) -> Result<Box<dyn Publisher>, Failure>;

    /// A consumer with a connection of its own.
    async fn consumer(&self, queue: &str, prefetch: u16) -> Result<Box<dyn Consumer>, Failure>;

    /// Deletes queues and exchanges.
    async fn remove(&self, queues: &[&str], exchanges: &[&str]) -> Result<(), Failure>;
}

/// A way to the broker.
#[derive(Debug)]
pub struct Line {
    /// Where the broker seems to be.
    pub target: Target,
    /// Ends all connections over this line at once and for ever, as the sudden death of a client.
    pub cut: CancellationToken,
}

/// A publisher.
#[async_trait]
pub trait Publisher: Send {
    /// Publishes one message.
    async fn publish(&mut self, payload: &[u8]) -> Result<(), Failure>;
}

/// A consumer that acknowledges by hand.
#[async_trait]
pub trait Consumer: Send {
    /// The next message; `None` once the consumer is cancelled and all it was sent is read.
    async fn next(&mut self) -> Result<Option<Received>, Failure>;

    /// Acknowledges the message `tag` and, if `multiple`, all before it.
    async fn ack(&mut self, tag: u64, multiple: bool) -> Result<(), Failure>;

    /// Asks the broker to send no more; what was sent already is still to be read.
    async fn cancel(&mut self) -> Result<(), Failure>;

    /// Ends the connection.
    async fn close(&mut self);
}

/// A message that a consumer got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// To acknowledge it by.
    pub tag: u64,
    /// Its body.
    pub payload: Vec<u8>,
}

/// Why a case failed, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure(pub String);

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        Self(text)
    }
}

/// What a case measured, in words, or why it failed.
pub type Outcome = Result<String, Failure>;

/// One case.
pub struct Case {
    /// Its name, unique.
    pub name: &'static str,
    /// Runs it; the stage carries a prefix for names.
    pub run: fn(Stage) -> BoxFuture<'static, Outcome>,
}

/// Where a case plays.
#[derive(Clone)]
pub struct Stage {
    /// The broker.
    pub rig: Arc<dyn Rig>,
    /// Prefix of all names.
    pub prefix: String,
}

impl Stage {
    /// A name of this case.
    pub fn name(&self, what: &str) -> String {
        format!("{}.{what}", self.prefix)
    }

    /// A session of the adapter under test.
    pub async fn session(&self, migration: &str) -> Result<Box<dyn Session>, Failure> {
        self.session_at(&self.rig.target(), migration).await
    }

    /// The same by another way.
    pub async fn session_at(
        &self,
        target: &Target,
        migration: &str,
    ) -> Result<Box<dyn Session>, Failure> {
        let name = format!("{}/{migration}", self.prefix);
        Ok(self.rig.connector().open(target, &name).await?)
    }
}

/// The cases of this suite.
pub fn cases() -> Vec<Case> {
    let mut all = cuts::cases();
    all.extend(sequences::cases());
    all.extend(parking::cases());
    all.extend(kills::cases());
    all.extend(emptiness::cases());
    all.extend(fence::cases());
    all.extend(topology::cases());
    all.extend(belongings::cases());
    all
}

/// Runs `cases`, several at a time; returns a line for each, and how many failed.
pub async fn run(rig: Arc<dyn Rig>, cases: Vec<Case>) -> (Vec<String>, usize) {
    let results = futures::stream::iter(cases.into_iter().map(|case| {
        let stage = Stage { rig: Arc::clone(&rig), prefix: format!("conformance.{}", case.name) };
        async move {
            let begun = Instant::now();
            let outcome = tokio::time::timeout(CASE_DEADLINE, (case.run)(stage)).await;
            let outcome = outcome.unwrap_or_else(|_| Err(Failure("not done in time".to_owned())));
            (case.name, begun.elapsed(), outcome)
        }
    }))
    .buffer_unordered(CONCURRENCY)
    .collect::<Vec<_>>()
    .await;
    let failed = results.iter().filter(|(_, _, outcome)| outcome.is_err()).count();
    let line = |(name, took, outcome): (&str, Duration, Outcome)| match outcome {
        Ok(measured) => format!("ok     {name:<34} {:>5.1} s  {measured}", took.as_secs_f64()),
        Err(why) => format!("FAILED {name:<34} {:>5.1} s  {why}", took.as_secs_f64()),
    };
    (results.into_iter().map(line).collect(), failed)
}

/// An ID for an order of this suite.
pub fn order_id() -> EffectId {
    EffectId::new("conformance", &State::new(Time(0)), 0)
}

/// Fails with `claim` unless it holds.
pub fn ensure(holds: bool, claim: impl FnOnce() -> String) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(Failure(claim())) }
}

/// Asks `question` until it answers yes.
pub async fn eventually<F>(what: &str, mut question: impl FnMut() -> F) -> Result<Duration, Failure>
where
    F: Future<Output = Result<bool, Failure>>,
{
    let begun = Instant::now();
    while !question().await? {
        ensure(begun.elapsed() < PATIENCE, || format!("waited in vain: {what}"))?;
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    Ok(begun.elapsed())
}

/// Shortest, median and longest.
fn spread(mut delays: Vec<Duration>) -> String {
    delays.sort();
    let ms = |delay: Option<&Duration>| delay.map_or(0.0, |d| d.as_secs_f64() * 1e3);
    format!(
        "{:.1}/{:.1}/{:.1} ms (min/median/max)",
        ms(delays.first()),
        ms(delays.get(delays.len() / 2)),
        ms(delays.last())
    )
}
