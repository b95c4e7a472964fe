//! Which of several operators works: the holder of a Lease.
//!
//! As with client-go nobody compares clocks of two machines: a candidate takes the Lease when it has seen it
//! unchanged for as long as it lasts, by its own clock, and the API server lets one of several writers
//! through. A holder that could not renew it for less than that stops working first.
//!
//! `leaseTransitions` grows with every holder. It is the *generation* that a leader writes into each migration
//! before it acts on it, so that whoever still believes to lead can write there no more (`migration.rs`);
//! at the broker the queue's lock keeps it out. A Lease that somebody has deleted must not begin below what is
//! written there: the first number is the time.

use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher;
use kube::{Api, Client};
use shadow_api::names::SYSTEM_NAMESPACE;
use shadow_protocol::time::Time;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::act::{conflict, not_found};
use crate::clock;
use crate::cluster::backoff;
use crate::observe::{chain, chain_of_watch};

/// Name of the Lease.
pub const LEASE: &str = "shadow-operator";
/// How long a Lease is good that nobody renews.
const LASTS: Duration = Duration::from_secs(4);
/// How often it is renewed.
const RENEWED: Duration = Duration::from_secs(1);
/// Who could not renew it for so long stops, well before another may begin.
const GIVEN_UP: Duration = Duration::from_secs(3);
/// The least pause between two attempts to get it.
const AGAIN: Duration = Duration::from_millis(100);
/// For one request.
const ANSWER: Duration = Duration::from_secs(1);

/// One who would lead.
pub struct Candidate {
    api: Api<Lease>,
    identity: String,
}

/// A Lease as this process has seen it change last, by its own clock.
struct Seen {
    version: Option<String>,
    at: Instant,
}

impl Candidate {
    /// The `identity` is another one for each process.
    pub fn new(client: Client, identity: String) -> Self {
        Self { api: Api::namespaced(client, SYSTEM_NAMESPACE), identity }
    }

    /// Does `work` with the generation whenever this one leads, until that ends by itself.
    pub async fn lead<W: Future<Output = ()>>(&self, work: impl Fn(i32) -> W) {
        loop {
            let lease = self.acquire().await;
            let generation = generation(&lease);
            tracing::info!(generation, "leading");
            tokio::select! {
                biased;
                () = self.keep(lease) => tracing::warn!(generation, "no longer leading"),
                () = work(generation) => return,
            }
        }
    }

    /// Lets another one lead at once.
    pub async fn resign(&self) {
        let resigning = async {
            let mut lease = self.api.get(LEASE).await?;
            if self.holds(&lease) {
                let spec = lease.spec.get_or_insert_default();
                spec.holder_identity = None;
                self.api.replace(LEASE, &PostParams::default(), &lease).await?;
            }
            Ok::<(), kube::Error>(())
        };
        match timeout(ANSWER, resigning).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(why = chain(&error), "can't give the lease back"),
            Err(_) => tracing::warn!("no answer when the lease was given back"),
        }
    }

    /// Returns once the Lease is this one's.
    async fn acquire(&self) -> Lease {
        let mut changes = self.changes();
        let mut seen = Seen { version: None, at: Instant::now() };
        loop {
            let soonest = match timeout(ANSWER, self.try_to_acquire(&mut seen)).await {
                Ok(Ok(Some(lease))) => return lease,
                Ok(Ok(None)) => AGAIN,
                Ok(Err(error)) => {
                    tracing::warn!(why = chain(&error), "can't ask for the lease");
                    RENEWED
                }
                Err(_) => {
                    tracing::warn!("no answer about the lease");
                    RENEWED
                }
            };
            let until_free = (seen.at + LASTS).saturating_duration_since(Instant::now());
            // In a fixed order, so that a simulation can be repeated.
            tokio::select! {
                biased;
                change = changes.next() => {
                    if let Some(Err(error)) = change {
                        tracing::warn!(why = chain_of_watch(&error), "can't watch the lease");
                    }
                }
                () = sleep(until_free.clamp(soonest, RENEWED)) => {}
            }
        }
    }

    fn changes(&self) -> BoxStream<'static, watcher::Result<Option<Lease>>> {
        let changes = watcher::watch_object(self.api.clone(), LEASE).backoff(backoff());
        // Whoever asks at its end only waits.
        changes.chain(futures::stream::pending()).boxed()
    }

    async fn try_to_acquire(&self, seen: &mut Seen) -> Result<Option<Lease>, kube::Error> {
        let params = PostParams::default();
        let Some(mut lease) = self.api.get_opt(LEASE).await? else {
            let metadata = ObjectMeta { name: Some(LEASE.to_owned()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(self.spec(first())) };
            return taken(self.api.create(&params, &lease).await);
        };
        if seen.version != lease.metadata.resource_version {
            *seen = Seen { version: lease.metadata.resource_version.clone(), at: Instant::now() };
        }
        let held = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
        let held = held.is_some_and(|holder| !holder.is_empty() && holder != self.identity);
        if held && seen.at.elapsed() < LASTS {
            return Ok(None);
        }
        let next = generation(&lease).saturating_add(1);
        lease.spec = Some(self.spec(next));
        taken(self.api.replace(LEASE, &params, &lease).await)
    }

    fn spec(&self, generation: i32) -> LeaseSpec {
        let now = now();
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LASTS.as_secs()).ok(),
            lease_transitions: Some(generation),
            acquire_time: now.clone(),
            renew_time: now,
            ..LeaseSpec::default()
        }
    }

    fn holds(&self, lease: &Lease) -> bool {
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_ref());
        holder == Some(&self.identity)
    }

    /// Renews the Lease; returns when it is lost, or may be.
    async fn keep(&self, mut lease: Lease) {
        let mut until = Instant::now() + GIVEN_UP;
        loop {
            sleep(RENEWED).await;
            let begun = Instant::now();
            let answer = timeout_at(until.min(begun + ANSWER), self.renew(&mut lease)).await;
            match answer {
                Ok(Ok(true)) => until = begun + GIVEN_UP,
                Ok(Ok(false)) => return,
                Ok(Err(error)) => tracing::warn!(why = chain(&error), "can't renew the lease"),
                Err(_) => tracing::warn!("no answer when the lease was renewed"),
            }
            if Instant::now() >= until {
                return;
            }
        }
    }

    /// Whether this one still holds it.
    async fn renew(&self, lease: &mut Lease) -> Result<bool, kube::Error> {
        lease.spec.get_or_insert_default().renew_time = now();
        match self.api.replace(LEASE, &PostParams::default(), lease).await {
            Ok(renewed) => *lease = renewed,
            // By another, or by its own renewal whose answer got lost.
            Err(error) if conflict(&error) => match self.api.get_opt(LEASE).await? {
                Some(found) => *lease = found,
                None => return Ok(false),
            },
            Err(error) if not_found(&error) => return Ok(false),
            Err(error) => return Err(error),
        }
        Ok(self.holds(lease))
    }
}

/// Seconds since 2026: holders don't change that often, so that it is above any number given out before.
fn first() -> i32 {
    const ORIGIN: Time = Time(1_767_225_600_000);
    i32::try_from(clock::now().since(ORIGIN) / 1_000).unwrap_or(i32::MAX).max(1)
}

/// That of the holder.
fn generation(lease: &Lease) -> i32 {
    lease.spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or(0)
}

fn now() -> Option<MicroTime> {
    let at = i64::try_from(clock::now().0).ok()?;
    jiff::Timestamp::from_millisecond(at).ok().map(MicroTime)
}

/// One writer gets through.
fn taken(written: Result<Lease, kube::Error>) -> Result<Option<Lease>, kube::Error> {
    match written {
        Ok(lease) => Ok(Some(lease)),
        Err(error) if conflict(&error) => Ok(None),
        Err(error) => Err(error),
    }
}
