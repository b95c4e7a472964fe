//! One migration's loop: observe → decide → store → act, again and again until it is over.
//!
//! Everything that matters is in the object and at the broker. [`Memory`] holds only what a new
//! leader finds out by itself: that the effects of the present step have been carried out, and the
//! connections. Losing it means doing a step again, which is harmless: effects are idempotent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::json;
use shadow_api::StatefulMigration;
use shadow_broker::{Connector, Session};
use shadow_protocol::broker::Survey;
use shadow_protocol::decide::{Decision, decide};
use shadow_protocol::effect::EffectId;
use shadow_protocol::names::lock_queue;
use shadow_protocol::observation::{Archive, BrokerView, Observation, Trouble};
use shadow_protocol::phase::State;
use shadow_protocol::spec::Spec;
use shadow_protocol::time::Time;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::act::{Hands, Outcome, kube_trouble};
use crate::agents::{Agents, Moving};
use crate::cluster::Cluster;
use crate::failpoint::{self, When};
use crate::janitor::ledger::Ledger;
use crate::observe::broker_trouble;
use crate::registry::Registry;
use crate::settings::Options;
use crate::turns::Turns;
use crate::usage::Usage;
use crate::volumes::Volume;
use crate::{clock, decide as mapping, report};

mod looking;
mod observing;
mod orphan;
mod preflight;
mod queueing;
mod storing;
mod telling;

use looking::{Looked, Looking};
pub use orphan::Seen;
use storing::Unwritten;

/// How often a status that only changed in its figures is written.
const REPORT_EVERY: Duration = Duration::from_millis(500);
/// First and longest pause after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What all migrations share.
pub struct Context {
    /// The cluster.
    pub cluster: Cluster,
    /// Way to brokers.
    pub connector: Arc<dyn Connector>,
    /// Way to registries.
    pub registry: Arc<dyn Registry>,
    /// Way to the node agents, if there is one.
    pub agents: Option<Agents>,
    /// How the operator was started.
    pub options: Options,
    /// Whose turn it is.
    pub turns: Turns,
    /// Who publishes events.
    pub reporter: kube::runtime::events::Reporter,
    /// What this process knows of migrations that the API server may know no more.
    pub ledger: Arc<Ledger>,
    /// Its number among those that lead; 0 where there are no others: see `leader.rs`.
    pub generation: i32,
}

/// What a new leader would find out by itself.
#[derive(Default)]
struct Memory {
    session: Option<Box<dyn Session>>,
    /// How many effects of the present step have been carried out.
    done: usize,
    /// All of them.
    acted: Option<Time>,
    /// This process has gone into the present step itself.
    own: bool,
    /// A state whose write was not answered.
    unanswered: Option<State>,
    archive: Option<Archive>,
    moving: Option<Moving>,
    trouble: Option<Trouble>,
    failures: u32,
    survey: Option<Survey>,
    registry: Option<Result<(), String>>,
    volumes: Option<Vec<Volume>>,
    copy: Option<Result<(), String>>,
    usage: Option<Usage>,
    looking: Option<Looking>,
    /// By the target node.
    looked: BTreeMap<String, Looked>,
    broker: Option<BrokerView>,
    reported: Option<Instant>,
    said: String,
}

impl Memory {
    /// A new step begins.
    fn next_step(&mut self) {
        self.done = 0;
        self.acted = None;
        self.archive = None;
        self.moving = None;
        self.trouble = None;
        self.failures = 0;
    }

    fn fail(&mut self, trouble: Trouble) {
        self.failures = self.failures.saturating_add(1);
        self.trouble = Some(trouble);
    }

    fn backoff(&self) -> Duration {
        let factor = 2u32.saturating_pow(self.failures.saturating_sub(1).min(8));
        BACKOFF.0.saturating_mul(factor).min(BACKOFF.1)
    }
}

/// One migration and its loop.
pub struct Migration {
    context: Arc<Context>,
    object: StatefulMigration,
    memory: Memory,
    /// The object is gone, in whatever state: what is known of it is known here alone.
    orphaned: bool,
}

/// What to do after a cycle.
enum After {
    Stop,
    Sleep(Duration),
}

/// Runs a migration until it is over. `updates` brings newer versions of the object as they are seen. One
/// whose object is taken away by force, without its finalizer, is undone as if it had been deleted.
pub async fn run(context: Arc<Context>, mut updates: watch::Receiver<Seen>) {
    let seen = updates.borrow_and_update().clone();
    let _entry = context.ledger.enter(&seen.object);
    let mut bell = context.cluster.bell();
    let (object, memory) = (seen.object.clone(), Memory::default());
    let mut migration = Migration { context, object, memory, orphaned: false };
    migration.refresh(seen);
    loop {
        bell.borrow_and_update();
        let After::Sleep(pause) = Box::pin(migration.cycle()).await else { break };
        // In a fixed order, so that a simulation can be repeated; whoever comes first, the next
        // cycle looks at everything.
        tokio::select! {
            biased;
            changed = updates.changed() => {
                if changed.is_err() {
                    break;
                }
                let seen = updates.borrow_and_update().clone();
                migration.refresh(seen);
            }
            _ = bell.changed() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
    if let Some(session) = migration.memory.session.take() {
        session.close().await;
    }
}

impl Migration {
    fn api(&self) -> Api<StatefulMigration> {
        let namespace = self.object.namespace().unwrap_or_default();
        Api::namespaced(self.context.cluster.client.clone(), &namespace)
    }

    /// Takes the user's part of a newer version; the status is only ever written here, so the
    /// stored state of a version seen later can't be newer than ours.
    fn refresh(&mut self, seen: Seen) {
        // One that comes back, as from a backup, knows less.
        if seen.gone || self.orphaned {
            return self.orphan();
        }
        self.object.spec = seen.object.spec;
        self.object.metadata.deletion_timestamp = seen.object.metadata.deletion_timestamp;
    }

    async fn cycle(&mut self) -> After {
        if self.orphaned && !self.is_under_way() {
            return After::Stop;
        }
        let led = self.context.generation;
        if led > 0 && self.led_by() > led {
            tracing::warn!("another operator leads");
            return After::Stop;
        }
        let state = match mapping::stored(&self.object) {
            Ok(Some(state)) => state,
            Ok(None) => return self.begin().await,
            Err(sentence) => {
                self.say("FormatTooNew", &sentence, true).await;
                return After::Sleep(BACKOFF.1);
            }
        };
        // From now on whoever led before can write nothing here.
        if self.led_by() < led
            && let Err(unwritten) = self.write(self.object.clone()).await
        {
            return self.unwritten(unwritten).await;
        }
        let spec = mapping::spec(&self.object);
        let Some(seen) = self.observe_in_turn(&spec, &state).await else {
            return After::Sleep(BACKOFF.1);
        };
        let protocol = &self.context.options.protocol;
        let decision = decide(&spec, protocol, &state, &seen, clock::now());
        if decision.state != state {
            return match self.store(&state, &decision, &seen).await {
                Ok(()) => {
                    self.memory.next_step();
                    self.memory.own = true;
                    self.memory.unanswered = None;
                    self.act(&spec, &decision).await
                }
                Err(unwritten) => {
                    if let Unwritten::Failed(_) = &unwritten {
                        self.memory.unanswered = Some(decision.state);
                    }
                    self.unwritten(unwritten).await
                }
            };
        }
        self.report_figures(&state, &decision, &seen).await;
        // There is no way back, or this is it.
        if let Some(trouble) = seen.trouble.as_ref().filter(|trouble| trouble.permanent) {
            self.say(&trouble.reason, &trouble.message, true).await;
        }
        if decision.effects.is_empty() {
            return self.rest(&state, &decision).await;
        }
        self.act(&spec, &decision).await
    }

    async fn unwritten(&mut self, why: Unwritten) -> After {
        match why {
            Unwritten::Stale => After::Sleep(Duration::ZERO),
            Unwritten::Gone => {
                self.orphan();
                After::Sleep(Duration::ZERO)
            }
            Unwritten::Failed(trouble) => {
                self.complain(&trouble).await;
                self.memory.fail(trouble);
                After::Sleep(self.memory.backoff())
            }
        }
    }

    /// The generation of the operator that wrote last.
    fn led_by(&self) -> i32 {
        self.object.status.as_ref().and_then(|status| status.leader_generation).unwrap_or(0)
    }

    /// The first write: the finalizer and the state, before anything is looked at.
    async fn begin(&mut self) -> After {
        if self.object.metadata.deletion_timestamp.is_some() {
            return self.release().await;
        }
        let now = clock::now();
        let state = State::new(now);
        let metadata = json!({ "uid": self.object.uid(), "finalizers": [shadow_api::FINALIZER] });
        let patch = json!({ "metadata": metadata });
        let name = self.object.name_any();
        let patched = self.api().patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
        match patched {
            Ok(object) => self.object = object,
            Err(kube::Error::Api(status)) if status.code == 404 => return After::Stop,
            Err(error) => {
                let attempted = "add the finalizer to migration";
                self.complain(&kube_trouble(attempted, &name, &error)).await;
                return After::Sleep(BACKOFF.1);
            }
        }
        let decision = Decision { state, effects: Vec::new(), wake: None, waiting: String::new() };
        let stored = self.store(&decision.state.clone(), &decision, &Observation::default()).await;
        match stored {
            Ok(()) | Err(Unwritten::Stale) => After::Sleep(Duration::ZERO),
            Err(Unwritten::Gone) => After::Stop,
            Err(Unwritten::Failed(trouble)) => {
                self.complain(&trouble).await;
                After::Sleep(BACKOFF.1)
            }
        }
    }

    /// Nothing to do but wait; a migration that is over lets its object go.
    async fn rest(&mut self, state: &State, decision: &Decision) -> After {
        if let Some(wake) = decision.wake {
            let wake = Duration::from_millis(wake);
            let wake =
                if self.memory.trouble.is_some() { wake.max(self.memory.backoff()) } else { wake };
            return After::Sleep(self.until_told(wake));
        }
        if let Some(session) = self.memory.session.take() {
            session.close().await;
        }
        self.context.turns.left(&self.object.uid().unwrap_or_default());
        if self.object.metadata.deletion_timestamp.is_some() {
            return self.release().await;
        }
        let Some(ttl) = self.object.spec.ttl_seconds_after_finished else {
            return self.release().await;
        };
        let left = Duration::from_secs(ttl.into())
            .saturating_sub(Duration::from_millis(clock::now().since(state.since)));
        if !left.is_zero() {
            return After::Sleep(left);
        }
        let name = self.object.name_any();
        let uid = self.object.uid();
        let only_it = Preconditions { uid, resource_version: None };
        let params = DeleteParams::default().preconditions(only_it);
        if let Err(error) = self.api().delete(&name, &params).await {
            self.complain(&kube_trouble("delete the finished migration", &name, &error)).await;
            return After::Sleep(BACKOFF.1);
        }
        self.release().await
    }

    /// Takes the finalizer away: nothing is left to undo.
    async fn release(&mut self) -> After {
        if self.object.finalizers().is_empty() {
            return After::Stop;
        }
        let name = self.object.name_any();
        let keep: Vec<&String> =
            self.object.finalizers().iter().filter(|f| *f != shadow_api::FINALIZER).collect();
        let metadata = json!({ "uid": self.object.uid(), "finalizers": keep });
        let patch = Patch::Merge(json!({ "metadata": metadata }));
        match self.api().patch(&name, &PatchParams::default(), &patch).await {
            Err(error) if !matches!(&error, kube::Error::Api(s) if s.code == 404) => {
                let attempted = "remove the finalizer of migration";
                self.complain(&kube_trouble(attempted, &name, &error)).await;
                After::Sleep(BACKOFF.1)
            }
            _ => After::Stop,
        }
    }

    async fn act(&mut self, spec: &Spec, decision: &Decision) -> After {
        let lock = spec.queue.as_deref().map(lock_queue);
        let final_phase = decision.state.phase.is_final();
        if let Some(queue) = spec.queue.as_deref().filter(|_| !final_phase)
            && let Err(error) = self.connect(queue).await
        {
            self.memory.fail(broker_trouble(&error));
            return After::Sleep(self.memory.backoff());
        }
        let context = self.context.clone();
        // Somebody has undone what was done.
        if self.memory.acted.take().is_some() {
            self.memory.done = 0;
        }
        while let Some(effect) = decision.effects.get(self.memory.done) {
            let hands = Hands {
                cluster: &context.cluster,
                agents: context.agents.as_ref(),
                registry: context.registry.as_ref(),
                options: &context.options,
                migration: &self.object,
                session: self.memory.session.as_deref(),
                lock: lock.as_deref(),
                phase: &decision.state.phase,
                since: decision.state.since,
            };
            let (generation, step) = (context.generation, decision.state.phase.step());
            failpoint::pass(When::Before, &self.object, generation, step, self.memory.done);
            let begun = Instant::now();
            let id = EffectId::new(&spec.uid, &decision.state, self.memory.done);
            let outcome = hands.perform(effect, &id).await;
            tracing::debug!(
                %id,
                effect = effect.name(),
                millis = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
                ok = outcome.is_ok(),
                "acted"
            );
            failpoint::pass(When::After, &self.object, generation, step, self.memory.done);
            match outcome {
                Ok(Outcome::Done) => self.memory.done += 1,
                Ok(Outcome::Checkpoint(archive)) => {
                    self.memory.archive = Some(archive);
                    self.memory.done += 1;
                }
                Ok(Outcome::Moving(moving)) => {
                    self.memory.moving = Some(moving);
                    self.memory.done += 1;
                }
                Ok(Outcome::NotPinned(why)) => {
                    self.memory.done += 1;
                    let asked = self.object.spec.pin_to_target_node == Some(true);
                    self.say("NotPinned", &why, asked).await;
                }
                Err(trouble) => {
                    tracing::warn!(effect = effect.name(), message = trouble.message, "failed");
                    self.memory.fail(trouble);
                    return After::Sleep(self.memory.backoff());
                }
            }
        }
        self.memory.acted = Some(clock::now());
        self.memory.trouble = None;
        self.memory.failures = 0;
        After::Sleep(Duration::ZERO)
    }

    /// Writes a status whose state is the same when its figures or its message have changed.
    async fn report_figures(&mut self, state: &State, decision: &Decision, seen: &Observation) {
        let recent = self.memory.reported.is_some_and(|at| at.elapsed() < Self::report_every(seen));
        // Nothing may delay the source while it stands still.
        if recent || state.phase.is_final() || report::standing_still(&state.phase) {
            return;
        }
        let status = report::status(&self.object, decision, seen);
        if self.object.status.as_ref() == Some(&status) {
            return;
        }
        self.memory.reported = Some(Instant::now());
        let mut object = self.object.clone();
        object.status = Some(status);
        // A conflict is no loss: the next write brings the figures.
        if let Err(Unwritten::Gone) = self.write(object).await {
            self.orphan();
        }
    }
}
